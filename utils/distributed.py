"""Devices and their memory, and distributed runs: one command on several devices, started by torchrun.

A command started without torchrun is rank 0 of 1, and the functions here then return their input. All ranks must call
the collective functions (sums, gathers, broadcasts) in the same order.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from utils.errors import GasnetError, one_line
from utils.files import lock_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

# A rank may have to wait long for one with larger scans. A rank that dies is noticed at once, and loaders have their
# own timeout.
_PATIENCE = timedelta(days=1)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h

_store: Store | None = None
_rank, _world_size = 0, 1


def start() -> None:
    """Initialise the process group under torchrun: NCCL on CUDA, gloo on the CPU.

    Raises:
        GasnetError: the other ranks cannot be reached.
    """
    global _store, _rank, _world_size
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch

    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with _exchange() as dist:
        _store, rank, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=count, timeout=_PATIENCE)
    _rank, _world_size = rank, count


def stop() -> None:
    """Destroy the process group."""
    global _store, _rank, _world_size
    if _world_size > 1:
        with _exchange() as dist:
            dist.destroy_process_group()
    _store, _rank, _world_size = None, 0, 1


def world_size() -> int:
    """Return the number of ranks."""
    return _world_size


def rank() -> int:
    """Return the rank of this process."""
    return _rank


def local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ["LOCAL_RANK"]) if "WORLD_SIZE" in os.environ else 0


def local_world_size() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Whether this is rank 0, which prints, logs and writes shared files."""
    return rank() == 0


def first_to_fail() -> bool:
    """Whether this rank is the first to call this: its error is the cause, those of other ranks follow."""
    if _store is None:
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # the store died with the rank that failed
        return False


def shard(items: Sequence[T]) -> list[T]:
    """Return the share of this rank: every `world_size`-th item."""
    return list(items[rank() :: world_size()])


def unshard(mine: Sequence[T]) -> list[T]:
    """Gather the results of all shards, in the order of the original items, on all ranks."""
    shares = gather(mine)
    joined = [None] * sum(len(part) for part in shares)
    for number, part in enumerate(shares):
        joined[number :: len(shares)] = part
    return joined


def gather(mine: T) -> list[T]:
    """Gather an object from every rank, in the order of ranks, on all ranks."""
    gathered = [mine] * world_size()
    if world_size() > 1:
        with _exchange() as dist:
            dist.all_gather_object(gathered, mine)
    return gathered


def on_rank_zero(compute: Callable[[], T]) -> T:
    """Compute on rank 0 and broadcast the result; all ranks wait for it."""
    found = [compute() if is_rank_zero() else None]
    if world_size() > 1:
        with _exchange() as dist:
            dist.broadcast_object_list(found)
    return found[0]


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, without gradient."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        with _exchange() as dist:
            dist.all_reduce(value)
    return value


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over ranks, in place and in one all-reduce; they share one dtype and device."""
    if world_size() == 1:
        return
    import torch

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _exchange() as dist:
        dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def choose_device(name: str) -> torch.device:
    """The device of a name: cpu, cuda, cuda:N, or auto for the first CUDA device, or the CPU where there is none.

    With several ranks, each takes a CUDA device of its own.

    Raises:
        GasnetError: there is no such device, or not one for each rank.
    """
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device: %s", name)
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise GasnetError(f"--device {name}: no such device; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if (device.index or 0) >= count:
        raise GasnetError(f"--device {name}: {count} CUDA device(s) here; use --device cpu, or check the driver")
    if world_size() > 1:
        if device.index is not None:
            raise GasnetError(f"--device {device}: not for several processes; use --device cuda, each takes its own")
        if local_rank() >= count:
            raise GasnetError(
                f"--device cuda: {count} CUDA device(s) here for more processes; start fewer, or use --device cpu"
            )
        return torch.device("cuda", local_rank())
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Keep freed memory in this process for reuse, instead of returning it to the kernel.

    Feature maps have tens of megabytes each. glibc returns blocks of that size as soon as they are freed, and the
    kernel zeroes every page when it is allocated again, which takes half the time of a training step on a CPU. Does
    nothing for C libraries other than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def lock_folder_on_rank_zero(folder: Path, *subfolders: str, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Lock a folder on rank 0 (see `lock_folder`); the other ranks wait until it is locked."""
    with lock_folder(folder, *subfolders, part=part) if is_rank_zero() else nullcontext():
        on_rank_zero(lambda: None)
        yield


@contextmanager
def _exchange() -> Iterator[ModuleType]:
    """torch.distributed; what goes wrong with it is the end of another rank."""
    import torch.distributed as dist  # needed with several ranks only

    try:
        yield dist
    except RuntimeError as error:
        reason = one_line(error)
        raise GasnetError(
            f"lost another process of this command ({reason}); if it printed no error, check what killed it: memory, "
            "time limits, the network"
        ) from None
