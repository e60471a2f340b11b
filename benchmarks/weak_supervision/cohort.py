"""Generates the synthetic cohort of the benchmark from a seed: crops, masks and lists.

    labelled_000   the labelled scan, an easy one: site A, progressive stage, ground glass only
    diseased_*     diseased at volume level; the voxel labels of 39 are used by rows with more than one label
    healthy_*      healthy at volume level
    valid_*, validh_*, test_*, testh_*   held-out diseased and healthy scans

Scans come from four sites and differ in inspiration, confounders and stage of the disease, see `benchmarks.phantom`.
Sites are balanced in every list and independent of the disease. facts/<id>.json describes the content of each scan. A
scan depends only on the seed, its kind and its number. Existing scans are kept. With --raw, the scans are CTs in HU in
ct/, for lungCrop.py.

Examples:
  python -m benchmarks.weak_supervision.cohort cohort --size small
  python -m benchmarks.weak_supervision.cohort cohort_full --size full --processes 16
  python -m benchmarks.weak_supervision.cohort raw --size demo --raw
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.phantom.diseases import draw_patient
from benchmarks.phantom.make import label_patient, make_crop, site_of
from datasets.phantom.make import Phantom
from datasets.volumes import write_volume
from datasets.window import map_window
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import SettingsError
from utils.files import lock_folder, write_text
from utils.ledger import recording
from utils.progress import progress_bar

FOLDERS = ("images", "lung", "lesion")
RAW_FOLDERS = ("ct", "lung", "lesion")
KINDS = ("labelled", "diseased", "healthy", "valid", "validh", "test", "testh")
"""Kinds of scans; the order is part of the seed."""

DISEASED = ("labelled", "diseased", "valid", "test")

LABEL_COUNTS = (1, 3, 10, 40)
"""Lengths of the nested label lists; each starts with labelled_000, followed by diseased scans."""

LEAST_LABELLED = 0.05
"""Minimum lesion fraction of the lungs in the labelled scan."""


@dataclass(frozen=True)
class Counts:
    """Number of scans of each kind."""

    labelled: int = 1
    diseased: int = 100
    healthy: int = 100
    valid: int = 20
    validh: int = 10
    test: int = 100
    testh: int = 30


@dataclass(frozen=True)
class Size:
    """Matrix of the crops, (z, y, x), and number of scans of each kind."""

    crop: tuple[int, int, int]
    counts: Counts


SIZES = {
    "small": Size((20, 96, 96), Counts()),
    "long": Size((20, 96, 96), Counts()),
    "full": Size((40, 160, 160), Counts(diseased=300, healthy=300)),
    "demo": Size((24, 80, 80), Counts(diseased=24, healthy=24, valid=6, validh=2, test=10, testh=4)),
}


def make_scan(seed: int, kind: str, number: int, crop: tuple[int, int, int]) -> Phantom:
    """Generate one scan of the cohort.

    Args:
        seed: cohort seed.
        kind: one of `KINDS`.
        number: index of the scan within its kind.
        crop: matrix, (z, y, x).
    """
    entropy = [seed, 1 + KINDS.index(kind)]
    rng = np.random.default_rng(np.random.SeedSequence([*entropy, number]))
    if kind == "labelled":
        while True:
            found = make_crop(rng, crop, label_patient(rng), "A")
            if found.lesion.sum() >= LEAST_LABELLED * (found.lung > 0).sum():
                return found
    patient = draw_patient(rng) if kind in DISEASED else None
    return make_crop(rng, crop, patient, site_of(entropy, number))


def images_of(crop: Phantom, raw: bool = False) -> tuple[sitk.Image, ...]:
    """Image (0..255 in the published window, or HU), lung and lesion of a crop."""
    images = []
    for array in (crop.ct if raw else map_window(crop.hu), (crop.lung > 0).astype(np.uint8), crop.lesion):
        images.append(sitk.GetImageFromArray(array))
        images[-1].SetSpacing(crop.spacing)
    return tuple(images)


def scan_facts(crop: Phantom) -> dict[str, Any]:
    """Describe a scan: what was drawn, lesion and lung volume in ml."""
    voxel_ml = float(np.prod(crop.spacing)) / 1000
    return crop.facts | {
        "lesion_ml": round(float(crop.lesion.sum()) * voxel_ml, 2),
        "lung_ml": round(float((crop.lung > 0).sum()) * voxel_ml, 1),
    }


def _name(kind: str, number: int) -> str:
    return f"{kind}_{number:03d}"


def _write_scan(root: Path, made_from: Mapping[str, Any], kind: str, number: int) -> None:
    """Write image, lung and lesion of a scan, and its facts, which mark it as complete."""
    name = _name(kind, number)
    facts = root / "facts" / f"{name}.json"
    if facts.is_file():
        return
    raw = made_from.get("raw", False)
    crop = make_scan(made_from["seed"], kind, number, tuple(made_from["crop"]))
    for folder, image in zip(RAW_FOLDERS if raw else FOLDERS, images_of(crop, raw), strict=True):
        write_volume(image, root / folder / f"{name}.nii.gz")
    write_text(facts, json.dumps(scan_facts(crop)) + "\n")


def label_lists(seed: int, counts: Counts) -> dict[str, list[str]]:
    """Lists of labelled scans: ids by list name.

    ``labels_1`` holds the labelled scan, ``labels_3`` two additional diseased scans; longer lists contain the shorter
    ones.
    """
    order = np.random.default_rng([seed, 0]).permutation(counts.diseased)
    drawn = [_name("diseased", number) for number in order]
    return {f"labels_{count}": ["labelled_000", *drawn[: count - 1]] for count in LABEL_COUNTS}


def write_cohort(
    root: Path, size: Size, seed: int = 0, raw: bool = False, processes: int = 1, progress: bool = False
) -> None:
    """Write the cohort, or the missing part of it. A complete cohort is not locked, so other processes can read it.

    Args:
        root: cohort folder.
        size: matrix of the crops and number of scans.
        seed: random seed.
        raw: write CTs in HU.
        processes: number of parallel processes.
        progress: show a progress bar.

    Raises:
        SettingsError: the folder holds another cohort.
        OSError: a file cannot be written.
    """
    made_from = {"seed": seed, "crop": list(size.crop), **({"raw": True} if raw else {})}
    scans = [(kind, number) for kind in KINDS for number in range(getattr(size.counts, kind))]
    lists = {kind: [_name(*scan) for scan in scans if scan[0] == kind] for kind in KINDS if kind != "labelled"}
    lists |= label_lists(seed, size.counts)
    about = root / "cohort.json"
    texts = {about: json.dumps(made_from) + "\n"}
    texts |= {
        root / "id_txt" / f"{name}.txt": "".join(f"{case_id}\n" for case_id in ids) for name, ids in lists.items()
    }
    whole = all((root / "facts" / f"{_name(*scan)}.json").is_file() for scan in scans)
    if whole and {path: _text(path) for path in texts} == texts:
        return
    with lock_folder(root, *(RAW_FOLDERS if raw else FOLDERS), "facts", "id_txt"), recording(root, seed=seed):
        if (found := _text(about)) not in (None, texts[about]):
            raise SettingsError(f"{root}: holds a cohort of {json.loads(found)}, not {made_from}; take another folder")
        write_text(about, texts[about])
        with ProcessPoolExecutor(processes) as pool:
            jobs = [pool.submit(_write_scan, root, made_from, *scan) for scan in scans]
            for job in progress_bar(jobs, "making the cohort", unit="scan", shown=progress):
                job.result()
        for path, text in texts.items():
            write_text(path, text)


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.cohort")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="cohort folder")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="size of the crops (default small)")
    parser.add_argument("--seed", type=int, default=0, help="cohort seed (default 0)")
    parser.add_argument("--raw", action="store_true", help="write CTs in HU")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="parallel processes (default 1)")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if options.seed < 0 or options.processes < 1:
        parser.error("--seed must be at least 0, --processes at least 1")
    start_logging(options.quiet)
    size, progress = SIZES[options.size], not options.quiet
    write_cohort(options.output, size, options.seed, options.raw, options.processes, progress)
    print(f"cohort in {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
