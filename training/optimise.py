"""Optimisers, learning rates, and optimiser steps guarded against NaN and Inf."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

from configs.settings import OptimizerSettings, SchedulerSettings, SolverSettings
from models.objectives import Networks
from utils import distributed
from utils.errors import TrainingError


def build_optimizers(networks: Networks, solver: SolverSettings) -> dict[str, Optimizer]:
    """Build one optimiser per network, by name of the network."""
    settings = (solver.optimizer.u, solver.optimizer.g, solver.optimizer.d)
    return {
        name: _build(list(network.parameters()), optimizer)
        for name, network, optimizer in zip(Networks._fields, networks, settings, strict=True)
    }


def _build(parameters: list[Tensor], settings: OptimizerSettings) -> Optimizer:
    # capturable keeps Adam's step counter on the GPU, so that a step can be reverted without a synchronisation.
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "capturable": parameters[0].is_cuda}
    return {"Adam": Adam, "RMSprop": RMSprop}[settings.name](parameters, **options)


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


CHECKED = ("loss", "gradient", "optimiser state or weights")
"""What `guarded_step` checks; a value that is not finite spoils the ones after it."""


@torch.no_grad()
def guarded_step(optimizers: Sequence[Optimizer], total: Tensor) -> Tensor:
    """Take a step of optimisers whose gradients are ready, and revert it if NaN or Inf goes in or comes out.

    Reverting restores weights and optimiser states. There is no synchronisation with the device. The total is the
    objective, a scalar. Returns booleans on the device, whether each of `CHECKED` is finite; it counts if all are.
    """
    parameters = _parameters(optimizers)
    gradient = _all_finite(gradients(optimizers))
    before = {id(tensor): tensor.clone() for tensor in _tensors(optimizers, parameters)}
    for optimizer in optimizers:
        optimizer.step()
    after = _tensors(optimizers, parameters)
    finite = torch.stack([torch.isfinite(total), gradient, _all_finite(after)])
    counts = finite.all()
    if counts.is_cpu and counts:  # on a GPU, this would synchronise
        return finite
    for tensor in after:
        # A state created by the first step was all zeros before.
        old = before[id(tensor)] if id(tensor) in before else torch.zeros_like(tensor)
        tensor.copy_(torch.where(counts, tensor, old))
    return finite


def _all_finite(tensors: Sequence[Tensor]) -> Tensor:
    # aminmax propagates NaN; a sum or norm may overflow although all values are finite.
    return torch.isfinite(torch.stack([end for tensor in tensors for end in tensor.aminmax()])).all()


def _parameters(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]


def _tensors(optimizers: Sequence[Optimizer], parameters: Sequence[Tensor]) -> list[Tensor]:
    values = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    return [*parameters, *(value for value in values if isinstance(value, Tensor))]


@dataclass
class SkippedSteps:
    """Counts the steps that were reverted, up to a limit; synchronises with the device only in `check`."""

    limit: int
    count: int = 0
    _pending: list[tuple[Tensor, Tensor, str, Sequence[str]]] = field(default_factory=list)

    def record(self, finite: Tensor, total: Tensor, iteration: int, objective: str, ids: Sequence[str]) -> None:
        """Record the result of `guarded_step`, with the total and the batch of this rank."""
        step = f"{objective} objective of iteration {iteration}"
        self._pending.append((finite, torch.isfinite(total), step, ids))

    def check(self) -> list[str]:
        """Return the steps skipped since the last check: the first value that was not finite, and the batch.

        With several ranks, the batches of those whose own total was not finite; if there are none, of all.

        Raises:
            TrainingError: more than `limit` steps have been skipped in this run.
        """
        if not self._pending:
            return []
        flags = torch.stack([torch.cat([finite, own[None]]) for finite, own, _, _ in self._pending]).tolist()
        skipped = [
            f"{CHECKED[finite.index(False)]} of the {step}, batch {_suspects(own, ids)}"
            for (*finite, own), (_, _, step, ids) in zip(flags, self._pending, strict=True)
            if not all(finite)
        ]
        self._pending.clear()
        self.count += len(skipped)
        if self.count > self.limit:
            raise TrainingError(
                f"NaN or Inf in {self.count} steps, the last in the {skipped[-1]}; the weights are unchanged: check "
                "these scans, lower SOLVER.OPTIMIZER.*.LR, or use SOLVER.PRECISION=fp32"
            )
        return skipped


def _suspects(finite: bool, ids: Sequence[str]) -> str:
    batches = distributed.gather((finite, ids))
    suspect = [batch for finite, batch in batches if not finite] or [batch for _, batch in batches]
    return ", ".join(case_id for batch in suspect for case_id in batch)
