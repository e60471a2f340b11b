"""Assign the scans of a public set to the lists of the paper's experiments."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from datasets.public.find import Found
from datasets.public.sets import PublicScan, PublicSet
from utils.errors import CohortError


def make_lists(
    public_set: PublicSet,
    scans: Iterable[PublicScan],
    labelled: Collection[str],
    amounts: Mapping[str, int],
    seed: int,
) -> dict[str, list[str]]:
    """Assign the scans of a set to lists.

    Patients of labelled scans are in no other list. The scans of a patient are held out together or not at all.

    Args:
        public_set: the set.
        scans: scans of the set.
        labelled: ids of the labelled scans.
        amounts: number of scans to hold out, by option; missing ones are 0. ``valid`` holds out voxel-labelled scans.
        seed: random seed.

    Returns:
        Ids by list, in order; lists may be empty.

    Raises:
        CohortError: more scans are to be held out than there are, or than can be held out by whole patients.
    """
    trained = {public_set.patient_of(case_id) for case_id in labelled}
    scans = sorted(scans, key=lambda scan: natural(scan.id))
    free = [scan for scan in scans if scan.patient not in trained]
    lists = {f"{public_set.letter}_labelled": [scan.id for scan in scans if scan.id in set(labelled)]}
    rng = np.random.default_rng(seed)
    for option, (groups, name) in public_set.held_out.items():
        of_groups = [scan for scan in free if scan.group in groups]
        lists[name] = _hold_out(of_groups, amounts.get(option, 0), rng, f"--{option}")
    assigned = {case_id for ids in lists.values() for case_id in ids}
    for group in (group for groups, _ in public_set.held_out.values() for group in groups):
        lists[group] = [scan.id for scan in free if scan.group == group and scan.id not in assigned]
    return lists


def _hold_out(scans: Sequence[PublicScan], number: int, rng: np.random.Generator, option: str) -> list[str]:
    """Draw the ids of ``number`` scans, by whole patients."""
    patients: dict[str, list[str]] = {}
    for scan in scans:
        patients.setdefault(scan.patient, []).append(scan.id)
    drawn: list[str] = []
    for k in rng.permutation(len(patients)):
        ids = list(patients.values())[k]
        if len(drawn) + len(ids) <= number:
            drawn += ids
    if len(drawn) < number:
        raise CohortError(f"{option} asks for {number} of {len(scans)} scans, by whole patients; ask for fewer")
    return sorted(drawn, key=natural)


def natural(case_id: str) -> list[tuple[int, str]]:
    """Sort key that orders the numbers in ids by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", case_id)]


def chosen_labels(public_set: PublicSet, found: Found, names: Sequence[str] | None) -> list[str]:
    """Ids of the labelled scans.

    Args:
        public_set: the set.
        found: its scans; remarks on the choice are added to its findings.
        names: names of scans, see `PublicSet.id_of`; ``none`` for no scan; None for the set's default.

    Raises:
        CohortError: there is no such scan, or it has no voxel label.
    """
    if names is None:
        ids = [] if public_set.label is None else [public_set.label]
        if ids and ids[0] not in {*found.scans, *found.failed}:
            found.odd.append(f"{ids[0]}: would be the labelled scan, but is missing; choose one with --label")
    else:
        ids = [] if list(names) == ["none"] else [_known(public_set, found, name) for name in names]
    notes = (public_set.label_note(public_set.case_of(case_id)) for case_id in ids)
    found.odd += dict.fromkeys(note for note in notes if note)
    return ids


def _known(public_set: PublicSet, found: Found, name: str) -> str:
    case_id = public_set.id_of(name)
    if case_id not in found.scans and case_id not in found.failed:
        labelled = [scan.id for scan in found.scans.values() if scan.lesion is not None]
        examples = ", ".join(labelled[:3])
        raise CohortError(f"--label {name}: no scan of {public_set.title} here; there are {examples}, ...")
    if case_id in found.scans and found.scans[case_id].lesion is None:
        raise CohortError(f"--label {name}: has no lesion mask; choose a scan that has one")
    return case_id
