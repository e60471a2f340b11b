"""Progress of long work: a bar with the time left on a terminal, a line now and then in pipes and files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""Where progress is shown as lines."""


def progress_bar(
    items: Iterable[Any] | None,
    doing: str,
    *,
    unit: str,
    shown: bool = True,
    total: int | None = None,
    initial: int = 0,
    leave: bool = True,
) -> tqdm:
    """A tqdm bar on standard error, which in pipes and files writes plain lines instead.

    Args:
        items: to go through, or None where `update` is called by hand.
        doing: what is being done, such as ``cropping``.
        unit: what is counted, in the singular.
        shown: False shows nothing.
        total: how many there are; by default the length of `items`.
        initial: how many were done before.
        leave: keep the bar on the terminal when it is full.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(
        items,
        desc=doing,
        unit=unit,
        total=total,
        initial=initial,
        leave=leave,
        disable=not shown,
        file=sys.stderr,
        dynamic_ncols=kind is tqdm,
    )


class _Lines(tqdm):
    """Progress as lines without control characters, the first after some time and the last when all is done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_line = time.monotonic()
        self._finished = False
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg == "":  # to wipe what is shown
            return False
        now = time.monotonic()
        finished = self.n == self.total
        if not self._finished and (finished or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line, self._finished = now, finished
            print(self._line(), file=self.fp, flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing: lines that were written stay."""

    def moveto(self, n: int) -> None:
        """Nothing: there is no cursor to move."""

    def close(self) -> None:
        if not self.disable and self.n == self.total:
            self.display()
        self.leave = False  # the bar that it would leave is the line above
        super().close()

    def _line(self) -> str:
        values = self.format_dict
        count = f"{self.n} of {self.total}" if self.total else f"{self.n}"
        parts = [f"{self.desc}: {count} {self.unit}s"]
        done = self.n - self.initial
        if self.n == self.total or (done and not self.total):
            parts.append(f"{self.format_interval(values['elapsed'])} in all")
        elif done:  # before, nothing says how long the rest takes
            rate = values["rate"] or done / max(values["elapsed"], 1e-9)
            parts.append(f"{self.format_interval((self.total - self.n) / rate)} left")
        return ", ".join([*parts, *([self.postfix] if self.postfix else [])])
