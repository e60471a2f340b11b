"""Standard output and error that never end a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO


class TolerantStream:
    """A text stream that remembers the first error in writing instead of raising it.

    Attributes:
        error: that error; None if there was none.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, or remember why that failed."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self.error = self.error or error
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or remember why that failed."""
        try:
            self._stream.flush()
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_output() -> Iterator[TolerantStream]:
    """Keep standard output and error from ending a run; yields standard output.

    What is written to a closed stream is discarded. Characters that the encoding lacks are written as escapes.
    """
    _open_closed_descriptors()
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        out, err = (TolerantStream(stream or nowhere) for stream in (sys.stdout, sys.stderr))
        for stream in (out, err):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            yield out
        finally:
            for stream in (out, err):
                stream.flush()
                if stream.error is not None:
                    _discard(stream)


def _open_closed_descriptors() -> None:
    """Occupy the standard descriptors that are closed, so that no file opened later receives them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _discard(stream: TolerantStream) -> None:
    """Send what is still buffered nowhere; the interpreter would report it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
