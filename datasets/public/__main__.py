"""Makes a cohort of a public data set of the paper: CovidSeg (A), MedSeg (B) or MosMed (C, D).

DOWNLOAD is the folder in which the set's archives were unpacked, however deep. Its scans are cropped as by lungCrop.py,
and the lists of the paper's experiments are written to id_txt/:

  covidseg   A_labelled, the labelled scan; A_sub1 and A_sub2, the other scans in HU and in grey values
  medseg     B
  mosmed     C, the scans with voxel labels; D_healthy and D_diseased, the others, for training

Several sets can share one ROOT. Lesion is what the set's authors label: infection (CovidSeg, MosMed), ground glass and
consolidation (MedSeg, 1 and 2); pleural effusion (MedSeg, 3) lies outside the lung and is excluded unless
--lesion-labels includes it. Lungs are the masks distributed with CovidSeg and MedSeg, without MedSeg's artefacts (3);
MosMed has none, so lungmask finds them. The published pre-processing used lungmask for all sets, like --lungs lungmask.

A patient of a labelled scan is in no other list, and neither are scans held out for validation (--valid); no scan of C
is in D. What was found, is missing or odd is printed and written to ROOT/public_SET.json. Scans that are done are
skipped. A scan that fails does not stop the others; it is named at the end, and the exit code is then 1.

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.cohort import CROPS, FOLDERS, LIST_FOLDER, check_id_lists, write_id_lists
from datasets.crop import LungMaskCrop
from datasets.crop_scans import Masks, crop_scan
from datasets.lung_finders import LUNG_FINDERS, Lungs
from datasets.public import SETS
from datasets.public.check import check_scans
from datasets.public.find import Found, Wanted, find_public_scans
from datasets.public.lists import chosen_labels, make_lists, natural
from datasets.public.protocol import lesion_note, read_rules, report_path
from datasets.public.report import as_text, report_of
from datasets.public.sets import GREY_WINDOW, Labels, PublicSet
from datasets.scan_options import add_scan_options, check_size
from datasets.volumes import Reading
from utils import distributed
from utils.cli import add_device, add_quiet, new_parser, run, start_logging
from utils.distributed import choose_device
from utils.errors import CohortError
from utils.files import write_text
from utils.ledger import Ledger, Recipe, recording
from utils.progress import do_left, print_failures

HELD_OUT = {
    "valid": "scans with voxel labels to hold out for validation; they are then in no test list",
    "validh": "healthy scans of D to hold out for validation",
    "validwl": "diseased scans of D to hold out for validation",
}
"""Help of the options that hold scans out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.public``."""
    options = _options(arguments)
    start_logging(options.quiet)
    if options.output.resolve() == options.download.resolve():
        raise CohortError(f"{options.output}: is the download itself; choose another --output")
    public_set = SETS[options.set]
    wanted = Wanted.of(public_set, options.lungs == "given", options.lesion_labels, options.lung_labels)
    found, lists = distributed.on_rank_zero(lambda: _look(wanted, options))
    lungs = None if wanted.lung else Lungs(options.lungs, options.lungmask_model, options.weights)
    rules = {
        "lungs": "given" if lungs is None else lungs.name,
        "lung_labels": sorted(wanted.lung.counted) if wanted.lung else [],
        "lesion_labels": sorted(wanted.lesion.counted),
    }
    if options.dry_run:
        print(as_text(report_of(public_set.title, options.download, found, lists, rules)))
    else:
        _make(options, found, lists, rules, lungs)
    return print_failures({case_id: found.failed[case_id] for case_id in sorted(found.failed, key=natural)})


def _look(wanted: Wanted, options: argparse.Namespace) -> tuple[Found, dict[str, list[str]]]:
    """Find and check the scans, and assign them to lists."""
    public_set = wanted.public_set
    found = find_public_scans(wanted, options.download, skip=options.output)
    labelled = chosen_labels(public_set, found, options.label)
    amounts = {option: getattr(options, option) for option in HELD_OUT}
    # Before the check, so that scans that fail today do not change the lists of the others.
    lists = make_lists(public_set, found.scans.values(), labelled, amounts, options.seed)
    check_scans(found, progress=not options.quiet)
    return found, lists


def _make(
    options: argparse.Namespace,
    found: Found,
    lists: Mapping[str, Sequence[str]],
    rules: Mapping[str, Any],
    lungs: Lungs | None,
) -> None:
    """Crop the scans; write lists and report. Scans that fail move to `found.failed`."""
    title, output, path = SETS[options.set].title, options.output, report_path(options.output, SETS[options.set])
    device = choose_device(options.device if lungs is not None and lungs.on_gpu else "cpu")
    ledger = Ledger(output, CROPS)
    note = lesion_note(SETS[options.set], rules["lesion_labels"])
    made_by = {**rules, "size": list(options.size)}
    masks = {
        case_id: Masks(
            {} if scan.lesion is None else {case_id: scan.lesion.path},
            None if scan.lung is None else {case_id: scan.lung.path},
        )
        for case_id, scan in found.scans.items()
    }
    recipes = {
        case_id: Recipe(masks[case_id].sources(case_id, scan.ct), made_by) for case_id, scan in found.scans.items()
    }

    def begin() -> Callable[[str, Recipe], None]:
        finder = None if all(scan.lung for scan in found.scans.values()) else lungs.finder(device)

        def crop(case_id: str, recipe: Recipe) -> None:
            scan = found.scans[case_id]
            cropper = LungMaskCrop(
                finder,  # not used for scans with a lung mask
                options.size,
                Reading(grey_window=GREY_WINDOW if scan.grey else None),
                lung_labels=scan.lung and scan.lung.labels.counted,
                lesion_labels=scan.lesion and scan.lesion.labels.counted,
            )
            crop_scan(case_id, scan.ct, ledger, recipe, cropper, masks[case_id], note)

        return crop

    with (
        distributed.lock_folder_on_rank_zero(output, *FOLDERS, LIST_FOLDER),
        recording(output, device=device, seed=options.seed, rules=rules),
    ):
        distributed.on_rank_zero(lambda: _begin(path, found, lists, rules, options))
        progress = not options.quiet
        found.failed |= do_left(ledger, recipes, begin, "cropping", overwrite=options.overwrite, progress=progress)
        for case_id in found.failed:
            found.scans.pop(case_id, None)
        report = report_of(title, options.download, found, lists, rules)
        if distributed.is_rank_zero():
            write_id_lists(output, {name: report["lists"].get(name) for name in lists}, options.set)
            write_text(path, json.dumps(report, indent=2) + "\n")
    print(as_text(report))
    total = len(found.scans) + len(found.failed)
    print(f"{len(found.scans)} of {total} scans of {title} are in {output}; this report in {path}")


def _begin(
    path: Path,
    found: Found,
    lists: Mapping[str, Sequence[str]],
    rules: Mapping[str, Any],
    options: argparse.Namespace,
) -> None:
    """Record the rules of the crops.

    Raises:
        CohortError: existing crops were made with other rules, and must not be overwritten.
        FolderError: a list was written or edited by somebody else.
    """
    ledger = Ledger(path.parent, CROPS)
    check_id_lists(path.parent, {name: ids or None for name, ids in lists.items()}, options.set)
    before = read_rules(path)
    if not options.overwrite and before not in (None, rules) and found.scans.keys() & ledger.entries().keys():
        differ = [f"{key} {before.get(key)}, now {rules[key]}" for key in rules if before.get(key) != rules[key]]
        raise CohortError(
            f"{path}: scans here were made with {'; '.join(differ)}; --overwrite replaces them, another --output keeps "
            "them"
        )
    write_text(path, json.dumps({"rules": rules}, indent=2) + "\n")


def _label(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 256:
        raise argparse.ArgumentTypeError(f"expected a label from 1 to 255, got {text}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text}")
    return int(text)


def _defaults(labels_of: Callable[[PublicSet], Labels | None]) -> str:
    chosen = {name: labels_of(public_set) for name, public_set in SETS.items()}
    parts = [f"{name} {' '.join(map(str, sorted(its.counted)))}" for name, its in chosen.items() if its is not None]
    return f"default: {', '.join(parts)}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__, "python -m datasets.public")
    parser.add_argument("set", choices=sorted(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("download", type=Path, metavar="DOWNLOAD", help="folder with the unpacked archives")
    parser.add_argument("--output", type=Path, required=True, metavar="ROOT", help="cohort folder")
    parser.add_argument("--dry-run", action="store_true", help="check the files and print the report, write nothing")
    parser.add_argument(
        "--lungs",
        choices=("given", *LUNG_FINDERS),
        help="the masks of the set (default of covidseg and medseg), the network of lungmask (the published way, and "
        "default of mosmed, which has no lung masks), or thresholds",
    )
    add_scan_options(parser, "lungmask-model", "weights")
    add_device(parser)
    parser.add_argument(
        "--lesion-labels",
        type=_label,
        nargs="+",
        metavar="N",
        help=f"labels that count as lesion ({_defaults(lambda s: s.lesion)}; 1 2 3 includes pleural effusion "
        "in medseg)",
    )
    parser.add_argument(
        "--lung-labels",
        type=_label,
        nargs="+",
        metavar="N",
        help=f"labels of given lung masks that count as lung ({_defaults(lambda s: s.lung)})",
    )
    parser.add_argument(
        "--label",
        nargs="+",
        metavar="ID",
        help="one or more labelled scans; none for no scan (default: coronacases_001 of covidseg, else none)",
    )
    for option, what in HELD_OUT.items():
        parser.add_argument(f"--{option}", type=_count, default=0, metavar="N", help=f"{what} (default 0)")
    parser.add_argument("--seed", type=_count, default=0, help="random seed of the held-out scans (default 0)")
    add_scan_options(parser, "size")
    parser.add_argument("--overwrite", action="store_true", help="crop existing scans again")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    public_set = SETS[options.set]
    if options.lungs is None:
        options.lungs = "lungmask" if public_set.lung is None else "given"
    if options.lungs == "given" and public_set.lung is None:
        parser.error(f"--lungs given: {options.set} has no lung masks")
    if options.lung_labels is not None and options.lungs != "given":
        parser.error("--lung-labels is for --lungs given")
    for option in HELD_OUT:
        if getattr(options, option) and option not in public_set.held_out:
            able = [name for name, other in SETS.items() if option in other.held_out]
            parser.error(f"--{option} is for {', '.join(able)}")
    options.size = check_size(parser, options.size)
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
