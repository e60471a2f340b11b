"""Puts cropped masks back onto the grids of the raw scans: the way out.

Where a mask belongs is in its header, so no lungs are segmented again. Probabilities (float files) are interpolated
linearly and cut at the threshold, which is smoother and closer to the truth; masks (integer files) are pasted with
the nearest voxel. Each result has the size, spacing, origin and direction of its scan, and the scan's file type
(.nii.gz for .nii and DICOM).

Examples:
    python post_processing.py --images scans --masks output/test/probabilities --output masks
    python post_processing.py --images scan.nrrd --masks output/test/masks --output masks
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets.crop import lay_over
from datasets.io.volume import DEFAULT, Reading, as_labels, read_geometry, read_volume, write_volume
from datasets.scans import find_scans, match_labels, result_name
from evaluation.metrics import THRESHOLD
from utils.cli import add_quiet, add_reading, new_parser, run, start_logging
from utils.errors import GasnetError, VolumeError
from utils.files import lock_folder
from utils.manifest import recording
from utils.progress import progress_bar

log = logging.getLogger(__name__)


def restore_mask(scan: Path, mask: Path, threshold: float = THRESHOLD, reading: Reading = DEFAULT) -> sitk.Image:
    """The full-size mask of a scan from a cropped mask or probability.

    Args:
        scan: the raw CT, a file or a DICOM folder; its geometry alone is used.
        mask: probabilities where the file holds floats, labels otherwise.
        threshold: probabilities above it are lesion.
        reading: how the scan is read.

    Returns:
        uint8 with exactly the geometry of the scan.

    Raises:
        VolumeError: a file cannot be read, or the mask was not cut from this scan.
    """
    crop = read_volume(mask)
    probability = crop.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64)
    if probability:
        values = sitk.GetArrayViewFromImage(crop)
        if values.min() < 0 or values.max() > 1:
            raise VolumeError(f"{mask}: values of {values.min():g}..{values.max():g} are not probabilities")
    else:
        crop = as_labels(mask, crop)
    return lay_over(scan, read_geometry(scan, reading), crop, mask, threshold if probability else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="RAW", help="raw scans, or folders of them"
    )
    parser.add_argument("--masks", type=Path, required=True, metavar="PRED", help="folder of cropped masks")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the full-size masks")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="probabilities above it are lesion")
    add_reading(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if not 0 <= options.threshold < 1:
        parser.error("--threshold must be at least 0 and below 1")
    start_logging(options.quiet)

    reading = Reading(options.max_voxels, options.series)
    scans = find_scans(*options.images)
    masks, unmatched = match_labels(options.masks, list(scans))
    inputs = (*options.images, options.masks, *(path.parent for path in (*scans.values(), *masks.values())))
    if options.output.resolve() in [path.resolve() for path in inputs]:
        raise VolumeError(f"{options.output}: is the folder of the input; choose another --output")
    failed = {case_id: "no mask of this name" for case_id in scans if case_id not in masks}
    with lock_folder(options.output), recording(options.output), logging_redirect_tqdm():
        for case_id, mask in progress_bar(masks.items(), "pasting back", unit="mask", shown=not options.quiet):
            try:
                restored = restore_mask(scans[case_id], mask, options.threshold, reading)
                write_volume(restored, options.output / result_name(case_id, scans[case_id]))
            except GasnetError as error:
                failed[case_id] = str(error)
                log.warning("%s", error)
    print(f"{len(scans) - len(failed)} of {len(scans)} scans have a full-size mask in {options.output}")
    for case_id, reason in failed.items():
        print(f"failed: {case_id}: {reason}")
    for path in unmatched:
        print(f"no raw scan for: {path}")
    return 1 if failed or unmatched else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
