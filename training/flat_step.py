"""The guarded step on flat weights, gradients and optimiser states.

Computes the same as `training.optimise.guarded_step`, bit for bit. That one checks, copies and takes back every tensor
of a network on its own, several hundred kernels per step; here they are views of a few long tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

_ALIGNED = 64
"""Views start at multiples of it: 256 bytes in float32, as PyTorch allocates."""

_STATES = {"Adam": ("exp_avg", "exp_avg_sq"), "RMSprop": ("square_avg",)}


class FlatOptimizer:
    """An optimiser whose weights, gradients and states are views of flat tensors.

    Names, shapes and values in the state dicts of network and optimiser stay as they are. Tensors that are loaded into
    the optimiser later are not views any more: build this afterwards.

    Args:
        optimizer: Adam or RMSprop with one group of parameters; changed in place.

    Attributes:
        optimizer: the optimiser.
        gradient: all gradients.
        kept: weights and states, which a step that does not count leaves as they were.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        (group,) = optimizer.param_groups
        self._parameters = list(group["params"])
        self.gradient, self._gradients = _flat(self._parameters)
        weights, views = _flat(self._parameters)
        for parameter, view in zip(self._parameters, views, strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.kept = [weights]
        for name in _STATES[type(optimizer).__name__]:
            flat, views = _flat(self._parameters)
            self._take_over(name, views)
            self.kept.append(flat)
        steps = torch.zeros(len(self._parameters), device=weights.device if group["capturable"] else "cpu")
        self._take_over("step", list(steps.unbind()))
        self.kept.append(steps)

    def _take_over(self, name: str, views: Sequence[Tensor]) -> None:
        """Make views the states of a name; they start from the states there are, or from 0 as the first step does."""
        for parameter, view in zip(self._parameters, views, strict=True):
            state = self.optimizer.state[parameter]
            if name in state:
                view.copy_(state[name])
            state[name] = view

    def zero_grad(self) -> None:
        """Set all gradients to 0, and let the next backward pass add to the flat ones."""
        self.gradient.zero_()
        for parameter, view in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = view


@torch.no_grad()
def flat_guarded_step(optimizers: Sequence[FlatOptimizer], total: Tensor) -> Tensor:
    """Step optimisers; take the step back if NaN or Inf goes into it or comes out of it.

    Nothing waits for the device.

    Args:
        optimizers: their gradients are ready.
        total: value of the objective, a scalar.

    Returns:
        Booleans on the device: whether each of `training.optimise.CHECKED` is finite.
    """
    gradient = _all_finite([optimizer.gradient for optimizer in optimizers], total.device)
    kept = [tensor for optimizer in optimizers for tensor in optimizer.kept]
    before = [tensor.clone() for tensor in kept]
    for optimizer in optimizers:
        optimizer.optimizer.step()
    finite = torch.stack([torch.isfinite(total), gradient, _all_finite(kept, total.device)])
    counts = finite.all()
    for now, old in zip(kept, before, strict=True):
        torch.where(counts.to(now.device), now, old, out=now)
    return finite


def _flat(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A flat tensor of zeros, and aligned views of it with the sizes and strides of dense tensors."""
    sizes = [-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in tensors]
    flat = torch.zeros(sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
    return flat, [part.as_strided(t.shape, t.stride()) for part, t in zip(flat.split(sizes), tensors, strict=True)]


def _all_finite(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    # If a range contains NaN, both its ends are NaN; a sum or norm may overflow although everything is finite.
    return torch.stack([torch.isfinite(torch.stack(tensor.aminmax())).all().to(device) for tensor in tensors]).all()
