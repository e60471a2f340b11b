"""The command line of what reads raw scans: options that several commands have, and ``python -m datasets.scans``.

No library that takes long to import is imported before the options are parsed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import CROP_SIZE, MAX_VOXELS, WINDOW
from datasets.lung_finders import LUNG_FINDERS, Lungs
from utils.cli import add_quiet, new_parser, start_logging
from utils.files import as_csv

if TYPE_CHECKING:
    from datasets.scans import Index
    from datasets.series import Series
    from datasets.volumes import Reading


def _threshold(text: str) -> float:
    if not 0 <= (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a probability of at least 0 and below 1, got {text}")
    return value


_OPTIONS = {
    "threshold": {
        "type": _threshold,
        "metavar": "P",
        "help": "probabilities above it are lesion (default: that of the test or of the segmenter's file, else 0.5)",
    },
    "series": {
        "metavar": "UID|NUMBER|TEXT",
        "help": "of a study with several CT series, take the one with this SeriesInstanceUID, SeriesNumber, "
        "acquisition, kernel or part of its SeriesDescription (default: by the rules in docs/data.md)",
    },
    "max-voxels": {
        "type": int,
        "default": MAX_VOXELS,
        "metavar": "N",
        "help": f"refuse larger volumes before taking memory for them (default {MAX_VOXELS}, 512x512x2048)",
    },
    "grey-window": {
        "type": float,
        "nargs": 2,
        "metavar": ("LOW", "HIGH"),
        "help": "map CTs of 0..255, 0..1 or -1..1 back to HU, of which LOW and HIGH became the ends of that scale "
        "(CovidSeg's Radiopaedia: -1250 250)",
    },
    "airless-lungs": {"action": "store_true", "help": "keep scans whose lungs hold almost no gas"},
    "lesions-anywhere": {
        "action": "store_true",
        "help": "keep lesion labels that lie outside the lungs by 80 %% or more",
    },
    "segments": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "segments that are lesion in .seg.nrrd labels with several (default: those whose name says lesion)",
    },
    "lungs": {
        "default": "lungmask",
        "metavar": "|".join((*LUNG_FINDERS, "DIR")),
        "help": "how the lungs are found: the network of lungmask (default), thresholding, or masks in a folder",
    },
    "lungmask-model": {"default": "R231", "help": "model of lungmask (default R231)"},
    "weights": {"type": Path, "metavar": "FILE", "help": "weights of lungmask, if they cannot be downloaded"},
    "precision": {
        "choices": ("auto", "fp32", "bf16"),
        "default": "auto",
        "help": "of the networks: float32, bfloat16, or by default float32 for S, and for lungmask bfloat16 on CPUs "
        "that have it, float16 on GPUs and float32 elsewhere",
    },
    "size": {
        "type": int,
        "nargs": 3,
        "default": CROP_SIZE,
        "metavar": ("DEPTH", "HEIGHT", "WIDTH"),
        "help": "voxels of a crop (default {} {} {})".format(*CROP_SIZE),
    },
    "window": {
        "type": float,
        "nargs": 2,
        "default": WINDOW,
        "metavar": ("LOW", "HIGH"),
        "help": "HU that become 0 and 255, as in IMAGE.WINDOW of the settings (default {:g} {:g})".format(*WINDOW),
    },
}


def add_scan_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options of `_OPTIONS` by name."""
    for name in names:
        parser.add_argument(f"--{name}", **_OPTIONS[name])


def check_size(parser: argparse.ArgumentParser, size: tuple[int, int, int]) -> tuple[int, int, int]:
    """``--size`` as a tuple; a size that no crop can have is a usage error."""
    if min(size) < 2:
        parser.error("--size needs at least 2 voxels along each axis")
    return tuple(size)


def check_window(parser: argparse.ArgumentParser, option: str, window: tuple[float, float]) -> tuple[float, float]:
    """A window as a tuple, to a thousandth of a HU, as a crop's header has room for; an impossible one is an error."""
    if not -math.inf < window[0] < window[1] < math.inf:
        parser.error(f"{option} needs the lower HU first")
    return tuple(round(end, 3) for end in window)


def chosen_reading(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Reading:
    """How raw scans are read, from the options."""
    from datasets.volumes import Reading

    window, segments = getattr(options, "grey_window", None), getattr(options, "segments", None)
    return Reading(
        options.max_voxels,
        options.series,
        window and check_window(parser, "--grey-window", window),
        None if segments is None else tuple(segments),
        **{name: getattr(options, name, False) for name in ("airless_lungs", "lesions_anywhere")},
    )


def chosen_lungs(options: argparse.Namespace) -> Lungs:
    """Where lung masks come from, from the options."""
    return Lungs(options.lungs, options.lungmask_model, options.weights, options.precision)


# ----------------------------------------------------------------------------------- the index of an archive

_INDEX = """Prints the index of an archive: every CT below the paths that were named, and everything else found.

Only headers are read, unless which of several series shows the chest is told by their lungs alone. The index is CSV;
what else was found is told on standard error.

Examples:
    python -m datasets.scans /archive
    python -m datasets.scans /archive --series "Lung 1.0" > index.csv
"""

_COLUMNS = (
    *("scan", "taken", "reason", "patient", "study", "series", "number", "description", "kernel", "slices"),
    *("spacing_mm", "size", "path"),
)


def _rows(index: Index) -> list[dict[str, str]]:
    """The index as rows of `_COLUMNS`: scans first, then passed-over series and other finds."""
    rows = [
        {"scan": scan.id, "taken": "yes", "reason": scan.problem or scan.reason, "path": str(scan.path)}
        | _series_row(scan.series)
        for scan in index.scans.values()
    ]
    rows += [
        {"taken": "no", "reason": item.reason or item.kind, "path": str(item.path)} | _series_row(item.series)
        for item in index.passed_over
    ]
    return rows + [{"taken": "unreadable", "reason": why, "path": path} for path, why in index.unreadable.items()]


def _series_row(series: Series | None) -> dict[str, str]:
    from datasets.dicom import short_hash

    if series is None:
        return {}
    first = series.first
    across, down = first.spacing
    return {
        "patient": short_hash(series.study[1]),
        "study": short_hash(first.study),
        "series": short_hash(series.uid),
        "number": first.number,
        "description": first.description,
        "kernel": first.kernel,
        "slices": str(len(series.slices)),
        "spacing_mm": f"{across:g}x{down:g}x{series.step_mm:g}",
        "size": f"{first.size[0]}x{first.size[1]}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.scans``."""
    parser = new_parser(_INDEX, "python -m datasets.scans")
    parser.add_argument("input", type=Path, nargs="+", metavar="INPUT", help="CT files, or folders of them")
    add_scan_options(parser, "series")
    add_quiet(parser)
    options = parser.parse_args(arguments)

    from datasets.scans import index_scans

    start_logging(options.quiet)
    index = index_scans(*options.input, series=options.series, progress=not options.quiet)
    print(as_csv(_COLUMNS, _rows(index)), end="")
    for line in (f"{len(index.scans)} scans", *index.summary(), *index.warnings()):
        print(line, file=sys.stderr)
    return 1 if index.unreadable or any(scan.problem for scan in index.scans.values()) else 0
