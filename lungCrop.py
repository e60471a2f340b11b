"""Crops chest CTs to the lungs and resizes them: the way into a cohort.

INPUT is one CT (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) or a folder of them. Writes
images/<id>.nii.gz (0..255), lung/<id>.nii.gz and, for scans with a label, lesion/<id>.nii.gz below the output
folder. Scans that are done already are skipped; a scan that fails is named at the end, and the others are done.

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
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm.contrib.logging import logging_redirect_tqdm

import processes
from command_line import add_quiet, add_reading, new_parser, run, start_logging
from datasets.cohort import find_volume
from datasets.crop import CROP_SIZE, LungMaskCrop
from datasets.lungs import load_lungmask, segment_by_threshold
from datasets.scans import find_scans, match_labels
from datasets.volume import Reading, read_geometry, write_volume
from errors import GasnetError, VolumeError
from manifest import recording
from progress import progress_bar

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
                if lungs is not None and case_id not in lungs:
                    raise VolumeError(f"{scan}: no lung mask of this name; add {case_id}.nii.gz to the lung masks")
                crops = cropper.crop(scan, labels.get(case_id), lungs[case_id] if lungs is not None else None)
                # The image comes last: where it stands, the others do.
                for folder, crop in reversed(list(zip(FOLDERS, crops, strict=False))):
                    write_volume(crop, output / folder / f"{case_id}.nii.gz")
            except GasnetError as error:
                failed[case_id] = str(error)
                log.warning("%s", error)
    return failed


def is_done(output: Path, case_id: str, size: tuple[int, int, int], with_lesion: bool) -> bool:
    """Whether the crops of a scan are in the cohort folder already, and of this size (z, y, x)."""
    paths = [find_volume(output / folder, case_id) for folder in (FOLDERS if with_lesion else FOLDERS[:2])]
    if None in paths:
        return False
    try:
        return all(read_geometry(path).shape == size for path in paths)
    except VolumeError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument("input", type=Path, help="a CT, or a folder of CTs")
    parser.add_argument("--output", type=Path, required=True, metavar="ROOT", help="cohort folder")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="lesion labels, named as their scans")
    parser.add_argument(
        "--lungs",
        default="lungmask",
        metavar="lungmask|threshold|DIR",
        help="how the lungs are found: the network of lungmask (default), classical thresholding, or masks in a folder",
    )
    parser.add_argument("--lungmask-model", default="R231", help="model of lungmask (default R231)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of lungmask, where it cannot fetch them")
    parser.add_argument("--cpu", action="store_true", help="run lungmask on the CPU even where there is CUDA")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        default=CROP_SIZE,
        metavar=("DEPTH", "HEIGHT", "WIDTH"),
        help="voxels of a crop (default {} {} {})".format(*CROP_SIZE),
    )
    parser.add_argument(
        "--grey-window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="map CTs of 0..255 back to HU, of which LOW became 0 and HIGH 255 (CovidSeg's Radiopaedia: -1250 250)",
    )
    add_reading(parser)
    parser.add_argument("--overwrite", action="store_true", help="crop scans again that are done")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if min(options.size) < 2:
        parser.error("--size needs at least 2 voxels along each axis")
    if options.grey_window is not None and options.grey_window[0] >= options.grey_window[1]:
        parser.error("--grey-window needs the lower HU first")
    start_logging(options.quiet)

    scans = find_scans(options.input)
    labels = _match(options.labels, scans, "label")
    given = options.lungs not in ("lungmask", "threshold")
    lungs = _match(Path(options.lungs), scans, "lung mask") if given else None
    _keep_apart(options.output, [*scans.values(), *labels.values(), *(lungs or {}).values()])
    size = tuple(options.size)
    grey_window = None if options.grey_window is None else tuple(options.grey_window)
    reading = Reading(options.max_voxels, options.series, grey_window)
    failed: dict[str, str] = {}
    with processes.one_writer(options.output, *FOLDERS), recording(options.output):
        # One process looks before any writes, so that all share out the same.
        left = processes.from_first(
            lambda: [
                case_id
                for case_id in scans
                if options.overwrite or not is_done(options.output, case_id, size, with_lesion=case_id in labels)
            ]
        )
        if mine := {case_id: scans[case_id] for case_id in processes.share(left)}:
            cropper = LungMaskCrop(_lung_finder(options), size, reading)
            failed = crop_scans(mine, options.output, cropper, labels, lungs, progress=not options.quiet)
        of_all = {case_id: reason for part in processes.gather(failed) for case_id, reason in part.items()}
    failed = {case_id: of_all[case_id] for case_id in left if case_id in of_all}

    print(
        f"{len(scans) - len(failed)} of {len(scans)} scans are in {options.output}, {len(labels)} with a lesion label"
    )
    for case_id, reason in failed.items():
        print(f"failed: {case_id}: {reason}")
    return 1 if failed else 0


def _match(folder: Path | None, scans: dict[str, Path], what: str) -> dict[str, Path]:
    if folder is None:
        return {}
    matched, unmatched = match_labels(folder, list(scans))
    if unmatched:
        log.warning("%d %s file(s) belong to no scan, the first %s", len(unmatched), what, unmatched[0])
    if missing := [case_id for case_id in scans if case_id not in matched]:
        log.warning("%d scan(s) have no %s, the first %s", len(missing), what, missing[0])
    return matched


def _keep_apart(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write crops over the files that they are made from."""
    written = [(output / folder).resolve() for folder in FOLDERS]
    for path in inputs:
        if path.resolve().parent in written:
            raise VolumeError(f"{path}: lies where the crops would be written; choose another --output than {output}")


def _lung_finder(options: argparse.Namespace) -> Callable[[sitk.Image], np.ndarray]:
    if options.lungs != "lungmask":
        return segment_by_threshold
    return load_lungmask(options.lungmask_model, options.weights, force_cpu=options.cpu)


if __name__ == "__main__":
    raise SystemExit(run(main))
