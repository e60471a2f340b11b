"""Atomic writes, and one writer per folder."""

import csv
import errno
import fcntl
import hashlib
import io
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from utils.errors import FolderError

log = logging.getLogger(__name__)

LEDGER = "ledger"
"""Folder of the ledger in an output folder."""


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Let what goes wrong with a file name it: a full disk names none, and other errors may name a hidden one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to, which takes the place of `path` when the block ends without error.

    If anything fails, what stood at `path` before stays, and nothing half-written is left; only a kill or a power loss
    leaves the hidden file, which `lock_folder` removes. The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The extension stays, since it tells some writers what to write.
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        with name_in_errors(path):
            yield temporary
            _to_disk(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some network file systems cannot, and the file is in its place
        _to_disk(path.parent)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; bytes of names that are no UTF-8 are escaped."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV with a header line; floats have six significant digits, None is an empty cell.

    The columns are keys of the rows, in the order of the table; other keys are left out.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return table.getvalue()


def is_dangling(path: Path) -> bool:
    """Whether a path is a link to something that is not there, or to itself."""
    return path.is_symlink() and not path.exists()


def names_a_file(path: Path) -> bool:
    """Whether a path is a file, or a dangling link, so that a file that is lost is an error where it is read."""
    return path.is_file() or is_dangling(path)


_PARTIAL = re.compile(
    r"(.+)\.(?:part|partial|filepart|crdownload|download|opdownload|tmp)|\.(.+)\.\w{6}", re.IGNORECASE
)
"""Names of files that are still being copied, hidden or not; the last form is that of rsync."""


def without_partial_suffix(name: str) -> str:
    """The name that a file will have once it is copied; the same name for a complete file."""
    match = _PARTIAL.fullmatch(name)
    return (match[1] or match[2]).removeprefix(".syncthing.").lstrip(".") if match else name


def _is_partial(path: Path) -> bool:
    return _PARTIAL.fullmatch(path.name) is not None and not path.is_dir()


def walk_files(
    folder: Path, skip: Callable[[Path], bool] | None = None, unreadable: dict[str, str] | None = None
) -> Iterator[Path]:
    """What lies below a folder and is no folder, at any depth and in order.

    Each folder is walked once, however many links lead to it. Hidden entries are left out, but for files that are
    still being copied; so is what macOS adds to archives, and folders to `skip`. Dangling links, pipes and devices are
    among the results. `unreadable` gets the reason by path of what cannot be read; None raises the error.
    """
    seen: set[str] = set()
    left = [folder]
    while left:
        path = left.pop()
        try:
            is_folder = path.is_dir()
            if is_folder and (place := os.path.realpath(path)) not in seen and not (skip is not None and skip(path)):
                seen.add(place)
                entries = sorted(path.iterdir(), reverse=True)
                left += [e for e in entries if not e.name.startswith((".", "__MACOSX")) or _is_partial(e)]
        except OSError as error:
            if unreadable is None:
                raise
            unreadable[str(path)] = error.strerror or type(error).__name__
            continue
        if not is_folder:
            yield path


@contextmanager
def lock_folder(folder: Path, *subfolders: str, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Keep other processes out of a folder, and remove what killed ones left half-written.

    Parts of one task keep out whole tasks and the same part, not each other. The locks are on hidden files, which
    stay. A lock ends with the process, however that ends, and is not passed on to its children: workers that outlive a
    killed run do not keep the next one out.

    The folder is made if need be. Of its subfolders, those that are named and the ledger are cleaned. A part is its
    number, from 1, and the number of parts; None is the whole.

    Raises:
        FolderError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as whole:
        locked = _lock(whole, folder, shared=part is not None)
        if part is not None:
            with (folder / f".lock.{part[0]}-of-{part[1]}").open("a+", encoding="utf-8") as file:
                _lock(file, folder)
                yield
            return
        places = (folder, *(folder / name for name in subfolders), *folder.glob(f"{LEDGER}/*"))
        for place in places if locked else ():
            for left in place.glob(".[0-9]*.partial.*"):
                left.unlink(missing_ok=True)
        yield


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Lock a file, once no other process has it locked; no lock where the file system has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _lock(file: TextIO, folder: Path, shared: bool = False) -> bool:
    """Lock the file and, unless the lock is shared, write down who did; False where the file system has no locks."""
    try:
        # Unlike those of flock, these locks belong to the process, and not to the file that its children share.
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise FolderError(
            f"{folder}: {file.read().strip() or 'another process'} is writing here; wait for its end, choose "
            "another folder, or give each task of a job its --part"
        ) from None
    except OSError as error:
        log.warning("%s: cannot be locked (%s); see to it that no other run writes here", folder, error.strerror)
        return False
    file.truncate(0)
    if not shared:
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return True


def _to_disk(path: Path) -> None:
    """Wait until a file or folder would survive a loss of power, where the file system can tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)
