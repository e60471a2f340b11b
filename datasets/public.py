"""Makes a cohort of a public data set of the paper: CovidSeg (A), MedSeg (B) or MosMed (C, D).

DOWNLOAD is the folder in which the set's archives were unpacked, however deep. Its scans are cropped as lungCrop.py
crops them, and the lists of the paper's experiments are written to id_txt/:

  covidseg   A_labelled, the one labelled scan, and A_sub1 and A_sub2, the others in HU and of 0..255
  medseg     B
  mosmed     C, the scans with voxel labels; D_healthy and D_diseased, the others, for training

Several sets can go into one ROOT. Lesion is what its owners label so: infection (CovidSeg, MosMed), ground glass and
consolidation (MedSeg, 1 and 2); pleural effusion (MedSeg, 3) is outside the lung and is not, unless --lesion-labels
says so. Lungs are the masks that CovidSeg and MedSeg ship, without what MedSeg labels as artefact (3); MosMed ships
none, there lungmask finds them. The published pre-processing found all of them by lungmask, as --lungs lungmask does.

A patient of a labelled scan is in no other list, nor are scans that are held out for validation (--valid); of C none
is in D. What was found, is missing or odd is printed and written to ROOT/public_SET.json. Scans that are done already
are skipped; one that fails is named at the end while the others are done, and the exit code is then 1.

Examples:
    python -m datasets.public covidseg downloads/covidseg --output data_public --dry-run
    python -m datasets.public covidseg downloads/covidseg --output data_public
    python -m datasets.public covidseg downloads/covidseg --output data_public --label radiopaedia_10_85902_1
    python -m datasets.public medseg downloads/medseg --output data_public --lesion-labels 1 2 3
    python -m datasets.public mosmed downloads/COVID19_1110 --output data_public --weights unet_r231-d5d2fc3d.pth
    python -m datasets.public mosmed downloads/COVID19_1110 --output data_public --valid 5 --validh 10
    torchrun --nproc-per-node 2 -m datasets.public mosmed downloads/COVID19_1110 --output data_public
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from datasets.cohort import find_volume
from datasets.crop import LungMaskCrop
from datasets.crop_scans import FOLDERS, crop_scans, is_cropped
from datasets.io.grid import Grid, check_same_grid
from datasets.io.volume import Reading, read_geometry, read_labels, read_volume
from datasets.lung_finders import LUNG_FINDERS, FindLungs, Lungs
from datasets.public_sets import GREY_WINDOW, SETS, Found, Mask, PublicScan, PublicSet, find_public_scans, patient_of
from datasets.scan_options import add_crop_size, add_lungmask, check_size
from utils import distributed
from utils.cli import add_device, add_quiet, choose_device, new_parser, run, start_logging
from utils.errors import CohortError, GasnetError, VolumeError
from utils.failures import print_failures
from utils.files import write_text
from utils.manifest import recording
from utils.progress import progress_bar

log = logging.getLogger(__name__)

HELD_OUT = {"valid": "{}_valid", "validh": "D_valid_healthy", "validwl": "D_valid_diseased"}
"""Option that holds scans out to the list that they are in; {} is the letter of the set."""

GROUPS = {
    "A": (("A_sub1", "A_sub2"), {}),
    "B": (("B",), {}),
    "C": (("C",), {"validh": ("D_healthy",), "validwl": ("D_diseased",)}),
}
"""Letter of a set to its test lists, and its training lists by the option that holds out from them."""

_MOST_LINES = 20


def check_scan(scan: PublicScan) -> list[str]:
    """Look into the files of a scan, all but the voxels of CTs without voxel label.

    Returns:
        Findings that cost no scan, a line each.

    Raises:
        VolumeError: a file cannot be read, a mask lies on another grid than its CT, holds labels that the set does
            not have or, of lungs, none that counts, or a CT that should be in HU was mapped to 0..255.
    """
    odd = []
    grid = read_geometry(scan.ct)
    if scan.lesion is not None and not _check_labels(scan.lesion, scan, grid):
        odd.append(f"{scan.lesion.path}: holds no lesion")
    if scan.lung is not None and not _check_labels(scan.lung, scan, grid):
        raise VolumeError(f"{scan.lung.path}: holds no lung; use --lungs lungmask")
    if scan.lesion is not None:  # the few scans that are tested on, and the labelled one
        ct = read_volume(scan.ct)  # a view does not keep it
        values = sitk.GetArrayViewFromImage(ct)
        lowest, highest = float(values.min()), float(values.max())
        mapped = lowest >= 0 and highest <= 255
        if mapped and not scan.grey:
            raise VolumeError(
                f"{scan.ct}: values of {lowest:g}..{highest:g}, as if mapped to 0..255, in a set in HU; download it "
                "again, or crop it with lungCrop.py --grey-window"
            )
        if scan.grey and not mapped:
            odd.append(f"{scan.ct}: values of {lowest:g}..{highest:g}, not mapped to 0..255; taken for HU")
    return odd


def _check_labels(mask: Mask, scan: PublicScan, grid: Grid) -> int:
    """The number of voxels that count in a mask that is as it should be."""
    image = read_labels(mask.path)
    check_same_grid(mask.path, Grid.of(image), scan.ct, grid)
    voxels = sum(np.bincount(plane.ravel(), minlength=256) for plane in sitk.GetArrayViewFromImage(image))
    unknown = sorted(set(np.flatnonzero(voxels).tolist()) - mask.known)
    if unknown:
        raise VolumeError(
            f"{mask.path}: holds the labels {', '.join(map(str, unknown))}, which the set does not have; say which "
            "labels count with --lesion-labels or --lung-labels"
        )
    return int(voxels[sorted(mask.counted)].sum())


def check_scans(found: Found, progress: bool) -> None:
    """Look into the files of all scans, one volume at a time; moves those that fail to `found.failed`."""
    for case_id, scan in progress_bar(list(found.scans.items()), "looking at the files", unit="scan", shown=progress):
        try:
            found.odd += check_scan(scan)
        except GasnetError as error:
            found.failed[case_id] = str(error)
            del found.scans[case_id]


def make_lists(
    scans: Iterable[PublicScan], letter: str, labelled: Collection[str], amounts: Mapping[str, int], seed: int
) -> dict[str, list[str]]:
    """Deal the scans of a set to the lists of the paper's experiments.

    Scans of a patient of whom one is labelled are in no list but that of the labelled ones; the scans of a patient are
    held out together or not at all. D are those of MosMed without a lesion mask.

    Args:
        scans: of one set.
        letter: that the paper gives to the set's voxel-labelled scans.
        labelled: ids of the labelled scans.
        amounts: scans to hold out: with a voxel label (``valid``), healthy ones (``validh``) and diseased ones without
            (``validwl``).
        seed: deals.

    Returns:
        Name of the list to ids, in order; lists of the set that nothing is in are empty.

    Raises:
        CohortError: more scans are to be held out than there are, or than whole patients make up.
    """
    trained = {patient_of(case_id) for case_id in labelled}
    scans = sorted(scans, key=lambda scan: _natural(scan.id))
    free = [scan for scan in scans if scan.patient not in trained]
    lists = {f"{letter}_labelled": [scan.id for scan in scans if scan.id in set(labelled)]}
    rng = np.random.default_rng(seed)
    tests, held_out = GROUPS[letter]
    for option, groups in (("valid", tests), *held_out.items()):
        of_groups = [scan for scan in free if scan.group in groups]
        lists[HELD_OUT[option].format(letter)] = _hold_out(of_groups, amounts[option], rng, f"--{option}")
    dealt = {case_id for ids in lists.values() for case_id in ids}
    for group in (*tests, *(group for groups in held_out.values() for group in groups)):
        lists[group] = [scan.id for scan in free if scan.group == group and scan.id not in dealt]
    return lists


def _hold_out(scans: Sequence[PublicScan], number: int, rng: np.random.Generator, option: str) -> list[str]:
    """Ids of so many scans, drawn by whole patients."""
    patients: dict[str, list[str]] = {}
    for scan in scans:
        patients.setdefault(scan.patient, []).append(scan.id)
    drawn: list[str] = []
    for k in rng.permutation(len(patients)):
        ids = list(patients.values())[k]
        if len(drawn) + len(ids) <= number:
            drawn += ids
    if len(drawn) < number:
        raise CohortError(f"{option} asks for {number} of {len(scans)} scans, by whole patients; ask for less")
    return sorted(drawn, key=_natural)


def _natural(case_id: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in ids by their size."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", case_id)]


def chosen_labels(public_set: PublicSet, found: Found, names: Sequence[str] | None) -> list[str]:
    """The ids of the labelled scans.

    Args:
        public_set: which set it is.
        found: its scans; gains a finding where the set's own choice is missing.
        names: as `PublicSet.id_of` reads them; ``none`` for no scan; None for the set's own choice.

    Raises:
        CohortError: there is no such scan, or it has no voxel label.
    """
    if names is None:
        ids = [] if public_set.label is None else [public_set.label]
        if ids and ids[0] not in {*found.scans, *found.failed}:
            found.odd.append(f"{ids[0]}: would be the labelled scan, and is not here; choose one with --label")
    else:
        ids = [] if list(names) == ["none"] else [_known(public_set, found, name) for name in names]
    if any("_radiopaedia_" in case_id for case_id in ids):
        found.odd.append(
            "the labelled scan comes from Radiopaedia, as those of B do; no file name tells whether they share patients"
        )
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


def crop_public_scans(
    scans: Mapping[str, PublicScan],
    output: Path,
    find_lungs: Callable[[], FindLungs],
    size: tuple[int, int, int],
    progress: bool,
) -> dict[str, str]:
    """Crop scans of a public set into a cohort folder.

    Args:
        scans: id to scan.
        output: cohort folder.
        find_lungs: makes the lung finder for scans without a lung mask; called if there are any.
        size: (z, y, x) of the crops.
        progress: show progress bars.

    Returns:
        Id to reason of the scans that failed.
    """
    failed: dict[str, str] = {}
    kinds: dict[tuple, dict[str, PublicScan]] = {}  # that are read in one way
    for case_id, scan in scans.items():
        counted = [None if mask is None else mask.counted for mask in (scan.lung, scan.lesion)]
        kinds.setdefault((scan.grey, *counted), {})[case_id] = scan
    finder = None
    for (grey, lung_labels, lesion_labels), of_kind in kinds.items():
        if lung_labels is None and finder is None:
            finder = find_lungs()
        cropper = LungMaskCrop(
            finder,  # not used for scans with a lung mask
            size,
            Reading(grey_window=GREY_WINDOW if grey else None),
            lung_labels=lung_labels,
            lesion_labels=lesion_labels,
        )
        failed |= crop_scans(
            {case_id: scan.ct for case_id, scan in of_kind.items()},
            output,
            cropper,
            {case_id: scan.lesion.path for case_id, scan in of_kind.items() if scan.lesion is not None},
            None if lung_labels is None else {case_id: scan.lung.path for case_id, scan in of_kind.items()},
            progress,
        )
    return failed


def write_lists(root: Path, lists: Mapping[str, Sequence[str]]) -> None:
    """Write lists to id_txt/, and remove those that nothing is in any more: an older one may contradict the others.

    Raises:
        OSError: a list cannot be written.
    """
    for name, ids in lists.items():
        path = root / "id_txt" / f"{name}.txt"
        if ids:
            write_text(path, "".join(f"{case_id}\n" for case_id in ids))
        else:
            path.unlink(missing_ok=True)


def report_of(
    title: str, download: Path, found: Found, lists: Mapping[str, Sequence[str]], rules: Mapping[str, Any]
) -> dict[str, Any]:
    """What was found, is missing or odd, as JSON holds it."""
    listed = {case_id for ids in lists.values() for case_id in ids}
    return {
        "set": title,
        "download": str(download.absolute()),
        "rules": dict(rules),
        "files": {row: {"found": number, "expected": wanted} for row, (number, wanted) in found.counts.items()},
        "odd": found.odd,
        "failed": found.failed,
        "lists": {name: list(ids) for name, ids in lists.items() if ids},
        "in_no_list": sorted((set(found.scans) - listed), key=_natural),
    }


def as_text(report: Mapping[str, Any]) -> str:
    """A report for the screen; long parts of it are cut short."""
    lines = ["files found:"]
    for row, numbers in report["files"].items():
        differs = "" if numbers["found"] == numbers["expected"] else f", the set has {numbers['expected']}"
        lines.append(f"  {row:24} {numbers['found']:5}{differs}")
    lines += _shortened("odd", report["odd"])
    lines.append("lists:")
    lines += [f"  {name:24} {len(ids):5}" for name, ids in report["lists"].items()]
    lines += _shortened("in no list, their patient being that of a labelled scan", report["in_no_list"])
    return "\n".join(lines)


def _shortened(title: str, findings: Sequence[str]) -> list[str]:
    if not findings:
        return []
    more = [f"  ... and {len(findings) - _MOST_LINES} more"] if len(findings) > _MOST_LINES else []
    return [f"{title}:", *(f"  {finding}" for finding in findings[:_MOST_LINES]), *more]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.public``."""
    options = _options(arguments)
    public_set = SETS[options.set]
    start_logging(options.quiet)
    given = options.lungs == "given"
    lungs = None if given else Lungs(options.lungs, options.lungmask_model, options.weights)
    size, output = options.size, options.output
    if output.resolve() == options.download.resolve():
        raise CohortError(f"{output}: is the download itself; choose another --output")

    def look() -> tuple[Found, dict[str, list[str]]]:
        found = find_public_scans(
            public_set, options.download, given, options.lesion_labels, options.lung_labels, skip=output
        )
        labelled = chosen_labels(public_set, found, options.label)
        amounts = {option: getattr(options, option) for option in HELD_OUT}
        # Of all scans, so that one that fails today leaves the others in their lists.
        lists = make_lists(found.scans.values(), public_set.letter, labelled, amounts, options.seed)
        check_scans(found, progress=not options.quiet)
        return found, lists

    found, lists = distributed.on_rank_zero(look)
    rules = {
        "lungs": "given" if lungs is None else lungs.name,
        "lung_labels": sorted(options.lung_labels or public_set.lung_labels[0]) if given else [],
        "lesion_labels": sorted(options.lesion_labels or public_set.lesion_labels[0]),
    }
    if options.dry_run:
        print(as_text(report_of(public_set.title, options.download, found, _whole(lists, found), rules)))
        return _print_failed(found)

    device = choose_device(options.device if lungs is not None and lungs.on_gpu else "cpu")
    with (
        distributed.lock_folder_on_rank_zero(output, *FOLDERS, "id_txt"),
        recording(output, device=device, seed=options.seed, rules=rules),
    ):
        path = output / f"public_{public_set.name}.json"
        left = distributed.on_rank_zero(lambda: _begin(path, found, rules, size, options.overwrite))
        mine = {case_id: found.scans[case_id] for case_id in distributed.shard(left)}
        failed = crop_public_scans(mine, output, lambda: lungs.finder(device), size, progress=not options.quiet)
        for part in distributed.gather(failed):
            found.failed |= part
        for case_id in found.failed:
            found.scans.pop(case_id, None)
        report = report_of(public_set.title, options.download, found, _whole(lists, found), rules)
        if distributed.is_rank_zero():
            write_lists(output, {name: report["lists"].get(name, []) for name in lists})
            write_text(path, json.dumps(report, indent=2) + "\n")
    print(as_text(report))
    print(
        f"{len(found.scans)} of {len(found.scans) + len(found.failed)} scans of {public_set.title} are in {output}; "
        f"this report in {path}"
    )
    return _print_failed(found)


def _whole(lists: Mapping[str, Sequence[str]], found: Found) -> dict[str, list[str]]:
    """Lists without the scans that failed."""
    return {name: [case_id for case_id in ids if case_id in found.scans] for name, ids in lists.items()}


def _print_failed(found: Found) -> int:
    return print_failures({case_id: found.failed[case_id] for case_id in sorted(found.failed, key=_natural)})


def _begin(
    path: Path, found: Found, rules: Mapping[str, Any], size: tuple[int, int, int], overwrite: bool
) -> list[str]:
    """Write down by which rules crops are made from now on; returns the ids that are left to be cropped.

    Raises:
        CohortError: crops are there that were made by other rules, and are not to be overwritten.
    """
    root = path.parent
    done = [
        case_id
        for case_id, scan in found.scans.items()
        if is_cropped(root, case_id, size, with_lesion=scan.lesion is not None)
    ]
    before = _rules_of(path)
    if done and before not in (None, rules):
        if not overwrite:
            differ = [f"{key} {before.get(key)}, now {rules[key]}" for key in rules if before.get(key) != rules[key]]
            raise CohortError(
                f"{path}: scans here were made with {'; '.join(differ)}; --overwrite makes them anew, another --output "
                "keeps them"
            )
        # Should this run be killed, the next one does not take what the old rules made for done.
        for case_id in done:
            find_volume(root / FOLDERS[0], case_id).unlink()
    write_text(path, json.dumps({"rules": rules}, indent=2) + "\n")
    return [case_id for case_id in found.scans if overwrite or case_id not in done]


def _rules_of(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["rules"])
    except (ValueError, KeyError, TypeError):
        raise CohortError(f"{path}: not a report of this command; remove it, or choose another --output") from None


def _label(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 256:
        raise argparse.ArgumentTypeError(f"expected a label from 1 to 255, got {text}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text}")
    return int(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__, "python -m datasets.public")
    parser.add_argument("set", choices=sorted(SETS), metavar="SET", help="covidseg, medseg or mosmed")
    parser.add_argument("download", type=Path, metavar="DOWNLOAD", help="folder in which its archives were unpacked")
    parser.add_argument("--output", type=Path, required=True, metavar="ROOT", help="cohort folder")
    parser.add_argument("--dry-run", action="store_true", help="look at the files and print the report, write nothing")
    parser.add_argument(
        "--lungs",
        choices=("given", *LUNG_FINDERS),
        help="the masks that the set ships (default of covidseg and medseg), lungmask's network (the published way, "
        "and default of mosmed, which ships none), or thresholds",
    )
    add_lungmask(parser)
    add_device(parser)
    parser.add_argument(
        "--lesion-labels",
        type=_label,
        nargs="+",
        metavar="N",
        help="labels of lesion masks that are lesion; all others are then not (default: covidseg 1, medseg 1 2, "
        "mosmed 1; 1 2 3 includes the pleural effusions of medseg)",
    )
    parser.add_argument(
        "--lung-labels",
        type=_label,
        nargs="+",
        metavar="N",
        help="labels of given lung masks that are lung; all others are then not (default: 1 2)",
    )
    parser.add_argument(
        "--label",
        nargs="+",
        metavar="ID",
        help="the labelled scan, or several; none for no scan (default: coronacases_001 of covidseg, else none)",
    )
    for option, what in (
        ("valid", "scans with voxel labels to hold out for validation; they are then in no test list"),
        ("validh", "healthy scans of D to hold out for validation"),
        ("validwl", "diseased scans of D to hold out for validation"),
    ):
        parser.add_argument(f"--{option}", type=_count, default=0, metavar="N", help=f"{what} (default 0)")
    parser.add_argument("--seed", type=_count, default=0, help="deals the scans that are held out (default 0)")
    add_crop_size(parser)
    parser.add_argument("--overwrite", action="store_true", help="crop scans again that are done")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    ships_lungs = SETS[options.set].lung_labels is not None
    if options.lungs is None:
        options.lungs = "given" if ships_lungs else "lungmask"
    if options.lungs == "given" and not ships_lungs:
        parser.error(f"--lungs given: {options.set} ships no lung masks")
    if options.lung_labels is not None and options.lungs != "given":
        parser.error("--lung-labels is for --lungs given")
    if (options.validh or options.validwl) and options.set != "mosmed":
        parser.error("--validh and --validwl are for mosmed")
    options.size = check_size(parser, options.size)
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
