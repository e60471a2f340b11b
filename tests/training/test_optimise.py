import pytest
import torch

from configs.settings import SchedulerSettings, SolverSettings
from models import Discriminator, Generator, Segmenter
from models.objectives import Networks
from tests.several import on_processes
from training.optimise import (
    AFTER_STEP,
    SkippedSteps,
    build_optimizers,
    guarded_step,
    learning_rate,
    set_learning_rates,
)
from utils import distributed
from utils.errors import TrainingError


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return Networks(Segmenter(2), Generator(2), Discriminator(2, (16, 64, 64)))


def rates_at(networks, solver, iteration):
    optimizers = build_optimizers(networks, solver)
    assert [type(o).__name__ for o in optimizers.values()] == ["Adam", "Adam", "RMSprop"]
    assert [o.defaults["weight_decay"] for o in optimizers.values()] == [1e-3, 0, 1e-3]
    assert optimizers["discriminator"].defaults["momentum"] == 0
    set_learning_rates(optimizers, solver, iteration)
    return [optimizers[name].param_groups[0]["lr"] for name in Networks._fields]


def test_learning_rates_are_halved_one_iteration_after_the_steps_of_their_network(networks):
    for iteration, expected in ((0, 1e-4), (20_000, 1e-4), (20_001, 5e-5), (60_000, 2.5e-5), (60_001, 1.25e-5)):
        assert learning_rate(1e-4, SchedulerSettings(step=20_000), iteration) == pytest.approx(expected)
    assert rates_at(networks, SolverSettings(), 25_000) == [5e-5, 1e-5, 1e-5]


@pytest.mark.parametrize(("iteration", "share"), [(0, 1), (25, (2 + 2**0.5) / 4), (50, 0.5), (100, 0)])
def test_learning_rates_may_fall_along_a_cosine(networks, iteration, share):
    rates = rates_at(networks, SolverSettings(lr_cosine=True, iter_max=100), iteration)
    assert rates == pytest.approx([1e-4 * share, 1e-5 * share, 1e-5 * share])


@pytest.mark.fault("NaN or Inf in a loss")
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_gone_wrong_leaves_weights_and_optimiser_as_they_were(kind, where, bad):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = kind([weight], lr=0.1, weight_decay=0.1)
    reference_weight = torch.nn.Parameter(weight.detach().clone())
    reference = kind([reference_weight], lr=0.1, weight_decay=0.1)

    # The first step ever goes wrong, then a good one, a wrong one and a good one.
    wrong = ([bad, 1.0], 0.0) if where == "gradient" else ([1.0, 1.0], bad)
    for gradient, total in (wrong, ([1.0, -1.0], 1.0), wrong, ([0.5, 2.0], 1.0)):
        weight.grad = torch.tensor(gradient)
        found = guarded_step([optimizer], torch.tensor(total))
        assert found == (where if (gradient, total) == wrong else None)
    for gradient in ([1.0, -1.0], [0.5, 2.0]):
        reference_weight.grad = torch.tensor(gradient)
        reference.step()
    assert torch.equal(weight, reference_weight)
    ours, theirs = optimizer.state[weight], reference.state[reference_weight]
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.fault("NaN or Inf in an optimiser's")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("kind", "state"), [("Adam", "exp_avg"), ("Adam", "exp_avg_sq"), ("RMSprop", "square_avg"), (None, "weight")]
)
def test_nan_in_a_state_is_found(kind, state, bad):
    weight, other = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    optimizer = getattr(torch.optim, kind or "Adam")([weight, other], lr=0.1)
    weight.grad = other.grad = torch.tensor([1.0, -1.0])
    assert guarded_step([optimizer], torch.tensor(1.0)) is None
    (weight.data if state == "weight" else optimizer.state[weight][state])[1] = bad
    assert guarded_step([optimizer], torch.tensor(1.0)) == AFTER_STEP


@pytest.mark.fault("NaN or Inf in an optimiser's")
def test_a_step_that_overflows_is_found_and_large_numbers_are_no_infinity():
    weight = torch.nn.Parameter(torch.ones(10_000))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.full((10_000,), 1e18)  # the sum of their squares is above the largest float
    assert guarded_step([optimizer], torch.tensor(1.0)) is None
    torch.testing.assert_close(weight.detach(), torch.full((10_000,), 0.9))
    weight.grad = torch.full((10_000,), 1e30)  # finite, but their squares are not
    assert guarded_step([optimizer], torch.tensor(1.0)) == AFTER_STEP


@pytest.mark.fault("many of them")
def test_skipped_steps_are_counted_named_and_limited(caplog):
    skipped, fine = SkippedSteps(limit=2), torch.tensor(1.0)
    skipped.add("loss", torch.tensor(float("nan")), 5, "segmenter", ["c"])
    skipped.add("gradient", fine, 6, "joint", ["d", "e"])
    assert [record.message for record in caplog.records] == [
        "NaN or Inf in the loss of the segmenter objective of iteration 5, batch c; this step was skipped",
        "NaN or Inf in the gradient of the joint objective of iteration 6, batch d, e; this step was skipped",
    ]
    with pytest.raises(TrainingError, match=r"joint .* iteration 7, batch f, after 2 steps that were skipped"):
        skipped.add("loss", fine, 7, "joint", ["f"])
    with pytest.raises(TrainingError, match=r"in the weights or optimiser state of the discriminator .*--resume"):
        SkippedSteps(limit=2).add(AFTER_STEP, fine, 8, "discriminator", ["g"])


def skipping():
    rank, skipped, fine = distributed.rank(), SkippedSteps(limit=10), torch.tensor(1.0)
    skipped.add("loss", torch.tensor(float("nan")) if rank == 1 else fine, 1, "joint", [f"a{rank}", f"b{rank}"])
    skipped.add("gradient", fine, 3, "segmenter", [f"d{rank}"])
    return 0


def test_of_several_processes_the_one_that_went_wrong_names_its_batch(tmp_path):
    (message, _) = (ended.err for ended in on_processes(2, tmp_path, skipping))
    assert "iteration 1, batch a1, b1;" in message
    assert "iteration 3, batch d0, d1;" in message
