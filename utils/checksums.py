"""Checksums of the files in a folder, in the list that ``sha256sum --check SHA256SUMS`` reads."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from utils.errors import CheckpointError
from utils.files import write_text

SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write ``SHA256SUMS`` of all files in a folder but hidden ones.

    Raises:
        OSError: a file cannot be read, or the list not be written.
    """
    paths = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != SUMS)
    write_text(folder / SUMS, "".join(f"{sha256(path)}  {path.name}\n" for path in paths))


def check_listed(path: Path) -> None:
    """Compare a file with its checksum, where ``SHA256SUMS`` beside it has one.

    Raises:
        CheckpointError: they differ.
        OSError: a file cannot be read.
    """
    sums = path.parent / SUMS
    if not sums.is_file():
        return
    text = sums.read_text(encoding="utf-8", errors="replace")
    for expected, name in re.findall(r"^([0-9a-fA-F]{64}) [ *](.+?)\r?$", text, re.MULTILINE):
        if name.removeprefix("./") == path.name and sha256(path) != expected.lower():
            raise CheckpointError(
                f"{path}: is not the file whose checksum stands in {SUMS}; copy it again from where it came from"
            )
