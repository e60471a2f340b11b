"""The cohort of a public data set: scans found, checked, cropped and listed, and the report on them.

A file is identified by the nearest folder above it that has one of the set's names, however deep the archives were
unpacked, and by its own name.
"""

import argparse
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from datasets.cohort import CROPS, FOLDERS, LIST_FOLDER, check_id_lists, write_id_lists
from datasets.crop import LungMaskCrop
from datasets.crop_scans import Masks, crop_scan
from datasets.lung_finders import Lungs
from datasets.public.sets import CT, GREY_WINDOW, HELD_OUT, LESION, LUNG, SETS, Case, Labels, PublicSet
from datasets.volumes import Reading, Scan, is_volume_file, read_labels
from utils import distributed
from utils.errors import CohortError, VolumeError
from utils.files import walk_files, write_text
from utils.ledger import Ledger, Recipe, recording
from utils.progress import do_left, for_each, print_failures

log = logging.getLogger(__name__)

_MOST_LINES = 20


class Mask(NamedTuple):
    """A mask file and its labels."""

    path: Path
    labels: Labels


@dataclass(frozen=True)
class PublicScan:
    """A scan of a public set."""

    id: str  # unique over all sets
    group: str  # its list, unless it is labelled or held out
    patient: str  # equal for scans of the same patient
    ct: Scan
    lesion: Mask | None = None  # None if the set has none for this scan
    lung: Mask | None = None  # None if lungs are to be found
    grey: bool = False  # whether the CT is distributed as grey values 0..255


@dataclass
class Found:
    """The content of an unpacked download."""

    scans: dict[str, PublicScan] = field(default_factory=dict)  # complete scans by id
    failed: dict[str, str] = field(default_factory=dict)  # reason by id of the incomplete ones
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)  # files found and in the complete set, by kind
    odd: list[str] = field(default_factory=list)  # other findings, one line each


def find_public_scans(public_set: PublicSet, download: Path, skip: Path | None = None) -> Found:
    """Find the scans of a public set, and match their masks to them; reads no voxels.

    If the set has lung masks, every scan needs one. `skip` is a folder below the download that is not part of it.

    Raises:
        VolumeError: there is no such folder, or it has no CT of the set.
    """
    title = public_set.title
    if not download.is_dir():
        raise VolumeError(f"{download}: no such folder; expected the unpacked download of {title}")
    found, counts = Found(), dict.fromkeys(public_set.expected, 0)
    files: dict[Case, dict[str, list[Path]]] = {}
    for path in walk_files(download, lambda folder: skip is not None and folder.resolve() == skip.resolve()):
        kind, case = public_set.kind(path.relative_to(download)), public_set.case(path.name)
        if not is_volume_file(path):
            found.odd.append(f"{path}: no volume")
        elif kind is None or case is None:
            found.odd.append(f"{path}: {'in no folder' if kind is None else 'not a name'} of {title}; ignored")
        else:
            files.setdefault(case, {}).setdefault(kind, []).append(path)
            counts[public_set.row(kind, case)] += 1
    found.counts = {row: (number, public_set.expected[row]) for row, number in counts.items()}
    if public_set.missing_lesions_note and counts[f"{LESION}s"] < public_set.expected[f"{LESION}s"]:
        found.odd.append(public_set.missing_lesions_note)
    for case in sorted(files, key=lambda case: case.id):
        if not any(kind.startswith(CT) for kind in files[case]):
            paths = [str(path) for paths in files[case].values() for path in paths]
            found.odd.append(f"{', '.join(paths)}: no CT for it; ignored")
            continue
        try:
            found.scans[case.id] = _scan(public_set, case, files[case], found.odd)
        except VolumeError as error:
            found.failed[case.id] = str(error)
    if not found.scans and not found.failed:
        expected = " or ".join(f"{name}/" for name, kind in public_set.folders.items() if kind.startswith(CT))
        raise VolumeError(f"{download}: no CT of {title} here; expected {expected} below it, unpacked")
    return found


def _scan(public_set: PublicSet, case: Case, files: Mapping[str, list[Path]], odd: list[str]) -> PublicScan:
    """The scan of a case, from its files by kind."""

    def only(paths: Sequence[Path], kind: str) -> Path:
        if len(paths) > 1:
            raise VolumeError(f"{' and '.join(map(str, paths))}: {len(paths)} files for one {kind}; keep one of them")
        return paths[0]

    def mask(wanted: str) -> Mask | None:
        for kind, labels in public_set.masks.items():
            if wanted in labels and kind in files:
                path = only(files[kind], kind)
                if kind != wanted:
                    odd.append(f"{case.id}: no {wanted} of its own; taken from {path}")
                return Mask(path, labels[wanted])
        return None

    ct = only([path for kind, paths in files.items() if kind.startswith(CT) for path in paths], CT)
    group = next((group for kind, group in public_set.group_of_kind.items() if kind in files), case.names.group)
    lesion = mask(LESION)
    if lesion is None and public_set.groups[group] == "valid":
        raise VolumeError(f"{ct}: no lesion mask for it; complete the download")
    if lesion is not None and public_set.groups[group] == "validh":
        raise VolumeError(f"{ct}: without findings by its folder, but {lesion.path} is a lesion mask; check both")
    lung = mask(LUNG) if public_set.lung else None
    if public_set.lung and lung is None:
        raise VolumeError(f"{ct}: no lung mask for it; complete the download, or use --lungs lungmask")
    return PublicScan(case.id, group, case.patient, Scan(case.id, ct), lesion, lung, case.names.grey)


def check_masks(scan: PublicScan) -> None:
    """Check the labels of a scan's masks; a lesion mask without lesion is a warning.

    Raises:
        VolumeError: a mask cannot be read, has labels that the set does not have, or is a lung mask without lung.
    """
    for kind, mask in ((LUNG, scan.lung), (LESION, scan.lesion)):
        if mask is None:
            continue
        found = set(np.unique(sitk.GetArrayFromImage(read_labels(mask.path))).tolist())
        if unknown := sorted(found - mask.labels.known):
            raise VolumeError(
                f"{mask.path}: holds the labels {', '.join(map(str, unknown))}, which the set does not have; choose "
                "the labels that count with --lesion-labels or --lung-labels"
            )
        if not found & mask.labels.counted:
            if kind == LUNG:
                raise VolumeError(f"{mask.path}: holds no lung; use --lungs lungmask")
            log.warning("%s: holds no lesion", mask.path)


def _natural(case_id: str) -> list[tuple[int, str]]:
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

    Patients of labelled scans are in no other list. The scans of a patient are held out together or not at all; the
    amounts are their numbers by option of `HELD_OUT`. Returns ids by list, in order; lists may be empty.

    Raises:
        CohortError: more scans are to be held out than there are, or than can be held out by whole patients.
    """
    trained = {public_set.case(case_id).patient for case_id in labelled}
    scans = sorted(scans, key=lambda scan: _natural(scan.id))
    free = [scan for scan in scans if scan.patient not in trained]
    letter = next(iter(public_set.groups))[0]  # the paper's, of the scans with voxel labels
    lists = {f"{letter}_labelled": [scan.id for scan in scans if scan.id in labelled]}
    rng = np.random.default_rng(seed)
    for option, end in HELD_OUT.items():
        groups = [group for group, its_option in public_set.groups.items() if its_option == option]
        if not groups:
            continue
        patients: dict[str, list[str]] = {}
        for scan in free:
            if scan.group in groups:
                patients.setdefault(scan.patient, []).append(scan.id)
        drawn: list[str] = []
        for k in rng.permutation(len(patients)):
            ids = list(patients.values())[k]
            if len(drawn) + len(ids) <= amounts[option]:
                drawn += ids
        if len(drawn) < amounts[option]:
            total = sum(map(len, patients.values()))
            raise CohortError(
                f"--{option} asks for {amounts[option]} of {total} scans, by whole patients; ask for fewer"
            )
        lists[f"{groups[0].split('_')[0]}_valid{end}"] = sorted(drawn, key=_natural)
    assigned = {case_id for ids in lists.values() for case_id in ids}
    for group in public_set.groups:
        lists[group] = [scan.id for scan in free if scan.group == group and scan.id not in assigned]
    return lists


def chosen_labels(public_set: PublicSet, found: Found, names: Sequence[str] | None) -> list[str]:
    """Ids of the labelled scans, by names or ids, ``none`` for no scan, or None for the set's default.

    Remarks on the choice are added to the findings.

    Raises:
        CohortError: there is no such scan, or it has no voxel label.
    """
    known = {*found.scans, *found.failed}
    if names is None:
        names = [] if public_set.label is None else [public_set.label]
        if names and names[0] not in known:
            found.odd.append(f"{names[0]}: would be the labelled scan, but is missing; choose one with --label")
            known.add(names[0])
    cases = {name: public_set.case(name) for name in names if list(names) != ["none"]}
    for name, case in cases.items():
        if case is None or case.id not in known:
            raise CohortError(f"--label {name}: no scan of {public_set.title} here")
        if case.id in found.scans and found.scans[case.id].lesion is None:
            raise CohortError(f"--label {name}: has no lesion mask; choose a scan that has one")
    found.odd += dict.fromkeys(case.names.label_note for case in cases.values() if case.names.label_note)
    return [case.id for case in cases.values()]


def make_cohort(options: argparse.Namespace) -> int:
    """Make the cohort, or with ``--dry-run`` its report alone, by the options of ``python -m datasets.public``.

    Returns the exit code: 1 if a scan failed.

    Raises:
        GasnetError: the download, the output folder or the options cannot be used.
    """
    if options.output.resolve() == options.download.resolve():
        raise CohortError(f"{options.output}: is the download itself; choose another --output")
    public_set = _with_choices(SETS[options.set], options)

    def find() -> tuple[Found, dict[str, list[str]]]:
        found = find_public_scans(public_set, options.download, skip=options.output)
        labelled = chosen_labels(public_set, found, options.label)
        amounts = {option: getattr(options, option) for option in HELD_OUT}
        return found, make_lists(public_set, found.scans.values(), labelled, amounts, options.seed)

    found, lists = distributed.on_rank_zero(find)
    lungs = Lungs(options.lungs, options.lungmask_model, options.weights, options.precision)
    lungs = None if public_set.lung else lungs
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
    return print_failures({case_id: found.failed[case_id] for case_id in sorted(found.failed, key=_natural)})


def _with_choices(public_set: PublicSet, options: argparse.Namespace) -> PublicSet:
    """The set with the labels that the user chose, and without lung masks where lungs are to be found."""
    masks = dict(public_set.masks)
    for kind, chosen in ((LUNG, options.lung_labels), (LESION, options.lesion_labels)):
        if chosen is not None:
            masks[kind] = {kind: Labels(set(chosen))}  # all others are ignored
    if options.lungs != "given":
        masks.pop(LUNG, None)
    return replace(public_set, masks=masks)


def _crop(
    options: argparse.Namespace,
    found: Found,
    lists: Mapping[str, Sequence[str]],
    rules: Mapping[str, Any],
    lungs: Lungs | None,
) -> None:
    """Crop the scans; write lists and report. Scans that fail move to `found.failed`.

    Raises:
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

    path, progress = output / f"public_{options.set}.json", not options.quiet
    with (
        distributed.lock_folder_on_rank_zero(output, *FOLDERS, LIST_FOLDER),
        recording(output, device=device, seed=options.seed, rules=rules),
    ):
        wanted = {name: ids or None for name, ids in lists.items()}
        distributed.on_rank_zero(lambda: check_id_lists(output, wanted, options.set))
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
        "in_no_list": sorted(whole.difference(*lists.values()), key=_natural),
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
