"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to, which takes the place of `path` when the block ends without error.

    Whatever goes wrong, what stood at `path` before stays, and nothing half-written is left.

    Args:
        path: of the file; its folder is made if need be.

    Raises:
        OSError: the folder cannot be made or the file not be put in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The extension stays, since it tells some writers what to write.
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
