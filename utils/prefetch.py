"""Prepare the next item in a thread while the current one is processed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(items: Sequence[T], prepare: Callable[[T], R]) -> Iterator[tuple[T, Future[R]]]:
    """Iterate over items; while one is processed, only the next one is prepared, in a thread of its own.

    Prepared items are not referenced here once the next item is requested.

    Args:
        items: in order.
        prepare: prepares an item. It must not write anything: a command that ends does not wait for it.

    Yields:
        An item and the future of its preparation, which is done; `result` raises what `prepare` raised.
    """
    ahead = None
    for number, item in enumerate(items):
        ready = _start(prepare, item) if ahead is None else ahead
        wait([ready])
        ahead = _start(prepare, items[number + 1]) if number + 1 < len(items) else None
        yield item, ready


def _start(prepare: Callable[[T], R], item: T) -> Future[R]:
    """Prepare an item in a daemon thread, so that Ctrl-C and errors do not wait for it."""
    ready: Future[R] = Future()

    def work() -> None:
        try:
            ready.set_result(prepare(item))
        except BaseException as error:
            ready.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return ready
