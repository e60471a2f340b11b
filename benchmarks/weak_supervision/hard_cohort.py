"""Generates the hard cohort of the benchmark from a seed: crops, masks and lists.

Scans come from four sites and differ in inspiration, confounders and stage of the disease; see `datasets.phantom.hard`.
Sites are balanced in every list and independent of the disease. Lists and files are those of
`benchmarks.weak_supervision.cohort`. The labelled scan is from site A, in the progressive stage, with ground glass
only. A scan depends only on the seed, its kind, its number and the options. Existing scans are kept.

Examples:
  python -m benchmarks.weak_supervision.hard_cohort cohort --size small
  python -m benchmarks.weak_supervision.hard_cohort cohort_full --size full --processes 16
  python -m benchmarks.weak_supervision.hard_cohort cohort_weaker --confounders 0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.weak_supervision.cohort import DISEASED, LEAST_LABELLED, Counts, is_written, write_crops, write_scans
from datasets.phantom.hard import HARD, PLAIN_SITE, Crop, Hardness, label_patient, make_crop, site_of
from datasets.phantom.stages import draw_patient
from datasets.window import map_window
from utils.cli import add_quiet, new_parser, run, start_logging

KINDS = ("labelled", "diseased", "healthy", "valid", "validh", "test", "testh")
"""Kinds of scans; the order is part of the seed."""


@dataclass(frozen=True)
class HardSize:
    """Matrix of the crops, (z, y, x), and number of scans of each kind."""

    crop: tuple[int, int, int]
    counts: Counts


SIZES = {
    "small": HardSize((20, 96, 96), Counts(diseased=100, healthy=100, valid=20, validh=10, test=100, testh=30)),
    "full": HardSize((40, 160, 160), Counts(diseased=300, healthy=300, valid=20, validh=10, test=100, testh=30)),
}


def make_scan(seed: int, kind: str, number: int, crop: tuple[int, int, int], hardness: Hardness = HARD) -> Crop:
    """Generate one scan of the cohort.

    Args:
        seed: cohort seed.
        kind: one of `KINDS`.
        number: index of the scan within its kind.
        crop: matrix, (z, y, x).
        hardness: what makes the cohort hard.
    """
    entropy = [seed, 1 + KINDS.index(kind)]
    rng = np.random.default_rng(np.random.SeedSequence([*entropy, number]))
    if kind == "labelled":
        while True:
            found = make_crop(rng, crop, label_patient(rng), PLAIN_SITE, hardness)
            if found.lesion.sum() >= LEAST_LABELLED * (found.lung > 0).sum():
                return found
    site = site_of(entropy, number) if hardness.sites else PLAIN_SITE
    patient = draw_patient(rng, hardness.stages) if kind in DISEASED else None
    return make_crop(rng, crop, patient, site, hardness)


def images_of(crop: Crop) -> tuple[sitk.Image, ...]:
    """Image (0..255 in the published window), lung and lesion of a crop."""
    images = []
    for array in (map_window(crop.hu), (crop.lung > 0).astype(np.uint8), crop.lesion):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(crop.spacing)
        images.append(image)
    return tuple(images)


def scan_facts(crop: Crop) -> dict[str, Any]:
    """Describe a scan: what was drawn, lesion and lung volume in ml."""
    voxel_ml = float(np.prod(crop.spacing)) / 1000
    volumes = {
        "lesion_ml": round(float(crop.lesion.sum()) * voxel_ml, 2),
        "lung_ml": round(float((crop.lung > 0).sum()) * voxel_ml, 1),
    }
    return crop.facts | volumes


def _write_scan(root: Path, seed: int, kind: str, number: int, size: tuple[int, int, int], hardness: Hardness) -> None:
    if not is_written(root, kind, number):
        crop = make_scan(seed, kind, number, size, hardness)
        write_crops(root, kind, number, images_of(crop), scan_facts(crop))


def write_cohort(
    root: Path,
    size: HardSize,
    seed: int = 0,
    hardness: Hardness = HARD,
    processes: int = 1,
    progress: bool = False,
) -> None:
    """Write the cohort, or the missing part of it.

    Args:
        root: cohort folder.
        size: matrix of the crops and number of scans.
        seed: random seed.
        hardness: what makes the cohort hard.
        processes: number of parallel processes.
        progress: show a progress bar.

    Raises:
        SettingsError: the folder holds another cohort.
        OSError: a file cannot be written.
    """
    made_from = {"seed": seed, "crop": list(size.crop), "hardness": asdict(hardness)}
    write_one = partial(_write_scan, size=size.crop, hardness=hardness)
    write_scans(root, made_from, size.counts, write_one, processes, progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.hard_cohort")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="cohort folder")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="size of the crops (default small)")
    parser.add_argument("--seed", type=int, default=0, help="cohort seed (default 0)")
    parser.add_argument(
        "--confounders", type=float, default=HARD.confounders, metavar="STRENGTH", help="0 to 1 (default 1)"
    )
    for name in ("sites", "inspiration", "stages"):
        parser.add_argument(f"--no-{name}", action="store_false", dest=name, help=f"without different {name}")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="number of parallel processes (default 1)"
    )
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if options.seed < 0 or options.processes < 1 or not 0 <= options.confounders <= 1:
        parser.error("--seed must be at least 0, --processes at least 1, --confounders 0 to 1")
    start_logging(options.quiet)
    hardness = Hardness(options.sites, options.inspiration, options.confounders, options.stages)
    write_cohort(
        options.output, SIZES[options.size], options.seed, hardness, options.processes, progress=not options.quiet
    )
    print(f"cohort in {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
