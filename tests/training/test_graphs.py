import copy
from contextlib import nullcontext

import pytest
import torch

from configs.settings import read_settings
from models import Discriminator, Generator, Segmenter
from models.objectives import (
    Batch,
    Method,
    Networks,
    discriminator_objective,
    joint_objective,
    segmenter_objective,
)
from training.flat_step import FlatOptimizer, flat_guarded_step
from training.graphs import GraphedSteps, _rates_as_tensors
from training.optimise import build_optimizers, guarded_step, set_learning_rates

CPU = torch.device("cpu")
SIZE = (16, 32, 64)
SETTINGS = read_settings(
    None,
    [
        "EXP.ID=recons_origImgToD_genImgToD_perception_MIL",
        "LOSS={MIL_START: 2, MIL_SHARE: 0.01, PERCEPTION_START: 3, PERCEPTION_RAMP: 4}",
        "SOLVER.ITER_MAX=20",
        "SOLVER.LR_SCHEDULER_U={STEP: 2, GAMMA: 0.5}",
    ],
)
METHOD = Method(SETTINGS.exp.constraints, SETTINGS.solver.iter_max, SETTINGS.loss, SETTINGS.gate)


def random_batch():
    shape = (1, 1, *SIZE)
    image, lung, lesion = torch.rand(shape) * 2 - 1, torch.rand(shape) > 0.5, torch.rand(shape) > 0.9
    return Batch(image, lung.float(), lesion.float(), ("a",))


def schedule(iterations):
    """Objective, batches and networks of some iterations; D sees batches without masks of lesions."""
    torch.manual_seed(1)
    for t in range(iterations):
        first, second = random_batch(), random_batch()
        if t % 3 == 2:
            yield t, discriminator_objective, (first._replace(lesion=None), second), ("discriminator",)
        else:
            yield t, joint_objective, (first, second), ("segmenter", "generator")
            yield t, segmenter_objective, (second, first), ("segmenter",)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return Networks(Segmenter(2), Generator(2), Discriminator(2, SIZE))


def eager(networks, iterations, flat, tensors=False):
    optimizers = build_optimizers(networks, SETTINGS.solver)
    flats = {name: FlatOptimizer(optimizer) for name, optimizer in optimizers.items()} if flat else {}
    found = []
    for t, objective, batches, trains in schedule(iterations):
        set_learning_rates(optimizers, SETTINGS.solver, t)
        for name, network in networks._asdict().items():
            network.requires_grad_(name in trains)
        for name in trains:
            flats[name].zero_grad() if flat else optimizers[name].zero_grad()
        value = objective(networks, *batches, METHOD, t)
        value.total.backward()
        if flat:
            groups = [optimizers[name].param_groups[0] for name in trains]
            # Adam rounds a tensor otherwise than a number; graphs have tensors.
            with (
                nullcontext()
                if not tensors
                else _rates_as_tensors(groups, [torch.tensor(group["lr"]) for group in groups])
            ):
                flat_guarded_step([flats[name] for name in trains], value.total.detach())
        else:
            guarded_step([optimizers[name] for name in trains], value.total.detach())
        found.append({**value.terms, "total": value.total.detach()})
    return found, optimizers


def assert_same(networks, others):
    for network, other in zip(networks, others, strict=True):
        for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_steps_on_flat_tensors_are_the_same_bit_for_bit(networks):
    a, b = copy.deepcopy(networks), copy.deepcopy(networks)
    (expected, _), (found, _) = eager(a, 4, flat=False), eager(b, 4, flat=True)
    assert all(torch.equal(x[name], y[name]) for x, y in zip(expected, found, strict=True) for name in x)
    assert_same(a, b)


def test_replayed_steps_are_the_same_as_eager_ones_at_every_iteration(networks):
    a, b = copy.deepcopy(networks), copy.deepcopy(networks)
    expected, plain = eager(a, 10, flat=True, tensors=True)
    optimizers = build_optimizers(b, SETTINGS.solver)
    graphs = GraphedSteps(b, {name: FlatOptimizer(optimizer) for name, optimizer in optimizers.items()}, METHOD)
    for (t, objective, batches, trains), values in zip(schedule(10), expected, strict=True):
        set_learning_rates(optimizers, SETTINGS.solver, t)
        outcome = graphs.step(objective, batches, trains, t)
        assert outcome.finite.all()
        assert outcome.values.keys() == values.keys()
        assert all(torch.equal(outcome.values[name], value) for name, value in values.items())
    assert_same(a, b)
    # Learning rates are numbers again, and states are saved as before.
    for name, optimizer in optimizers.items():
        assert isinstance(optimizer.param_groups[0]["lr"], float)
        assert optimizer.state_dict()["param_groups"] == plain[name].state_dict()["param_groups"]
    # The joint objective has four sets of terms: without MIL, with it, with rising and with full perception.
    assert sorted(len(known) for known in graphs.recordings.values()) == [1, 1, 4]


def test_a_recording_is_not_overwritten_by_the_next_step(networks):
    own = copy.deepcopy(networks)
    optimizers = build_optimizers(own, SETTINGS.solver)
    graphs = GraphedSteps(own, {name: FlatOptimizer(optimizer) for name, optimizer in optimizers.items()}, METHOD)
    torch.manual_seed(2)
    first = graphs.step(segmenter_objective, (random_batch(), random_batch()), ("segmenter",), 0)
    kept = {name: value.clone() for name, value in first.values.items()}
    second = graphs.step(segmenter_objective, (random_batch(), random_batch()), ("segmenter",), 0)
    assert all(torch.equal(kept[name], value) for name, value in first.values.items())
    assert second.values["total"] != first.values["total"]


def test_a_step_with_nan_is_taken_back_and_named(networks):
    own = copy.deepcopy(networks)
    optimizers = build_optimizers(own, SETTINGS.solver)
    graphs = GraphedSteps(own, {name: FlatOptimizer(optimizer) for name, optimizer in optimizers.items()}, METHOD)
    torch.manual_seed(2)
    good, bad = random_batch(), random_batch()
    bad.image[0, 0, 3, 4, 5] = float("nan")
    graphs.step(segmenter_objective, (good, good), ("segmenter",), 0)
    before = copy.deepcopy(own)
    outcome = graphs.step(segmenter_objective, (good, bad), ("segmenter",), 1)
    assert outcome.finite.tolist() == [False, False, False]
    assert_same(own, before)
    assert graphs.step(segmenter_objective, (good, good), ("segmenter",), 2).finite.all()
