"""Writes the id lists of a cohort: the scans for training, validation and test.

A scan is healthy if its id matches --healthy or is in --healthy-list; all others are diseased, and have a voxel label
if lesion/ has their file. Diseased scans with a voxel label are assigned to TEST, VALID and LABELED; the rest is used
for training with its volume-level label only.

Lists that exist are kept: new scans are added to what the options ask for beyond that, and else to the training lists.
--overwrite draws all anew. Crops of the same CT stay on one side, training, validation or test, and so do the scans of
a patient in --patients.

Examples:
    python -m datasets.make_splits data --healthy 'healthy_*'
    python -m datasets.make_splits data --healthy-list healthy.txt --labeled 1 --valid 0.1 --test 30 --seed 7
    python -m datasets.make_splits data --healthy 'healthy_*' --patients patients.csv --overwrite
"""

from __future__ import annotations

import argparse
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import WITH_LESION
from utils.cli import add_quiet, new_parser, run, start_logging, whole_number
from utils.errors import CohortError
from utils.ledger import recording

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

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

LEFT_OUT = "left_out"
"""Name of the list of scans that are in no other: held out, and without the voxel label that a test needs."""


def amount(text: str) -> float | int:
    """Parse a count (``3``) or a proportion (``0.25``); anything else is an `argparse.ArgumentTypeError`."""
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = -1
    if value < 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"expected a count such as 3 or a proportion such as 0.25, got {text}")
    return value


def make_splits(
    with_label: Sequence[str],
    without_label: Sequence[str],
    healthy: Sequence[str],
    amounts: Mapping[str, float | int],
    rng: np.random.Generator,
    groups: Mapping[str, str] | None = None,
    before: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[str]]:
    """Assign the scans of a cohort to splits, by id: diseased ones with and without a voxel label, and healthy ones.

    Amounts are counts (int) or proportions (float) for LABELED, VALID and TEST of the scans with a voxel label, for
    VALIDWL of those without, and for VALIDH and TESTH of the healthy ones. Scans of a group, by id, stay on one side:
    training, validation or test. `before` are ids by split that are assigned already.

    Returns:
        Sorted ids by key in DATASET.SPLIT. Remaining diseased scans go to WO_LABEL, healthy ones to HEALTHY; scans
        without voxel label whose group is tested are under `LEFT_OUT`.

    Raises:
        CohortError: more scans are requested than there are, or `before` has a group on two sides.
    """
    from datasets.cohort import side_of

    groups = groups or {}
    splits = {key: list((before or {}).get(key, ())) for key in (*LISTS, LEFT_OUT)}
    placed = {case_id for ids in splits.values() for case_id in ids}
    sides: dict[str, tuple[str, str]] = {}
    for key in LISTS:
        for case_id in splits[key]:
            group = groups.get(case_id, case_id)
            side, first = sides.setdefault(group, (side_of(key), case_id))
            if side != side_of(key):
                raise CohortError(
                    f"{first} and {case_id} are of one patient or CT, and stand in {side} and {side_of(key)}; "
                    "--overwrite draws the lists anew"
                )
    for ids, keys, rest in (
        (with_label, ("TEST", "VALID", "LABELED"), "WO_LABEL"),
        (without_label, ("VALIDWL",), "WO_LABEL"),
        (healthy, ("TESTH", "VALIDH"), "HEALTHY"),
    ):
        new = [case_id for case_id in sorted(ids) if case_id not in placed]
        free: dict[str, list[str]] = defaultdict(list)
        for case_id in (new[k] for k in rng.permutation(len(new))):
            group = groups.get(case_id, case_id)
            if group not in sides:
                free[group].append(case_id)
                continue
            of_side = {side_of(key): key for key in (*keys[::-1], rest)}
            splits[of_side.get(sides[group][0], LEFT_OUT)].append(case_id)
        for key in keys:
            number = round(amounts[key] * len(ids)) if isinstance(amounts[key], float) else amounts[key]
            asked = wanted = number - len(splits[key])
            left = sum(map(len, free.values()))
            if wanted > left:
                raise CohortError(f"{key} asks for {number} scans, {left} of {len(ids)} are left; ask for fewer")
            for group in list(free):
                taken = free[group]
                if side_of(key) == side_of(rest):  # the others of the group go there
                    taken = taken[: max(wanted, 0)]
                # A group that is too large is taken where there would be no scan otherwise.
                elif len(taken) > wanted and (
                    splits[key] or wanted <= 0 or any(len(f) <= wanted for f in free.values())
                ):
                    continue
                if taken:
                    wanted -= len(taken)
                    splits[key] += taken
                    sides[group] = side_of(key), taken[0]
                    free[group] = free[group][len(taken) :]
            free = {group: members for group, members in free.items() if members}
            if wanted < 0 < asked:
                log.warning("%s has %d scan(s) more than asked for: those of a patient stay together", key, -wanted)
            if wanted > 0:
                log.warning(
                    "%s has %d scan(s) fewer than asked for, since scans of a patient stay together", key, wanted
                )
        for group, members in free.items():
            splits[rest] += members
            sides[group] = side_of(rest), members[0]
    if out := splits[LEFT_OUT]:
        log.warning("%d scan(s) without voxel label are left out, to hold TEST apart, the first %s", len(out), out[0])
    return {key: sorted(ids) for key, ids in splits.items()}


def read_patients(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Read a table of ids and patients, one scan per line, separated by comma, semicolon or tab.

    Raises:
        CohortError: it cannot be read, names no scan of the cohort, or two patients of one scan.
    """
    from datasets.pairs import composed

    try:
        lines = composed(path.read_text(encoding="utf-8-sig")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CohortError(f"{path}: {reason}; expected lines such as scan_1,patient_7") from None
    cells = [[cell.strip().strip('"') for cell in re.split(r"[,;\t]", line)] for line in lines if line.strip()]
    patients: dict[str, str] = {}
    for case_id, patient in (row[:2] for row in cells if len(row) > 1 and row[0] in ids and row[1]):
        if patients.setdefault(case_id, f"patient {patient}") != f"patient {patient}":
            raise CohortError(f"{path}: names two patients of {case_id}; keep one")
    if not patients:
        raise CohortError(f"{path}: names no scan of this cohort; expected lines such as {ids[0]},patient_7")
    if len(patients) < len(ids):
        log.warning("%s: names the patients of %d of %d scans", path, len(patients), len(ids))
    return patients


def groups_of(root: Path, ids: Sequence[str], patients: Mapping[str, str]) -> dict[str, str]:
    """Group of each scan: its patient, if that is known, and that of every scan of the same CT."""
    from datasets.cohort import contents_of

    contents = contents_of(root, ids)
    groups = {case_id: patients.get(case_id, contents[case_id]) for case_id in ids}
    of_content: dict[str, list[str]] = defaultdict(list)
    for case_id in ids:
        of_content[contents[case_id]].append(case_id)
    copies = [same for same in of_content.values() if len(same) > 1]
    for same in copies:
        merged = {groups[case_id] for case_id in same}
        groups = {case_id: min(merged) if group in merged else group for case_id, group in groups.items()}
    if copies:
        log.warning("%d CT(s) have several crops, which stay together, the first %s", len(copies), ", ".join(copies[0]))
    return groups


def kept_lists(
    root: Path, labelled: Sequence[str], unlabelled: Sequence[str], well: Sequence[str]
) -> dict[str, list[str]]:
    """Ids by split of the lists that exist, without scans that are not in the cohort any more.

    Scans whose voxel label was withdrawn move from LABELED to WO_LABEL, from VALID to VALIDWL, from TEST to `LEFT_OUT`.

    Raises:
        CohortError: a list is damaged, or names a healthy scan as diseased or the other way round.
    """
    from datasets.cohort import HEALTHY, LIST_FOLDER, read_id_list

    names = {**LISTS, LEFT_OUT: LEFT_OUT}
    kept: dict[str, list[str]] = {key: [] for key in names}
    gone = []
    for key, name in names.items():
        path = root / LIST_FOLDER / f"{name}.txt"
        for case_id in read_id_list(path) if path.is_file() else ():
            if case_id not in {*labelled, *unlabelled, *well}:
                gone.append(case_id)
            elif key in LISTS and (case_id in well) != (key in HEALTHY):
                found, said = ("healthy", "diseased") if key in HEALTHY else ("diseased", "healthy")
                raise CohortError(
                    f"{path}: {case_id} is listed as {found}, and {said} by the options; --overwrite draws the lists "
                    "anew"
                )
            elif key in WITH_LESION and case_id in unlabelled:
                moved = {"LABELED": "WO_LABEL", "VALID": "VALIDWL", "TEST": LEFT_OUT}[key]
                log.warning("%s: %s has no voxel label any more; moved to %s", path, case_id, moved)
                kept[moved].append(case_id)
            else:
                kept[key].append(case_id)
    if gone:
        log.warning("%d scan(s) in the lists are not in the cohort any more, the first %s", len(gone), gone[0])
    return kept


def cohort_ids(root: Path, healthy: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the ids of a cohort: diseased with a voxel label, diseased without, healthy.

    Healthy scans are given by ids, or shell patterns of ids.

    Raises:
        CohortError: there are no images, no id or every id is healthy, or an item of `healthy` matches no id.
    """
    from datasets.cohort import lesion_folder
    from datasets.pairs import composed

    folder = root / "images"
    ids = sorted(_volume_ids(folder))
    healthy = [composed(pattern) for pattern in healthy]
    if not ids:
        raise CohortError(f"{folder}: no images; make them with python lungCrop.py")
    well = [i for i in ids if any(i == pattern or fnmatchcase(i, pattern) for pattern in healthy)]
    unknown = [pattern for pattern in healthy if pattern not in ids and not any(fnmatchcase(i, pattern) for i in ids)]
    if unknown:
        raise CohortError(f"{folder}: no scan here is called {unknown[0]}; check --healthy or --healthy-list")
    if not well or len(well) == len(ids):
        raise CohortError(f"{folder}: {len(well)} of {len(ids)} ids are healthy; check --healthy or --healthy-list")
    labelled = _volume_ids(lesion_folder(root))
    diseased = [i for i in ids if i not in set(well)]
    return [i for i in diseased if i in labelled], [i for i in diseased if i not in labelled], well


def _volume_ids(folder: Path) -> set[str]:
    from datasets.pairs import composed
    from datasets.volumes import is_volume_file, volume_id

    return (
        {composed(volume_id(path)) for path in folder.iterdir() if is_volume_file(path)} if folder.is_dir() else set()
    )


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
    parser.add_argument("--patients", type=Path, metavar="FILE", help="table of ids and patients: id,patient")
    parser.add_argument("--overwrite", action="store_true", help="draw lists that exist anew")
    parser.add_argument("--seed", type=whole_number, default=0, help="random seed of the assignment (default 0)")
    add_quiet(parser)
    options = parser.parse_args(arguments)

    import numpy as np

    from datasets.cohort import LIST_FOLDER, read_id_list, write_id_lists

    start_logging(options.quiet)
    root = options.root
    named = [*options.healthy, *(read_id_list(options.healthy_list) if options.healthy_list else [])]
    amounts = {key: getattr(options, key.lower()) for key in ("LABELED", "VALID", "VALIDWL", "VALIDH", "TEST", "TESTH")}
    labelled, unlabelled, well = cohort_ids(root, named)
    ids = [*labelled, *unlabelled, *well]
    groups = groups_of(root, ids, read_patients(options.patients, ids) if options.patients else {})
    before = {} if options.overwrite else kept_lists(root, labelled, unlabelled, well)
    rng = np.random.default_rng(options.seed)
    splits = make_splits(labelled, unlabelled, well, amounts, rng, groups, before)
    if kept := sum(map(len, before.values())):
        log.warning("kept the lists of %d scans, added %d; --overwrite draws all anew", kept, len(ids) - kept)
    with recording(root, seed=options.seed):
        names = {LISTS[key]: splits[key] for key in LISTS}
        write_id_lists(root, {**names, LEFT_OUT: splits[LEFT_OUT] or None}, "make_splits")
    for key, name in LISTS.items():
        print(f"{key:9} {len(splits[key]):5}  {root / LIST_FOLDER / name}.txt")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
