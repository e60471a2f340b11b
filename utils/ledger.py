"""The ledger of an output folder: its results, what they were made from and how, and the runs that made them.

    FOLDER/ledger/<kind>/<id>.json   a result: its files, sources, options and version
    FOLDER/ledger/runs/<start>.json  a run of a command

Commands read the ledger, not the folder. An entry is a file of its own that is replaced atomically, so several
processes may write at once. A file that is not in the ledger, or that was changed since it was written, belongs to
somebody else and is never replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import distributed
from utils.errors import FolderError, GasnetError
from utils.files import LEDGER, sha256, write_text

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "openvino", "torchvision", "numpy", "scipy", "scikit-image", "SimpleITK", "nibabel", "pydicom"),
    *("lungmask", "fill_voids", "pyimgaug"),
)
"""Whose versions may change a result."""

_MIB = 2**20
_BEING_WRITTEN = ""

Sources = Mapping[str, Sequence[Path]]
"""Files that a result is made from, by their role, such as ``scan`` and ``label``."""


@dataclass(frozen=True)
class Recipe:
    """What a result is made from, and how: files by role, options (JSON values), and parts that are made on request.

    The fact ``holds`` of a result must name all parts that are wanted.
    """

    sources: Sources = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    wanted: Collection[str] = ()


@dataclass(frozen=True)
class Source:
    """The files of one role: path of the first, and checksums of dates and a sample, and of all bytes."""

    path: str
    sample: str
    content: str

    def is_of(self, paths: Sequence[Path]) -> bool:
        """Whether files have the content that they had: by a sample if their dates are the same, otherwise by all."""
        return _sample(paths) == self.sample or _source_of(paths).content == self.content


@dataclass(frozen=True)
class Entry:
    """A result."""

    files: dict[str, str]  # SHA-256 by path below the output folder; empty while a file is being written
    sources: dict[str, Source] = field(default_factory=dict)  # by role
    options: dict[str, Any] = field(default_factory=dict)  # what the result depends on, JSON values
    facts: dict[str, Any] = field(default_factory=dict)  # what else is known of it, JSON values
    version: str = ""  # of this code

    @property
    def finished(self) -> bool:
        """Whether all files were written to the end."""
        return _BEING_WRITTEN not in self.files.values()

    def is_of(self, recipe: Recipe) -> bool:
        """Whether it was finished by this version with the options of a recipe."""
        return self.finished and self.options == recipe.options and self.version == project_version()


class Ledger:
    """The results of one kind, a word, in the output folder of a command."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def entries(self) -> dict[str, Entry]:
        """All entries by id, sorted; damaged ones are ignored."""
        ids = sorted(path.name.removesuffix(".json") for path in (self.folder / LEDGER / self.kind).glob("[!.]*.json"))
        return {case_id: entry for case_id in ids if (entry := self.entry(case_id)) is not None}

    def entry(self, case_id: str) -> Entry | None:
        """The entry of an id; None if there is none, or if it is damaged."""
        try:
            content = json.loads(self._path(case_id).read_text(encoding="utf-8"))
            content["sources"] = {role: Source(**source) for role, source in content["sources"].items()}
            entry = Entry(**content)
            return entry if all(isinstance(value, dict) for value in list(vars(entry).values())[:4]) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def difference(self, case_id: str, recipe: Recipe) -> str | None:
        """Why the result of an id is not that of a recipe; None if it is.

        Raises:
            FolderError: the result is that of another scan of this id, which is still where it was.
        """
        entry = self.entry(case_id)
        if entry is None:
            return "not there"
        for role, paths in recipe.sources.items():
            before, first = entry.sources.get(role), _first(paths)
            if before is None or not before.is_of(paths):
                moved = before is not None and Path(before.path).parent != first.parent
                if role == "scan" and moved and not _is_gone(before.path):
                    raise FolderError(
                        f"{case_id}: {self.folder} has the result of {before.path}, {first} is another scan of this "
                        "name; choose another --output for it, or replace the result with --overwrite"
                    )
                return f"other {role}"
        if gone := entry.sources.keys() - recipe.sources.keys():
            return f"without {min(gone)}"
        if not entry.is_of(recipe):
            for key in sorted({*entry.options, *recipe.options}):
                if entry.options.get(key) != recipe.options.get(key):
                    return f"other {key}"
            return f"made by version {entry.version}" if entry.version != project_version() else "unfinished"
        missing = [name for name in entry.files if not (self.folder / name).is_file()]
        missing += [part for part in recipe.wanted if part not in entry.facts.get("holds", ())]
        return f"{missing[0]} is missing" if missing else None

    def left(self, recipes: Mapping[str, Recipe], overwrite: bool = False) -> list[str]:
        """The ids whose results are missing or not up to date, or all; those that are redone are named in a warning.

        Raises:
            FolderError: as `difference`.
        """
        if overwrite:
            return list(recipes)
        found = {case_id: self.difference(case_id, recipe) for case_id, recipe in recipes.items()}
        left = {case_id: reason for case_id, reason in found.items() if reason is not None}
        redone = [case_id for case_id, reason in left.items() if reason not in ("not there", "unfinished")]
        if redone:
            log.warning("%d result(s) are redone, the first %s: %s", len(redone), redone[0], left[redone[0]])
        return list(left)

    @contextmanager
    def writing(self, case_id: str, files: Iterable[Path], recipe: Recipe | None = None) -> Iterator[dict[str, Any]]:
        """Claim the files of a result, and enter them once the block has written them; yields the facts to fill in.

        Files of an earlier result of this id that are not written again are removed. If the block fails or the process
        is killed, the result is unfinished.

        Raises:
            FolderError: one of the files, earlier ones included, is somebody else's; the block is not entered.
        """
        files, recipe = list(files), recipe or Recipe()
        before = self._files_of(case_id)
        self.check(case_id, [*files, *(self.folder / name for name in before)])
        sources = {role: _source_of(paths) for role, paths in recipe.sources.items()}
        facts: dict[str, Any] = {}
        names = [path.relative_to(self.folder).as_posix() for path in files]

        def write(states: dict[str, str]) -> None:
            entry = Entry(states, sources, dict(recipe.options), facts, project_version())
            write_text(self._path(case_id), json.dumps(asdict(entry)) + "\n")

        write(dict.fromkeys([*before, *names], _BEING_WRITTEN))
        yield facts
        for name in before.keys() - set(names):
            (self.folder / name).unlink(missing_ok=True)
        write({name: sha256(path) for name, path in zip(names, files, strict=True)})

    def check(self, case_id: str, files: Iterable[Path]) -> None:
        """Check that files of a result may be replaced.

        Raises:
            FolderError: one of them exists and is somebody else's.
        """
        known = self._files_of(case_id)
        for path in files:
            state = known.get(path.relative_to(self.folder).as_posix())
            if not os.path.lexists(path) or state == _BEING_WRITTEN:
                continue
            if state is None:
                problem = "was not written by this command, and is not replaced"
            elif sha256(path) != state:
                problem = "was changed since this command wrote it, and is not replaced"
            else:
                continue
            raise FolderError(f"{path}: {problem}; move it away, or choose another output folder")

    def remove(self, case_id: str) -> None:
        """Remove a result with its files.

        Raises:
            FolderError: one of them was changed by somebody else; all stay.
        """
        paths = [self.folder / name for name in self._files_of(case_id)]
        self.check(case_id, paths)
        for path in (*paths, self._path(case_id)):
            path.unlink(missing_ok=True)

    def check_alone(self, recipes: Mapping[str, Recipe], keys: Sequence[str], overwrite: bool = False) -> None:
        """Refuse results whose ids are not in `recipes` and that differ from these in the options `keys`.

        Raises:
            FolderError: there are such results, and `overwrite`, which removes them, is False.
        """
        shared = [next(iter(recipes.values())).options.get(key) for key in keys]
        others = {case_id: entry for case_id, entry in self.entries().items() if case_id not in recipes}
        others = [i for i, entry in others.items() if [entry.options.get(key) for key in keys] != shared]
        for case_id in others if overwrite else ():
            self.remove(case_id)
        if others and not overwrite:
            raise FolderError(
                f"{self.folder}: holds {len(others)} result(s) of another {' or '.join(keys)}, the first that of "
                f"{others[0]}; choose another --output, or remove them"
            )

    def remove_gone(self, inputs: Sequence[Path], scans: Mapping[str, Recipe], mine: Callable[[str], bool]) -> None:
        """Remove the results of scans that were in the input of an earlier run and are there no more, with a message.

        A scan is gone if its file is, or has another id now. `inputs` are the files and folders of this run, `scans`
        the recipes of what is there now, by id, and `mine` says whether an id belongs to this part.
        """
        roots = [_normal(path) for path in inputs]
        now = {str(_first(scan.sources["scan"])) for scan in scans.values() if "scan" in scan.sources}
        removed = []
        for case_id, entry in self.entries().items():
            source = Path(entry.sources["scan"].path) if "scan" in entry.sources else None
            if source is None or case_id in scans or not mine(case_id):
                continue
            if any(source.is_relative_to(root) for root in roots) and (str(source) in now or _is_gone(source)):
                try:
                    self.remove(case_id)
                    removed.append(case_id)
                except FolderError as error:
                    log.warning("%s; its scan is not in the input any more", error)
        if removed:
            log.warning(
                "%s: removed the results of %d scan(s) that are not in the input any more, the first %s",
                *(self.folder, len(removed), removed[0]),
            )

    def name_others(self, ids: Collection[str]) -> None:
        """Name the results of scans that are not among the ids of this run, in a warning."""
        if others := [case_id for case_id in self.entries() if case_id not in ids]:
            log.warning(
                "%s: also holds results of %d scan(s) that are not in this input, and are not counted: %s",
                *(self.folder, len(others), ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")),
            )

    def note_failures(self, asked: Iterable[str], failed: Mapping[str, str]) -> None:
        """Enter which of the results that were asked for failed, with the reason, for `failures`."""
        failures = Ledger(self.folder, f"{self.kind}.failed")
        for case_id in asked:
            if case_id in failed:
                with failures.writing(case_id, []) as facts:
                    facts["reason"] = failed[case_id]
            else:
                failures.remove(case_id)

    def failures(self, recipes: Collection[str]) -> dict[str, str]:
        """Reason by id of those results that failed when they were tried last."""
        found = Ledger(self.folder, f"{self.kind}.failed").entries()
        return {case_id: found[case_id].facts.get("reason", "") for case_id in recipes if case_id in found}

    def _path(self, case_id: str) -> Path:
        return self.folder / LEDGER / self.kind / f"{case_id}.json"

    def _files_of(self, case_id: str) -> dict[str, str]:
        entry = self.entry(case_id)
        return {} if entry is None else entry.files


def _first(paths: Sequence[Path]) -> Path:
    return _normal(min(paths))


def _is_gone(path: Path | str) -> bool:
    """Whether there is no such file; one that cannot be looked for, such as without rights, is not gone."""
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _normal(path: Path) -> Path:
    """An absolute path without ``..``; links stay."""
    return Path(os.path.normpath(path.absolute()))


def _source_of(paths: Sequence[Path]) -> Source:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(sha256(path).encode())
    return Source(str(_first(paths)), _sample(paths), digest.hexdigest()[:32])


def _sample(paths: Sequence[Path]) -> str:
    """Checksum of the sizes and dates of files and of the first, middle and last bytes of each, up to 3 MiB in all."""
    digest = hashlib.sha256()
    share = max(_MIB // len(paths), 4096)
    for path in sorted(paths):
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            for start in (0, (status.st_size - share) // 2, status.st_size - share):
                file.seek(max(start, 0))
                digest.update(file.read(share))
    return digest.hexdigest()[:32]


@cache
def project_version() -> str:
    """The version of this code, from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@cache
def git_revision() -> str | None:
    """The commit that is checked out, with ``-modified`` where tracked files differ from it; None outside of git."""
    # The folder is named, since a copy of the code inside some other repository is not at that one's revision.
    describe = ["git", "--git-dir=.git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=-modified"]
    try:
        return subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Versions of everything that may change a result, and the machine, without names of hosts and users."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    found = {"gasnet": project_version(), "git": git_revision(), "versions": versions, "platform": platform.platform()}
    if device is not None:
        import torch

        found |= {"device": str(device), "threads": torch.get_num_threads()}
        if device.type == "cuda":
            found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def results_in(folder: Path) -> set[Path]:
    """The ledger of an output folder, and the files that it names; nothing of other folders."""
    if not (folder / LEDGER / "runs").is_dir():
        return set()
    entries = (entry for kind in (folder / LEDGER).iterdir() for entry in Ledger(folder, kind.name).entries().values())
    return {folder / LEDGER, *(folder / name for entry in entries for name in entry.files)}


@contextmanager
def recording(
    folder: Path,
    *,
    device: torch.device | None = None,
    settings: BaseModel | None = None,
    seed: int | None = None,
    **facts: Any,
) -> Iterator[None]:
    """Enter a run, a block of code, in the ledger of the folder that it writes to; rank 0 does.

    The entry is written when the block begins, with the outcome ``running``, and again when it ends: ``finished``,
    ``failed`` with the reason, or ``stopped`` (Ctrl-C, SIGTERM). One that still says ``running`` was killed.

    Facts are what else is known, such as the model; JSON values and paths.
    """
    if not distributed.is_rank_zero():
        yield
        return
    script, started = Path(sys.argv[0]), datetime.now().astimezone()
    name = script.name if script.parent.resolve() == ROOT else str(script)
    path = folder / LEDGER / "runs" / f"{started:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
    record = {
        "command": shlex.join([name, *sys.argv[1:]]),
        "outcome": "running",
        "started": started.isoformat(timespec="seconds"),
        **environment(device),
        "processes": distributed.world_size(),
        "seed": seed,
        **facts,
        "settings": None if settings is None else settings.model_dump(by_alias=True, mode="json"),
    }

    def write(outcome: str) -> None:
        if outcome != "running":
            ended = datetime.now().astimezone()
            seconds = round((ended - started).total_seconds(), 3)
            record.update(outcome=outcome, ended=ended.isoformat(timespec="seconds"), seconds=seconds)
        write_text(path, json.dumps(record, indent=2, default=str) + "\n")

    write("running")
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        write("stopped")
        raise
    except Exception as error:
        write(f"failed: {error if isinstance(error, (GasnetError, OSError)) else type(error).__name__}")
        raise
    write("finished")
