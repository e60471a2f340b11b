r"""Finds lesions in raw chest CTs, in one step: lungs, crop, S, and back onto the scans' grids.

For research use only; not a medical device.

INPUT is one CT (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) or a folder of them. DICOM series
may lie deeper, as in an export of patients, studies and series; the id of patient/study/series is then
patient_study_series. Writes masks/<id> in the scan's size and file type (.nii.gz for DICOM), summary.csv (a row a scan:
lesion volume, percent of the lungs and of each lung, mean HU of the lesion, CT-0 to CT-4 by percent of the more
affected lung), summary.json and report.html to the output folder. The masks are those of lungCrop.py, test.py and
post_processing.py one after the other. While S runs on one scan, the next one is read and its lungs are found.

The model is a segmenter of ours, the folder of a release or a run that has one, or a published checkpointU_*.pth.
Scans that the same model did already, with the same options, are skipped; a scan that fails is named at the end, and
the others are done.

Examples:
    python predict.py scan.nii.gz --model-path segmenter_best.pth --output predicted
    python predict.py scans --model-path segmenter_best.pth --output predicted --save-probabilities
    python predict.py dicom_exports --model-path segmenter_best.pth --output predicted --dicom-seg
    python predict.py scans --model-path checkpointU_1000.pth --output predicted --lungs lung_masks --device cpu
    python predict.py scans --model-path segmenter_best.pth --output predicted --weights unet_r231-d5d2fc3d.pth
    torchrun --nproc-per-node 2 predict.py scans --model-path segmenter_best.pth --output predicted
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydicom.dataset import Dataset
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets.crop import CROP_SIZE, WINDOW, LungMaskCrop
from datasets.io.volume import Reading
from datasets.scans import find_scans
from evaluation.burden import NOTICE
from evaluation.dicom_seg import read_source
from evaluation.metrics import THRESHOLD
from evaluation.prediction_folder import (
    DICOM_SEG,
    MASKS,
    PROBABILITIES,
    RECORDS,
    Row,
    Wanted,
    report_case,
    what_is_left,
    write_report,
    write_results,
    write_summary,
)
from evaluation.raw_scans import RawScan, one_ahead, predict_scan, prepare_scan
from lungCrop import add_grey_window, add_lungs, chosen_reading, given_lungs, keep_apart, lung_finder, lung_mask_of
from models import Segmenter
from models.layers import place
from reports.cases import encode_case
from training.checkpoint import SegmenterInput, find_segmenter, fingerprint, load_segmenter
from utils import distributed
from utils.checksums import sha256
from utils.cli import add_device, add_quiet, add_reading, choose_device, new_parser, run, start_logging
from utils.errors import CheckpointError, GasnetError, VolumeError
from utils.manifest import project_version, recording
from utils.progress import progress_bar

log = logging.getLogger(__name__)


def predict_scans(
    scans: dict[str, Path],
    lungs: dict[str, Path] | None,
    cropper: LungMaskCrop,
    segmenter: Segmenter,
    normalization: str,
    wanted: Wanted,
    finished: Callable[[Row], None],
    progress: bool = True,
) -> dict[str, str]:
    """Predict scans one after the other, while the next one is prepared.

    Args:
        scans: id to CT.
        lungs: id to lung mask, where they are given; every scan then needs one.
        cropper: reads scans, finds lungs and crops.
        segmenter: S, on its device.
        normalization: IMAGE.NORMALIZATION of its training.
        wanted: what is written.
        finished: called with the row of each scan when its files are written.
        progress: show a progress bar.

    Returns:
        Id to reason of the scans that failed.
    """
    gpu = torch.cuda.current_device() if next(segmenter.parameters()).is_cuda else None

    def prepare(item: tuple[str, Path]) -> tuple[RawScan, list[Dataset] | None]:
        if gpu is not None:
            torch.cuda.set_device(gpu)  # which every thread has to be told
        case_id, path = item
        lungpath = lung_mask_of(path, case_id, lungs)
        if not (wanted.dicom_seg and path.is_dir()):
            return prepare_scan(path, cropper, lungpath), None
        source = read_source(path, cropper.reading)
        reading = replace(cropper.reading, series=str(source[0].SeriesInstanceUID))
        return prepare_scan(path, LungMaskCrop(cropper.lungs, cropper.size, reading, cropper.window), lungpath), source

    def use(case_id: str, path: Path, scan: RawScan, source: list[Dataset] | None) -> Row:
        start = time.monotonic()
        found = predict_scan(segmenter, scan, normalization, wanted.threshold, wanted.probabilities)
        row = found.burden.row(case_id)
        view = encode_case(report_case(scan, found, row)) if wanted.report else None
        write_results(row, path, found, source, view, wanted)
        log.info(
            "%s: %.1f ml, %.1f %% of the lungs, %s; %.1f s, after %.1f s of reading it and finding its lungs",
            *(case_id, row["lesion_ml"], row["lesion_percent_of_lung"], row["severity"]),
            *(time.monotonic() - start, scan.seconds),
        )
        return row

    failed: dict[str, str] = {}
    total = len(scans)
    with logging_redirect_tqdm(), progress_bar(None, "predicting", unit="scan", total=total, shown=progress) as bar:
        for (case_id, path), ready in one_ahead(list(scans.items()), prepare):
            try:
                finished(use(case_id, path, *ready.result()))
            except GasnetError as error:
                failed[case_id] = str(error)
                log.warning("%s", error)
            bar.update()
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="a CT, or a folder of CTs or of DICOM series")
    parser.add_argument(
        "--model-path",
        type=Path,
        required=True,
        metavar="FILE|DIR",
        help="the segmenter, or the folder of a release or a run",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--save-probabilities", action="store_true", help="write probabilities/<id> in full size, too")
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="of scans that are DICOM series, write dicom_seg/<id>.dcm, too; none where no lesion was found",
    )
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help=f"probabilities above it are lesion (default {THRESHOLD})"
    )
    add_lungs(parser)
    add_grey_window(parser)
    add_reading(parser)
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
        help="HU of the darkest and brightest voxels of those crops (default {:g} {:g})".format(*WINDOW),
    )
    parser.add_argument(
        "--normalization", choices=("minmax", "window"), help="IMAGE.NORMALIZATION of its training (default minmax)"
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument("--overwrite", action="store_true", help="predict scans again that are done")
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if not 0 <= options.threshold < 1:
        parser.error("--threshold must be at least 0 and below 1")
    if options.size is not None and (min(options.size) < 4 or any(n % 4 for n in options.size)):
        parser.error("--size needs multiples of 4")
    if options.window is not None and options.window[0] >= options.window[1]:
        parser.error("--window needs the lower HU first")
    reading = chosen_reading(parser, options)
    start_logging(options.quiet)

    torch.backends.cudnn.allow_tf32 = False  # the same masks on every device
    model = find_segmenter(options.model_path)
    segmenter, trained_on = _load_model(model, options)
    device = choose_device(options.device)
    scans = find_scans(options.input)
    lungs = given_lungs(options, scans)
    _keep_apart(options.input, options.output, [*scans.values(), *(lungs or {}).values()])
    if options.dicom_seg and (others := [case_id for case_id, path in scans.items() if not path.is_dir()]):
        log.warning("%d scan(s) are no DICOM series and get no DICOM SEG, the first %s", len(others), others[0])
    place(segmenter, device)
    made_by = _made_by(options, segmenter, trained_on, reading)
    wanted = Wanted(
        output=options.output,
        made_by=made_by,
        threshold=options.threshold,
        probabilities=options.save_probabilities,
        dicom_seg=options.dicom_seg,
        report=not options.no_report,
    )

    with (
        distributed.lock_folder_on_rank_zero(options.output, MASKS, PROBABILITIES, DICOM_SEG, RECORDS),
        recording(options.output, device=device, model=model),
    ):
        # One process looks before any writes, so that all share out the same.
        records, left = distributed.on_rank_zero(lambda: what_is_left(scans, wanted, options.overwrite))
        rows = {case_id: record["row"] for case_id, record in records.items() if record["made_by"] == made_by}
        mine: dict[str, Row] = {}
        failed: dict[str, str] = {}

        def finished(row: Row) -> None:
            mine[row["id"]] = row
            if distributed.is_rank_zero():  # those of the others are added in the end; none is lost before
                write_summary({**rows, **mine}, {}, made_by, model, options.output)

        if share := {case_id: scans[case_id] for case_id in distributed.shard(left)}:
            cropper = LungMaskCrop(lung_finder(options, device), trained_on.size, reading, trained_on.window)
            failed = predict_scans(
                share, lungs, cropper, segmenter, trained_on.normalization, wanted, finished, not options.quiet
            )
        rows |= {case_id: row for part in distributed.gather(mine) for case_id, row in part.items()}
        of_all = {case_id: reason for part in distributed.gather(failed) for case_id, reason in part.items()}
        failed = {case_id: of_all[case_id] for case_id in left if case_id in of_all}
        if distributed.is_rank_zero():
            write_summary(rows, failed, made_by, model, options.output)
            if wanted.report:
                write_report(rows, options.output, _facts(model, options, device))
    if others := [case_id for case_id in records if case_id not in rows and case_id not in failed]:
        log.warning(
            "%s: %d mask(s) are of another model or other options and not in the summary, the first that of %s",
            *(options.output, len(others), others[0]),
        )

    done = [case_id for case_id in scans if case_id not in failed]
    print(f"{len(done)} of {len(scans)} scans have a mask in {options.output}, {len(scans) - len(left)} had it before")
    for grade, number in sorted(Counter(rows[case_id]["severity"] for case_id in done).items()):
        print(f"{grade}: {number} scan(s)")
    print(NOTICE)
    for case_id, reason in failed.items():
        print(f"failed: {case_id}: {reason}")
    return 1 if failed else 0


def _facts(model: Path, options: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """What the report says at its foot."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "Model": str(model),
        "Lungs": str(options.lungs),
        "Threshold": f"{options.threshold:g}",
        "Device": name,
        "Versions": f"GASNet {project_version()}, PyTorch {torch.__version__}",
    }


def _load_model(model: Path, options: argparse.Namespace) -> tuple[Segmenter, SegmenterInput]:
    """The segmenter, and what it was trained on by its file or, where that does not say it, by the options."""
    given = {
        "size": None if options.size is None else tuple(options.size),
        "window": None if options.window is None else tuple(options.window),
        "normalization": options.normalization,
    }
    given = {name: value for name, value in given.items() if value is not None}
    default = replace(SegmenterInput(CROP_SIZE, WINDOW, "minmax"), **given)
    segmenter, trained_on = load_segmenter(model, default)
    for name, value in given.items():
        if getattr(trained_on, name) != value:
            raise CheckpointError(
                f"{model}: was trained with {name} {getattr(trained_on, name)}, not {value}; leave out --{name}"
            )
    return segmenter, trained_on


def _keep_apart(given: Path, output: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output folder that is, or lies in, a folder of scans, where it would be taken for one the next time."""
    if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
        raise VolumeError(f"{output}: is, or lies in, the folder of the scans; choose another --output")
    keep_apart([output / folder for folder in (MASKS, PROBABILITIES, DICOM_SEG)], inputs, "results")


def _made_by(
    options: argparse.Namespace, segmenter: Segmenter, trained_on: SegmenterInput, reading: Reading
) -> dict[str, Any]:
    """What masks depend on, as JSON has it."""
    lungs = options.lungs
    if lungs == "lungmask":
        lungs = f"lungmask {options.lungmask_model}"
        if options.weights is not None and options.weights.is_file():
            lungs = f"lungmask {sha256(options.weights)}"
    elif lungs != "threshold":
        lungs = str(Path(lungs).resolve())
    return {
        "model": fingerprint(segmenter),
        "size": list(trained_on.size),
        "window": list(trained_on.window),
        "normalization": trained_on.normalization,
        "threshold": options.threshold,
        "lungs": lungs,
        "series": reading.series,
        "grey_window": None if reading.grey_window is None else list(reading.grey_window),
    }


if __name__ == "__main__":
    raise SystemExit(run(main))
