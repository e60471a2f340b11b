"""Crop a folder of raw scans into a cohort."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.cohort import find_volume
from datasets.crop import LungMaskCrop, recorded_window
from datasets.io.scan import Scan
from datasets.io.volume import read_geometry, write_volume
from datasets.lung_finders import Lungs
from datasets.pairs import match_masks
from datasets.window import WINDOW
from utils.errors import VolumeError
from utils.failures import for_each

log = logging.getLogger(__name__)

FOLDERS = ("images", "lung", "lesion")
"""The folders of a cohort, in the order of what `LungMaskCrop.crop` returns."""


def crop_scans(
    scans: Mapping[str, Path | Scan],
    output: Path,
    cropper: LungMaskCrop,
    labels: dict[str, Path] | None = None,
    lungs: dict[str, Path] | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Crop scans into a cohort folder, one after the other.

    Args:
        scans: id to CT.
        output: cohort folder; images/, lung/ and lesion/ are created in it.
        cropper: crops one scan.
        labels: id to lesion label; scans without a label get no file in lesion/.
        lungs: id to lung mask if lung masks are given; then every scan needs one.
        progress: show a progress bar.

    Returns:
        Id to reason of the scans that failed.
    """

    def crop(case_id: str, scan: Path | Scan) -> None:
        crops = cropper.crop(scan, (labels or {}).get(case_id), lung_mask_of(scan, case_id, lungs))
        # The image is written last: if it exists, the others do.
        for folder, crop in reversed(list(zip(FOLDERS, crops, strict=False))):
            write_volume(crop, output / folder / f"{case_id}.nii.gz")

    return for_each(scans.items(), crop, "cropping", total=len(scans), progress=progress)


def is_cropped(
    output: Path, case_id: str, size: tuple[int, int, int], with_lesion: bool, window: tuple[float, float] = WINDOW
) -> bool:
    """Whether the cohort folder has the crops of a scan, with this size (z, y, x) and window (HU)."""
    paths = [find_volume(output / folder, case_id) for folder in (FOLDERS if with_lesion else FOLDERS[:2])]
    if None in paths:
        return False
    try:
        return recorded_window(paths[0]) == window and all(read_geometry(path).shape == size for path in paths)
    except VolumeError:
        return False


def masks_of_scans(folder: Path | None, scans: Mapping[str, Path | Scan], what: str) -> dict[str, Path]:
    """Masks by the id of their scan; masks without a scan and scans without a mask are warnings.

    Args:
        folder: of the masks; None if none are given.
        scans: id to CT.
        what: kind of mask, for the messages.

    Raises:
        VolumeError: as `match_masks`.
    """
    if folder is None:
        return {}
    matched, unmatched = match_masks(folder, scans)
    if unmatched:
        log.warning("%d %s file(s) match no scan, the first %s", len(unmatched), what, unmatched[0])
    if missing := [case_id for case_id in scans if case_id not in matched]:
        log.warning("%d scan(s) have no %s, the first %s", len(missing), what, missing[0])
    return matched


def print_pairs(scans: Mapping[str, Scan], labels: Mapping[str, Path], lungs: Mapping[str, Path] | None) -> None:
    """Print one line per scan: its id, its CT, its label and its lung mask."""
    for case_id, scan in scans.items():
        line = f"{case_id}: {scan}, label {labels.get(case_id, 'none')}"
        print(line if lungs is None else f"{line}, lung mask {lungs.get(case_id, 'none')}")


def given_lung_masks(lungs: Lungs, scans: Mapping[str, Path | Scan]) -> dict[str, Path] | None:
    """Given lung masks by the id of their scan; None if lungs are found by a method."""
    return None if lungs.folder is None else masks_of_scans(lungs.folder, scans, "lung mask")


def lung_mask_of(scan: Path | Scan, case_id: str, lungs: dict[str, Path] | None) -> Path | None:
    """The lung mask given for a scan; None if lungs are found by a method.

    Raises:
        VolumeError: lung masks are given, but none for this scan.
    """
    if lungs is not None and case_id not in lungs:
        raise VolumeError(f"{scan}: no lung mask of this name; add {case_id}.nii.gz to the lung masks")
    return None if lungs is None else lungs[case_id]


def keep_apart(folders: Sequence[Path], inputs: Sequence[Path], what: str = "crops") -> None:
    """Refuse to write results over the files that they are made from.

    Raises:
        VolumeError: an input lies in one of the folders that are written to.
    """
    written = [folder.resolve() for folder in folders]
    for path in inputs:
        if path.resolve().parent in written:
            raise VolumeError(
                f"{path}: lies where the {what} would be written; choose another --output than {folders[0].parent}"
            )
