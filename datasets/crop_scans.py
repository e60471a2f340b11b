"""Crop a folder of raw scans into a cohort."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.cohort import FOLDERS, checksum_of_voxels
from datasets.crop import LungMaskCrop
from datasets.formats import files_of
from datasets.lung_finders import Lungs
from datasets.pairs import match_masks
from datasets.volumes import NOTES, Reading, Scan, write_volume
from utils.errors import VolumeError
from utils.ledger import Ledger, Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """The masks that belong to scans, by id."""

    labels: Mapping[str, Path] = field(default_factory=dict)  # lesions; scans without a label get no file in lesion/
    lungs: Mapping[str, Path] | None = None  # if lung masks are given; then every scan needs one

    def lung_of(self, case_id: str, scan: Scan) -> Path | None:
        """The lung mask given for a scan; None if lungs are found by a method.

        Raises:
            VolumeError: lung masks are given, but none for this scan.
        """
        if self.lungs is not None and case_id not in self.lungs:
            raise VolumeError(f"{scan}: no lung mask of this name; add {case_id}.nii.gz to the lung masks")
        return None if self.lungs is None else self.lungs[case_id]

    def sources(self, case_id: str, scan: Scan) -> dict[str, list[Path]]:
        """The files of a scan, its label and its lung mask, by role."""
        files = {"scan": scan.files}
        for role, masks in (("label", self.labels), ("lung mask", self.lungs or {})):
            if case_id in masks:
                files[role] = files_of(masks[case_id])
        found = {role: [path for path in paths if path.is_file()] for role, paths in files.items()}
        return {role: paths for role, paths in found.items() if paths}


def crop_options(
    size: tuple[int, int, int], window: tuple[float, float], reading: Reading, lungs_name: str
) -> dict[str, Any]:
    """The options that crops depend on, as JSON values."""
    return {
        "size": list(size),
        "window": list(window),
        "lungs": lungs_name,
        "series": reading.series,
        "grey window": None if reading.grey_window is None else list(reading.grey_window),
        "segments": None if reading.segments is None else list(reading.segments),
    }


def crop_scan(
    case_id: str,
    scan: Scan,
    ledger: Ledger,
    recipe: Recipe,
    cropper: LungMaskCrop,
    masks: Masks,
    note: str | None = None,
) -> None:
    """Crop a scan into a cohort, and enter it in its ledger; the note is what tests on the scan should say.

    Raises:
        VolumeError: a file cannot be read, does not fit the CT, or no lung was found.
        FolderError: the crops would replace somebody else's files.
    """
    ct, crops = cropper.crop_scan(scan, masks.labels.get(case_id), masks.lung_of(case_id, scan))
    # With the CT in its header, a crop tells it wherever it goes; NIfTI has 79 bytes for that.
    crops[0].SetMetaData(NOTES, f"{crops[0].GetMetaData(NOTES)}, CT {checksum_of_voxels(ct)}"[:79])
    paths = [ledger.folder / folder / f"{case_id}.nii.gz" for folder in FOLDERS[: len(crops)]]
    with ledger.writing(case_id, paths, recipe) as facts:
        facts |= {"note": note}
        for path, image in zip(paths, crops, strict=True):
            write_volume(image, path)


def masks_of_scans(
    folders: Sequence[Path], scans: Mapping[str, Scan], what: str, of_all: bool = True
) -> dict[str, Path]:
    """Masks by the id of their scan; masks without a scan and, with `of_all`, scans without a mask are warnings.

    Raises:
        VolumeError: as `match_masks`, or masks in two folders belong to one scan.
    """
    matched: dict[str, Path] = {}
    unmatched: list[Path] = []
    for folder in folders:
        found, others = match_masks(folder, scans)
        if twice := found.keys() & matched.keys():
            case_id = min(twice)
            raise VolumeError(f"{found[case_id]} and {matched[case_id]} both belong to {case_id}; keep one of them")
        matched |= found
        unmatched += others
    if unmatched:
        log.warning("%d %s file(s) match no scan, the first %s", len(unmatched), what, unmatched[0])
    if of_all and folders and (missing := [case_id for case_id in scans if case_id not in matched]):
        log.warning("%d scan(s) have no %s, the first %s", len(missing), what, missing[0])
    return matched


def given_lung_masks(lungs: Lungs, scans: Mapping[str, Scan]) -> dict[str, Path] | None:
    """Given lung masks by the id of their scan; None if lungs are found by a method."""
    return None if lungs.folder is None else masks_of_scans([lungs.folder], scans, "lung mask")


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
