"""Pastes cropped masks back onto the grids of the raw scans.

A crop's header says where it belongs, so no lungs are segmented again. Probabilities (float files) are interpolated
linearly and cut at the threshold, which is smoother and closer to the truth; masks (integer files) are pasted with
nearest-neighbour interpolation. Each result has the size, spacing, origin and direction of its scan, and its file type
(.nii.gz for .nii and DICOM). Scans without a mask, such as those that test.py was not asked to test, and masks without
a scan are named, and the exit code is then 1.

Examples:
    python post_processing.py --images scans --masks output/test/probabilities --output masks
    python post_processing.py --images scan.nrrd --masks output/test/masks --output masks
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from datasets.scan_options import add_scan_options, chosen_reading
from evaluation import TESTED, THRESHOLD
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import VolumeError
from utils.files import lock_folder
from utils.ledger import Entry, Ledger, Recipe, recording
from utils.progress import for_each, print_failures

if TYPE_CHECKING:
    import SimpleITK as sitk

    from datasets.volumes import Reading, Scan


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="RAW", help="raw scans, or folders of them"
    )
    parser.add_argument("--masks", type=Path, required=True, metavar="PRED", help="folder of cropped masks")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the full-size masks")
    add_scan_options(parser, "threshold", "series", "max-voxels")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    options.reading = chosen_reading(parser, options)
    return options


def restore_mask(scan: Scan, mask: Path, threshold: float, reading: Reading) -> sitk.Image:
    """Paste a cropped mask, or probabilities if the file holds floats, back onto the grid of its scan.

    Of the scan, only the geometry is used, which that of the result, uint8, equals exactly.

    Raises:
        VolumeError: a file cannot be read, or the mask was not cut from this scan.
    """
    import SimpleITK as sitk

    from datasets.crop import lay_over
    from datasets.volumes import as_labels, read_volume

    crop = read_volume(mask)
    if crop.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        return lay_over(scan, scan.geometry(reading), as_labels(mask, crop), mask)
    values = sitk.GetArrayViewFromImage(crop)
    if values.min() < 0 or values.max() > 1:
        raise VolumeError(f"{mask}: values of {values.min():g}..{values.max():g} are not probabilities")
    return lay_over(scan, scan.geometry(reading), crop, mask, threshold)


def entries_of(masks: Path) -> dict[Path, Entry]:
    """What test.py noted of the files that it wrote, by path; of a folder in its output folder."""
    output = masks.resolve().parent
    return {output / name: entry for entry in Ledger(output, TESTED).entries().values() for name in entry.files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)

    from datasets.cohort import warn_of_other_scan
    from datasets.pairs import match_masks
    from datasets.scans import files_of, find_scans, result_name
    from datasets.volumes import write_volume

    start_logging(options.quiet)
    scans = find_scans(*options.images, series=options.series, progress=not options.quiet)
    masks, unmatched = match_masks(options.masks, scans)
    inputs = (*options.images, options.masks, *(path.parent for path in (*files_of(scans.values()), *masks.values())))
    if options.output.resolve() in [path.resolve() for path in inputs]:
        raise VolumeError(f"{options.output}: is the folder of the input; choose another --output")
    ledger, tested = Ledger(options.output, "pasted"), entries_of(options.masks)

    def paste_back(case_id: str, mask: Path) -> None:
        scan, threshold, entry = scans[case_id], options.threshold, tested.get(mask.resolve(), Entry({}))
        if threshold is None:
            threshold = entry.options.get("threshold", THRESHOLD)
        if "crop" in entry.sources:
            warn_of_other_scan(Path(entry.sources["crop"].path), scan, scan.files)
        restored = restore_mask(scan, mask, threshold, options.reading)
        path = options.output / result_name(case_id, scan)
        recipe = Recipe({"scan": scan.files, "mask": [mask]}, {"threshold": threshold})
        with ledger.writing(case_id, [path], recipe):
            write_volume(restored, path)

    with lock_folder(options.output), recording(options.output):
        failed = for_each(masks, paste_back, "pasting back", unit="mask", progress=not options.quiet)
    ledger.name_others(masks)
    print(f"{len(masks) - len(failed)} of {len(scans)} scans have a full-size mask in {options.output}")
    code = print_failures(failed)
    untested = [case_id for case_id in scans if case_id not in masks]
    for case_id in untested:
        print(f"not tested: {case_id}: no mask in {options.masks}")
    for path in unmatched:
        print(f"no raw scan for: {path}")
    return 1 if untested or unmatched else code


if __name__ == "__main__":
    raise SystemExit(run(main))
