"""Several processes at once: one command on several devices, started by torchrun.

A command that was started alone is the first of one process, and everything here then does nothing. Whatever all
processes exchange (sums, gathers) all of them must call, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import GasnetError
from utils.files import lock_folder

T = TypeVar("T")

# With one that has larger scans. One that ends is noticed at once, and loaders have a timeout of their own.
_PATIENCE = timedelta(days=1)

_store: dist.Store | None = None


def start() -> None:
    """Join the other processes where torchrun started several: NCCL on CUDA, gloo on the CPU.

    CUDA's current device is then that of LOCAL_RANK, where there are so many.

    Raises:
        GasnetError: the others cannot be reached.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with _exchange():
        _store, rank, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=count, timeout=_PATIENCE)


def stop() -> None:
    """Take leave of the others; all processes come to their end."""
    global _store
    if dist.is_initialized():
        dist.destroy_process_group()
    _store = None


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if "WORLD_SIZE" in os.environ else 0


def is_rank_zero() -> bool:
    """Whether this process is the one that prints, logs and writes what there is once."""
    return rank() == 0


def first_to_fail() -> bool:
    """Whether this process is the first of all to ask: the one whose error says why, others fail in its wake."""
    if _store is None:
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # the store is gone with the one that failed
        return False


def shard(items: Sequence[T]) -> list[T]:
    """This process's share of some items: every `world_size`-th."""
    return list(items[rank() :: world_size()])


def unshard(mine: Sequence[T]) -> list[T]:
    """The results of all shares in the order of the items that were shared out, on all processes."""
    shares = gather(mine)
    joined = [None] * sum(len(part) for part in shares)
    for number, part in enumerate(shares):
        joined[number :: len(shares)] = part
    return joined


def gather(mine: T) -> list[T]:
    """What every process gives, by rank, on all processes."""
    gathered = [mine] * world_size()
    if world_size() > 1:
        with _exchange():
            dist.all_gather_object(gathered, mine)
    return gathered


def on_rank_zero(compute: Callable[[], T]) -> T:
    """What the first process computes, on all processes; nobody goes on before."""
    found = [compute() if is_rank_zero() else None]
    if world_size() > 1:
        with _exchange():
            dist.broadcast_object_list(found)
    return found[0]


def max_over_ranks(number: int) -> int:
    """The largest of the numbers that the processes give. The processes meet, their GPUs are not waited for."""
    if world_size() == 1:
        return number
    value = torch.tensor(number)
    with _exchange():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        with _exchange():
            dist.all_reduce(value)
    return value


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, of one type and on one device, by their means over all processes, in one exchange."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _exchange():
        dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


@contextmanager
def lock_folder_on_rank_zero(folder: Path, *subfolders: str) -> Iterator[None]:
    """`lock_folder` of all processes together: the first holds the folder, the others wait until it does."""
    with lock_folder(folder, *subfolders) if is_rank_zero() else nullcontext():
        on_rank_zero(lambda: None)
        yield


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise GasnetError(
            f"lost another process of this command ({reason}); where it left no message of its own, look for what "
            "ended it: memory, time limits, the network"
        ) from None
