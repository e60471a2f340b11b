"""Stop a run at the next safe point after Ctrl-C, SIGTERM, SIGHUP (a closed terminal) or SIGUSR1 (a time limit)."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from utils import distributed


class StopSignal:
    """Remembers that SIGINT, SIGTERM, SIGHUP or SIGUSR1 arrived, instead of raising.

    Attributes:
        number: the signal that arrived; 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handlers: dict[int, Any] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals inside the block."""
        caught = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            caught.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self.receive) for number in caught}
        try:
            yield
        finally:
            self._restore_handlers()

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """Handle a signal."""
        self.number = number
        if number == signal.SIGHUP:
            _leave_terminal()
        # A second signal has its usual effect, so that nobody has to wait for a loader that hangs. Under torchrun, a
        # second one may be the same signal passed on, and torchrun itself kills what hangs.
        if distributed.world_size() == 1:
            self._restore_handlers()

    def on_any_rank(self) -> int:
        """The signal that arrived on any rank, 0 if none did; all ranks must call this."""
        return max(distributed.gather(self.number))

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Discard output to a terminal: once it is closed, writing to it fails."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
