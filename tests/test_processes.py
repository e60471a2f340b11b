import os
import re
import signal

import pytest
import torch

import processes
from errors import GasnetError
from tests.several import on_processes


def exchanging(count):
    rank = processes.rank()
    assert (processes.count(), processes.is_first()) == (count, rank == 0)
    items = list("abcdefg")
    assert processes.share(items) == items[rank::count]
    assert processes.join([item.upper() for item in processes.share(items)]) == list("ABCDEFG")
    assert processes.join(processes.share(items[:1])) == ["a"]
    assert processes.gather(10 * rank) == [10 * number for number in range(count)]
    assert processes.from_first(lambda: f"computed by {rank}") == "computed by 0"
    assert processes.largest(rank % 2) == min(count - 1, 1)
    value = torch.tensor([rank + 1.0], requires_grad=True)
    total = processes.summed(value)
    assert total.tolist() == [count * (count + 1) / 2]
    assert (value.tolist(), total.requires_grad) == ([rank + 1.0], False)
    # Two layouts and a scalar, as gradients and losses are.
    last = torch.arange(48.0).view(1, 2, 2, 3, 4).to(memory_format=torch.channels_last_3d)
    tensors = [last * rank, torch.tensor(float(rank))]
    processes.average(tensors)
    mean = (count - 1) / 2
    assert torch.equal(tensors[0], last * mean)
    assert tensors[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert tensors[1].item() == mean
    print(f"rank {rank} was here")
    return 0


@pytest.mark.parametrize("count", [1, 3])
def test_what_processes_exchange(tmp_path, count):
    ended = on_processes(count, tmp_path / "log", exchanging, count)
    assert [(e.code, e.err) for e in ended] == [(0, "")] * count
    assert [e.out for e in ended] == ["rank 0 was here\n", *[""] * (count - 1)]


def test_a_process_alone_needs_no_others():
    exchanging(1)


def going_wrong(how):
    if how == "one":
        if processes.rank() == 1:
            raise GasnetError("scan.nii: cut short")
    elif how == "all":
        raise GasnetError("no cohort here")
    elif how == "killed":
        if processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    elif processes.rank() == 1:
        raise ZeroDivisionError
    processes.largest(0)
    return 0


@pytest.mark.parametrize(
    ("how", "codes", "message"),
    [
        ("one", [1, 1], r"error: scan.nii: cut short\n"),
        ("all", [1, 1], r"error: no cohort here\n"),
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
