"""Commands on several processes, as torchrun starts them: with its variables, and a store that outlives them."""

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from datasets import scans
from utils import distributed
from utils.cli import run

# One process imports everything once, and becomes those that are asked for; its parent may have used CUDA, it has not.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["training.run", "evaluation.testing", "evaluation.predicting", "datasets.public.make"])


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def on_processes(count, folder, function, *arguments, timeout=90):
    """Run a command, a function as `command_line.run` takes it, on some processes; how each ended, by rank."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [
        started_process(folder, function, *arguments, rank=rank, of=(count, store.port)) for rank in range(count)
    ]
    for process in started:
        process.join(timeout)
    for process in started:
        process.kill()  # those that hang
        process.join()
    return [
        Ended(process.exitcode, *((folder / f"{rank}.{kind}").read_text() for kind in ("out", "err")))
        for rank, process in enumerate(started)
    ]


def started_process(folder, function, *arguments, rank=0, of=None):
    """A process of its own for a command, alone or one of several; it writes to RANK.out and RANK.err in a folder."""
    folder.mkdir(exist_ok=True)
    process = _CONTEXT.Process(target=_child, args=(rank, of, folder, function, arguments))
    process.start()
    return process


def _child(rank, of, folder, function, arguments):
    if of is not None:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of[0], "MASTER_PORT": of[1]}
        os.environ |= {name: str(value) for name, value in variables.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for kind, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(Path(folder) / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    code = 1
    try:
        code = run(lambda: function(*arguments))
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush(), sys.stderr.flush()
    sys.exit(code)


def noting_who_indexes(main, arguments, log):
    """Run a script; each process that indexes an archive leaves ``log/indexed RANK``."""
    index = scans.index_scans

    def noted(*paths, **options):
        (log / f"indexed {distributed.rank()}").touch()
        return index(*paths, **options)

    scans.index_scans = noted
    return main(arguments)


def stop_at(training, iteration):
    """Let a run get SIGTERM in an iteration."""
    between = training.between

    def stop():
        if training.iteration == iteration:
            training.stop.receive(signal.SIGTERM)
        between()

    training.between = stop


def in_double_precision():
    """For this process: what is left of rounding is too small for a step of Adam to make much of it."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
