"""Crops chest CTs to the lungs and resizes them into a cohort.

INPUT are CTs (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) and folders of CTs. DICOM series may
lie deeper, as in an export of patients, studies and series; the id of patient/study/series is then
patient_study_series, and a label or lung mask has that name. Writes images/<id>.nii.gz (0..255), lung/<id>.nii.gz and,
for scans with a label, lesion/<id>.nii.gz to the output folder. Scans that are done are skipped. Crops of scans that
were in the input of an earlier run and are there no more are removed. A scan that fails is listed at the end, and the
others are done.

From Python: LungMaskCrop().crop(imagepath, labelpath).

Examples:
    python lungCrop.py scans --output data
    python lungCrop.py scans --output data --labels lesions --weights unet_r231-d5d2fc3d.pth
    python lungCrop.py scan.nrrd --output data --lungs threshold
    python lungCrop.py scans --output data --lungs lung_masks
    python lungCrop.py scans --output data --labels lesions --dry-run
    python lungCrop.py dicom_folder --output data --series "Lung 1.0"
    python lungCrop.py covidseg/ct_scans --output data --grey-window -1250 250
    python lungCrop.py site_a/*.nii.gz site_b --output data --part 1/8
    torchrun --nproc-per-node 2 lungCrop.py scans --output data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from datasets.scan_options import add_scan_options, check_size, check_window, chosen_lungs, chosen_reading
from utils import distributed
from utils.cli import add_device, add_part, add_quiet, new_parser, run, start_logging
from utils.distributed import choose_device
from utils.ledger import Ledger, Recipe, recording
from utils.progress import do_left, is_in_part, print_failures

if TYPE_CHECKING or __name__ != "__main__":  # for those who import LungMaskCrop; --help does not need it
    from datasets.crop import LungMaskCrop
    from datasets.crop_scans import Masks
    from datasets.volumes import Scan

__all__ = ["LungMaskCrop", "main"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("input", type=Path, nargs="+", metavar="INPUT", help="CTs, folders of CTs or of DICOM series")
    parser.add_argument("--output", type=Path, required=True, metavar="ROOT", help="cohort folder")
    parser.add_argument(
        "--labels", type=Path, nargs="+", default=[], metavar="DIR", help="lesion labels, named like their scans"
    )
    add_scan_options(parser, "segments")
    parser.add_argument("--dry-run", action="store_true", help="print which files belong together, write nothing")
    add_scan_options(parser, "lungs", "lungmask-model", "weights", "precision")
    add_scan_options(parser, "size", "window", "grey-window", "series", "max-voxels")
    add_scan_options(parser, "airless-lungs", "lesions-anywhere")
    parser.add_argument("--overwrite", action="store_true", help="crop scans again that are done")
    add_part(parser)
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

    import torch

    from datasets.cohort import CROPS, FOLDERS
    from datasets.crop import LungMaskCrop
    from datasets.crop_scans import crop_options, crop_scan, keep_apart
    from datasets.scans import files_of

    start_logging(options.quiet)
    torch.backends.cudnn.allow_tf32 = False  # the same lungs on every device
    output, lungs, part = options.output, chosen_lungs(options), options.part
    scans, masks = distributed.on_rank_zero(lambda: _find(options))
    inputs = [*files_of(scans.values()), *masks.labels.values(), *(masks.lungs or {}).values()]
    keep_apart([output / folder for folder in FOLDERS], inputs)
    if options.dry_run:
        for case_id, scan in scans.items():
            line = f"{case_id}: {scan}, label {masks.labels.get(case_id, 'none')}"
            print(line if masks.lungs is None else f"{line}, lung mask {masks.lungs.get(case_id, 'none')}")
        return 0
    device = choose_device(options.device if lungs.on_gpu else "cpu")
    made_by = crop_options(options.size, options.window, options.reading, lungs.fingerprint(device))
    recipes = {case_id: Recipe(masks.sources(case_id, scan), made_by) for case_id, scan in scans.items()}
    ledger = Ledger(output, CROPS)

    def begin() -> Callable[[str, Recipe], None]:
        finder = lungs.finder(device) if masks.lungs is None else None
        cropper = LungMaskCrop(finder, options.size, options.reading, options.window)
        return lambda case_id, recipe: crop_scan(case_id, scans[case_id], ledger, recipe, cropper, masks)

    with (
        distributed.lock_folder_on_rank_zero(output, *FOLDERS, part=part),
        recording(output, device=device),
    ):
        failed = do_left(
            ledger,
            recipes,
            begin,
            "cropping",
            part=part,
            overwrite=options.overwrite,
            inputs=options.input,
            progress=not options.quiet,
        )
    asked = [case_id for case_id in scans if is_in_part(case_id, part)]
    labelled = sum(case_id in masks.labels for case_id in asked)
    print(f"{len(asked) - len(failed)} of {len(asked)} scans are in {output}, {labelled} with a lesion label")
    return print_failures(failed)


def _find(options: argparse.Namespace) -> tuple[dict[str, Scan], Masks]:
    """The scans, and the masks that belong to them."""
    from datasets.crop_scans import Masks, given_lung_masks, masks_of_scans
    from datasets.scans import find_scans

    scans = find_scans(*options.input, series=options.series, progress=not options.quiet)
    lungs = given_lung_masks(chosen_lungs(options), scans)
    return scans, Masks(masks_of_scans(options.labels, scans, "label"), lungs)


if __name__ == "__main__":
    raise SystemExit(run(main))
