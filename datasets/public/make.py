"""The cohort of a public data set: scans found, checked, cropped and listed, and the report on them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets.cohort import CROPS, FOLDERS, LIST_FOLDER, check_id_lists, write_id_lists
from datasets.crop import LungMaskCrop
from datasets.crop_scans import Masks, crop_scan
from datasets.lung_finders import Lungs
from datasets.public.find import Found, check_masks, find_public_scans
from datasets.public.lists import chosen_labels, make_lists, natural
from datasets.public.sets import GREY_WINDOW, HELD_OUT, LESION, LUNG, SETS, Labels, PublicSet
from datasets.volumes import Reading
from utils import distributed
from utils.errors import CohortError
from utils.files import write_text
from utils.ledger import Ledger, Recipe, recording
from utils.progress import do_left, for_each, print_failures

_MOST_LINES = 20


def make_cohort(options: argparse.Namespace) -> int:
    """Make the cohort, or with ``--dry-run`` its report alone.

    Args:
        options: of ``python -m datasets.public``.

    Returns:
        The exit code: 1 if a scan failed.

    Raises:
        GasnetError: the download, the output folder or the options cannot be used.
    """
    if options.output.resolve() == options.download.resolve():
        raise CohortError(f"{options.output}: is the download itself; choose another --output")
    public_set = _with_choices(SETS[options.set], options)
    found, lists = distributed.on_rank_zero(lambda: _find(public_set, options))
    lungs = (
        None if public_set.lung else Lungs(options.lungs, options.lungmask_model, options.weights, options.precision)
    )
    rules = {
        "lungs": "given" if lungs is None else lungs.name,
        "lung_labels": sorted(public_set.lung.counted) if public_set.lung else [],
        "lesion_labels": sorted(public_set.lesion.counted),
    }
    if options.dry_run:
        progress = not options.quiet
        found.failed |= for_each(found.scans, lambda _, scan: check_masks(scan), "checking masks", progress=progress)
        print(_as_text(_report(options, found, lists, rules)))
    else:
        _crop(options, found, lists, rules, lungs)
    return print_failures({case_id: found.failed[case_id] for case_id in sorted(found.failed, key=natural)})


def _with_choices(public_set: PublicSet, options: argparse.Namespace) -> PublicSet:
    """The set with the labels that the user chose, and without lung masks where lungs are to be found."""
    masks = dict(public_set.masks)
    for kind, chosen in ((LUNG, options.lung_labels), (LESION, options.lesion_labels)):
        if chosen is not None:
            masks[kind] = {kind: Labels(set(chosen))}  # all others are ignored
    if options.lungs != "given":
        masks.pop(LUNG, None)
    return replace(public_set, masks=masks)


def _find(public_set: PublicSet, options: argparse.Namespace) -> tuple[Found, dict[str, list[str]]]:
    """Find the scans, and assign them to lists."""
    found = find_public_scans(public_set, options.download, skip=options.output)
    labelled = chosen_labels(public_set, found, options.label)
    amounts = {option: getattr(options, option) for option in HELD_OUT}
    return found, make_lists(public_set, found.scans.values(), labelled, amounts, options.seed)


def _crop(
    options: argparse.Namespace,
    found: Found,
    lists: Mapping[str, Sequence[str]],
    rules: Mapping[str, Any],
    lungs: Lungs | None,
) -> None:
    """Crop the scans; write lists and report. Scans that fail move to `found.failed`.

    Raises:
        CohortError: existing crops were made with other rules, and must not be overwritten.
        FolderError: a list was written or edited by somebody else.
    """
    title, output = SETS[options.set].title, options.output
    device = distributed.choose_device(options.device if lungs is not None and lungs.on_gpu else "cpu")
    ledger, made_by = Ledger(output, CROPS), {**rules, "size": list(options.size)}
    made_by |= {} if lungs is None else {"lungs": lungs.fingerprint(device)}
    note = lesion_note(SETS[options.set], rules["lesion_labels"])
    masks = Masks(
        {case_id: scan.lesion.path for case_id, scan in found.scans.items() if scan.lesion is not None},
        {case_id: scan.lung.path for case_id, scan in found.scans.items()} if lungs is None else None,
    )
    recipes = {case_id: Recipe(masks.sources(case_id, scan.ct), made_by) for case_id, scan in found.scans.items()}

    def check() -> None:
        check_id_lists(output, {name: ids or None for name, ids in lists.items()}, options.set)
        entries = {} if options.overwrite else ledger.entries()
        for before in (entries[case_id].options for case_id in recipes if case_id in entries):
            differ = [f"{key} {before.get(key)}, now {now}" for key, now in rules.items() if before.get(key) != now]
            if differ:
                raise CohortError(
                    f"{output}: scans here were made with {'; '.join(differ)}; --overwrite replaces them, another "
                    "--output keeps them"
                )

    def begin() -> Callable[[str, Recipe], None]:
        finder = None if lungs is None else lungs.finder(device)

        def crop(case_id: str, recipe: Recipe) -> None:
            scan = found.scans[case_id]
            check_masks(scan)
            cropper = LungMaskCrop(
                finder,
                options.size,
                Reading(grey_window=GREY_WINDOW if scan.grey else None),
                lung_labels=scan.lung and scan.lung.labels.counted,
                lesion_labels=scan.lesion and scan.lesion.labels.counted,
            )
            crop_scan(case_id, scan.ct, ledger, recipe, cropper, masks, note)

        return crop

    path = output / f"public_{options.set}.json"
    with (
        distributed.lock_folder_on_rank_zero(output, *FOLDERS, LIST_FOLDER),
        recording(output, device=device, seed=options.seed, rules=rules),
    ):
        distributed.on_rank_zero(check)
        progress = not options.quiet
        found.failed |= do_left(ledger, recipes, begin, "cropping", overwrite=options.overwrite, progress=progress)
        report = _report(options, found, lists, rules)
        if distributed.is_rank_zero():
            write_id_lists(output, {name: report["lists"].get(name) for name in lists}, options.set)
            write_text(path, json.dumps(report, indent=2) + "\n")
    print(_as_text(report))
    total = len(found.scans.keys() | found.failed.keys())
    print(f"{total - len(found.failed)} of {total} scans of {title} are in {output}; this report in {path}")


def lesion_note(public_set: PublicSet, counted: Collection[int]) -> str:
    """Which labels count as lesion, beside those of the published test, which counts every label above 0."""

    def named(values: Collection[int]) -> str:
        return f"label{'s' if len(values) > 1 else ''} {' '.join(map(str, sorted(values)))}"

    published = public_set.lesion.known - {0}
    line = f"{public_set.title}: lesion is {named(counted)}"
    if set(counted) == published:
        return f"{line}, as in the published test"
    return f"{line}; the published test counts {named(published)}, so its Dice does not compare"


def _report(
    options: argparse.Namespace, found: Found, lists: Mapping[str, Sequence[str]], rules: Mapping[str, Any]
) -> dict[str, Any]:
    """What was found, is missing or odd, as JSON values; lists contain only scans that did not fail."""
    whole = found.scans.keys() - found.failed.keys()
    lists = {name: [case_id for case_id in ids if case_id in whole] for name, ids in lists.items()}
    return {
        "set": SETS[options.set].title,
        "download": str(options.download.absolute()),
        "rules": rules,
        "files": {row: {"found": number, "expected": wanted} for row, (number, wanted) in found.counts.items()},
        "odd": found.odd,
        "failed": found.failed,
        "lists": {name: ids for name, ids in lists.items() if ids},
        "in_no_list": sorted(whole.difference(*lists.values()), key=natural),
    }


def _as_text(report: Mapping[str, Any]) -> str:
    """The report for the screen; long parts are cut."""
    lines = ["files found:"]
    for row, numbers in report["files"].items():
        differs = "" if numbers["found"] == numbers["expected"] else f", the set has {numbers['expected']}"
        lines.append(f"  {row:24} {numbers['found']:5}{differs}")
    lists = [f"{name:24} {len(ids):5}" for name, ids in report["lists"].items()]
    for title, findings in (
        ("odd", report["odd"]),
        ("lists", lists),
        ("in no list, because their patient has a labelled scan", report["in_no_list"]),
    ):
        if findings:
            more = [f"... and {len(findings) - _MOST_LINES} more"] if len(findings) > _MOST_LINES else []
            lines += [f"{title}:", *(f"  {finding}" for finding in [*findings[:_MOST_LINES], *more])]
    return "\n".join(lines)
