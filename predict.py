r"""Segments lesions in raw chest CTs in one step: lungs, crop, S, and back onto the scans' grids.

For research use only; not a medical device.

INPUT are CTs (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) and folders of CTs. DICOM series may
lie deeper, as in an export of patients, studies and series; the id of patient/study/series is then
patient_study_series. Writes masks/<id> in the scan's size and file type (.nii.gz for DICOM), summary.csv (one row per
scan: lesion volume, percent of the lungs and of each lung, mean HU of the lesion, CT-0 to CT-4 by percent of the more
affected lung), summary.json and report.html to the output folder. The masks equal those of lungCrop.py, test.py and
post_processing.py run one after the other. While S runs on one scan, the next one is read and its lungs are found.

The model is a segmenter checkpoint, the folder of a run, or a published checkpointU_*.pth; by default the one in
pretrained/, which learned from synthetic scans alone. Scans that the same model predicted before with the same options
are skipped. The summary is of all scans of INPUT; other masks in the output folder stay, and are named. A scan that
fails is listed at the end, and the others are done.

Examples:
    python predict.py scans --output found
    python predict.py scan.nii.gz --model-path segmenter_best.pth --output predicted
    python predict.py scans --model-path segmenter_best.pth --output predicted --save-probabilities
    python predict.py dicom_exports --model-path segmenter_best.pth --output predicted --dicom-seg
    python predict.py scans --model-path checkpointU_1000.pth --output predicted --lungs lung_masks --device cpu
    python predict.py scans --model-path segmenter_best.pth --output predicted --weights unet_r231-d5d2fc3d.pth
    python predict.py site_a/*.nii.gz site_b --model-path segmenter_best.pth --output predicted --part 1/8
    torchrun --nproc-per-node 2 predict.py scans --model-path segmenter_best.pth --output predicted
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from datasets import CROP_SIZE, WINDOW
from datasets.scan_options import add_scan_options, check_window, chosen_lungs, chosen_reading
from evaluation import THRESHOLD
from utils import distributed
from utils.cli import add_device, add_part, add_quiet, new_parser, run, start_logging
from utils.errors import CheckpointError, VolumeError
from utils.ledger import Entry, Ledger, Recipe
from utils.progress import is_in_part, print_failures

if TYPE_CHECKING:
    from datasets.scan import Scan
    from evaluation.lesion_segmenter import LesionSegmenter, RawScan

log = logging.getLogger(__name__)

PRETRAINED = Path(__file__).resolve().parent / "pretrained"
"""Folder of the segmenter that comes with the project."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("input", type=Path, nargs="+", metavar="INPUT", help="CTs, folders of CTs or of DICOM series")
    parser.add_argument(
        "--model-path",
        type=Path,
        default=PRETRAINED,
        metavar="FILE|DIR",
        help="the segmenter, or the folder of a run (default: pretrained/, which has seen synthetic scans alone)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--save-probabilities", action="store_true", help="also write probabilities/<id> in full size")
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="also write dicom_seg/<id>.dcm for scans that are DICOM series; none if no lesion was found",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help=f"probabilities above it are lesion (default: that of the segmenter's file, or {THRESHOLD})",
    )
    add_scan_options(parser, "lungs", "lungmask-model", "weights", "precision", "grey-window", "series", "max-voxels")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("DEPTH", "HEIGHT", "WIDTH"),
        help="voxels of the crops that a published model was trained on (default {} {} {})".format(*CROP_SIZE),
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="HU that are 0 and 255 in those crops (default {:g} {:g})".format(*WINDOW),
    )
    parser.add_argument(
        "--normalization", choices=("minmax", "window"), help="IMAGE.NORMALIZATION of its training (default minmax)"
    )
    parser.add_argument("--no-report", dest="report", action="store_false", help="write no report.html")
    parser.add_argument("--overwrite", action="store_true", help="predict scans again that are done")
    add_part(parser)
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if options.threshold is not None and not 0 <= options.threshold < 1:
        parser.error("--threshold must be at least 0 and below 1")
    if options.size is not None and (min(options.size) < 4 or any(n % 4 for n in options.size)):
        parser.error("--size needs multiples of 4")
    if options.window is not None:
        options.window = check_window(parser, "--window", options.window)
    options.reading = chosen_reading(parser, options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Raises:
        GasnetError: the model, the scans, the device or the output folder cannot be used.
    """
    options = parse(arguments)

    import torch

    from datasets.crop_scans import Masks, given_lung_masks, keep_apart
    from datasets.scans import files_of, find_scans
    from evaluation.burden import NOTICE
    from evaluation.predicting import REPORT_COLUMNS, Predictor, options_of, write_summary
    from evaluation.results import DICOM_SEG, MASKS, PREDICTED, PROBABILITIES, make_results, read_views, ways_of
    from reports.cases import write_case_report
    from reports.page import made_with

    start_logging(options.quiet)
    torch.backends.cudnn.allow_tf32 = False  # the same masks on every device
    output, part, ledger = options.output, options.part, Ledger(options.output, PREDICTED)
    segmenter = _load_segmenter(options)

    def find() -> tuple[dict[str, Scan], Masks]:
        scans = find_scans(*options.input, series=options.series, progress=not options.quiet)
        return scans, Masks(lungs=given_lung_masks(chosen_lungs(options), scans))

    scans, masks = distributed.on_rank_zero(find)
    # In a folder of scans, the next run would take results for scans.
    if any(given.is_dir() and output.resolve().is_relative_to(given.resolve()) for given in options.input):
        raise VolumeError(f"{output}: is, or lies in, the folder of the scans; choose another --output")
    inputs = [*files_of(scans.values()), *(masks.lungs or {}).values()]
    keep_apart([output / folder for folder in (MASKS, PROBABILITIES, DICOM_SEG)], inputs, "results")
    if options.dicom_seg and (others := [case_id for case_id, scan in scans.items() if not scan.is_dicom]):
        log.warning("%d scan(s) are no DICOM series and get no DICOM SEG, the first %s", len(others), others[0])
    asked = ((PROBABILITIES, options.save_probabilities), (DICOM_SEG, options.dicom_seg), ("report", options.report))
    wanted, made_by = [what for what, given in asked if given], options_of(segmenter)
    recipes = {i: Recipe(masks.sources(i, scan), made_by, wanted) for i, scan in scans.items()}
    names = ["summary.csv", "summary.json", *(["report.html"] if options.report else [])]
    predictor = Predictor(segmenter, scans, masks, ledger)

    def begin() -> Callable[[str, RawScan], None]:
        if masks.lungs is None:
            _ = segmenter.cropper.lungs  # so that missing weights end the run
        return lambda case_id, raw: predictor.predict(case_id, recipes[case_id], raw)

    def write(done: dict[str, Entry], failed: dict[str, str]) -> None:
        write_summary(done, failed, made_by, segmenter.model, output)
        if options.report:
            about = {"model": str(segmenter.model), "lungs": segmenter.lungs.source}
            about |= {"threshold": f"{segmenter.threshold:g}", **made_with(segmenter.device)}
            about["computed_by"] = ", ".join(ways_of(done))
            views = read_views(output, done)
            write_case_report(output / "report.html", "Lesions found in chest CTs", REPORT_COLUMNS, views, about)

    before = ledger.entries()
    done, failed = make_results(
        ledger,
        recipes,
        begin,
        "predicting",
        names,
        write,
        part=part,
        overwrite=options.overwrite,
        prepare=predictor.prepare,
        progress=not options.quiet,
        device=segmenter.device,
        model=segmenter.model,
    )
    mine = {case_id: entry for case_id, entry in done.items() if is_in_part(case_id, part)}
    total, kept = sum(is_in_part(i, part) for i in scans), sum(before.get(i) == entry for i, entry in mine.items())
    print(f"{len(mine)} of {total} scans have a mask in {output}, {kept} had it before")
    for grade, number in sorted(Counter(entry.facts["row"]["severity"] for entry in mine.values()).items()):
        print(f"{grade}: {number} scan(s)")
    if seen := [case_id for case_id, entry in mine.items() if entry.facts["row"]["seen"]]:
        log.warning("%s: was trained on, or chosen by, %d scan(s), the first %s", segmenter.model, len(seen), seen[0])
    print(NOTICE)
    return print_failures(failed)


def _load_segmenter(options: argparse.Namespace) -> LesionSegmenter:
    """Load the segmenter; its file, or else the options, say what it was trained on."""
    from evaluation.lesion_segmenter import LesionSegmenter
    from models.checkpoint import PUBLISHED_INPUT

    given = {
        "size": None if options.size is None else tuple(options.size),
        "window": options.window,
        "normalization": options.normalization,
    }
    given = {name: value for name, value in given.items() if value is not None}
    segmenter = LesionSegmenter(
        options.model_path,
        lungs=chosen_lungs(options),
        device=options.device,
        threshold=options.threshold,
        reading=options.reading,
        precision=options.precision,
        assumed=PUBLISHED_INPUT.model_copy(update=given),
    )
    for name, value in given.items():
        if (trained := getattr(segmenter.trained_on, name)) != value:
            raise CheckpointError(
                f"{segmenter.model}: was trained with {name} {trained}, not {value}; leave out --{name}"
            )
    return segmenter


if __name__ == "__main__":
    raise SystemExit(run(main))
