"""Finding raw scans, and the masks that belong to them, in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.io.dicom import holds_dicom
from datasets.io.volume import is_volume_file, volume_id
from utils.errors import VolumeError

LABEL_SUFFIXES = ("", "_label", "-label", "_lesion", "_mask", "_seg")
"""What may stand between the id of a scan and the extension of its label file."""


def find_scans(*paths: Path) -> dict[str, Path]:
    """Scans by id, which names all that is made of them: files, or folders of files and of DICOM series.

    A series is a folder with DICOM files. It may lie deeper, as in an export of patients, studies and series: its id is
    then its path below the given folder, joined by ``_``. A folder without any scan is itself taken for a series, and
    so is one that lies directly in the given folder and has files of whatever kind: reading it says what is wrong.
    Hidden files and folders are passed over.

    Raises:
        VolumeError: there is nothing, or two scans have the same id.
        OSError: a folder or file cannot be read.
    """
    scans: dict[str, Path] = {}
    for case_id, scan in (found for path in paths for found in _scans_at(path)):
        if case_id in scans:
            raise VolumeError(f"{scan} and {scans[case_id]} have the same id; rename one of them")
        scans[case_id] = scan
    return scans


def _scans_at(path: Path) -> list[tuple[str, Path]]:
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder; expected a CT or a folder of CTs")
    itself = (volume_id(path if path.name.strip(".") else path.resolve()), path)  # "." and ".." are no names
    if path.is_file():
        return [itself]
    within = sorted(p for p in path.iterdir() if is_volume_file(p) or _is_folder(p))
    walked = {p.resolve() for p in (path, *within)}
    is_series = holds_dicom(path)
    scans = []
    for child in within:
        below = [] if is_series or child.is_file() or holds_dicom(child) else _series_below(child, walked)
        if below:
            scans += [("_".join(series.relative_to(path).parts), series) for series in below]
        elif child.is_file() or _holds_files(child):
            scans.append((volume_id(child), child))
    return scans or [itself]


def _series_below(folder: Path, walked: set[Path]) -> list[Path]:
    """The DICOM series below a folder that is none, at any depth; each once, however many links lead to it."""
    series = []
    for child in sorted(p for p in folder.iterdir() if _is_folder(p)):
        if (target := child.resolve()) not in walked:
            walked.add(target)
            series += [child] if holds_dicom(child) else _series_below(child, walked)
    return series


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _holds_files(folder: Path) -> bool:
    return any(p.is_file() and not p.name.startswith(".") for p in folder.iterdir())


def result_name(case_id: str, scan: Path) -> str:
    """Name of the mask of a scan: its id with the scan's file type, compressed where the type can be."""
    extension = scan.name.lower()[len(volume_id(scan)) :] if scan.is_file() else ""
    return case_id + {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd"}.get(extension, ".nii.gz")


def match_labels(folder: Path, ids: Sequence[str]) -> tuple[dict[str, Path], list[Path]]:
    """Label files by the id of their scan: a file named as the scan, or so with one of `LABEL_SUFFIXES`.

    Args:
        folder: of the label files; or one such file, where there is one id only.
        ids: of the scans.

    Returns:
        Id to file, and the files that belong to no id.

    Raises:
        VolumeError: there is no such folder, or two files belong to one id.
    """
    if folder.is_file() and len(ids) == 1:
        return {ids[0]: folder}, []
    if not folder.is_dir():
        raise VolumeError(f"{folder}: no such folder; expected masks named as their scans")
    names = {case_id + suffix: case_id for suffix in reversed(LABEL_SUFFIXES) for case_id in ids}
    matched: dict[str, Path] = {}
    unmatched = []
    for path in sorted(p for p in folder.iterdir() if is_volume_file(p)):
        case_id = names.get(volume_id(path))
        if case_id is None:
            unmatched.append(path)
        elif case_id in matched:
            raise VolumeError(f"{path} and {matched[case_id]} both belong to {case_id}; keep one of them")
        else:
            matched[case_id] = path
    return matched, unmatched
