import ctypes
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.several import on_processes
from utils import distributed
from utils.errors import GasnetError


def exchanging(count):
    rank = distributed.rank()
    assert (distributed.world_size(), distributed.is_rank_zero()) == (count, rank == 0)
    items = list("abcdefg")
    assert distributed.shard(items) == items[rank::count]
    assert distributed.unshard([item.upper() for item in distributed.shard(items)]) == list("ABCDEFG")
    assert distributed.unshard(distributed.shard(items[:1])) == ["a"]
    assert distributed.gather(10 * rank) == [10 * number for number in range(count)]
    assert distributed.on_rank_zero(lambda: f"computed by {rank}") == "computed by 0"
    value = torch.tensor([rank + 1.0], requires_grad=True)
    total = distributed.sum_over_ranks(value)
    assert total.tolist() == [count * (count + 1) / 2]
    assert (value.tolist(), total.requires_grad) == ([rank + 1.0], False)
    # Two layouts and a scalar, as gradients and losses are.
    last = torch.arange(48.0).view(1, 2, 2, 3, 4).to(memory_format=torch.channels_last_3d)
    tensors = [last * rank, torch.tensor(float(rank))]
    distributed.average_over_ranks(tensors)
    mean = (count - 1) / 2
    assert torch.equal(tensors[0], last * mean)
    assert tensors[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert tensors[1].item() == mean
    print(f"rank {rank} was here")
    return 0


def test_what_processes_exchange(tmp_path):
    ended = on_processes(3, tmp_path / "log", exchanging, 3)
    assert [(e.code, e.err) for e in ended] == [(0, "")] * 3
    assert [e.out for e in ended] == ["rank 0 was here\n", "", ""]
    exchanging(1)  # a process alone needs no others


def going_wrong(how):
    if how == "all" or (how == "one" and distributed.rank() == 1):
        raise GasnetError("scan.nii: cut short")
    if how == "killed" and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "bug" and distributed.rank() == 1:
        raise ZeroDivisionError
    distributed.gather(0)
    return 0


@pytest.mark.parametrize(
    ("how", "codes", "message"),
    [
        ("one", [1, 1], r"error: scan.nii: cut short\n"),
        ("all", [1, 1], r"error: scan.nii: cut short\n"),
        ("killed", [1, -9], r"error: lost another process of this command \(.* by peer.*\n"),
        ("bug", [1, 1], r"(.*\n)*Traceback(.*\n)*ZeroDivisionError\n"),
    ],
)
def test_an_error_in_one_process_is_told_once_and_ends_all(tmp_path, how, codes, message):
    ended = on_processes(2, tmp_path / "log", going_wrong, how)
    assert [e.code for e in ended] == codes
    told = [e.err for e in ended if e.err]
    assert len(told) == 1
    assert re.fullmatch(message, told[0])


FAULTS = """
import resource
import numpy as np
from utils.distributed import keep_freed_memory
keep_freed_memory()
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100 * 2**20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_asking_the_kernel():
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", FAULTS], cwd=root, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 25  # 100 MiB are 25600 pages, or 50 large ones where the kernel gives those
