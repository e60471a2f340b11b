"""Optimisers, learning rates, and optimiser steps guarded against NaN and Inf."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

from configs.settings import SchedulerSettings, SolverSettings
from models.objectives import Networks
from utils import distributed
from utils.errors import TrainingError

log = logging.getLogger(__name__)


def build_optimizers(networks: Networks, solver: SolverSettings) -> dict[str, Optimizer]:
    """Build one optimiser per network, by name of the network."""
    settings, kinds = (solver.optimizer.u, solver.optimizer.g, solver.optimizer.d), {"Adam": Adam, "RMSprop": RMSprop}
    return {
        name: kinds[one.name](network.parameters(), lr=one.lr, weight_decay=one.weight_decay)
        for name, network, one in zip(Networks._fields, networks, settings, strict=True)
    }


def learning_rate(base: float, scheduler: SchedulerSettings, iteration: int) -> float:
    """Learning rate of an iteration: base * gamma^floor((iteration - 1) / step).

    The published schedulers are stepped after an iteration with its number, so a rate falls one iteration late.
    """
    return base * scheduler.gamma ** (max(iteration - 1, 0) // scheduler.step)


def cosine(iteration: int, last: int) -> float:
    """Factor that falls from 1 to 0 along half a cosine: (1 + cos(pi * iteration / last)) / 2."""
    return (1 + math.cos(math.pi * iteration / last)) / 2


def set_learning_rates(optimizers: Mapping[str, Optimizer], solver: SolverSettings, iteration: int) -> None:
    """Set the learning rate of every optimiser for an iteration."""
    factor = cosine(iteration, solver.iter_max) if solver.lr_cosine else 1.0
    settings = (solver.optimizer.u, solver.optimizer.g, solver.optimizer.d)
    schedulers = (solver.lr_scheduler_u, solver.lr_scheduler_g, solver.lr_scheduler_d)
    for name, optimizer, scheduler in zip(Networks._fields, settings, schedulers, strict=True):
        for group in optimizers[name].param_groups:
            group["lr"] = factor * learning_rate(optimizer.lr, scheduler, iteration)


def gradients(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """Return the gradients of the parameters of some optimisers."""
    return [p.grad for p in _parameters(optimizers)]


AFTER_STEP = "weights or optimiser state"


@torch.no_grad()
def guarded_step(optimizers: Sequence[Optimizer], total: Tensor) -> str | None:
    """Take a step of optimisers whose gradients are ready, unless the objective or a gradient is NaN or Inf.

    The total is the objective, a scalar. Returns what is not finite, `AFTER_STEP` if a step made it so; otherwise None.
    """
    if not torch.isfinite(total):
        return "loss"
    if not _are_finite(gradients(optimizers)):
        return "gradient"
    for optimizer in optimizers:
        optimizer.step()
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    after = [*_parameters(optimizers), *(value for value in states if value.ndim)]  # but for counters of steps
    return None if _are_finite(after) else AFTER_STEP


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    # aminmax propagates NaN; a sum or norm may overflow although all values are finite.
    return bool(torch.isfinite(torch.stack([end for tensor in tensors for end in tensor.aminmax()])).all())


def _parameters(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]


@dataclass
class SkippedSteps:
    """Counts the steps that were not taken, up to a limit."""

    limit: int
    count: int = 0

    def add(self, problem: str, own: Tensor, iteration: int, objective: str, ids: Sequence[str]) -> None:
        """Report what `guarded_step` found, with the batch of this rank, whose own total is given.

        With several ranks, the batches of those whose own total is not finite; if there are none, of all.

        Raises:
            TrainingError: a step spoiled the weights, or this is one step more than the limit.
        """
        batches = distributed.gather((bool(own.isfinite()), ids))
        suspects = [batch for finite, batch in batches if not finite] or [batch for _, batch in batches]
        names = ", ".join(case_id for batch in suspects for case_id in batch)
        step = f"NaN or Inf in the {problem} of the {objective} objective of iteration {iteration}, batch {names}"
        advice = "lower SOLVER.OPTIMIZER.*.LR, or use SOLVER.PRECISION=fp32"
        self.count += 1
        if problem == AFTER_STEP:
            raise TrainingError(f"{step}; resume from the last state with --resume, and {advice}")
        if self.count > self.limit:
            raise TrainingError(f"{step}, after {self.limit} steps that were skipped; check these scans, {advice}")
        log.warning("%s; this step was skipped", step)
