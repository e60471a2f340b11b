r"""Segments lesions in raw chest CTs in one step: lungs, crop, S, and back onto the scans' grids.

For research use only; not a medical device.

INPUT are CTs (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) and folders of CTs. DICOM series may
lie deeper, as in an export of patients, studies and series; the id of patient/study/series is then
patient_study_series. Writes masks/<id> in the scan's size and file type (.nii.gz for DICOM), summary.csv (one row per
scan: lesion volume, percent of the lungs and of each lung, mean HU of the lesion, CT-0 to CT-4 by percent of the more
affected lung), summary.json and report.html to the output folder. The masks equal those of lungCrop.py, test.py and
post_processing.py run one after the other. While S runs on one scan, the next one is read and its lungs are found.

The model is a segmenter checkpoint, the folder of a run, or a published checkpointU_*.pth; by default the one in
pretrained/, which learned from synthetic scans alone. Scans that the same model predicted before with the same options
are skipped. The summary is of all scans of INPUT; other masks in the output folder stay, and are named. A scan that
fails is listed at the end, and the others are done.

Examples:
    python predict.py scans --output found
    python predict.py scan.nii.gz --model-path segmenter_best.pth --output predicted
    python predict.py scans --model-path segmenter_best.pth --output predicted --save-probabilities
    python predict.py dicom_exports --model-path segmenter_best.pth --output predicted --dicom-seg
    python predict.py scans --model-path checkpointU_1000.pth --output predicted --lungs lung_masks --device cpu
    python predict.py scans --model-path segmenter_best.pth --output predicted --weights unet_r231-d5d2fc3d.pth
    python predict.py site_a/*.nii.gz site_b --model-path segmenter_best.pth --output predicted --part 1/8
    torchrun --nproc-per-node 2 predict.py scans --model-path segmenter_best.pth --output predicted
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from datasets.scan_options import add_scan_options, chosen_reading
from utils.cli import add_device, add_part, add_quiet, new_parser, run, start_logging

PRETRAINED = Path(__file__).resolve().parent / "pretrained"
"""Folder of the segmenter that comes with the project."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("input", type=Path, nargs="+", metavar="INPUT", help="CTs, folders of CTs or of DICOM series")
    parser.add_argument(
        "--model-path",
        type=Path,
        default=PRETRAINED,
        metavar="FILE|DIR",
        help="the segmenter, or the folder of a run (default: pretrained/, which has seen synthetic scans alone)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--save-probabilities", action="store_true", help="also write probabilities/<id> in full size")
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="also write dicom_seg/<id>.dcm for scans that are DICOM series; none if no lesion was found",
    )
    add_scan_options(parser, "threshold", "lungs", "lungmask-model", "weights", "precision", "grey-window")
    add_scan_options(parser, "series", "max-voxels", "airless-lungs")
    parser.add_argument("--no-report", dest="report", action="store_false", help="write no report.html")
    parser.add_argument("--overwrite", action="store_true", help="predict scans again that are done")
    add_part(parser)
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    options.reading = chosen_reading(parser, options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)

    from evaluation.predicting import predict_scans  # after --help, which needs no library

    start_logging(options.quiet)
    return predict_scans(options)


if __name__ == "__main__":
    raise SystemExit(run(main))
