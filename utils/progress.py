"""Progress of long tasks: a bar on terminals, occasional plain lines in pipes and files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""Seconds between two progress lines."""


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
    """Create a tqdm bar on standard error; in pipes and files it prints plain lines.

    Args:
        items: items to iterate over, or None to call `update` by hand.
        doing: the task, such as ``cropping``.
        unit: name of one item, in the singular.
        shown: False disables the output.
        total: number of items; by default the length of `items`.
        initial: number of items done before.
        leave: keep the finished bar on the terminal.
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
    """Progress as lines without control characters: one every `SECONDS_BETWEEN_LINES`, and one at the end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_line = time.monotonic()
        self._finished = False
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg == "":  # tqdm clears the bar
            return False
        now = time.monotonic()
        finished = self.n == self.total
        if not self._finished and (finished or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line, self._finished = now, finished
            print(self._line(), file=self.fp, flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: printed lines stay."""

    def moveto(self, n: int) -> None:
        """Do nothing: there is no cursor."""

    def close(self) -> None:
        if not self.disable and self.n == self.total:
            self.display()
        self.leave = False  # the last line has been printed already
        super().close()

    def _line(self) -> str:
        values = self.format_dict
        count = f"{self.n} of {self.total}" if self.total else f"{self.n}"
        parts = [f"{self.desc}: {count} {self.unit}s"]
        done = self.n - self.initial
        if self.n == self.total or (done and not self.total):
            parts.append(f"{self.format_interval(values['elapsed'])} in all")
        elif done:  # before, there is no estimate
            rate = values["rate"] or done / max(values["elapsed"], 1e-9)
            parts.append(f"{self.format_interval((self.total - self.n) / rate)} left")
        return ", ".join([*parts, *([self.postfix] if self.postfix else [])])
