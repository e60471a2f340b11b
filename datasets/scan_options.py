"""Command-line options of the commands that read raw scans."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import CROP_SIZE, MAX_VOXELS, WINDOW
from datasets.lung_finders import LUNG_FINDERS, Lungs

if TYPE_CHECKING:
    from datasets.volumes import Reading

_OPTIONS = {
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
        "with AMX, float16 on GPUs and float32 elsewhere",
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
    """A window as a tuple; one that is empty or infinite is a usage error."""
    if not -math.inf < window[0] < window[1] < math.inf:
        parser.error(f"{option} needs the lower HU first")
    return tuple(window)


def chosen_reading(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Reading:
    """How raw scans are read, from the options."""
    from datasets.volumes import Reading

    window, segments = getattr(options, "grey_window", None), getattr(options, "segments", None)
    return Reading(
        options.max_voxels,
        options.series,
        window and check_window(parser, "--grey-window", window),
        None if segments is None else tuple(segments),
    )


def chosen_lungs(options: argparse.Namespace) -> Lungs:
    """Where lung masks come from, from the options."""
    return Lungs(options.lungs, options.lungmask_model, options.weights, options.precision)
