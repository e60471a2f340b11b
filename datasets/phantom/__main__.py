"""Writes synthetic raw chest CTs in HU, healthy or with COVID-19-like lesions, with exact lung and lesion masks.

The command writes OUTPUT/ct, OUTPUT/lung and OUTPUT/lesion, each with <id>.nii.gz; the ids are healthy_000,
healthy_001, .. and diseased_000, .. Existing cases are kept. Case k depends only on the seed and k.

Examples:
  python -m datasets.phantom phantoms --healthy 4 --diseased 8
  python -m datasets.phantom phantoms --healthy 0 --diseased 1 --size 200 512 512 --seed 7
  python -m datasets.phantom phantoms --healthy 1 --diseased 1 --dicom
"""

from collections.abc import Sequence
from pathlib import Path

from utils.cli import add_quiet, new_parser, run, start_logging, whole_number
from utils.ledger import recording


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.phantom``."""
    parser = new_parser(__doc__, "python -m datasets.phantom")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for ct/, lung/ and lesion/")
    parser.add_argument("--healthy", type=whole_number, required=True, metavar="N", help="cases without lesions")
    parser.add_argument("--diseased", type=whole_number, required=True, metavar="N", help="cases with lesions")
    parser.add_argument(
        "--size", type=int, nargs=3, default=(64, 128, 128), metavar=("Z", "Y", "X"), help="default 64 128 128"
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="random seed of the set (default 0)")
    parser.add_argument("--dicom", action="store_true", help="write each CT as a folder with a DICOM series")
    add_quiet(parser)
    options = parser.parse_args(arguments)

    from datasets.phantom.make import SMALLEST_SIDE, write_phantoms

    start_logging(options.quiet)
    if min(options.size) < SMALLEST_SIDE:
        parser.error(f"--size {options.size}: at least {SMALLEST_SIDE} voxels are needed along each axis")
    with recording(options.output, seed=options.seed):
        write_phantoms(
            options.output,
            options.healthy,
            options.diseased,
            tuple(options.size),
            options.seed,
            not options.quiet,
            options.dicom,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
