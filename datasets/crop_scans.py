"""Crop a folder of raw scans into a cohort."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.cohort import find_volume
from datasets.crop import LungMaskCrop, recorded_window
from datasets.geometry import shape_of
from datasets.io.parts import files_of
from datasets.io.scan import Scan
from datasets.io.volume import Reading, read_geometry, write_volume
from datasets.lung_finders import Lungs
from datasets.pairs import match_masks
from datasets.window import WINDOW
from utils.errors import VolumeError
from utils.failures import for_each
from utils.results import NO_RECORD, Results, digest_of

log = logging.getLogger(__name__)

FOLDERS = ("images", "lung", "lesion")
"""The folders of a cohort, in the order of what `LungMaskCrop.crop` returns."""


@dataclass(frozen=True)
class Masks:
    """The masks that belong to scans.

    Attributes:
        labels: lesion label by id; scans without a label get no file in lesion/.
        lungs: lung mask by id if lung masks are given; then every scan needs one.
    """

    labels: Mapping[str, Path] = field(default_factory=dict)
    lungs: Mapping[str, Path] | None = None

    def lung_of(self, case_id: str, scan: Path | Scan) -> Path | None:
        """The lung mask given for a scan; None if lungs are found by a method.

        Raises:
            VolumeError: lung masks are given, but none for this scan.
        """
        if self.lungs is not None and case_id not in self.lungs:
            raise VolumeError(f"{scan}: no lung mask of this name; add {case_id}.nii.gz to the lung masks")
        return None if self.lungs is None else self.lungs[case_id]

    def digests(self, case_id: str, scan: Path | Scan) -> dict[str, str]:
        """Digest of the scan, its label and its lung mask, see `utils.results.digest_of`."""
        files = {"scan": scan.files if isinstance(scan, Scan) else files_of(scan)}
        for role, masks in (("label", self.labels), ("lung mask", self.lungs or {})):
            if case_id in masks:
                files[role] = files_of(masks[case_id])
        return {role: digest_of(path for path in paths if path.is_file()) for role, paths in files.items()}

    def crop_paths(self, output: Path, case_id: str) -> list[Path]:
        """Paths of the crops of a scan."""
        folders = FOLDERS if case_id in self.labels else FOLDERS[:2]
        return [output / folder / f"{case_id}.nii.gz" for folder in folders]


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


def crop_scans(
    scans: Mapping[str, Path | Scan],
    output: Path,
    cropper: LungMaskCrop,
    masks: Masks,
    made_by: Mapping[str, Any],
    progress: bool = True,
) -> dict[str, str]:
    """Crop scans into a cohort folder, one after the other.

    Args:
        scans: id to CT.
        output: cohort folder; images/, lung/ and lesion/ are created in it.
        cropper: crops one scan.
        masks: labels and lung masks.
        made_by: options that the crops depend on, see `crop_options`.
        progress: show a progress bar.

    Returns:
        Id to reason of the scans that failed, among them those whose crops would replace somebody else's files.
    """
    results = Results(output)

    def crop(case_id: str, scan: Path | Scan) -> None:
        crops = cropper.crop(scan, masks.labels.get(case_id), masks.lung_of(case_id, scan))
        paths, inputs = masks.crop_paths(output, case_id), masks.digests(case_id, scan)
        with results.writing(case_id, paths, made_by, inputs):
            # The image is written last: if it exists, the others do.
            for path, image in reversed(list(zip(paths, crops, strict=True))):
                write_volume(image, path)

    return for_each(scans.items(), crop, "cropping", total=len(scans), progress=progress)


def left_to_crop(
    scans: Mapping[str, Scan], output: Path, masks: Masks, made_by: Mapping[str, Any], overwrite: bool
) -> list[str]:
    """The ids of the scans that are not cropped yet, or were cropped from other inputs or with other options.

    Crops of earlier versions have no record; those of the right size and window are taken as done, with a warning.

    Args:
        scans: id to CT.
        output: cohort folder.
        masks: labels and lung masks.
        made_by: options that the crops depend on, see `crop_options`.
        overwrite: crop all scans again.
    """
    results = Results(output)
    left, changed, unrecorded = [], {}, []
    for case_id, scan in scans.items():
        difference = results.difference(case_id, made_by, masks.digests(case_id, scan))
        size, window = tuple(made_by["size"]), tuple(made_by["window"])
        if difference == NO_RECORD and is_cropped(output, case_id, size, case_id in masks.labels, window):
            unrecorded.append(case_id)
            difference = None
        elif difference not in (None, NO_RECORD):
            changed[case_id] = difference
        if overwrite or difference is not None:
            left.append(case_id)
    if changed and not overwrite:
        first = next(iter(changed))
        log.warning("%d scan(s) are cropped again, the first %s: %s", len(changed), first, changed[first])
    if unrecorded and not overwrite:
        log.warning(
            "%d scan(s) have crops without a record of how they were made, the first %s; they are taken as done",
            *(len(unrecorded), unrecorded[0]),
        )
    return left


def is_cropped(
    output: Path, case_id: str, size: tuple[int, int, int], with_lesion: bool, window: tuple[float, float] = WINDOW
) -> bool:
    """Whether the cohort folder has the crops of a scan, with this size (z, y, x) and window (HU)."""
    paths = [find_volume(output / folder, case_id) for folder in (FOLDERS if with_lesion else FOLDERS[:2])]
    if None in paths:
        return False
    try:
        return recorded_window(paths[0]) == window and all(shape_of(read_geometry(path)) == size for path in paths)
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
