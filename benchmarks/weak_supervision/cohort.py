"""Generates the synthetic cohort of the benchmark from a seed: crops, masks and lists.

    labelled_000   the labelled scan: diseased, without consolidation and crazy paving
    diseased_*     diseased at volume level; the voxel labels of 39 are used by rows with more than one label
    healthy_*      healthy at volume level
    valid_*, validh_*, test_*, testh_*   held-out diseased and healthy scans

Every scan has its own anatomy, lesion mixture and scanner. Raw CTs are cropped to the true lungs, so lung segmentation
does not affect the result. facts/<id>.json describes the content of each scan. A scan depends only on the seed, its
kind and its number. Existing scans are kept.

Examples:
  python -m benchmarks.weak_supervision.cohort cohort --size small
  python -m benchmarks.weak_supervision.cohort cohort_full --size full --processes 16
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from datasets.crop import crop_to_lungs
from datasets.io.volume import write_volume
from datasets.phantom import LESION_KINDS, LESION_SHARES, Phantom, Variety, make_phantom
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import SettingsError
from utils.files import lock_folder, write_text
from utils.manifest import recording
from utils.progress import progress_bar

FOLDERS = ("images", "lung", "lesion")


@dataclass(frozen=True)
class Size:
    """Matrix of raw scans and crops, (z, y, x), with similar voxel sizes."""

    raw: tuple[int, int, int]
    crop: tuple[int, int, int]


SIZES = {
    "small": Size(raw=(32, 96, 96), crop=(16, 64, 64)),
    "full": Size(raw=(96, 224, 224), crop=(40, 160, 160)),
}


@dataclass(frozen=True)
class Counts:
    """Number of scans of each kind."""

    labelled: int = 1
    diseased: int = 100
    healthy: int = 100
    valid: int = 20
    validh: int = 10
    test: int = 30
    testh: int = 10


ALL = Counts()

LABEL_COUNTS = (1, 3, 10, 40)
"""Lengths of the nested label lists; each starts with labelled_000, followed by diseased scans."""

OTHER_LABELS = ("b", "c", "d")
"""Suffixes of the lists with a single, randomly drawn diseased scan as the labelled one."""

LABELLED_KINDS = ("ground glass", "mixed")
"""Lesion kinds in the labelled scan."""

LEAST_LABELLED = 0.05
"""Minimum lesion fraction of the lungs in the labelled scan."""

DISEASED = ("labelled", "diseased", "valid", "test")
_KINDS = ("labelled", "diseased", "healthy", "valid", "validh", "test", "testh")  # the order is part of the seed

# Variation between scans: lesion mixtures differ between patients, kernels range from sharp and noisy to smooth.
_MIXTURE = 3.0  # concentration of the Dirichlet distribution around LESION_SHARES
_SHARPNESS = (0.4, 1.3)  # mm
_NOISE = (10.0, 60.0)  # HU
_DEPENDENT = 170.0  # HU
_GAIN = 0.015


def draw_variety(rng: np.random.Generator, kinds: Sequence[str] = tuple(LESION_KINDS)) -> Variety:
    """Draw lesion mixture and scanner of one scan.

    Args:
        rng: random generator.
        kinds: permitted lesion kinds.
    """
    shares = rng.dirichlet(_MIXTURE * np.array(LESION_SHARES))
    shares *= [kind in kinds for kind in LESION_KINDS]
    return Variety(tuple((shares / shares.sum()).tolist()), _SHARPNESS, _NOISE, _DEPENDENT, _GAIN)


def make_scan(seed: int, kind: str, number: int, raw: tuple[int, int, int]) -> Phantom:
    """Generate one scan of the cohort.

    Args:
        seed: cohort seed.
        kind: ``labelled``, ``diseased``, ``healthy``, ``valid``, ``validh``, ``test`` or ``testh``.
        number: index of the scan within its kind.
        raw: matrix, (z, y, x).
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1 + _KINDS.index(kind), number]))
    while True:
        variety = draw_variety(rng, LABELLED_KINDS if kind == "labelled" else tuple(LESION_KINDS))
        phantom = make_phantom(rng, raw, diseased=kind in DISEASED, variety=variety)
        if kind != "labelled" or phantom.lesion.sum() >= LEAST_LABELLED * (phantom.lung > 0).sum():
            return phantom


def scan_facts(phantom: Phantom) -> dict[str, Any]:
    """Describe a scan: lesion kinds, lesion and lung volume in ml."""
    voxel_ml = float(np.prod(phantom.spacing)) / 1000
    return {
        "kinds": list(phantom.kinds),
        "lesion_ml": round(float(phantom.lesion.sum()) * voxel_ml, 2),
        "lung_ml": round(float((phantom.lung > 0).sum()) * voxel_ml, 1),
    }


def _name(kind: str, number: int) -> str:
    return f"{kind}_{number:03d}"


def _facts_path(root: Path, kind: str, number: int) -> Path:
    return root / "facts" / f"{_name(kind, number)}.json"


def is_written(root: Path, kind: str, number: int) -> bool:
    """Whether a scan is complete."""
    return _facts_path(root, kind, number).is_file()


def _write_scan(root: Path, seed: int, kind: str, number: int, size: Size) -> None:
    if is_written(root, kind, number):
        return
    phantom = make_scan(seed, kind, number, size.raw)
    ct = sitk.GetImageFromArray(phantom.ct)
    ct.SetSpacing(phantom.spacing)
    crops = crop_to_lungs(ct, phantom.lung, phantom.lesion, size.crop)
    write_crops(root, kind, number, crops, scan_facts(phantom))


def write_crops(root: Path, kind: str, number: int, crops: Sequence[sitk.Image], facts: Mapping[str, Any]) -> None:
    """Write image, lung and lesion of a scan, and its facts, which mark it as complete."""
    for folder, crop in zip(FOLDERS, crops, strict=True):
        write_volume(crop, root / folder / f"{_name(kind, number)}.nii.gz")
    write_text(_facts_path(root, kind, number), json.dumps(facts) + "\n")


def label_lists(seed: int, counts: Counts) -> dict[str, list[str]]:
    """Lists of labelled scans: ids by list name.

    ``labels_1`` holds the labelled scan, ``labels_3`` two additional diseased scans; longer lists contain the shorter
    ones. ``label_b``, ``label_c`` and ``label_d`` hold one other scan each.
    """
    order = np.random.default_rng([seed, 0]).permutation(counts.diseased)
    drawn = [_name("diseased", number) for number in order]
    lists = {f"labels_{count}": ["labelled_000", *drawn[: count - 1]] for count in LABEL_COUNTS}
    return lists | {f"label_{name}": [drawn[-1 - place]] for place, name in enumerate(OTHER_LABELS[: counts.diseased])}


def write_cohort(
    root: Path,
    size: Size,
    seed: int = 0,
    counts: Counts = ALL,
    processes: int = 1,
    progress: bool = False,
) -> None:
    """Write the cohort, or the missing part of it. A complete cohort is not locked, so other processes can read it.

    Args:
        root: cohort folder.
        size: matrix of scans and crops.
        seed: random seed.
        counts: number of scans of each kind.
        processes: number of parallel processes.
        progress: show a progress bar.

    Raises:
        SettingsError: the folder holds a cohort with another seed or size.
        OSError: a file cannot be written.
    """
    made_from = {"seed": seed, "raw": list(size.raw), "crop": list(size.crop)}
    write_scans(root, made_from, counts, partial(_write_scan, size=size), processes, progress)


def write_scans(
    root: Path,
    made_from: Mapping[str, Any],
    counts: Counts,
    write_scan: Callable[[Path, int, str, int], None],
    processes: int = 1,
    progress: bool = False,
) -> None:
    """Write the scans and lists of a cohort, or the missing part; see `write_cohort`.

    Args:
        root: cohort folder.
        made_from: what the scans depend on; ``seed`` is the cohort seed.
        counts: number of scans of each kind.
        write_scan: writes the scan of a cohort folder, seed, kind and number, unless it is complete.
        processes: number of parallel processes.
        progress: show a progress bar.
    """
    seed = made_from["seed"]
    scans = [(kind, number) for kind in _KINDS for number in range(getattr(counts, kind))]
    kinds = [kind for kind in _KINDS if kind != "labelled"]
    lists = {kind: [_name(kind, number) for number in range(getattr(counts, kind))] for kind in kinds}
    lists |= label_lists(seed, counts)
    texts = {root / "id_txt" / f"{name}.txt": "".join(f"{case_id}\n" for case_id in ids) for name, ids in lists.items()}
    whole = all(_facts_path(root, *scan).is_file() for scan in scans)
    if whole and {path: _text(path) for path in texts} == texts and _made_from(root) == made_from:
        return
    with lock_folder(root, "images", "lung", "lesion", "facts", "id_txt"), recording(root, seed=seed):
        if (found := _made_from(root)) not in (None, made_from):
            raise SettingsError(f"{root}: holds a cohort of {found}, not of {made_from}; choose another folder")
        write_text(root / "cohort.json", json.dumps(made_from) + "\n")
        with ProcessPoolExecutor(processes) as pool:
            jobs = [pool.submit(write_scan, root, seed, *scan) for scan in scans]
            for job in progress_bar(jobs, "making the cohort", unit="scan", shown=progress):
                job.result()
        for path, text in texts.items():
            write_text(path, text)


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _made_from(root: Path) -> dict[str, Any] | None:
    """Seed and sizes of the cohort in a folder, or None."""
    text = _text(root / "cohort.json")
    return None if text is None else json.loads(text)


def read_facts(root: Path) -> Mapping[str, dict[str, Any]]:
    """Read the descriptions of all scans of a cohort, by id."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((root / "facts").glob("*.json"))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.cohort")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="cohort folder")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="size of the crops (default small)")
    parser.add_argument("--seed", type=int, default=0, help="cohort seed (default 0)")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="number of parallel processes (default 1)"
    )
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if options.seed < 0 or options.processes < 1:
        parser.error("--seed must be at least 0, --processes at least 1")
    start_logging(options.quiet)
    write_cohort(
        options.output, SIZES[options.size], options.seed, processes=options.processes, progress=not options.quiet
    )
    print(f"cohort in {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
