"""The index of an archive: every CT below the paths that were named, and everything else that was found.

A folder is not a scan; a DICOM series is, wherever its files lie (`datasets.series`). Only headers are read, unless
which of several series shows the chest is told by their lungs alone. ``python -m datasets.scans`` prints the index
(`datasets.scan_options`).
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which --help does not need
    from datasets.scan_options import main
    from utils.cli import run

    raise SystemExit(run(main))

import logging
import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import SimpleITK as sitk

from datasets.choice import choose_series
from datasets.dicom import EXTENSIONS, Other, Slice, is_dicom_file, read_slices, short_hash
from datasets.formats import EXTENSIONS as VOLUMES
from datasets.pairs import bare_name, is_mask_name, mask_of
from datasets.series import Series, common_folder, group_series, studies_of
from datasets.volumes import DEFAULT, Reading, Scan, as_ct, is_volume_file, volume_id
from utils.errors import VolumeError
from utils.files import names_a_file, walk_files, without_partial_suffix
from utils.ledger import results_in
from utils.progress import progress_bar

log = logging.getLogger(__name__)

_MASK_FOLDER = re.compile(
    r"((.*[_ -])?(mask|msk|label|segmentation|seg|lesion|leision|infection|annotation)(s|es)?(Tr|Ts|Val)?|lungs?)",
    re.IGNORECASE,
)
"""Names of folders below INPUT that hold masks and no CTs; ``Lung 1.0`` and ``lung_ct`` are none."""

_GENERIC = ("ct", "image", "img", "imaging", "scan", "volume", "vol", "data", "series", "chest", "thorax", "input")
"""File names that are alike in every patient's folder; the folder then names the scan."""

_PACKED_NAME = re.compile(
    r"\.(zip|7z|rar|tar|tgz|tar\.\w+|(dcm|ima|dicom)\.(gz|bz2|xz|zst)|nii\.(bz2|xz|zst))$", re.IGNORECASE
)
_PACKING = re.compile(r"\.(gz|bz2|xz|zst|lz4|Z)$")
_UNREAD_NAME = re.compile(r"\.(np[yz]|mg[hz]|mnc|h5|hdf5|mat|pic|vtk|vti)$", re.IGNORECASE)
"""Files that may hold CTs and are not read."""

_STRAIGHTENED = re.compile(r"(.+?)((?:_Tilt|_Eq)+)(?:_\d+)?")
"""Names of what dcm2niix writes beside a volume with a gantry tilt, or with slices that are not evenly spaced."""

_POINTER = b"version https://git-lfs"

_LONGEST_ID = 150
"""Bytes of an id, which leaves room for suffixes in the 255 of a file name."""

_THREADS = 8

_NAMED = 3
_PACKED, _FORMAT = "packed file", "file of a type that is not read"
_PART, _NO_MASK = "file that is not copied to its end", "in a folder named as of masks, of no CT"


@dataclass(frozen=True)
class PassedOver:
    """Something that was found and is no scan."""

    path: Path  # file or folder
    kind: str  # what it is
    series: Series | None = None  # the series, if it is one
    reason: str = ""  # why it was passed over


@dataclass(frozen=True)
class Index:
    """What was found below the paths that were named."""

    scans: dict[str, Scan]  # by id, in the order of the ids
    passed_over: tuple[PassedOver, ...] = ()  # everything else
    unreadable: dict[str, str] = field(default_factory=dict)  # reason by path of what could not be read

    def summary(self) -> list[str]:
        """One line per kind of what was passed over, with its count, and one per unreadable entry."""
        return self.passed_over_lines() + [f"unreadable: {path}: {reason}" for path, reason in self.unreadable.items()]

    def passed_over_lines(self) -> list[str]:
        """One line per kind of what was passed over, with its count."""
        counts = Counter(item.kind for item in self.passed_over)
        return [f"passed over: {kind} ({number})" for kind, number in sorted(counts.items())]

    def warnings(self) -> list[str]:
        """What may hold CTs and was not read, by name, with the remedy."""
        lines = []
        remedies = {
            _PACKED: "unpack",
            _FORMAT: "convert to NIfTI",
            _PART: "copy again",
            _NO_MASK: "rename the folder of",
        }
        for kind, remedy in remedies.items():
            paths = [str(item.path) for item in self.passed_over if item.kind == kind]
            more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
            if paths:
                lines.append(f"not read: {', '.join(paths[:_NAMED])}{more} ({kind}); {remedy} what holds CTs")
        return lines


@dataclass
class _Found:
    """What lies below one root, before ids are made."""

    root: Path
    passed: list[PassedOver]
    unreadable: dict[str, str]
    volumes: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    rest: list[Path] = field(default_factory=list)


def open_scan(source: Path | str | Scan | sitk.Image, reading: Reading = DEFAULT) -> Scan:
    """The scan at a path: a volume file, a DICOM file with all slices, or the folder of one DICOM study; or an image.

    Raises:
        VolumeError: a folder holds no CT series, or several studies.
    """
    if isinstance(source, Scan):
        return source
    if isinstance(source, sitk.Image):
        return Scan("image", Path("the image"), image=source)
    path = Path(source)
    if not path.is_dir() and (is_volume_file(path) or not path.is_file() or not is_dicom_file(path)):
        return Scan(volume_id(path), path)
    index = index_scans(path, series=reading.series, empty=True)
    scans = [scan for scan in index.scans.values() if scan.is_dicom]
    if not scans and index.unreadable:
        raise VolumeError("; ".join(f"{path}: {reason}; copy it again" for path, reason in index.unreadable.items()))
    if not scans:
        raise VolumeError(f"{path}: holds no CT series; expected a folder of DICOM slices, or a CT file")
    if len(scans) > 1:
        names = "; ".join(scan.series.label for scan in scans)
        raise VolumeError(f"{path}: holds {len(scans)} scans: {names}; name the folder of one of them")
    for note in scans[0].notes:
        log.warning("%s: %s", path, note)
    return scans[0]


def read_ct(source: Path | str | Scan | sitk.Image, reading: Reading = DEFAULT) -> sitk.Image:
    """Read a chest CT in HU.

    Raises:
        VolumeError: as `open_scan` and `Scan.read`, or the values cannot be HU.
    """
    scan = open_scan(source, reading)
    return as_ct(scan, scan.read(reading), reading)


def index_scans(*paths: Path, series: str | None = None, progress: bool = False, empty: bool = False) -> Index:
    """Index the CTs below files and folders, at any depth.

    Of the CT series of a patient's study one is taken, see `datasets.choice.RULES`. The id of a scan is the path of its
    file without extension, or of the deepest folder that holds all its slices, below the named folder and joined by
    ``_``; files with a generic name have the name of their folder. Scans that would share an id have a hash added.

    `series` says which one to take, see `datasets.choice.matches`; `empty` allows an index without scans.

    Raises:
        VolumeError: a path does not exist, no CT was found, two scans of different paths share an id, or two paths hold
            parts of one series.
    """
    found_scans: list[tuple[Scan, str]] = []
    named: list[Path] = []  # DICOM files
    passed: list[PassedOver] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        if not path.exists():
            raise VolumeError(f"{path}: no such file or folder; expected a CT or a folder of CTs")
        root = path if path.name.strip(".") else path.resolve()  # "." and ".." are no names
        found = _Found(root, passed, unreadable)
        if path.is_dir():
            _look(found)
        elif is_dicom_file(path) and not is_volume_file(path):
            named.append(root)
        else:
            found_scans.append((Scan(volume_id(root), root), root.name))
        for volume, stem in _without_masks(found):
            found_scans.append((Scan(_volume_id(root, volume, stem), volume), str(volume.relative_to(root))))
        found_scans += _dicom_scans(found, series, progress)
    if len(named) > 1:  # slices of a series may lie in several folders
        named = [Path(text) for text in dict.fromkeys(map(os.path.abspath, named))]
    if named:
        root = common_folder(named) if len(named) > 1 else named[0]
        found_scans += _dicom_scans(_Found(root, passed, unreadable, dicom=named), series, progress)
    _refuse_parts_of_one_series([scan.series for scan, _ in found_scans if scan.series is not None])
    index = Index(dict(sorted(_with_ids(found_scans).items())), tuple(passed), unreadable)
    if not index.scans and not empty:
        seen, where = "; ".join(index.summary()) or "nothing was found", ", ".join(map(str, paths))
        raise VolumeError(f"{where}: holds no chest CT ({seen}); expected CT files or DICOM series")
    return index


def _refuse_parts_of_one_series(volumes: Iterable[Series]) -> None:
    """Refuse series of one UID that would be one in one folder, and share no place: parts below paths named apart."""
    known: dict[str, list[tuple[Series, set[bytes]]]] = defaultdict(list)
    for volume in volumes:
        places = {one.position.tobytes() for one in volume.slices}
        for other, taken in known[volume.uid]:
            apart = volume.study[:2] != other.study[:2] or not places.isdisjoint(taken)
            if not apart and len(group_series([*other.slices, *volume.slices], ())) == 1:
                raise VolumeError(
                    f"{other.folder} and {volume.folder}: hold parts of one series ({volume.uid}); name a folder that "
                    "holds both"
                )
        known[volume.uid].append((volume, places))


def find_scans(*paths: Path, series: str | None = None, progress: bool = False) -> dict[str, Scan]:
    """The scans of `index_scans` by id, with its arguments and errors; what was passed over is logged.

    What cannot be read is a scan with a problem, so that it fails like any other and the rest is done.
    """
    index = index_scans(*paths, series=series, progress=progress)
    for line in index.passed_over_lines():
        log.info("%s", line)
    for line in index.warnings():
        log.warning("%s", line)
    for scan in index.scans.values():
        for note in scan.notes:
            log.warning("%s: %s", scan.id, note)
    ids = {path: _fitting(path.strip("/").replace("/", "_")) for path in index.unreadable}
    bad = {ids[path]: Scan(ids[path], Path(path), problem=f"{path}: {why}") for path, why in index.unreadable.items()}
    return index.scans | bad


# ------------------------------------------------------------------------------------------ what lies there


def _look(found: _Found) -> None:
    results: set[Path] = set()

    def is_ledger(folder: Path) -> bool:
        results.update(results_in(folder))
        return folder in results

    for path in walk_files(found.root, is_ledger, found.unreadable):
        if path in results:
            found.passed.append(PassedOver(path, "result of this project"))
        elif not names_a_file(path):
            found.passed.append(PassedOver(path, "pipe or device"))
        elif is_volume_file(path):
            found.volumes.append(path)
        elif not path.name.startswith(".") and is_dicom_file(path):
            found.dicom.append(path)
        else:
            found.rest.append(path)


def _pass_over_rest(found: _Found) -> list[Other]:
    """Sort what is neither volume nor DICOM; returns what should be a slice of a series beside it.

    That is a file that is named like the slices of its folder, but for numbers and for the ending of a file that is
    packed or still being copied; unless what it will become is there.
    """
    patterns = {(path.parent, _pattern(path.name)) for path in found.dicom}
    lost = []
    for path in found.rest:
        whole, hidden, reason = without_partial_suffix(path.name), path.name.startswith("."), _why_unreadable(path)
        name = _PACKING.sub("", whole)
        is_slice = (path.parent, _pattern(name)) in patterns
        if is_slice and name != path.name and (path.parent / name).is_file():
            found.passed.append(PassedOver(path, "copy of a slice, packed or in part"))
        elif is_slice or (reason == _LFS and not hidden):
            lost.append(Other(path, reason or "damaged, or not DICOM", damaged=True))
        elif whole != path.name and whole.lower().endswith(VOLUMES) and not (path.parent / whole).is_file():
            found.passed.append(PassedOver(path, _PART))
        elif path.name.upper() == "DICOMDIR":
            found.passed.append(PassedOver(path, "DICOM directory"))
        elif not hidden:
            packed, unread = _PACKED_NAME.search(path.name), _UNREAD_NAME.search(path.name)
            found.passed.append(PassedOver(path, _PACKED if packed else _FORMAT if unread else "other file"))
    return lost


_LFS = "a Git LFS pointer without its content (git lfs pull)"


def _why_unreadable(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if without_partial_suffix(path.name) != path.name:
        return "copied in part"
    if start and _PACKING.search(path.name):
        return "packed, unlike other slices of its folder (unpack it)"
    return _LFS if start == _POINTER else None if start else "empty"


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _without_masks(found: _Found) -> list[tuple[Path, str]]:
    """The volume files that are no masks, each with the name that its id is made of.

    Masks lie in a folder of masks, beside their own CT, or beside the slices of a DICOM series. Of a volume and what
    dcm2niix straightened of it, the straightened one is taken, under the name of the volume.
    """
    names: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in found.volumes:
        names[path.parent][volume_id(path)] = path
    beside = {folder: set(stems) for folder, stems in names.items()}
    slices = {path.parent for path in found.dicom}
    for folder in slices:
        for place in (folder, folder.parent):
            beside.setdefault(place, set()).add(folder.name)
    names_of = {p: (*p.relative_to(found.root).parts[:-1], volume_id(p)) for p in (*found.volumes, *found.dicom)}
    apart = {path for path in found.volumes if any(map(_MASK_FOLDER.fullmatch, names_of[path][:-1]))}
    of_cts = {bare_name(name) for path, names in names_of.items() if path not in apart for name in names}
    volumes = []
    for path in found.volumes:
        stem = volume_id(path)
        if path in apart:
            is_mask = is_mask_name(stem) or not of_cts.isdisjoint(map(bare_name, names_of[path]))
            found.passed.append(PassedOver(path, "mask" if is_mask else _NO_MASK))
        elif (of := mask_of(stem, beside[path.parent])) or (path.parent in slices and is_mask_name(stem)):
            found.passed.append(PassedOver(path, "mask", reason=f"beside {of or 'slices'}"))
        else:
            base, variants = _straightened(stem, names[path.parent])
            if variants and variants[-1] != stem:
                reason = f"{variants[-1]} is taken"
                found.passed.append(PassedOver(path, "volume that dcm2niix straightened", reason=reason))
            else:
                volumes.append((path, base))
    return volumes


def _straightened(stem: str, beside: Iterable[str]) -> tuple[str, list[str]]:
    """The name of a volume before dcm2niix straightened it, and all its variants, the straightest last."""
    match = _STRAIGHTENED.fullmatch(stem)
    base = match[1] if match else stem
    variants = [name for name in beside if name == base or ((m := _STRAIGHTENED.fullmatch(name)) and m[1] == base)]
    if len(variants) < 2:
        return stem, []
    return base, sorted(variants, key=lambda name: ("_Tilt" in name[len(base) :], "_Eq" in name[len(base) :], name))


# ----------------------------------------------------------------------------------------------- ids


def _volume_id(root: Path, path: Path, stem: str) -> str:
    """The id of a volume file: its path below the root, or its folder's if the name is generic."""
    *folders, _ = path.relative_to(root).parts
    if folders and re.sub(r"_0000$", "", stem).lower() in _GENERIC:
        return "_".join(folders)
    return "_".join([*folders, stem])


def _series_id(root: Path, series: Series) -> str:
    """The id of a series: the path of its folder below the root, or the root's name without extension."""
    if series.folder == root or not series.folder.is_relative_to(root):
        return root.stem if root.is_file() and root.suffix.lower() in EXTENSIONS else root.name
    return "_".join(series.folder.relative_to(root).parts)


def _with_ids(found: Iterable[tuple[Scan, str]]) -> dict[str, Scan]:
    """Give scans their final ids: to those that would share one, a hash is added.

    Args:
        found: scans, each with what tells it from others of its id: the path below the root, or patient and study.

    Raises:
        VolumeError: nothing tells two scans apart, as with files of one name in two folders that were both named.
    """
    by_name: dict[str, list[tuple[Scan, str]]] = defaultdict(list)
    known: set[tuple[str, ...]] = set()
    for scan, distinct in found:
        # Which other files a volume consists of takes reading it, and is not asked.
        files = tuple(map(os.path.abspath, [scan.path] if scan.series is None else scan.series.files))
        if files not in known:  # a scan may lie below several of the paths that were named
            by_name[_fitting(scan.id)].append((scan, distinct))
        known.add(files)
    scans: dict[str, Scan] = {}
    for name, sharing in by_name.items():
        for scan, distinct in sharing:
            case_id = name if len(sharing) == 1 else f"{name}_{short_hash(distinct)}"
            if case_id in scans:
                raise VolumeError(f"{scan} and {scans[case_id]} have the same id; rename one of them")
            scans[case_id] = replace(scan, id=case_id)
    return scans


def _fitting(name: str) -> str:
    """A name that fits a file name and a line of a list, and is text in Unicode's composed form."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\\", "_")
    name = unicodedata.normalize("NFC", "".join(c if c.isprintable() else "_" for c in name)).strip() or "_"
    if len(name.encode()) <= _LONGEST_ID:
        return name
    return name.encode()[:_LONGEST_ID].decode(errors="ignore") + "_" + short_hash(name)


# --------------------------------------------------------------------------------------------- DICOM


def _dicom_scans(found: _Found, choice: str | None, progress: bool) -> list[tuple[Scan, str]]:
    """The scans among the DICOM files below a root, one per patient and study, as `_with_ids` takes them."""
    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings(action="ignore"):  # of pydicom, in all threads
        reading = progress_bar(
            pool.map(read_slices, found.dicom),
            "reading headers",
            unit="file",
            total=len(found.dicom),
            shown=progress and len(found.dicom) > 1000,
        )
        parts = list(chain.from_iterable(reading))
    slices = [part for part in parts if isinstance(part, Slice)]
    others = [*_pass_over_rest(found), *(part for part in parts if isinstance(part, Other))]
    used = {one.path.parent for one in slices}
    for other in others:
        if not other.damaged:
            found.passed.append(PassedOver(other.path, other.kind))
        elif other.path.parent not in used:
            found.unreadable[str(other.path)] = other.kind
    studies = studies_of(group_series(slices, others))
    return [_study_scan(found, volumes, choice, date) for (*_, date), volumes in studies.items()]


def _study_scan(found: _Found, volumes: list[Series], choice: str | None, date: str) -> tuple[Scan, str]:
    """The scan of a study, and what tells it from others."""
    chosen = choose_series(volumes, choice)
    study, patient, folder = volumes[0].study
    below = str(folder.relative_to(found.root)) if folder and folder.is_relative_to(found.root) else ""
    distinct = f"{short_hash(patient)}\0{study}{date}\0{below}"
    series = chosen.series
    if series is None:
        folder = common_folder([path for volume in volumes for path in volume.files])
        series = max(volumes, key=lambda volume: len(volume.slices))
        return Scan(_series_id(found.root, series), folder, series, problem=f"{folder}: {chosen.problem}"), distinct
    found.passed += [
        PassedOver(other.folder, "CT series of a study with a better one", other, reason)
        for other, reason in chosen.passed_over
    ]
    notes = (*series.notes, *([chosen.note] if chosen.note else []))
    case_id = _series_id(found.root, series)
    return Scan(case_id, series.folder, series, chosen.reason, series.problem, notes), distinct


def files_of(scans: Iterable[Scan]) -> list[Path]:
    """All files of scans."""
    return [path for scan in scans for path in scan.files]


def result_name(case_id: str, scan: Scan) -> str:
    """Name of the mask of a scan: its id with the scan's file type, compressed if the type can be."""
    extension = "" if scan.is_dicom else scan.path.name.lower()[len(volume_id(scan.path)) :]
    return case_id + {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd"}.get(extension, ".nii.gz")
