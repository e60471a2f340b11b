"""Training steps as CUDA graphs: recorded once, then replayed without launching kernels one by one.

A graph repeats the same kernels on the same memory. What changes between steps is therefore copied into fixed tensors
before each replay: the batches, the learning rates, and the weights of terms that depend on the iteration. What an
iteration decides in Python, such as whether a term is on, selects the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.objectives import Batch, Method, Networks, Objective
from training.flat_step import FlatOptimizer, flat_guarded_step

_WARM_UP = 3
"""Steps before a recording: they choose cuDNN's algorithms and compile kernels, and are taken back."""


@dataclass
class _Reading:
    """What an objective did with the iteration number while it was recorded.

    Attributes:
        iteration: the iteration of the recording.
        device: device of the weights.
        decisions: comparisons of values derived from the iteration, with their outcome.
        weights: values derived from the iteration that multiplied tensors, and the fixed tensors that hold them.
    """

    iteration: int
    device: torch.device
    decisions: list[tuple[Callable[[float], bool], bool]] = field(default_factory=list)
    weights: list[tuple[Callable[[float], float], Tensor]] = field(default_factory=list)
    _used: int = 0

    def begin(self) -> _Clock:
        """Start a run of the objective; every run reads the iteration in the same order."""
        self.decisions.clear()
        self._used = 0
        return _Clock(self, lambda t: t)

    def decide(self, comparison: Callable[[float], bool]) -> bool:
        """Record a comparison."""
        outcome = comparison(self.iteration)
        self.decisions.append((comparison, outcome))
        return outcome

    def weight(self, value: Callable[[float], float]) -> Tensor:
        """The fixed tensor of a weight."""
        if self._used == len(self.weights):
            self.weights.append((value, torch.full((), value(self.iteration), device=self.device)))
        self._used += 1
        return self.weights[self._used - 1][1]

    def holds_at(self, iteration: int) -> bool:
        """Whether Python would decide the same at another iteration."""
        return all(comparison(iteration) == outcome for comparison, outcome in self.decisions)

    def set(self, iteration: int) -> None:
        """Update the weights to another iteration."""
        for value, tensor in self.weights:
            tensor.fill_(value(iteration))


class _Clock:
    """A number derived from the iteration; see `_Reading`."""

    def __init__(self, reading: _Reading, value: Callable[[float], float]) -> None:
        self._reading, self._value = reading, value

    def _compare(self, how: Callable[[float, float], bool], other: float) -> bool:
        return self._reading.decide(lambda t: how(self._value(t), other))

    def _derive(self, how: Callable[[float, float], float], other: float, swapped: bool = False) -> _Clock:
        value = self._value
        return _Clock(self._reading, (lambda t: how(other, value(t))) if swapped else lambda t: how(value(t), other))

    def __gt__(self, other: float) -> bool:
        return self._compare(operator.gt, other)

    def __ge__(self, other: float) -> bool:
        return self._compare(operator.ge, other)

    def __lt__(self, other: float) -> bool:
        return self._compare(operator.lt, other)

    def __le__(self, other: float) -> bool:
        return self._compare(operator.le, other)

    def __add__(self, other: float) -> _Clock:
        return self._derive(operator.add, other)

    def __sub__(self, other: float) -> _Clock:
        return self._derive(operator.sub, other)

    def __rsub__(self, other: float) -> _Clock:
        return self._derive(operator.sub, other, swapped=True)

    def __truediv__(self, other: float) -> _Clock:
        return self._derive(operator.truediv, other)

    def __mul__(self, other: float | Tensor) -> _Clock | Tensor:
        if isinstance(other, Tensor):
            return self._reading.weight(self._value) * other
        return self._derive(operator.mul, other)

    __radd__, __rmul__ = __add__, __mul__


class Outcome(NamedTuple):
    """Result of a step.

    Attributes:
        name: name of the objective.
        values: its terms and total, by name.
        finite: whether each of `training.optimise.CHECKED` is finite.
    """

    name: str
    values: Mapping[str, Tensor]
    finite: Tensor


class _Recording:
    """A recorded step.

    On CUDA a replay repeats the kernels. On the CPU, for tests, it repeats the Python code with the iteration of the
    recording, so that only what a replay updates can have changed.
    """

    def __init__(self, work: Callable[[], Outcome], reading: _Reading, kept: Sequence[Tensor], pool: Any) -> None:
        self.reading, self._work = reading, work
        self._graph: torch.cuda.CUDAGraph | None = None
        device, before = reading.device, [tensor.clone() for tensor in kept]
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            for _ in range(_WARM_UP):
                self._outcome = work()
        if stream is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(old)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._graph = torch.cuda.CUDAGraph()
            # Threads that pin the memory of batches call CUDA meanwhile.
            capture = torch.cuda.graph(self._graph, pool, torch.cuda.Stream(device), capture_error_mode="thread_local")
            with torch.cuda.device(device), capture:
                self._outcome = work()

    def replay(self) -> Outcome:
        """Take the step again; the values are copies."""
        if self._graph is None:
            self._outcome = self._work()
        else:
            self._graph.replay()
        name, values, finite = self._outcome
        copies = torch.stack(list(values.values())).unbind()
        return Outcome(name, dict(zip(values, copies, strict=True)), finite.clone())


class GraphedSteps:
    """Takes training steps as replays of recordings, and records them when needed.

    Args:
        networks: S, G and D, on their device.
        optimizers: flat optimisers, by name of the network.
        method: constraints, weights and gates.
        precision: returns the context of mixed precision.
    """

    def __init__(
        self,
        networks: Networks,
        optimizers: Mapping[str, FlatOptimizer],
        method: Method,
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.networks, self.optimizers, self.method, self.precision = networks, optimizers, method, precision
        self.device = next(networks.segmenter.parameters()).device
        self.recordings: dict[Any, list[tuple[_Recording, Sequence[Tensor]]]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._rates = {name: torch.zeros((), device=self.device) for name in optimizers}

    def step(
        self, objective: Callable[..., Objective], batches: Sequence[Batch], trains: Sequence[str], iteration: int
    ) -> Outcome:
        """Take one step of the optimisers of some networks; the others are frozen.

        Args:
            objective: a function of `models.objectives`.
            batches: its two batches.
            trains: names of the networks to train.
            iteration: t.
        """
        tensors = [tensor for batch in batches for tensor in batch[:3] if tensor is not None]
        there = tuple(tensor is not None for batch in batches for tensor in batch[:3])
        key = objective.__name__, tuple(trains), there, tuple(tensor.shape for tensor in tensors)
        known = self.recordings.setdefault(key, [])
        for name in trains:
            self._rates[name].fill_(self.optimizers[name].optimizer.param_groups[0]["lr"])
        for recording, static in known:
            if recording.reading.holds_at(iteration):
                for fixed, tensor in zip(static, tensors, strict=True):
                    fixed.copy_(tensor, non_blocking=True)
                recording.reading.set(iteration)
                return recording.replay()
        static = known[0][1] if known else [tensor.clone() for tensor in tensors]
        for fixed, tensor in zip(static, tensors, strict=True):
            fixed.copy_(tensor, non_blocking=True)
        own = iter(static)
        fixed = [Batch(*(None if tensor is None else next(own) for tensor in batch[:3]), ()) for batch in batches]
        recording = self._record(objective, fixed, trains, iteration)
        known.append((recording, static))
        return recording.replay()

    def _record(
        self, objective: Callable[..., Objective], batches: Sequence[Batch], trains: Sequence[str], iteration: int
    ) -> _Recording:
        reading = _Reading(iteration, self.device)
        optimizers = [self.optimizers[name] for name in trains]

        def work() -> Outcome:
            # On the CPU this runs at every replay, on CUDA only while recording.
            for name, network in self.networks._asdict().items():
                network.requires_grad_(name in trains)
            for optimizer in optimizers:
                optimizer.zero_grad()
            with self.precision():
                value = objective(self.networks, *batches, self.method, reading.begin())
            value.total.backward()
            total = value.total.detach()
            groups = [optimizer.optimizer.param_groups[0] for optimizer in optimizers]
            with _rates_as_tensors(groups, [self._rates[name] for name in trains]):
                finite = flat_guarded_step(optimizers, total)
            return Outcome(value.name, {**value.terms, "total": total}, finite)

        # Warm-up must leave no trace: in optimisers, nor in the power iteration of D's spectral norms.
        buffers = [buffer for network in self.networks for buffer in network.buffers()]
        kept = [*buffers, *(tensor for optimizer in self.optimizers.values() for tensor in optimizer.kept)]
        return _Recording(work, reading, kept, self._pool)


@contextmanager
def _rates_as_tensors(groups: Sequence[dict[str, Any]], rates: Sequence[Tensor]) -> Iterator[None]:
    """Let parameter groups have tensors as learning rates within a block."""
    before = [group["lr"] for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, rate in zip(groups, before, strict=True):
            group["lr"] = rate
