"""Runs each implementation in its own process, so that none profits from another's memory or settings."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

Serve = Callable[..., None]
"""Target of a worker: called with a connection and arguments; answers every item of `requests(connection)`."""

_THREADS = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


@contextmanager
def process(serve: Serve, *arguments: Any, cores: int | None = None) -> Iterator[Callable[[Any], Any]]:
    """Start a worker process that runs until the end of the block.

    Args:
        serve: importable function.
        arguments: passed to it after its end of the connection.
        cores: number of cores that the worker may use; None for all.

    Yields:
        A function that sends a request and returns the answer.

    Raises:
        EOFError: the worker failed; its traceback is on standard error.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=serve, args=(there, *arguments))
    with _limited_to(cores):
        child.start()
    there.close()

    def ask(what: Any) -> Any:
        here.send(what)
        return here.recv()

    try:
        here.recv()
        yield ask
        here.send(None)
    finally:
        here.close()
        child.join(timeout=10)
        child.kill()


@contextmanager
def _limited_to(cores: int | None) -> Iterator[None]:
    """Let processes started in this block inherit a limit on cores and threads."""
    if cores is None:
        yield
        return
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[:cores])
    try:
        with mock.patch.dict(os.environ, dict.fromkeys(_THREADS, str(cores))):
            yield
    finally:
        os.sched_setaffinity(0, usable)


def requests(connection: Connection) -> Iterator[Any]:
    """Report that the worker is ready, then yield requests until the parent sends None."""
    connection.send("ready")
    while (what := connection.recv()) is not None:
        yield what
