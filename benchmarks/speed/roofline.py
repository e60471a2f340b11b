"""Roofline of our training: operations and bytes are counted, the rates of the device measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.iteration_speed import LABELLED, PHASES, SCANS, cases, serve
from benchmarks.speed.reading_speed import write_cohort
from benchmarks.speed.worker_process import process
from configs.settings import Settings, read_settings
from evaluation.inference import autocast
from models.objectives import (
    Batch,
    Method,
    build_networks,
    discriminator_objective,
    joint_objective,
    segmenter_objective,
)

_ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations that move nothing."""

_ONLY_SHAPE = {"zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full"}
"""Operations that read the shape of their input, not its values."""

_OVERWRITES = {"copy_", "fill_", "zero_"}
"""In-place operations that do not read what they overwrite."""


class BytesMode(TorchDispatchMode):
    """Counts the bytes that operations read and write.

    Every operation reads its inputs once and writes its outputs once; views, allocations and attribute reads of fake
    tensors move nothing, and elements repeated by `expand` count once. Executed op by op, no kernel moves less; fused
    kernels can, and changes of memory layout move more.

    Attributes:
        total: bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += _traffic(func, args, kwargs or {}, result)
        return result


def _traffic(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Bytes that one call of an operator reads and writes."""
    namespace, _, name = func._schema.name.partition("::")
    if func.is_view or namespace == "prim" or name in _ALLOCATES or name in ("_unsafe_view", "detach"):
        return 0
    read, written = [], _tensors(result)
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += _tensors(value)
            if argument.is_out or name in _OVERWRITES:
                continue
        if name not in _ONLY_SHAPE:
            read += _tensors(value)
    # In-place and out= operations return what they were given to write.
    return sum(map(_stored_bytes, read)) + sum(map(_stored_bytes, {id(tensor): tensor for tensor in written}.values()))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _stored_bytes(tensor: Tensor) -> int:
    stored = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return prod(stored) * tensor.element_size()


def count(settings: Settings, device: torch.device) -> dict[str, tuple[int, int]]:
    """Count floating-point operations and bytes of one step per objective on fake tensors, without optimisers.

    Args:
        settings: sizes, widths and precision.
        device: device that decides whether mixed precision is available.
    """
    (_, *plane), slices = settings.image.size, settings.image.slices
    method = Method(settings.exp.constraints, settings.solver.iter_max, settings.loss, settings.gate)
    mixed = autocast(device, settings.solver.precision)._enabled
    t = max(PHASES.values())
    objectives = {
        "joint": (("segmenter", "generator"), joint_objective),
        "segmenter": (("segmenter",), segmenter_objective),
        "discriminator": (("discriminator",), discriminator_objective),
    }
    counted = {}
    with FakeTensorMode():
        networks = build_networks(settings.model, settings.image)
        batch = Batch(*(torch.rand(settings.solver.batch_size, 1, slices, *plane) for _ in range(3)), ())
        labelled = Batch(*(volumes[:LABELLED] for volumes in batch[:3]), ())
        for name, (trained, objective) in objectives.items():
            for network_name, network in networks._asdict().items():
                network.requires_grad_(network_name in trained)
            with FlopCounterMode(display=False) as flops, BytesMode() as moved:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                    second = labelled if name == "segmenter" else batch
                    value = objective(networks, batch, second, method, t)
                value.total.backward()
            counted[name] = flops.get_total_flops(), moved.total
    return counted


def of_phases(counted: Mapping[str, tuple[int, int]], steps: int) -> dict[str, tuple[int, int]]:
    """Sum the result of `count` by phase: an iteration of S and G, and one of D with the given number of steps."""
    (joint, joint_bytes), (alone, alone_bytes) = counted["joint"], counted["segmenter"]
    step, step_bytes = counted["discriminator"]
    return {
        "generator+segmenter": (joint + alone, joint_bytes + alone_bytes),
        "discriminator": (steps * step, steps * step_bytes),
    }


def rates(device: torch.device, precision: str) -> dict[str, float]:
    """Operations per second of a large matrix product in a precision, and bytes per second of a large copy."""
    cuda = device.type == "cuda"
    n, dtype = (8192 if cuda else 2048), torch.bfloat16 if autocast(device, precision)._enabled else torch.float32
    a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
    source, target = (torch.rand(2**26, device=device) for _ in range(2))

    def best(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return {
        "flops": 2 * n**3 / best(lambda: torch.mm(a, b)),
        "bytes": 2 * source.nbytes / best(lambda: target.copy_(source)),
    }


def shares(
    counted: Mapping[str, tuple[int, int]], seconds: Mapping[str, float], rate: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Fraction of the roofline that each phase reaches.

    The roofline time is the longer of operations at the matrix rate and bytes at the copy rate.

    Args:
        counted: operations and bytes by phase.
        seconds: measured seconds by phase.
        rate: rates of the device, from `rates`.
    """
    table = []
    for phase, (flops, moved) in counted.items():
        at_matrix_rate, at_copy_rate = flops / rate["flops"], moved / rate["bytes"]
        table.append(
            {
                "what": phase,
                "gflop": flops / 1e9,
                "gbyte": moved / 1e9,
                "matrix_gflop_per_s": rate["flops"] / 1e9,
                "copy_gbyte_per_s": rate["bytes"] / 1e9,
                "matrix_s": at_matrix_rate,
                "copy_s": at_copy_rate,
                "ours_s": seconds[phase],
                "share": max(at_matrix_rate, at_copy_rate) / seconds[phase],
                "matrix_share": at_matrix_rate / seconds[phase],
            }
        )
    return table


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Roofline of both phases of our training, without waiting for batches.

    Args:
        device: training device.
        quick: only the demo size.
    """
    table = []
    for name, overrides in cases(device, quick).items():
        with TemporaryDirectory() as folder:
            settings = read_settings(None, [*overrides, f"EXP.OUTPUT_DIR={folder}"])
            write_cohort(Path(folder) / "cohort", settings.image.size, SCANS, LABELLED)
            with process(serve, "ours", settings, Path(folder) / "cohort", device) as ours:
                measured = {phase: [ours(t) for _ in range(4)][1:] for phase, t in PHASES.items()}
        seconds = {phase: median(total - waited for total, waited, _ in turns) for phase, turns in measured.items()}
        counted = of_phases(count(settings, device), settings.solver.discriminator_steps)
        found = shares(counted, seconds, rates(device, settings.solver.precision))
        table += [row | {"what": f"{name}: {row['what']} iteration"} for row in found]
    return table
