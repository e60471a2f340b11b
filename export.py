"""Exports a trained segmenter for use elsewhere, or as a release.

--output writes the segmenter with its sigmoid as ONNX (.onnx) and torch.export (.pt2), for any batch and any size that
is a multiple of 4. Each file is run and compared with S. --release makes a folder to share: checkpoint, both exports,
settings, model card and SHA256SUMS; with --state also networks.pth, S, G and D of a training state in half precision,
for the figures of test.py and for INIT_MODEL.

The model is a segmenter checkpoint, the folder of a run or a release, or a published checkpointU_*.pth. For research
only; not a medical device.

Examples:
    python export.py output/run/segmenter_best.pth --output segmenter.onnx
    python export.py output/run --output exported --format torch_export
    python export.py output/run --release gasnet-release --licence "CC BY 4.0"
    python export.py output/run --release gasnet-release --state output/run/state_0300000.pth
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from models.checkpoint import BEST, LAST, STATE_FORMAT, find_segmenter, load, read_segmenter
from training.model_card import UNKNOWN
from training.release import SUFFIXES, agreement, export, files_in, release
from utils.checksums import sha256
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import CheckpointError
from utils.files import lock_folder
from utils.manifest import recording
from utils.results import RESULTS, Results

log = logging.getLogger(__name__)

_MEBIBYTE = 2**20


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the segmenter, or the folder of a run or a release")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, metavar="FILE|DIR", help="a .onnx or .pt2 file, or a folder for them")
    where.add_argument("--release", type=Path, metavar="DIR", help="a new folder to share")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=tuple(SUFFIXES),
        metavar="FORMAT",
        help=f"{', '.join(SUFFIXES)} (default: both in a folder, of a file the one that its extension says)",
    )
    parser.add_argument(
        "--licence", metavar="TEXT", help="licence of the weights, for the model card of --release (default: unknown)"
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="a state_*.pth, whose S, G and D are included in the --release"
    )
    add_quiet(parser)
    options = parser.parse_args(arguments)
    by_suffix = {suffix: form for form, suffix in SUFFIXES.items()}
    named = by_suffix.get(options.output.suffix) if options.output else None
    if named is not None and options.format not in (None, [named]):
        parser.error(f"--output {options.output} is a file of {named}; leave --format out, or name a folder")
    if options.licence is not None and options.release is None:
        parser.error("--licence is for --release")
    if options.state is not None and options.release is None:
        parser.error("--state is for --release")
    options.named = named
    options.format = [named] if named is not None else list(dict.fromkeys(options.format or SUFFIXES))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)
    start_logging(options.quiet)
    named, formats = options.named, options.format
    path = find_segmenter(options.model)
    if load(path).get("format") == STATE_FORMAT:
        raise CheckpointError(f"{path}: a state to resume training from; take {BEST} or {LAST} beside it")
    segmenter, facts = read_segmenter(path)
    if facts.trained_on is None:
        log.warning("%s: does not say its input; assuming the published one", path)
    if options.release is not None:
        licence = options.licence or UNKNOWN
        differences = release(segmenter, facts, options.release, formats, licence, options.state)
    else:
        folder = options.output.parent if named else options.output
        files = {options.output: named} if named else files_in(folder, formats)
        with (
            lock_folder(folder, RESULTS),
            recording(folder, model=path),
            Results(folder).writing("export", list(files), {}, {"model": sha256(path)}),
        ):
            differences = export(segmenter, facts, files)
    for file, difference in differences.items():
        print(f"{file}: {file.stat().st_size / _MEBIBYTE:.1f} MiB; {agreement(difference)}")
    if options.release is not None:
        print(f"release in {options.release}: {', '.join(sorted(p.name for p in options.release.iterdir()))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
