r"""Segments lesions in raw chest CTs in one step: lungs, crop, S, and back onto the scans' grids.

For research use only; not a medical device.

INPUT is one CT (.nii, .nii.gz, .mha, .mhd, .nrrd, or a folder with one DICOM series) or a folder of CTs. DICOM series
may lie deeper, as in an export of patients, studies and series; the id of patient/study/series is then
patient_study_series. Writes masks/<id> in the scan's size and file type (.nii.gz for DICOM), summary.csv (one row per
scan: lesion volume, percent of the lungs and of each lung, mean HU of the lesion, CT-0 to CT-4 by percent of the more
affected lung), summary.json and report.html to the output folder. The masks equal those of lungCrop.py, test.py and
post_processing.py run one after the other. While S runs on one scan, the next one is read and its lungs are found.

The model is a segmenter checkpoint, the folder of a release or a run, or a published checkpointU_*.pth. Scans that the
same model predicted before with the same options are skipped. A scan that fails is listed at the end, and the others
are done.

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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datasets.crop import CROP_SIZE
from datasets.crop_scans import Masks, given_lung_masks, keep_apart
from datasets.io.scan import Scan
from datasets.lung_finders import Lungs
from datasets.scan_options import add_grey_window, add_lungs, add_reading, check_window, chosen_lungs, chosen_reading
from datasets.scans import files_of, find_scans
from datasets.window import WINDOW
from evaluation.burden import NOTICE
from evaluation.lesion_segmenter import LesionSegmenter
from evaluation.metrics import THRESHOLD
from evaluation.prediction_folder import (
    DICOM_SEG,
    FOLDERS,
    MASKS,
    PROBABILITIES,
    SUMMARIES,
    Row,
    Wanted,
    predict_folder,
    what_is_left,
    write_report,
    write_summary,
)
from models.checkpoint import PUBLISHED_INPUT, fingerprint
from utils import distributed
from utils.cli import add_device, add_quiet, new_parser, run, start_logging
from utils.errors import CheckpointError, VolumeError
from utils.failures import gather_failures, print_failures
from utils.manifest import project_version, recording
from utils.results import RESULTS, check_own_summaries

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a run of this command does.

    Attributes:
        scans: id to CT.
        segmenter: the segmenter.
        wanted: what is written for every scan.
        overwrite: redo scans that are done.
        progress: show a progress bar.
    """

    scans: dict[str, Scan]
    segmenter: LesionSegmenter
    wanted: Wanted
    overwrite: bool
    progress: bool


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
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
    parser.add_argument("--save-probabilities", action="store_true", help="also write probabilities/<id> in full size")
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="also write dicom_seg/<id>.dcm for scans that are DICOM series; none if no lesion was found",
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
        help="HU that are 0 and 255 in those crops (default {:g} {:g})".format(*WINDOW),
    )
    parser.add_argument(
        "--normalization", choices=("minmax", "window"), help="IMAGE.NORMALIZATION of its training (default minmax)"
    )
    parser.add_argument("--no-report", dest="report", action="store_false", help="write no report.html")
    parser.add_argument("--overwrite", action="store_true", help="predict scans again that are done")
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if not 0 <= options.threshold < 1:
        parser.error("--threshold must be at least 0 and below 1")
    if options.size is not None and (min(options.size) < 4 or any(n % 4 for n in options.size)):
        parser.error("--size needs multiples of 4")
    if options.window is not None:
        options.window = check_window(parser, "--window", options.window)
    options.reading = chosen_reading(parser, options)
    return options


def check(options: argparse.Namespace) -> Job:
    """Load the model, find the scans, and check that no result would replace an input.

    Raises:
        GasnetError: the model, the scans, the device or the output folder cannot be used.
    """
    segmenter = _load_segmenter(options)
    scans, masks = distributed.on_rank_zero(lambda: _find_scans_and_masks(options, segmenter.lungs))
    _keep_apart(options.input, options.output, [*files_of(scans.values()), *(masks.lungs or {}).values()])
    if options.dicom_seg and (others := [case_id for case_id, scan in scans.items() if not scan.is_dicom]):
        log.warning("%d scan(s) are no DICOM series and get no DICOM SEG, the first %s", len(others), others[0])
    wanted = Wanted(
        output=options.output,
        made_by=_made_by(segmenter),
        probabilities=options.save_probabilities,
        dicom_seg=options.dicom_seg,
        report=options.report,
        masks=masks,
    )
    return Job(scans, segmenter, wanted, options.overwrite, progress=not options.quiet)


def predict(job: Job) -> int:
    """Predict the scans that are left; write summary and report.

    Returns:
        The exit code: 1 if a scan failed, otherwise 0.
    """
    wanted, output = job.wanted, job.wanted.output
    made_by, model, device = wanted.made_by, job.segmenter.model, job.segmenter.device
    distributed.on_rank_zero(lambda: check_own_summaries(output, *SUMMARIES))
    with (
        distributed.lock_folder_on_rank_zero(output, *FOLDERS, RESULTS, f"{RESULTS}/{DICOM_SEG}"),
        recording(output, device=device, model=model),
    ):
        # Looked up before any rank writes, so that all ranks share the same list.
        records, left = distributed.on_rank_zero(lambda: what_is_left(job.scans, wanted, job.overwrite))
        rows = {case_id: record["row"] for case_id, record in records.items() if record["made_by"] == made_by}
        mine: dict[str, Row] = {}

        def finished(row: Row) -> None:
            mine[row["id"]] = row
            if distributed.is_rank_zero():  # the rows of other ranks are added at the end
                write_summary({**rows, **mine}, {}, made_by, model, output)

        share = {case_id: job.scans[case_id] for case_id in distributed.shard(left)}
        failed = predict_folder(share, job.segmenter, wanted, finished, job.progress)
        rows |= {case_id: row for part in distributed.gather(mine) for case_id, row in part.items()}
        failed = gather_failures(failed, left)
        if distributed.is_rank_zero():
            write_summary(rows, failed, made_by, model, output)
            if wanted.report:
                write_report(rows, output, _facts(job.segmenter))
    if others := [case_id for case_id in records if case_id not in rows and case_id not in failed]:
        log.warning(
            "%s: %d mask(s) are of another model or other options and not in the summary, the first that of %s",
            *(output, len(others), others[0]),
        )
    done = [case_id for case_id in job.scans if case_id in rows]
    print(f"{len(done)} of {len(job.scans)} scans have a mask in {output}, {len(job.scans) - len(left)} had it before")
    for grade, number in sorted(Counter(rows[case_id]["severity"] for case_id in done).items()):
        print(f"{grade}: {number} scan(s)")
    print(NOTICE)
    return print_failures(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)
    start_logging(options.quiet)
    torch.backends.cudnn.allow_tf32 = False  # the same masks on every device
    return predict(check(options))


def _find_scans_and_masks(options: argparse.Namespace, lungs: Lungs) -> tuple[dict[str, Scan], Masks]:
    scans = find_scans(options.input, series=options.series, progress=not options.quiet)
    return scans, Masks(lungs=given_lung_masks(lungs, scans))


def _load_segmenter(options: argparse.Namespace) -> LesionSegmenter:
    """Load the segmenter; its file, or else the options, say what it was trained on."""
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
        assumed=PUBLISHED_INPUT.model_copy(update=given),
    )
    for name, value in given.items():
        if (trained := getattr(segmenter.trained_on, name)) != value:
            raise CheckpointError(
                f"{segmenter.model}: was trained with {name} {trained}, not {value}; leave out --{name}"
            )
    return segmenter


def _facts(segmenter: LesionSegmenter) -> dict[str, str]:
    """The footer of the report."""
    device = segmenter.device
    return {
        "Model": str(segmenter.model),
        "Lungs": segmenter.lungs.source,
        "Threshold": f"{segmenter.threshold:g}",
        "Device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "Versions": f"GASNet {project_version()}, PyTorch {torch.__version__}",
    }


def _keep_apart(given: Path, output: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output folder inside the folder of scans, where the next run would take results for scans."""
    if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
        raise VolumeError(f"{output}: is, or lies in, the folder of the scans; choose another --output")
    keep_apart([output / folder for folder in (MASKS, PROBABILITIES, DICOM_SEG)], inputs, "results")


def _made_by(segmenter: LesionSegmenter) -> dict[str, Any]:
    """What masks depend on, as JSON values."""
    trained_on, reading = segmenter.trained_on, segmenter.reading
    return {
        "model": fingerprint(segmenter.segmenter),
        "size": list(trained_on.size),
        "window": list(trained_on.window),
        "normalization": trained_on.normalization,
        "threshold": segmenter.threshold,
        "lungs": segmenter.lungs.fingerprint,
        "series": reading.series,
        "grey_window": None if reading.grey_window is None else list(reading.grey_window),
    }


if __name__ == "__main__":
    raise SystemExit(run(main))
