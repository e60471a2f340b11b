"""Crops chest CTs to the lungs and resizes them: the way into a cohort.

INPUT is one CT (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) or a folder of them. DICOM series
may lie deeper, as in an export of patients, studies and series; the id of patient/study/series is then
patient_study_series, and a label or lung mask has that name. Writes images/<id>.nii.gz (0..255), lung/<id>.nii.gz and,
for scans with a label, lesion/<id>.nii.gz below the output folder. Scans that are done already are skipped; a scan that
fails is named at the end, and the others are done.

From Python, the same thing is LungMaskCrop().crop(imagepath, labelpath).

Examples:
    python lungCrop.py scans --output data
    python lungCrop.py scans --output data --labels lesions --weights unet_r231-d5d2fc3d.pth
    python lungCrop.py scan.nrrd --output data --lungs threshold
    python lungCrop.py scans --output data --lungs lung_masks
    python lungCrop.py dicom_folder --output data --series "Lung 1.0"
    python lungCrop.py covidseg/ct_scans --output data --grey-window -1250 250
    torchrun --nproc-per-node 2 lungCrop.py scans --output data
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets.cohort import find_volume
from datasets.crop import CROP_SIZE, WINDOW, LungMaskCrop, recorded_window
from datasets.io.volume import Reading, read_geometry, write_volume
from datasets.lungs import load_lungmask, segment_by_threshold
from datasets.scans import find_scans, match_labels
from utils import distributed
from utils.cli import add_device, add_quiet, add_reading, choose_device, new_parser, run, start_logging
from utils.errors import GasnetError, VolumeError
from utils.manifest import recording
from utils.progress import progress_bar

__all__ = ["LungMaskCrop", "crop_scans", "main"]

log = logging.getLogger(__name__)

FOLDERS = ("images", "lung", "lesion")
"""Of a cohort, in the order in which `LungMaskCrop.crop` returns the crops."""


def crop_scans(
    scans: dict[str, Path],
    output: Path,
    cropper: LungMaskCrop,
    labels: dict[str, Path] | None = None,
    lungs: dict[str, Path] | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Crop scans into a cohort folder, one after the other.

    Args:
        scans: id to CT.
        output: cohort folder; images/, lung/ and lesion/ are made below it.
        cropper: crops.
        labels: id to lesion label; scans without one get no file in lesion/.
        lungs: id to lung mask, where they are given; every scan then needs one.
        progress: show a progress bar.

    Returns:
        Id to reason of the scans that failed.
    """
    labels = labels or {}
    failed: dict[str, str] = {}
    with logging_redirect_tqdm():
        for case_id, scan in progress_bar(scans.items(), "cropping", unit="scan", shown=progress):
            try:
                crops = cropper.crop(scan, labels.get(case_id), lung_mask_of(scan, case_id, lungs))
                # The image comes last: where it stands, the others do.
                for folder, crop in reversed(list(zip(FOLDERS, crops, strict=False))):
                    write_volume(crop, output / folder / f"{case_id}.nii.gz")
            except GasnetError as error:
                failed[case_id] = str(error)
                log.warning("%s", error)
    return failed


def is_done(
    output: Path, case_id: str, size: tuple[int, int, int], with_lesion: bool, window: tuple[float, float] = WINDOW
) -> bool:
    """Whether the crops of a scan are in the cohort folder already, of this size (z, y, x) and window (HU)."""
    paths = [find_volume(output / folder, case_id) for folder in (FOLDERS if with_lesion else FOLDERS[:2])]
    if None in paths:
        return False
    try:
        return recorded_window(paths[0]) == window and all(read_geometry(path).shape == size for path in paths)
    except VolumeError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="a CT, or a folder of CTs or of DICOM series")
    parser.add_argument("--output", type=Path, required=True, metavar="ROOT", help="cohort folder")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="lesion labels, named as their scans")
    add_lungs(parser)
    add_crop_size(parser)
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        default=WINDOW,
        metavar=("LOW", "HIGH"),
        help="HU that become 0 and 255, as in IMAGE.WINDOW of the settings (default {:g} {:g})".format(*WINDOW),
    )
    add_grey_window(parser)
    add_reading(parser)
    parser.add_argument("--overwrite", action="store_true", help="crop scans again that are done")
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if min(options.size) < 2:
        parser.error("--size needs at least 2 voxels along each axis")
    if not -math.inf < options.window[0] < options.window[1] < math.inf:
        parser.error("--window needs the lower HU first")
    reading = chosen_reading(parser, options)
    start_logging(options.quiet)

    torch.backends.cudnn.allow_tf32 = False  # the same lungs on every device
    scans = find_scans(options.input)
    labels = _match(options.labels, scans, "label")
    lungs = given_lungs(options, scans)
    keep_apart(
        [options.output / folder for folder in FOLDERS], [*scans.values(), *labels.values(), *(lungs or {}).values()]
    )
    size, window = tuple(options.size), tuple(options.window)
    device = lung_device(options)
    failed: dict[str, str] = {}
    with distributed.lock_folder_on_rank_zero(options.output, *FOLDERS), recording(options.output, device=device):
        # One process looks before any writes, so that all share out the same.
        left = distributed.on_rank_zero(
            lambda: [
                case_id
                for case_id in scans
                if options.overwrite or not is_done(options.output, case_id, size, case_id in labels, window)
            ]
        )
        if mine := {case_id: scans[case_id] for case_id in distributed.shard(left)}:
            cropper = LungMaskCrop(lung_finder(options, device), size, reading, window)
            failed = crop_scans(mine, options.output, cropper, labels, lungs, progress=not options.quiet)
        of_all = {case_id: reason for part in distributed.gather(failed) for case_id, reason in part.items()}
    failed = {case_id: of_all[case_id] for case_id in left if case_id in of_all}

    print(
        f"{len(scans) - len(failed)} of {len(scans)} scans are in {options.output}, {len(labels)} with a lesion label"
    )
    for case_id, reason in failed.items():
        print(f"failed: {case_id}: {reason}")
    return 1 if failed else 0


def add_crop_size(parser: argparse.ArgumentParser) -> None:
    """Add ``--size``, that of the crops."""
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        default=CROP_SIZE,
        metavar=("DEPTH", "HEIGHT", "WIDTH"),
        help="voxels of a crop (default {} {} {})".format(*CROP_SIZE),
    )


def add_lungs(parser: argparse.ArgumentParser) -> None:
    """Add ``--lungs``, ``--lungmask-model`` and ``--weights``, which say how lungs are found."""
    parser.add_argument(
        "--lungs",
        default="lungmask",
        metavar="lungmask|threshold|DIR",
        help="how the lungs are found: the network of lungmask (default), classical thresholding, or masks in a folder",
    )
    add_lungmask(parser)


def add_lungmask(parser: argparse.ArgumentParser) -> None:
    """Add ``--lungmask-model`` and ``--weights``."""
    parser.add_argument("--lungmask-model", default="R231", help="model of lungmask (default R231)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of lungmask, where it cannot fetch them")


def add_grey_window(parser: argparse.ArgumentParser) -> None:
    """Add ``--grey-window``, for CTs that are no longer in HU."""
    parser.add_argument(
        "--grey-window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="map CTs of 0..255 back to HU, of which LOW became 0 and HIGH 255 (CovidSeg's Radiopaedia: -1250 250)",
    )


def chosen_reading(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Reading:
    """How raw scans are read, by the options of `add_reading` and `add_grey_window`."""
    window = None if options.grey_window is None else tuple(options.grey_window)
    if window is not None and window[0] >= window[1]:
        parser.error("--grey-window needs the lower HU first")
    return Reading(options.max_voxels, options.series, window)


def given_lungs(options: argparse.Namespace, scans: dict[str, Path]) -> dict[str, Path] | None:
    """Lung masks by the id of their scan where ``--lungs`` names a folder of them, None where lungs are to be found."""
    if options.lungs in ("lungmask", "threshold"):
        return None
    return _match(Path(options.lungs), scans, "lung mask")


def lung_mask_of(scan: Path, case_id: str, lungs: dict[str, Path] | None) -> Path | None:
    """The lung mask given for a scan, None where lungs are to be found.

    Raises:
        VolumeError: lung masks are given, and none for this scan.
    """
    if lungs is not None and case_id not in lungs:
        raise VolumeError(f"{scan}: no lung mask of this name; add {case_id}.nii.gz to the lung masks")
    return None if lungs is None else lungs[case_id]


def lung_device(options: argparse.Namespace) -> torch.device:
    """The device that finds lungs: that of ``--device`` for lungmask, the CPU for everything else.

    Raises:
        GasnetError: see `choose_device`.
    """
    return choose_device(options.device) if options.lungs == "lungmask" else torch.device("cpu")


def lung_finder(options: argparse.Namespace, device: torch.device) -> Callable[[sitk.Image], np.ndarray]:
    """What finds lungs, by the options of `add_lungs`: from a CT in HU to labels (1 right, 2 left).

    Args:
        options: of the command.
        device: for lungmask.

    Raises:
        VolumeError: lungmask's weights cannot be had.
    """
    if options.lungs != "lungmask":
        return segment_by_threshold
    return load_lungmask(options.lungmask_model, options.weights, force_cpu=device.type == "cpu")


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


def _match(folder: Path | None, scans: dict[str, Path], what: str) -> dict[str, Path]:
    if folder is None:
        return {}
    matched, unmatched = match_labels(folder, list(scans))
    if unmatched:
        log.warning("%d %s file(s) belong to no scan, the first %s", len(unmatched), what, unmatched[0])
    if missing := [case_id for case_id in scans if case_id not in matched]:
        log.warning("%d scan(s) have no %s, the first %s", len(missing), what, missing[0])
    return matched


if __name__ == "__main__":
    raise SystemExit(run(main))
