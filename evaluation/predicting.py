"""Predict raw scans into an output folder: masks, probabilities, DICOM SEG, summary and report."""

import argparse
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from datasets.cohort import checksum_of_voxels
from datasets.crop_scans import Masks, given_lung_masks, keep_apart
from datasets.scan_options import chosen_lungs
from datasets.scans import files_of, find_scans, result_name
from datasets.volumes import Scan
from evaluation.burden import GRADING, NOTICE, Burden
from evaluation.dicom_seg import make_dicom_seg, read_source
from evaluation.lesion_segmenter import LesionSegmenter, RawScan
from evaluation.metrics import mean_and_deviation
from evaluation.results import (
    DICOM_SEG,
    MASKS,
    PREDICTED,
    PROBABILITIES,
    make_results,
    ways_of,
    write_report,
    write_result,
)
from models.checkpoint import fingerprint
from reports.cases import Column
from reports.views import ReportCase
from utils import distributed
from utils.errors import VolumeError, one_line
from utils.files import as_csv, write_text
from utils.ledger import Entry, Ledger, Recipe, project_version
from utils.progress import is_in_part, print_failures

log = logging.getLogger(__name__)

COLUMNS = ("id", *(entry.name for entry in fields(Burden)), "seen")
"""Columns of summary.csv; ``seen`` is ``yes`` for scans that the segmenter was trained on or chosen by."""

REPORT_COLUMNS = (
    Column("id", "Scan"),
    Column("lesion_ml", "Lesion", "ml", help="Volume of the mask."),
    Column("lung_ml", "Lungs", "ml", digits=0),
    Column("lesion_percent_of_lung", "Lesion of lungs", "%", help="Share of the lungs that is lesion."),
    Column("right_lung_percent", "Of right lung", "%"),
    Column("left_lung_percent", "Of left lung", "%"),
    Column("lesion_mean_hu", "Mean of lesion", "HU", digits=0),
    Column("severity", "Grade", help=f"{GRADING}."),
    Column("seen", "Seen", help="Whether the segmenter was trained on the scan or chosen by it."),
)


def options_of(segmenter: LesionSegmenter) -> dict[str, Any]:
    """What masks depend on, as JSON values."""
    trained_on, reading = segmenter.trained_on, segmenter.reading
    precision = segmenter.engine.precision
    return {
        "model": fingerprint(segmenter.segmenter),
        "size": list(trained_on.size),
        "window": list(trained_on.window),
        "normalization": trained_on.normalization,
        "threshold": segmenter.threshold,
        "lungs": segmenter.lungs.fingerprint(segmenter.device),
        "series": reading.series,
        "grey_window": None if reading.grey_window is None else list(reading.grey_window),
        **({} if precision == "fp32" else {"precision": precision}),
    }


@dataclass(frozen=True)
class Predictor:
    """Predicts scans, by id, with their lung masks if such are given, and writes the results of each."""

    segmenter: LesionSegmenter
    scans: Mapping[str, Scan]
    masks: Masks
    ledger: Ledger

    def prepare(self, case_id: str, recipe: Recipe) -> RawScan:
        """Read a scan, find its lungs and crop it."""
        scan = self.scans[case_id]
        return self.segmenter.prepare(scan, self.masks.lung_of(case_id, scan))

    def predict(self, case_id: str, recipe: Recipe, raw: RawScan) -> None:
        """Predict a prepared scan and write its results, as `write_result`.

        Raises:
            VolumeError: there can be no DICOM SEG; the mask is written then.
        """
        start = time.monotonic()
        output, wanted, segmenter, scan = self.ledger.folder, recipe.wanted, self.segmenter, self.scans[case_id]
        found = segmenter.predict(raw, PROBABILITIES in wanted)
        seen = bool(segmenter.seen) and checksum_of_voxels(raw.ct) in segmenter.seen
        row = {"id": case_id, **asdict(found.burden), "seen": "yes" if seen else None}
        lesion = sitk.GetArrayViewFromImage(found.mask)
        segmentation = problem = None
        if DICOM_SEG in wanted and scan.is_dicom and lesion.any():
            try:
                source, model = read_source(scan, segmenter.reading), recipe.options["model"][:16]
                segmentation = make_dicom_seg(lesion, source, project_version(), model, segmenter.threshold)
            except (VolumeError, TypeError, ValueError) as error:  # of highdicom, for unusual headers
                problem = f"mask written, DICOM SEG not: {one_line(error, 1000)}"
        name = result_name(case_id, scan)
        images = {output / MASKS / name: found.mask}
        if found.probabilities is not None:
            images[output / PROBABILITIES / name] = found.probabilities
        others = {} if segmentation is None else {output / DICOM_SEG / f"{case_id}.dcm": segmentation.save_as}
        facts = {"row": row, "holds": [what for what in wanted if what != DICOM_SEG or problem is None]}
        facts["computed_by"] = segmenter.way
        facts |= {} if problem is None else {"problem": problem}
        shown = ReportCase(case_id, raw.ct, sitk.GetArrayViewFromImage(raw.ct), lesion > 0, None, raw.lungs, row)
        write_result(self.ledger, case_id, recipe, facts, images, shown, others)
        log.info(
            "%s: %.1f ml, %.1f %% of the lungs, %s; %.1f s, after %.1f s of reading it and finding its lungs",
            *(case_id, row["lesion_ml"], row["lesion_percent_of_lung"], row["severity"]),
            *(time.monotonic() - start, raw.seconds),
        )
        if problem is not None:
            raise VolumeError(problem)


def write_summary(
    done: Mapping[str, Entry], failed: Mapping[str, str], options: Mapping[str, Any], model: Path, output: Path
) -> None:
    """Write summary.csv, one row per scan, and summary.json, from the entries of results and reasons of failures."""
    rows = [entry.facts["row"] for entry in done.values()]
    numbers = [key for key in COLUMNS if key not in ("id", "severity", "seen")]
    summary = {
        "notice": NOTICE,
        "model": str(model),
        "made_by": dict(options),
        "computed_by": ways_of(done),
        "grading": GRADING,
        "scans": len(rows),
        "seen": sum(row["seen"] is not None for row in rows),
        "severity": dict(sorted(Counter(row["severity"] for row in rows if row["severity"]).items())),
        **{key: mean_and_deviation(row[key] for row in rows) for key in numbers},
        "rows": rows,
        "failed": dict(failed),
    }
    write_text(output / "summary.csv", as_csv(COLUMNS, rows))
    write_text(output / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def predict_scans(options: argparse.Namespace) -> int:
    """Segment the lesions of raw scans, by the options of predict.py; return the exit code, 1 if a scan failed.

    Raises:
        GasnetError: the model, the scans, the device or the output folder cannot be used.
    """
    torch.backends.cudnn.allow_tf32 = False  # the same masks on every device
    output, part, ledger = options.output, options.part, Ledger(options.output, PREDICTED)
    segmenter = LesionSegmenter(
        options.model_path, chosen_lungs(options), options.device, options.threshold, options.reading, options.precision
    )

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
            about["threshold"] = f"{segmenter.threshold:g}"
            write_report(output, "Lesions found in chest CTs", REPORT_COLUMNS, done, about, segmenter.device)

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
