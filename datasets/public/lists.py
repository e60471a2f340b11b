"""Assign the scans of a public set to the lists of the paper's experiments."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from datasets.public.find import Found, PublicScan
from datasets.public.sets import HELD_OUT, PublicSet
from utils.errors import CohortError


def natural(case_id: str) -> list[tuple[int, str]]:
    """Sort key that orders the numbers in ids by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", case_id)]


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
        amounts: number of scans to hold out by option of `HELD_OUT`.
        seed: random seed.

    Returns:
        Ids by list, in order; lists may be empty.

    Raises:
        CohortError: more scans are to be held out than there are, or than can be held out by whole patients.
    """
    trained = {public_set.case(case_id).patient for case_id in labelled}
    scans = sorted(scans, key=lambda scan: natural(scan.id))
    free = [scan for scan in scans if scan.patient not in trained]
    lists = {f"{public_set.letter}_labelled": [scan.id for scan in scans if scan.id in labelled]}
    rng = np.random.default_rng(seed)
    for option, end in HELD_OUT.items():
        groups = [group for group, its_option in public_set.groups.items() if its_option == option]
        if groups:
            of_groups = [scan for scan in free if scan.group in groups]
            lists[f"{groups[0].split('_')[0]}_valid{end}"] = _hold_out(of_groups, amounts[option], rng, f"--{option}")
    assigned = {case_id for ids in lists.values() for case_id in ids}
    for group in public_set.groups:
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


def chosen_labels(public_set: PublicSet, found: Found, names: Sequence[str] | None) -> list[str]:
    """Ids of the labelled scans.

    Args:
        public_set: the set.
        found: its scans; remarks on the choice are added to its findings.
        names: names or ids of scans; ``none`` for no scan; None for the set's default.

    Raises:
        CohortError: there is no such scan, or it has no voxel label.
    """
    known = {*found.scans, *found.failed}
    if names is None:
        names = [] if public_set.label is None else [public_set.label]
        if names and names[0] not in known:
            found.odd.append(f"{names[0]}: would be the labelled scan, but is missing; choose one with --label")
            known.add(names[0])
    cases = [] if list(names) == ["none"] else [public_set.case(name) for name in names]
    for name, case in zip(names, cases, strict=False):
        if case is None or case.id not in known:
            examples = ", ".join([scan.id for scan in found.scans.values() if scan.lesion is not None][:3])
            raise CohortError(f"--label {name}: no scan of {public_set.title} here; there are {examples}, ...")
        if case.id in found.scans and found.scans[case.id].lesion is None:
            raise CohortError(f"--label {name}: has no lesion mask; choose a scan that has one")
    found.odd += dict.fromkeys(case.names.label_note for case in cases if case.names.label_note)
    return [case.id for case in cases]
