"""Finding raw scans, and the masks that belong to them, in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.volume import is_volume_file, volume_id
from errors import VolumeError

LABEL_SUFFIXES = ("", "_label", "-label", "_lesion", "_mask", "_seg")
"""What may stand between the id of a scan and the extension of its label file."""


def find_scans(*paths: Path) -> dict[str, Path]:
    """Scans by id: files, or folders of files and of sub-folders with a DICOM series each.

    A folder without any of these is itself taken for a DICOM series.

    Raises:
        VolumeError: there is nothing, or two scans have the same id.
    """
    scans: dict[str, Path] = {}
    for scan in (scan for path in paths for scan in _scans_at(path)):
        case_id = volume_id(scan)
        if case_id in scans:
            raise VolumeError(f"{scan} and {scans[case_id]} have the same id; rename one of them")
        scans[case_id] = scan
    return scans


def _scans_at(path: Path) -> list[Path]:
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder; expected a CT or a folder of CTs")
    if path.is_file():
        return [path]
    return sorted(p for p in path.iterdir() if is_volume_file(p) or _holds_files(p)) or [path]


def _holds_files(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_dir():
        return False
    return any(p.is_file() and not p.name.startswith(".") for p in path.iterdir())


def result_name(scan: Path) -> str:
    """Name of the mask of a scan: the id with the scan's file type, compressed where the type can be."""
    extension = scan.name.lower()[len(volume_id(scan)) :] if scan.is_file() else ""
    return volume_id(scan) + {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd"}.get(extension, ".nii.gz")


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
