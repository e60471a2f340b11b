"""Ways of doing something, each in a process of its own, so that none profits from another's memory or settings."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Serve = Callable[..., None]
"""Called with a connection and arguments: says "ready", then answers what it receives until that is None."""


@contextmanager
def process(serve: Serve, *arguments: Any) -> Iterator[Callable[[Any], Any]]:
    """A process that serves, ready; ends with the block.

    Args:
        serve: can be imported by its name.
        arguments: it gets these after its end of the connection.

    Yields:
        A function that sends something there and returns the answer.

    Raises:
        EOFError: the process failed; its traceback is on standard error.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=serve, args=(there, *arguments))
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


def requests(connection: Connection) -> Iterator[Any]:
    """What is asked of a process that is ready now."""
    connection.send("ready")
    while (what := connection.recv()) is not None:
        yield what
