"""Writes the id lists of a cohort: the scans for training, validation and test.

A scan is healthy if its id matches --healthy or is in --healthy-list; all others are diseased, and have a voxel label
if lesion/ has their file. Diseased scans with a voxel label are assigned to TEST, VALID and LABELED; the rest is used
for training with its volume-level label only.

Examples:
    python -m datasets.make_splits data --healthy 'healthy_*'
    python -m datasets.make_splits data --healthy-list healthy.txt --labeled 1 --valid 0.1 --test 30 --seed 7
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from datasets.cohort import LIST_FOLDER, lesion_folder, read_id_list, write_id_lists
from datasets.io.volume import is_volume_file, volume_id
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import CohortError
from utils.manifest import recording

LISTS = {
    "LABELED": "train_id_L",
    "WO_LABEL": "train_id_WL",
    "HEALTHY": "train_id_H",
    "VALID": "valid_id_L",
    "VALIDWL": "valid_id_WL",
    "VALIDH": "valid_id_H",
    "TEST": "test_id_L",
    "TESTH": "test_id_H",
}
"""Name of the written list by key in DATASET.SPLIT."""


def amount(text: str) -> float | int:
    """Parse a count (``3``) or a proportion (``0.25``).

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = -1
    if value < 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"expected a count such as 3 or a proportion such as 0.25, got {text}")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text}")
    return int(text)


def _deal(rng: np.random.Generator, ids: Sequence[str], amounts: dict[str, float | int]) -> dict[str, list[str]]:
    """Assign ids at random: to each key, in order, its count or its proportion of all; the rest to ""."""
    shuffled = [ids[i] for i in rng.permutation(len(ids))]
    dealt, start = {}, 0
    for key, wanted in amounts.items():
        number = round(wanted * len(ids)) if isinstance(wanted, float) else wanted
        if start + number > len(ids):
            raise CohortError(
                f"{key} asks for {number} scans, {len(ids) - start} of {len(ids)} are left; ask for fewer"
            )
        dealt[key] = sorted(shuffled[start : start + number])
        start += number
    return {**dealt, "": sorted(shuffled[start:])}


def make_splits(
    with_label: Sequence[str],
    without_label: Sequence[str],
    healthy: Sequence[str],
    amounts: dict[str, float | int],
    rng: np.random.Generator,
) -> dict[str, list[str]]:
    """Assign the scans of a cohort to splits.

    Args:
        with_label: ids of diseased scans with a voxel label.
        without_label: ids of diseased scans without.
        healthy: ids of healthy scans.
        amounts: count (int) or proportion (float) for LABELED, VALID and TEST of the scans with a voxel label, for
            VALIDWL of those without, and for VALIDH and TESTH of the healthy ones.
        rng: random generator.

    Returns:
        Sorted ids by key in DATASET.SPLIT. Remaining diseased scans go to WO_LABEL, healthy ones to HEALTHY.

    Raises:
        CohortError: more scans are requested than there are.
    """
    labelled = _deal(rng, sorted(with_label), {key: amounts[key] for key in ("TEST", "VALID", "LABELED")})
    unlabelled = _deal(rng, sorted(without_label), {"VALIDWL": amounts["VALIDWL"]})
    without = _deal(rng, sorted(healthy), {key: amounts[key] for key in ("TESTH", "VALIDH")})
    return {
        "LABELED": labelled["LABELED"],
        "WO_LABEL": sorted(labelled[""] + unlabelled[""]),
        "HEALTHY": without[""],
        "VALID": labelled["VALID"],
        "VALIDWL": unlabelled["VALIDWL"],
        "VALIDH": without["VALIDH"],
        "TEST": labelled["TEST"],
        "TESTH": without["TESTH"],
    }


def cohort_ids(root: Path, healthy: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the ids of a cohort: diseased with a voxel label, diseased without, healthy.

    Args:
        root: cohort folder.
        healthy: ids, or shell patterns of ids, of the healthy scans.

    Raises:
        CohortError: there are no images, no id or every id is healthy, or an item of `healthy` matches no id.
    """
    folder = root / "images"
    ids = sorted(volume_id(p) for p in folder.iterdir() if is_volume_file(p)) if folder.is_dir() else []
    if not ids:
        raise CohortError(f"{folder}: no images; make them with python lungCrop.py")
    well = [i for i in ids if any(i == pattern or fnmatchcase(i, pattern) for pattern in healthy)]
    unknown = [pattern for pattern in healthy if pattern not in ids and not any(fnmatchcase(i, pattern) for i in ids)]
    if unknown:
        raise CohortError(f"{folder}: no scan here is called {unknown[0]}; check --healthy or --healthy-list")
    if not well or len(well) == len(ids):
        raise CohortError(f"{folder}: {len(well)} of {len(ids)} ids are healthy; check --healthy or --healthy-list")
    lesions = lesion_folder(root)
    labelled = {volume_id(p) for p in lesions.iterdir() if is_volume_file(p)} if lesions.is_dir() else set()
    diseased = [i for i in ids if i not in set(well)]
    return [i for i in diseased if i in labelled], [i for i in diseased if i not in labelled], well


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.make_splits``."""
    parser = new_parser(__doc__, "python -m datasets.make_splits")
    parser.add_argument("root", type=Path, help="cohort folder with images/ and lesion/")
    parser.add_argument("--healthy", action="append", default=[], metavar="PATTERN", help="ids of healthy scans")
    parser.add_argument("--healthy-list", type=Path, metavar="FILE", help="file with the ids of the healthy scans")
    for option, default, what in (
        ("labeled", 1, "voxel-labelled scans to train with"),
        ("valid", 0.2, "voxel-labelled scans to validate with"),
        ("validwl", 0, "diseased scans without voxel label to watch during training"),
        ("validh", 0.2, "healthy scans to validate with"),
        ("test", 0, "voxel-labelled scans to test with"),
        ("testh", 0, "healthy scans to test with"),
    ):
        help_text = f"{what}, a count or a proportion (default {default})"
        parser.add_argument(f"--{option}", type=amount, default=default, metavar="N", help=help_text)
    parser.add_argument("--seed", type=_seed, default=0, help="random seed of the assignment (default 0)")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    start_logging(options.quiet)

    healthy = [*options.healthy, *(read_id_list(options.healthy_list) if options.healthy_list else [])]
    amounts = {key: getattr(options, key.lower()) for key in ("LABELED", "VALID", "VALIDWL", "VALIDH", "TEST", "TESTH")}
    splits = make_splits(*cohort_ids(options.root, healthy), amounts, np.random.default_rng(options.seed))
    with recording(options.root, seed=options.seed):
        write_id_lists(options.root, {LISTS[key]: ids for key, ids in splits.items()}, "make_splits")
    for key, ids in splits.items():
        print(f"{key:9} {len(ids):5}  {options.root / LIST_FOLDER / LISTS[key]}.txt")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
