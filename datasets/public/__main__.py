"""Makes a cohort of a public data set of the paper: CovidSeg (A), MedSeg (B) or MosMed (C, D).

DOWNLOAD is the folder in which the set's archives were unpacked, however deep. Its scans are cropped as by lungCrop.py,
and the lists of the paper's experiments are written to id_txt/:

  covidseg   A_labelled, the labelled scan; A_sub1 and A_sub2, the other scans in HU and in grey values
  medseg     B
  mosmed     C, the scans with voxel labels; D_healthy and D_diseased, the others, for training

Several sets can share one ROOT. Lesion is what the set's authors label: infection (CovidSeg, MosMed), ground glass and
consolidation (MedSeg, 1 and 2); pleural effusion (MedSeg, 3) lies outside the lung and is excluded unless
--lesion-labels includes it. Lungs are the masks distributed with CovidSeg and MedSeg, without MedSeg's artefacts (3);
MosMed has none, so lungmask finds them. The published pre-processing used lungmask for all sets, like --lungs lungmask.

A patient of a labelled scan is in no other list, and neither are scans held out for validation (--valid); no scan of C
is in D. What was found, is missing or odd is printed and written to ROOT/public_SET.json. Scans that are done are
skipped. A scan that fails does not stop the others; it is named at the end, and the exit code is then 1.

Examples:
    python -m datasets.public covidseg downloads/covidseg --output data_public --dry-run
    python -m datasets.public covidseg downloads/covidseg --output data_public
    python -m datasets.public covidseg downloads/covidseg --output data_public --label radiopaedia_10_85902_1
    python -m datasets.public medseg downloads/medseg --output data_public --lesion-labels 1 2 3
    python -m datasets.public mosmed downloads/COVID19_1110 --output data_public --weights unet_r231-d5d2fc3d.pth
    python -m datasets.public mosmed downloads/COVID19_1110 --output data_public --valid 5 --validh 10
    torchrun --nproc-per-node 2 -m datasets.public mosmed downloads/COVID19_1110 --output data_public
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets.lung_finders import LUNG_FINDERS
from datasets.public.sets import HELD_OUT, SETS
from datasets.scan_options import add_scan_options, check_size
from utils.cli import add_device, add_quiet, new_parser, run, start_logging, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.public``."""
    options = _options(arguments)

    from datasets.public.make import make_cohort

    start_logging(options.quiet)
    return make_cohort(options)


def _label(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 256:
        raise argparse.ArgumentTypeError(f"expected a label from 1 to 255, got {text}")
    return int(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__, "python -m datasets.public")
    parser.add_argument("set", choices=sorted(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("download", type=Path, metavar="DOWNLOAD", help="folder with the unpacked archives")
    parser.add_argument("--output", type=Path, required=True, metavar="ROOT", help="cohort folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="match files, check masks, print the report, write nothing"
    )
    parser.add_argument(
        "--lungs",
        choices=("given", *LUNG_FINDERS),
        help="the masks of the set (default of covidseg and medseg), the network of lungmask (the published way, and "
        "default of mosmed, which has no lung masks), or thresholds",
    )
    add_scan_options(parser, "lungmask-model", "weights", "precision")
    add_device(parser)
    parser.add_argument(
        "--lesion-labels",
        type=_label,
        nargs="+",
        metavar="N",
        help="labels that count as lesion (default 1, of medseg 1 2; 1 2 3 includes pleural effusion in medseg)",
    )
    parser.add_argument(
        "--lung-labels",
        type=_label,
        nargs="+",
        metavar="N",
        help="labels of given lung masks that count as lung (default 1 2)",
    )
    parser.add_argument(
        "--label",
        nargs="+",
        metavar="ID",
        help="one or more labelled scans; none for no scan (default: coronacases_001 of covidseg, else none)",
    )
    for option, what in (
        ("valid", "scans with voxel labels to hold out for validation; they are then in no test list"),
        ("validh", "healthy scans of D to hold out for validation"),
        ("validwl", "diseased scans of D to hold out for validation"),
    ):
        parser.add_argument(f"--{option}", type=whole_number, default=0, metavar="N", help=f"{what} (default 0)")
    parser.add_argument("--seed", type=whole_number, default=0, help="random seed of the held-out scans (default 0)")
    add_scan_options(parser, "size")
    parser.add_argument("--overwrite", action="store_true", help="crop existing scans again")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    public_set = SETS[options.set]
    if options.lungs is None:
        options.lungs = "lungmask" if public_set.lung is None else "given"
    if options.lungs == "given" and public_set.lung is None:
        parser.error(f"--lungs given: {options.set} has no lung masks")
    if options.lung_labels is not None and options.lungs != "given":
        parser.error("--lung-labels is for --lungs given")
    for option in HELD_OUT:
        if getattr(options, option) and option not in public_set.groups.values():
            able = [name for name, other in SETS.items() if option in other.groups.values()]
            parser.error(f"--{option} is for {', '.join(able)}")
    options.size = check_size(parser, options.size)
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
