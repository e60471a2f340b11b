r"""Tests a trained segmenter on a cohort: masks, probabilities and scores.

Writes masks/<id>.nii.gz, probabilities/<id>.nii.gz, metrics.csv, summary.json and report.html to the output folder, and
prints mean and standard deviation over the scans. Scans without lesion are scored by the volume found in them. Besides
overlap and volumes, scans are scored by surface distances (HD95, surface Dice) and by lesion; docs/scores.md defines
all scores. With --images they are also scored on the grids of the raw scans, in metrics_raw.csv. Scans that the same
model was tested on before with the same options are skipped. Scans that the model was trained on or chosen by are
refused unless --allow-seen is given. The model is a segmenter checkpoint, the folder of a release or a run, or a
published checkpointU_*.pth.

Examples:
    python test.py --config-path configs/Gan.yaml --allow-seen
    python test.py --config-path configs/Gan.yaml --model-path S.pth --output output/test --split TEST TESTH --save-vis
    python test.py --config-path configs/Gan.yaml --model-path checkpointU_1000.pth --output output/test \
        DATASET.ROOT=/data/covid
    python test.py --config-path configs/Gan.yaml --images /data/scans --labels /data/lesion_labels
    python test.py --config-path configs/Gan.yaml --split TEST --part 1/4
    torchrun --nproc-per-node 2 test.py --config-path configs/Gan.yaml --split TEST
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from datasets import HELD_OUT, TRAINING, WITH_LESION
from datasets.scan_options import add_scan_options, chosen_reading
from evaluation import TOLERANCE_MM
from utils.cli import add_device, add_part, add_quiet, new_parser, run, start_logging


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--config-path", type=Path, required=True, metavar="FILE", help="YAML settings")
    parser.add_argument(
        "--model-path",
        type=Path,
        metavar="FILE|DIR",
        help="the segmenter, or the folder of a release or a run (default: the best one of the config's run)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the results (default: test/ beside the model)"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        default=["VALID"],
        metavar="SPLIT",
        help=f"splits to test on: {', '.join((*TRAINING, *HELD_OUT))} (default VALID)",
    )
    parser.add_argument(
        "--allow-seen", action="store_true", help="test on scans that the model was trained on or chosen by, too"
    )
    add_scan_options(parser, "threshold")
    parser.add_argument("--save-vis", action="store_true", help="save a figure of every scan in figures/")
    parser.add_argument(
        "--surface-tolerance",
        type=float,
        default=TOLERANCE_MM,
        metavar="MM",
        help=f"surfaces this close to each other agree, in the surface Dice (default {TOLERANCE_MM:g} mm)",
    )
    parser.add_argument("--images", type=Path, nargs="+", metavar="RAW", help="raw scans; score on their grids too")
    parser.add_argument(
        "--labels", type=Path, nargs="+", metavar="DIR", help="lesion labels of the raw scans, named like them"
    )
    add_scan_options(parser, "segments", "series", "max-voxels")
    parser.add_argument("--no-report", dest="report", action="store_false", help="leave out report.html")
    add_part(parser)
    add_device(parser)
    add_quiet(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE", help="settings that replace the file's")
    options = parser.parse_intermixed_args(arguments)
    # --split takes all words that follow it, overrides included.
    options.overrides += [word for word in options.split if "=" in word]
    options.split = [word for word in options.split if "=" not in word]
    for split in options.split:
        if split not in (*TRAINING, *HELD_OUT):
            parser.error(f"argument --split: {split} is none of {', '.join((*TRAINING, *HELD_OUT))}")
    if not 0 <= options.surface_tolerance < math.inf:
        parser.error("--surface-tolerance must be a length of 0 mm or more")
    if options.labels is not None and options.images is None:
        parser.error("--labels are those of the raw scans in --images")
    if options.images is not None and options.labels is None and (labelled := set(options.split) & set(WITH_LESION)):
        parser.error(f"--images needs the --labels of {', '.join(sorted(labelled))}")
    options.reading = chosen_reading(parser, options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)

    from evaluation.testing import test_cohort  # after --help, which needs no library

    start_logging(options.quiet)
    return test_cohort(options)


if __name__ == "__main__":
    raise SystemExit(run(main))
