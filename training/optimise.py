"""Optimisers, learning rates, and steps that never let a NaN or Inf reach the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

from errors import TrainingError
from models.objectives import Networks
from settings import OptimizerSettings, SchedulerSettings, SolverSettings


def build_optimizers(networks: Networks, solver: SolverSettings) -> dict[str, Optimizer]:
    """One optimiser a network, by the network's name."""
    settings = (solver.optimizer.u, solver.optimizer.g, solver.optimizer.d)
    return {
        name: _build(list(network.parameters()), optimizer)
        for name, network, optimizer in zip(Networks._fields, networks, settings, strict=True)
    }


def _build(parameters: list[Tensor], settings: OptimizerSettings) -> Optimizer:
    # capturable keeps Adam's step counter on the GPU, where a step that is taken back is taken back without waiting.
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "capturable": parameters[0].is_cuda}
    return {"Adam": Adam, "RMSprop": RMSprop}[settings.name](parameters, **options)


def learning_rate(base: float, scheduler: SchedulerSettings, iteration: int) -> float:
    """Learning rate at an iteration: base * gamma^floor(iteration / step)."""
    return base * scheduler.gamma ** (iteration // scheduler.step)


def set_learning_rates(optimizers: Mapping[str, Optimizer], solver: SolverSettings, iteration: int) -> None:
    """Give every optimiser its learning rate at an iteration."""
    settings = (solver.optimizer.u, solver.optimizer.g, solver.optimizer.d)
    schedulers = (solver.lr_scheduler_u, solver.lr_scheduler_g, solver.lr_scheduler_d)
    for name, optimizer, scheduler in zip(Networks._fields, settings, schedulers, strict=True):
        for group in optimizers[name].param_groups:
            group["lr"] = learning_rate(optimizer.lr, scheduler, iteration)


@torch.no_grad()
def guarded_step(optimizers: Sequence[Optimizer], total: Tensor) -> Tensor:
    """One step of some optimisers, taken back where the objective or a gradient is NaN or Inf.

    Weights and optimiser states then are what they were before. Nothing here waits for the device.

    Args:
        optimizers: their gradients are ready.
        total: the objective, a scalar.

    Returns:
        A boolean scalar on the device: whether the step counted.
    """
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    finite = torch.isfinite(norm) & torch.isfinite(total)
    before = {id(tensor): tensor.clone() for tensor in _tensors(optimizers, parameters)}
    for optimizer in optimizers:
        optimizer.step()
    for tensor in _tensors(optimizers, parameters):
        # A state that the first step made was all zeros before it.
        old = before[id(tensor)] if id(tensor) in before else torch.zeros_like(tensor)
        tensor.copy_(torch.where(finite, tensor, old))
    return finite


def _tensors(optimizers: Sequence[Optimizer], parameters: Sequence[Tensor]) -> list[Tensor]:
    states = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return [*parameters, *states]


@dataclass
class SkippedSteps:
    """Counts the steps that were taken back and knows their batches; looks at the device only in `check`.

    Args:
        limit: steps that may be skipped in a run.
        count: steps skipped so far.
    """

    limit: int
    count: int = 0
    _pending: list[tuple[Tensor, str]] = field(default_factory=list)

    def record(self, finite: Tensor, iteration: int, objective: str, ids: Sequence[str]) -> None:
        """Remember whether a step counted, and of which batch."""
        self._pending.append((finite, f"{objective} objective of iteration {iteration}, batch {', '.join(ids)}"))

    def check(self) -> list[str]:
        """The steps skipped since the last check, described.

        Raises:
            TrainingError: more than `limit` steps have been skipped in this run.
        """
        if not self._pending:
            return []
        finite = torch.stack([flag for flag, _ in self._pending]).tolist()
        skipped = [what for (_, what), good in zip(self._pending, finite, strict=True) if not good]
        self._pending.clear()
        self.count += len(skipped)
        if self.count > self.limit:
            raise TrainingError(
                f"NaN or Inf in the loss or gradient of {self.count} steps, the last: {skipped[-1]}; the weights are "
                "untouched: look at these scans, lower SOLVER.OPTIMIZER.*.LR, or use SOLVER.PRECISION=fp32"
            )
        return skipped
