import copy

import pytest
import torch

from errors import TrainingError
from models import Discriminator, Generator, Segmenter
from models.objectives import Networks
from settings import SchedulerSettings, SolverSettings
from training.optimise import SkippedSteps, build_optimizers, guarded_step, learning_rate, set_learning_rates


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return Networks(Segmenter(2), Generator(2), Discriminator(2, (16, 64, 64)))


def test_every_network_has_its_published_optimiser(networks):
    optimizers = build_optimizers(networks, SolverSettings())
    kinds = {name: (type(o).__name__, o.defaults["lr"], o.defaults["weight_decay"]) for name, o in optimizers.items()}
    assert kinds == {
        "segmenter": ("Adam", 1e-4, 1e-3),
        "generator": ("Adam", 1e-5, 0),
        "discriminator": ("RMSprop", 1e-5, 1e-3),
    }
    assert optimizers["discriminator"].defaults["momentum"] == 0


@pytest.mark.parametrize(("iteration", "expected"), [(0, 1e-4), (19_999, 1e-4), (20_000, 5e-5), (60_000, 1.25e-5)])
def test_learning_rates_are_halved_at_their_iterations(iteration, expected):
    assert learning_rate(1e-4, SchedulerSettings(step=20_000), iteration) == pytest.approx(expected)


def test_each_network_follows_its_own_scheduler(networks):
    solver = SolverSettings()
    optimizers = build_optimizers(networks, solver)
    set_learning_rates(optimizers, solver, 25_000)
    rates = {name: o.param_groups[0]["lr"] for name, o in optimizers.items()}
    assert rates == {"segmenter": 5e-5, "generator": 1e-5, "discriminator": 1e-5}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_gone_wrong_leaves_weights_and_optimiser_as_they_were(kind, where, bad):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = kind([weight], lr=0.1, weight_decay=0.1)
    reference_weight = torch.nn.Parameter(weight.detach().clone())
    reference = kind([reference_weight], lr=0.1, weight_decay=0.1)

    def step(gradient, total, optimizer, weight):
        weight.grad = torch.tensor(gradient)
        return guarded_step([optimizer], torch.tensor(total))

    # The first step ever goes wrong, then a good one, a wrong one and a good one.
    wrong = ([bad, 1.0], 0.0) if where == "gradient" else ([1.0, 1.0], bad)
    for gradient, total in (wrong, ([1.0, -1.0], 1.0), wrong, ([0.5, 2.0], 1.0)):
        counted = step(gradient, total, optimizer, weight)
        assert counted.item() == ((gradient, total) != wrong)
    for gradient in ([1.0, -1.0], [0.5, 2.0]):
        reference_weight.grad = torch.tensor(gradient)
        reference.step()
    assert torch.equal(weight, reference_weight)
    ours, theirs = optimizer.state[weight], reference.state[reference_weight]
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_a_good_step_is_the_optimisers_own(networks):
    other = copy.deepcopy(networks.segmenter)
    optimizer = build_optimizers(networks, SolverSettings())["segmenter"]
    plain = torch.optim.Adam(other.parameters(), lr=1e-4, weight_decay=1e-3)
    for network, step in ((networks.segmenter, lambda total: guarded_step([optimizer], total)), (other, None)):
        total = network(torch.ones(1, 1, 4, 8, 8)).square().sum()
        total.backward()
        step(total.detach()) if step else plain.step()
    for a, b in zip(networks.segmenter.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_skipped_steps_are_counted_named_and_limited():
    skipped = SkippedSteps(limit=2)
    assert skipped.check() == []
    skipped.record(torch.tensor(True), 4, "joint", ["a", "b"])
    skipped.record(torch.tensor(False), 5, "segmenter", ["c"])
    assert skipped.check() == ["segmenter objective of iteration 5, batch c"]
    skipped.record(torch.tensor(False), 6, "joint", ["d"])
    skipped.check()
    assert skipped.count == 2
    skipped.record(torch.tensor(False), 7, "discriminator", ["e", "f"])
    with pytest.raises(TrainingError, match="3 steps, the last: discriminator objective of iteration 7, batch e, f"):
        skipped.check()
