"""Optimisers, learning rates, and steps that never let a NaN or Inf reach the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from configs.settings import OptimizerSettings, SchedulerSettings, SolverSettings
from models.objectives import Networks
from utils import distributed
from utils.errors import TrainingError


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


def gradients(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """The gradients of the parameters of some optimisers."""
    return [p.grad for p in _parameters(optimizers)]


def gradient_norms(weighted: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The 2-norm of each term's gradient over the parameters of a network, as ``gradient_<term>``.

    Terms that the network has no part in are left out; genImgToD, which shares a pass of D with the adversarial term,
    is 0 for the segmenter. The graph stays for the backward pass that follows.

    Args:
        weighted: terms as they stand in an objective, scalars.
        network: its parameters require gradients.
    """
    parameters = list(network.parameters())
    norms = {}
    for name, term in weighted.items():
        found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        if found := [gradient for gradient in found if gradient is not None]:
            norms[f"gradient_{name}"] = torch.stack([gradient.norm() for gradient in found]).norm()
    return norms


CHECKED = ("loss", "gradient", "optimiser state or weights")
"""What `guarded_step` looks at, in the order in which one that is not finite spoils the next."""


@torch.no_grad()
def guarded_step(optimizers: Sequence[Optimizer], total: Tensor) -> Tensor:
    """One step of some optimisers, taken back where NaN or Inf goes into it or comes out of it.

    Weights and optimiser states then are what they were before. Nothing here waits for the device.

    Args:
        optimizers: their gradients are ready.
        total: the objective, a scalar.

    Returns:
        Booleans on the device: whether each of `CHECKED` is finite. The step counts where all are.
    """
    parameters = _parameters(optimizers)
    gradient = _all_finite(gradients(optimizers))
    before = {id(tensor): tensor.clone() for tensor in _tensors(optimizers, parameters)}
    for optimizer in optimizers:
        optimizer.step()
    after = _tensors(optimizers, parameters)
    finite = torch.stack([torch.isfinite(total), gradient, _all_finite(after)])
    counts = finite.all()
    if counts.is_cpu and counts:  # a GPU would have to be waited for
        return finite
    for tensor in after:
        # A state that the first step made was all zeros before it.
        old = before[id(tensor)] if id(tensor) in before else torch.zeros_like(tensor)
        tensor.copy_(torch.where(counts, tensor, old))
    return finite


def _all_finite(tensors: Sequence[Tensor]) -> Tensor:
    # Both ends of a range with NaN are NaN; a sum or norm may overflow where everything is finite.
    return torch.isfinite(torch.stack([end for tensor in tensors for end in tensor.aminmax()])).all()


def _parameters(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]


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
    _pending: list[tuple[Tensor, Tensor, str, Sequence[str]]] = field(default_factory=list)

    def record(self, finite: Tensor, total: Tensor, iteration: int, objective: str, ids: Sequence[str]) -> None:
        """Remember what `guarded_step` found, and this process's part in it: its own total, and its batch."""
        step = f"{objective} objective of iteration {iteration}"
        self._pending.append((finite, torch.isfinite(total), step, ids))

    def check(self) -> list[str]:
        """The steps skipped since the last check: what was not finite first, and of which batch.

        Of several processes, those whose total was not finite name their batches, or all where there is none.

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
                f"NaN or Inf in {self.count} steps, the last in the {skipped[-1]}; the weights are untouched: look at "
                "these scans, lower SOLVER.OPTIMIZER.*.LR, or use SOLVER.PRECISION=fp32"
            )
        return skipped


def _suspects(finite: bool, ids: Sequence[str]) -> str:
    batches = distributed.gather((finite, ids))
    suspect = [batch for finite, batch in batches if not finite] or [batch for _, batch in batches]
    return ", ".join(case_id for batch in suspect for case_id in batch)
