"""Find the scans of a public set in an unpacked download, and match their masks. Reads no voxels.

A file is identified by the nearest folder above it that has one of the set's names, however deep the archives were
unpacked, and by its own name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets.public.sets import CT, LESION, LUNG, Labels, Mask, PublicScan, PublicSet, labels
from datasets.scan import Scan
from datasets.volumes import is_volume_file
from utils.errors import VolumeError

_DEEPEST = 8
_ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tgz")

Files = Mapping[str, list[Path]]
"""Files of one case, by kind."""


@dataclass
class Found:
    """The content of an unpacked download.

    Attributes:
        scans: complete scans by id.
        failed: reason by id of the incomplete ones.
        counts: number of files found and number in the complete set, by kind of file.
        odd: other findings, one line each.
    """

    scans: dict[str, PublicScan] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What is to be found.

    Attributes:
        public_set: the set.
        lung: labels of its lung masks; None if lung masks are not used.
        lesion: labels of its lesion masks.
    """

    public_set: PublicSet
    lung: Labels | None
    lesion: Labels

    @classmethod
    def of(
        cls,
        public_set: PublicSet,
        given_lungs: bool,
        lesion_labels: Collection[int] | None = None,
        lung_labels: Collection[int] | None = None,
    ) -> Wanted:
        """Combine the set's labels with those that the user chose; all others are then ignored."""
        lung = public_set.lung if lung_labels is None else labels(lung_labels)
        lesion = public_set.lesion if lesion_labels is None else labels(lesion_labels)
        return cls(public_set, lung if given_lungs else None, lesion)


def find_public_scans(wanted: Wanted, download: Path, skip: Path | None = None) -> Found:
    """Find the scans of a public set, and match their masks to them.

    Args:
        wanted: the set and its labels; with lung labels every scan needs a lung mask.
        download: folder in which the download was unpacked.
        skip: folder below `download` that is not part of it.

    Raises:
        VolumeError: there is no such folder, or it has no CT of the set.
    """
    public_set = wanted.public_set
    if not download.is_dir():
        raise VolumeError(f"{download}: no such folder; expected the unpacked download of {public_set.title}")
    found = Found()
    files = _files_by_case(public_set, download, skip, found)
    lesions, expected = found.counts.get(f"{LESION}s", (0, 0))
    if public_set.missing_lesions_note and lesions < expected:
        found.odd.append(public_set.missing_lesions_note)
    for case_id, of_case in sorted(files.items()):
        cts = [path for kind, paths in of_case.items() if kind.startswith(CT) for path in paths]
        if not cts:
            paths = [str(path) for paths in of_case.values() for path in paths]
            found.odd.append(f"{', '.join(paths)}: no CT for it; ignored")
            continue
        try:
            found.scans[case_id] = _scan(wanted, case_id, of_case, cts, found.odd)
        except VolumeError as error:
            found.failed[case_id] = str(error)
    if not found.scans and not found.failed:
        archives = any(path.suffix.lower() in _ARCHIVES for path in _files(download, skip))
        unpacked = "; unpack the archives in it" if archives else ""
        raise VolumeError(f"{download}: no CT of {public_set.title} here{unpacked}; expected {public_set.cts} below it")
    return found


def _files_by_case(
    public_set: PublicSet, download: Path, skip: Path | None, found: Found
) -> dict[str, dict[str, list[Path]]]:
    """Files by id and kind; counts them, and reports files of other origin."""
    files: dict[str, dict[str, list[Path]]] = {}
    counts = dict.fromkeys(public_set.expected, 0)
    for path in _files(download, skip):
        kind = _kind(public_set, path.relative_to(download))
        case_id = public_set.id_of(path.name)
        if not is_volume_file(path):
            archive = path.suffix.lower() in _ARCHIVES
            found.odd.append(f"{path}: {'an archive; unpack it if its files are missing' if archive else 'no volume'}")
        elif kind is None:
            found.odd.append(f"{path}: in no folder of {public_set.title}; ignored")
        elif case_id is None:
            found.odd.append(f"{path}: not a name of {public_set.title}; ignored")
        else:
            files.setdefault(case_id, {}).setdefault(kind, []).append(path)
            counts[public_set.row(kind, public_set.case_of(case_id))] += 1
    found.counts = {row: (number, public_set.expected[row]) for row, number in counts.items()}
    return files


def _files(folder: Path, skip: Path | None) -> Iterator[Path]:
    """All files below a folder, including linked folders; hidden files and those that macOS adds are skipped."""
    seen = set() if skip is None else {skip.resolve()}
    levels = [(folder, 0)]
    while levels:
        place, depth = levels.pop()
        if place.resolve() in seen or depth > _DEEPEST:
            continue
        seen.add(place.resolve())
        for path in sorted(place.iterdir(), reverse=True):
            if path.name.startswith(".") or path.name == "__MACOSX":
                continue
            if path.is_dir():
                levels.append((path, depth + 1))
            else:
                yield path


def _kind(public_set: PublicSet, path: Path) -> str | None:
    """Kind of a file, from the nearest folder above it with a name of the set."""
    plain = (re.sub(r"[^a-z0-9]", "", folder.lower()) for folder in reversed(path.parts[:-1]))
    return next((public_set.folders[name] for name in plain if name in public_set.folders), None)


def _scan(wanted: Wanted, case_id: str, of_case: Files, cts: list[Path], odd: list[str]) -> PublicScan:
    public_set = wanted.public_set
    ct, case = _only(cts, CT), public_set.case_of(case_id)
    group = public_set.group(case, of_case)
    lesion = _mask(public_set, of_case, LESION, wanted.lesion, case_id, odd)
    if lesion is None and group in public_set.tests:
        raise VolumeError(f"{ct}: no lesion mask for it; complete the download")
    if lesion is not None and group in public_set.healthy:
        raise VolumeError(f"{ct}: without findings by its folder, but {lesion.path} is a lesion mask; check both")
    lung = None
    if wanted.lung is not None:
        lung = _mask(public_set, of_case, LUNG, wanted.lung, case_id, odd)
        if lung is None:
            raise VolumeError(f"{ct}: no lung mask for it; complete the download, or use --lungs lungmask")
    return PublicScan(
        case_id, group, public_set.patient_of(case_id), Scan(case_id, ct), lesion, lung, public_set.grey(case)
    )


def _mask(
    public_set: PublicSet, of_case: Files, kind: str, its_labels: Labels, case_id: str, odd: list[str]
) -> Mask | None:
    if kind in of_case:
        return Mask(_only(of_case[kind], kind), its_labels)
    for shared, by_kind in public_set.shared.items():
        if shared in of_case:
            path = _only(of_case[shared], shared)
            odd.append(f"{case_id}: no {kind} of its own; taken from {path}")
            return Mask(path, by_kind[kind])
    return None


def _only(paths: list[Path], kind: str) -> Path:
    if len(paths) > 1:
        raise VolumeError(f"{' and '.join(map(str, paths))}: {len(paths)} files for one {kind}; keep one of them")
    return paths[0]
