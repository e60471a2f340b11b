"""Records of what a command wrote to a folder: which files, from which inputs, with which options.

A file that is not on record, or that changed since it was written, belongs to somebody else and is never replaced. A
result that was made from other inputs or with other options is not up to date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.checksums import sha256
from utils.errors import FolderError
from utils.files import write_text
from utils.manifest import NAME as MANIFEST
from utils.manifest import project_version

RESULTS = ".results"
"""Hidden folder of the records, one file per scan."""

NO_RECORD = "no record"
"""What `Results.difference` returns for a scan without a record."""

_BEING_WRITTEN = ""


def digest_of(paths: Iterable[Path]) -> str:
    """Digest of the names, sizes and dates of files: it changes when a file is replaced or edited.

    Raises:
        OSError: a file cannot be found.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


class Results:
    """The results in one folder.

    Args:
        folder: output folder of a command.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def writing(
        self,
        case_id: str,
        files: Sequence[Path],
        made_by: Mapping[str, Any],
        inputs: Mapping[str, str],
        facts: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:
        """Claim the files of a scan, and record them once the block has written them.

        If the block fails or the process is killed, the scan is on record as unfinished.

        Args:
            case_id: id of the scan.
            files: files that the block writes, in the folder.
            made_by: options that the results depend on, JSON values.
            inputs: digest by role of the inputs, see `digest_of`.
            facts: what else to record, JSON values.

        Raises:
            FolderError: one of the files exists and is somebody else's; the block is not entered.
            OSError: a file or the record cannot be read or written.
        """
        self.check(case_id, files)
        known = self._known(case_id)
        names = [self._name(path) for path in files]
        record = {"version": project_version(), "made_by": made_by, "inputs": inputs}
        if earlier := {name: digest for name, digest in known.items() if name not in names}:
            record["earlier"] = earlier
        self._write(case_id, {**record, "files": dict.fromkeys(names, _BEING_WRITTEN)})
        yield
        written = {name: sha256(path) for name, path in zip(names, files, strict=True)}
        self._write(case_id, {**record, "files": written, **({} if facts is None else {"facts": facts})})

    def check(self, case_id: str, files: Iterable[Path]) -> None:
        """Check that files of a scan may be replaced.

        Raises:
            FolderError: one of them exists and is somebody else's.
            OSError: a file cannot be read.
        """
        known = self._known(case_id)
        for path in files:
            _check_own(path, known.get(self._name(path)))

    def remove(self, case_id: str, path: Path) -> None:
        """Remove a file of a scan, if it exists.

        Raises:
            FolderError: it is somebody else's.
            OSError: it cannot be removed.
        """
        self.check(case_id, [path])
        path.unlink(missing_ok=True)

    def difference(self, case_id: str, made_by: Mapping[str, Any], inputs: Mapping[str, str]) -> str | None:
        """Why the results of a scan are not those of these options and inputs; None if they are.

        A scan without a record gives `NO_RECORD`.
        """
        record = self._record(case_id)
        if not record:
            return NO_RECORD
        if _BEING_WRITTEN in record["files"].values():
            return "unfinished"
        for kind, now in (("inputs", inputs), ("made_by", made_by)):
            before = record.get(kind, {})
            for key in sorted(before.keys() | now.keys()):
                if before.get(key) != now.get(key):
                    return f"other {key}"
        missing = [name for name in record["files"] if not (self.folder / name).is_file()]
        return f"{missing[0]} is missing" if missing else None

    def finished(self) -> dict[str, dict[str, Any]]:
        """The records of all scans whose files were written to the end, sorted by id; damaged ones are ignored."""
        ids = sorted(path.name.removesuffix(".json") for path in (self.folder / RESULTS).glob("[!.]*.json"))
        records = {case_id: self._record(case_id) for case_id in ids}
        return {
            case_id: record
            for case_id, record in records.items()
            if record and _BEING_WRITTEN not in record["files"].values()
        }

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _path(self, case_id: str) -> Path:
        return self.folder / RESULTS / f"{case_id}.json"

    def _record(self, case_id: str) -> dict[str, Any]:
        try:
            record = json.loads(self._path(case_id).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        complete = isinstance(record, dict) and isinstance(record.get("files"), dict)
        return record if complete else {}

    def _known(self, case_id: str) -> dict[str, str]:
        """All files that were ever written for a scan, also under names that it no longer has."""
        record = self._record(case_id)
        return {**record.get("earlier", {}), **record.get("files", {})}

    def _write(self, case_id: str, record: Mapping[str, Any]) -> None:
        write_text(self._path(case_id), json.dumps(record) + "\n")


def check_own_summaries(folder: Path, *names: str) -> None:
    """Refuse to write summaries into a folder that has files of these names and no manifest of this project.

    Raises:
        FolderError: there is such a file.
    """
    if (folder / MANIFEST).exists():
        return
    for path in (folder / name for name in names):
        _check_own(path, None)


def _check_own(path: Path, known: str | None) -> None:
    if not path.exists() or known == _BEING_WRITTEN:
        return
    if known is None:
        problem = "was not written by this command, and is not replaced"
    elif sha256(path) != known:
        problem = "was changed since this command wrote it, and is not replaced"
    else:
        return
    raise FolderError(f"{path}: {problem}; move it away, or choose another output folder")
