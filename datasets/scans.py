"""The index of an archive: every CT below the paths that were named, and everything else that was found.

A folder is not a scan; a DICOM series is, wherever its files lie. Only headers are read. As a command, prints the
index as a table, and writes it as CSV.

Examples:
    python -m datasets.scans /archive
    python -m datasets.scans /archive --csv index.csv --series "Lung 1.0"
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.io.dicom_choice import choose_series
from datasets.io.dicom_series import Series, common_folder, group_series, step_mm, studies_of
from datasets.io.dicom_slices import Other, Slice, is_dicom_file, read_slices, short_hash
from datasets.io.scan import Scan
from datasets.io.volume import is_volume_file, volume_id
from datasets.pairs import mask_of
from datasets.scan_options import add_series
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import VolumeError, one_line
from utils.files import as_csv, names_a_file, write_text
from utils.ledger import LEDGER, is_output
from utils.progress import progress_bar

log = logging.getLogger(__name__)

_MASK_FOLDER = re.compile(
    r"((.*[_ -])?(mask|msk|label|segmentation|seg|lesion|leision|infection|annotation)(s|es)?(Tr|Ts|Val)?|lungs?)",
    re.IGNORECASE,
)
"""Names of folders below INPUT that hold masks and no CTs; ``Lung 1.0`` and ``lung_ct`` are none."""

RESULT_FOLDERS = (LEDGER, "images", "lung", "lesion", "masks", "probabilities", "dicom_seg", "figures", "pictures")
"""Folders of results in an output folder of this project; they are no inputs."""

GENERIC_NAMES = ("ct", "image", "img", "imaging", "scan", "volume", "vol", "data", "series", "chest", "thorax", "input")
"""File names that are alike in every patient's folder; the folder then names the scan."""

_LONGEST_ID = 150
"""Bytes of an id, which leaves room for suffixes in the 255 of a file name."""

_THREADS = 8


@dataclass(frozen=True)
class PassedOver:
    """Something that was found and is no scan.

    Attributes:
        path: file or folder.
        kind: what it is.
        series: the series, if it is one.
        reason: why it was passed over.
    """

    path: Path
    kind: str
    series: Series | None = None
    reason: str = ""


@dataclass(frozen=True)
class Index:
    """What was found below the paths that were named.

    Attributes:
        scans: by id, in the order of the ids.
        passed_over: everything else.
        unreadable: reason by path of files and folders that could not be read.
    """

    scans: dict[str, Scan]
    passed_over: tuple[PassedOver, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)

    def summary(self) -> list[str]:
        """One line per kind of what was passed over, with its count, and one per unreadable entry."""
        return self.passed_over_lines() + [f"unreadable: {path}: {reason}" for path, reason in self.unreadable.items()]

    def passed_over_lines(self) -> list[str]:
        """One line per kind of what was passed over, with its count."""
        counts = Counter(item.kind for item in self.passed_over)
        return [f"passed over: {number} {kind}" for kind, number in sorted(counts.items())]


@dataclass(frozen=True)
class _Proposal:
    """A scan before it has its id.

    Attributes:
        name: the id, unless another scan has the same.
        distinct: what tells it from those: the path below the root, or patient and study.
        scan: the scan.
    """

    name: str
    distinct: str
    scan: Scan


@dataclass
class _Found:
    """What lies below one root, before ids are made."""

    root: Path
    volumes: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    passed: list[PassedOver] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def index_scans(*paths: Path, series: str | None = None, progress: bool = False) -> Index:
    """Index the CTs below files and folders, at any depth.

    Of the CT series of a patient's study one is taken, see `datasets.io.dicom_choice.RULES`. The id of a scan is the
    path of its file without extension, or of the deepest folder that holds all its slices, below the named folder and
    joined by ``_``; files with a generic name have the name of their folder. Scans that would share an id have a hash
    added.

    Args:
        paths: volume files, and folders.
        series: which series of a study to take, see `datasets.io.dicom_choice.choose_series`.
        progress: show a progress bar.

    Raises:
        VolumeError: a path does not exist, no CT was found, or two scans of different paths share an id.
    """
    proposals: list[_Proposal] = []
    passed: list[PassedOver] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        if not path.exists():
            raise VolumeError(f"{path}: no such file or folder; expected a CT or a folder of CTs")
        found = _Found(path if path.name.strip(".") else path.resolve())  # "." and ".." are no names
        if path.is_dir():
            _walk(found, found.root, set())
        elif is_dicom_file(path) and not is_volume_file(path):
            found.dicom.append(found.root)
        else:
            proposals.append(_Proposal(volume_id(found.root), found.root.name, Scan("", found.root)))
        proposals += [
            _Proposal(_volume_id(found.root, volume), str(volume.relative_to(found.root)), Scan("", volume))
            for volume in _without_masks(found)
        ]
        proposals += _dicom_scans(found, series, progress)
        passed += found.passed
        unreadable |= found.unreadable
    scans = _with_ids(proposals)
    if not scans:
        seen = "; ".join(Index({}, tuple(passed), unreadable).summary()) or "nothing was found"
        raise VolumeError(
            f"{', '.join(map(str, paths))}: holds no chest CT ({seen}); expected CT files or DICOM series"
        )
    return Index(dict(sorted(scans.items())), tuple(passed), unreadable)


def find_scans(*paths: Path, series: str | None = None, progress: bool = False) -> dict[str, Scan]:
    """The scans of `index_scans` by id; what was passed over is logged.

    What cannot be read is a scan with a problem, so that it fails like any other and the rest is done.

    Raises:
        VolumeError: as `index_scans`.
    """
    index = index_scans(*paths, series=series, progress=progress)
    for line in index.passed_over_lines():
        log.info("%s", line)
    for scan in index.scans.values():
        for note in scan.notes:
            log.warning("%s: %s", scan.id, note)
    ids = {path: _fitting(path.strip("/").replace("/", "_")) for path in index.unreadable}
    bad = {ids[path]: Scan(ids[path], Path(path), problem=f"{path}: {why}") for path, why in index.unreadable.items()}
    return index.scans | bad


# ------------------------------------------------------------------------------------------- walking


def _walk(found: _Found, folder: Path, walked: set[Path]) -> None:
    """Collect the files below a folder; each folder once, however many links lead to it."""
    walked.add(folder.resolve())
    try:
        entries = sorted(folder.iterdir())
        results = is_output(folder)
    except OSError as error:
        found.unreadable[str(folder)] = error.strerror or one_line(error)
        return
    for path in entries:
        if path.name.startswith("."):
            continue
        try:
            if path.is_dir():
                if results and path.name in RESULT_FOLDERS:
                    found.passed.append(PassedOver(path, "folder of results of this project"))
                elif path.resolve() not in walked:
                    _walk(found, path, walked)
            elif names_a_file(path):
                _sort_file(found, path)
            else:
                found.passed.append(PassedOver(path, "pipe or device"))
        except (OSError, RuntimeError) as error:  # RuntimeError: folders nested more deeply than Python calls
            found.unreadable[str(path)] = getattr(error, "strerror", None) or one_line(error)


def _sort_file(found: _Found, path: Path) -> None:
    if is_volume_file(path):
        found.volumes.append(path)
    elif is_dicom_file(path):
        found.dicom.append(path)
    elif path.name.upper() == "DICOMDIR":
        found.passed.append(PassedOver(path, "DICOM directory"))
    else:
        found.passed.append(PassedOver(path, "other file"))


def _without_masks(found: _Found) -> list[Path]:
    """The volume files that are no masks: not in a folder of masks, and not a mask beside its own CT."""
    names = {path.parent: set() for path in found.volumes}
    for path in found.volumes:
        names[path.parent].add(volume_id(path))
    volumes = []
    for path in found.volumes:
        below = path.relative_to(found.root).parts[:-1]
        if any(is_mask_folder(part) for part in below):
            found.passed.append(PassedOver(path, "mask"))
        elif (of := mask_of(volume_id(path), names[path.parent])) is not None:
            found.passed.append(PassedOver(path, "mask", reason=f"beside {of}"))
        else:
            volumes.append(path)
    return volumes


def is_mask_folder(name: str) -> bool:
    """Whether a folder's name says that it holds masks."""
    return _MASK_FOLDER.fullmatch(name) is not None


# ----------------------------------------------------------------------------------------------- ids


def _volume_id(root: Path, path: Path) -> str:
    """The id of a volume file: its path below the root, or its folder's if the name is generic."""
    *folders, _ = path.relative_to(root).parts
    stem = volume_id(path)
    if folders and re.sub(r"_0000$", "", stem).lower() in GENERIC_NAMES:
        return "_".join(folders)
    return "_".join([*folders, stem])


def _series_id(root: Path, series: Series) -> str:
    """The id of a series: the path of its folder below the root, or the root's name."""
    if series.folder == root or not series.folder.is_relative_to(root):
        return root.name
    return "_".join(series.folder.relative_to(root).parts)


def _with_ids(proposals: Sequence[_Proposal]) -> dict[str, Scan]:
    """Give scans their ids; those that would share one have a hash added of what tells them apart.

    Raises:
        VolumeError: nothing tells two scans apart, as with files of one name in two folders that were both named.
    """
    by_name: dict[str, list[_Proposal]] = defaultdict(list)
    for proposal in proposals:
        by_name[_fitting(proposal.name)].append(proposal)
    scans: dict[str, Scan] = {}
    for name, sharing in by_name.items():
        # A file may be named twice. Which other files a volume consists of takes reading it, and is not asked.
        unique = {(p.scan.path, p.scan.series and p.scan.series.files): p for p in sharing}
        for proposal in unique.values():
            case_id = name if len(unique) == 1 else f"{name}_{short_hash(proposal.distinct)}"
            if case_id in scans:
                raise VolumeError(f"{proposal.scan} and {scans[case_id]} have the same id; rename one of them")
            scans[case_id] = replace(proposal.scan, id=case_id)
    return scans


def _fitting(name: str) -> str:
    """A name that fits a file name and a line of a list, and is text."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\\", "_")
    name = "".join(c if c.isprintable() else "_" for c in name).strip() or "_"
    if len(name.encode()) <= _LONGEST_ID:
        return name
    return name.encode()[:_LONGEST_ID].decode(errors="ignore") + "_" + short_hash(name)


# --------------------------------------------------------------------------------------------- DICOM


def _dicom_scans(found: _Found, choice: str | None, progress: bool) -> list[_Proposal]:
    """The scans among the DICOM files below a root: one per patient and study."""
    slices: list[Slice] = []
    others: list[Other] = []
    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings(action="ignore"):  # of pydicom, in all threads
        reading = progress_bar(
            pool.map(read_slices, found.dicom),
            "reading headers",
            unit="file",
            total=len(found.dicom),
            shown=progress and len(found.dicom) > 1000,
        )
        for parts in reading:
            slices += [part for part in parts if isinstance(part, Slice)]
            others += [part for part in parts if isinstance(part, Other)]
    studies = studies_of(group_series(slices, others))
    used = {one.path.parent for one in slices}
    for other in others:
        if not other.damaged:
            found.passed.append(PassedOver(other.path, other.kind))
        elif other.path.parent not in used:
            found.unreadable[str(other.path)] = other.kind
    return [_study_scan(found, volumes, choice) for volumes in studies.values()]


def _study_scan(found: _Found, volumes: list[Series], choice: str | None) -> _Proposal:
    """The scan of a study, and the id that it proposes."""
    chosen = choose_series(volumes, choice)
    distinct = f"{volumes[0].first.patient}\0{volumes[0].first.study}"
    if chosen.series is None:
        folder = common_folder([path for volume in volumes for path in volume.files])
        largest = max(volumes, key=lambda volume: len(volume.slices))
        scan = Scan("", folder, largest, problem=f"{folder}: {chosen.problem}")
        return _Proposal(_series_id(found.root, largest), distinct, scan)
    found.passed += [
        PassedOver(series.folder, "CT series of a study with a better one", series, reason)
        for series, reason in chosen.passed_over
    ]
    series = chosen.series
    notes = (*series.notes, *([chosen.note] if chosen.note else []))
    scan = Scan("", series.folder, series, chosen.reason, series.problem, notes)
    return _Proposal(_series_id(found.root, series), distinct, scan)


# --------------------------------------------------------------------------------------------- table

COLUMNS = (
    *("scan", "taken", "reason", "patient", "study", "series", "number", "description", "kernel", "slices"),
    *("spacing_mm", "size", "path"),
)
"""Columns of the index as CSV."""


def index_rows(index: Index) -> list[dict[str, str]]:
    """The index as rows of `COLUMNS`: scans first, then passed-over series and other finds."""
    rows = []
    for scan in index.scans.values():
        row = {"scan": scan.id, "taken": "yes", "reason": scan.problem or scan.reason, "path": str(scan.path)}
        rows.append(row | _series_row(scan.series))
    for item in index.passed_over:
        row = {"taken": "no", "reason": item.reason or item.kind, "path": str(item.path)}
        rows.append(row | _series_row(item.series))
    rows += [{"taken": "unreadable", "reason": reason, "path": path} for path, reason in index.unreadable.items()]
    return rows


def _series_row(series: Series | None) -> dict[str, str]:
    if series is None:
        return {}
    first = series.first
    across, down = first.spacing
    return {
        "patient": first.patient,
        "study": short_hash(first.study),
        "series": short_hash(first.series),
        "number": first.number,
        "description": first.description,
        "kernel": first.kernel,
        "slices": str(len(series.slices)),
        "spacing_mm": f"{across:g}x{down:g}x{step_mm(series):g}",
        "size": f"{first.size[0]}x{first.size[1]}",
    }


def files_of(scans: Iterable[Scan]) -> list[Path]:
    """All files of scans."""
    return [path for scan in scans for path in scan.files]


def result_name(case_id: str, scan: Scan | Path) -> str:
    """Name of the mask of a scan: its id with the scan's file type, compressed if the type can be."""
    path = scan.path if isinstance(scan, Scan) else scan
    is_file = scan.series is None if isinstance(scan, Scan) else scan.is_file()
    extension = path.name.lower()[len(volume_id(path)) :] if is_file else ""
    return case_id + {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd"}.get(extension, ".nii.gz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.scans``."""
    parser = new_parser(__doc__, "python -m datasets.scans")
    parser.add_argument("input", type=Path, nargs="+", metavar="INPUT", help="CT files, or folders of them")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the index as CSV")
    add_series(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    start_logging(options.quiet)
    index = index_scans(*options.input, series=options.series, progress=not options.quiet)
    rows = index_rows(index)
    if options.csv is not None:
        write_text(options.csv, as_csv(COLUMNS, rows))
    for row in rows:
        if row.get("slices") or row["taken"] == "yes":
            parts = (row.get("spacing_mm"), row.get("size"), row.get("description"), row.get("reason"))
            taken = row.get("scan") or "passed over"
            print(f"{taken}: {', '.join([*(part for part in parts if part), row['path']])}")
    print(f"{len(index.scans)} scans")
    for line in index.summary():
        print(line)
    return 1 if index.unreadable or any(scan.problem for scan in index.scans.values()) else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
