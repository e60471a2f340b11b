"""Crops chest CTs to the lungs and resizes them into a cohort.

INPUT is one CT (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) or a folder of CTs. DICOM series
may lie deeper, as in an export of patients, studies and series; the id of patient/study/series is then
patient_study_series, and a label or lung mask has that name. Writes images/<id>.nii.gz (0..255), lung/<id>.nii.gz and,
for scans with a label, lesion/<id>.nii.gz to the output folder. Scans that are done are skipped. A scan that fails is
listed at the end, and the others are done.

From Python: LungMaskCrop().crop(imagepath, labelpath).

Examples:
    python lungCrop.py scans --output data
    python lungCrop.py scans --output data --labels lesions --weights unet_r231-d5d2fc3d.pth
    python lungCrop.py scan.nrrd --output data --lungs threshold
    python lungCrop.py scans --output data --lungs lung_masks
    python lungCrop.py scans --output data --labels lesions --dry-run
    python lungCrop.py dicom_folder --output data --series "Lung 1.0"
    python lungCrop.py covidseg/ct_scans --output data --grey-window -1250 250
    torchrun --nproc-per-node 2 lungCrop.py scans --output data
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.crop import LungMaskCrop
from datasets.crop_scans import (
    FOLDERS,
    Masks,
    crop_options,
    crop_scans,
    given_lung_masks,
    keep_apart,
    left_to_crop,
    masks_of_scans,
    print_pairs,
)
from datasets.io.scan import Scan
from datasets.lung_finders import Lungs
from datasets.scan_options import (
    add_crop_size,
    add_grey_window,
    add_lungs,
    add_reading,
    add_segments,
    add_window,
    check_size,
    check_window,
    chosen_lungs,
    chosen_reading,
)
from datasets.scans import files_of, find_scans
from utils import distributed
from utils.cli import add_device, add_quiet, choose_device, new_parser, run, start_logging
from utils.failures import gather_failures, print_failures
from utils.manifest import recording
from utils.results import RESULTS

__all__ = ["LungMaskCrop", "main"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="a CT, or a folder of CTs or of DICOM series")
    parser.add_argument("--output", type=Path, required=True, metavar="ROOT", help="cohort folder")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="lesion labels, named like their scans")
    add_segments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print which files belong together, write nothing")
    add_lungs(parser)
    add_crop_size(parser)
    add_window(parser)
    add_grey_window(parser)
    add_reading(parser)
    parser.add_argument("--overwrite", action="store_true", help="crop scans again that are done")
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    options.size = check_size(parser, options.size)
    options.window = check_window(parser, "--window", options.window)
    options.reading = chosen_reading(parser, options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)
    start_logging(options.quiet)
    torch.backends.cudnn.allow_tf32 = False  # the same lungs on every device
    output, size, window = options.output, options.size, options.window
    lungs = chosen_lungs(options)
    scans, masks = distributed.on_rank_zero(lambda: _find_scans_and_masks(options, lungs))
    inputs = [*files_of(scans.values()), *masks.labels.values(), *(masks.lungs or {}).values()]
    keep_apart([output / folder for folder in FOLDERS], inputs)
    if options.dry_run:
        print_pairs(scans, masks.labels, masks.lungs)
        return 0
    device = choose_device(options.device if lungs.on_gpu else "cpu")
    made_by = crop_options(size, window, options.reading, lungs.fingerprint)
    failed: dict[str, str] = {}
    with distributed.lock_folder_on_rank_zero(output, *FOLDERS, RESULTS), recording(output, device=device):
        # Looked up before any rank writes, so that all ranks share the same list.
        left = distributed.on_rank_zero(lambda: left_to_crop(scans, output, masks, made_by, options.overwrite))
        if mine := {case_id: scans[case_id] for case_id in distributed.shard(left)}:
            finder = lungs.finder(device) if masks.lungs is None else None
            cropper = LungMaskCrop(finder, size, options.reading, window)
            failed = crop_scans(mine, output, cropper, masks, made_by, progress=not options.quiet)
        failed = gather_failures(failed, left)

    print(f"{len(scans) - len(failed)} of {len(scans)} scans are in {output}, {len(masks.labels)} with a lesion label")
    return print_failures(failed)


def _find_scans_and_masks(options: argparse.Namespace, lungs: Lungs) -> tuple[dict[str, Scan], Masks]:
    scans = find_scans(options.input, series=options.series, progress=not options.quiet)
    return scans, Masks(masks_of_scans(options.labels, scans, "label"), given_lung_masks(lungs, scans))


if __name__ == "__main__":
    raise SystemExit(run(main))
