"""Predict raw scans into an output folder: masks, probabilities, DICOM SEG, summary and report."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from datasets.cohort import checksum_of_voxels
from datasets.crop_scans import Masks
from datasets.scan import Scan
from datasets.scans import result_name
from datasets.volumes import write_volume
from evaluation.burden import GRADING, NOTICE, Burden
from evaluation.dicom_seg import make_dicom_seg, read_source
from evaluation.lesion_segmenter import LesionSegmenter, RawScan
from evaluation.metrics import mean_and_deviation
from evaluation.results import DICOM_SEG, MASKS, PROBABILITIES, view_path, ways_of, write_view
from models.checkpoint import fingerprint
from reports.cases import Column, ReportCase, encode_case
from utils.errors import VolumeError, one_line
from utils.files import as_csv, atomic_write, write_text
from utils.ledger import Entry, Ledger, Recipe, project_version

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
    """Predicts scans and writes the results of each.

    Attributes:
        segmenter: the segmenter.
        scans: id to CT.
        masks: given lung masks; if there are any, every scan needs one.
        ledger: of the results.
    """

    segmenter: LesionSegmenter
    scans: Mapping[str, Scan]
    masks: Masks
    ledger: Ledger

    def prepare(self, case_id: str, recipe: Recipe) -> RawScan:
        """Read a scan, find its lungs and crop it."""
        scan = self.scans[case_id]
        return self.segmenter.prepare(scan, self.masks.lung_of(case_id, scan))

    def predict(self, case_id: str, recipe: Recipe, raw: RawScan) -> None:
        """Predict a prepared scan; write its files and its entry in the ledger.

        Raises:
            VolumeError: a file cannot be written, or there can be no DICOM SEG; the mask is written then.
            FolderError: a file of that name is there and was not written by predict.py.
        """
        start = time.monotonic()
        output, wanted, segmenter, scan = self.ledger.folder, recipe.wanted, self.segmenter, self.scans[case_id]
        found = segmenter.predict(raw, PROBABILITIES in wanted)
        seen = bool(segmenter.seen) and checksum_of_voxels(raw.ct) in segmenter.seen
        row = {**found.burden.row(case_id), "seen": "yes" if seen else None}
        lesion = sitk.GetArrayViewFromImage(found.mask)
        segmentation = problem = None
        if DICOM_SEG in wanted and scan.is_dicom and lesion.any():
            try:
                source, model = read_source(scan, segmenter.reading), recipe.options["model"][:16]
                segmentation = make_dicom_seg(lesion, source, project_version(), model, segmenter.threshold)
            except VolumeError as error:
                problem = f"mask written, DICOM SEG not: {error}"
            except (TypeError, ValueError) as error:  # of headers that are more unusual than what was checked
                problem = f"mask written, DICOM SEG not: its headers do not allow it ({one_line(error)})"
        name = result_name(case_id, scan)
        seg_path = output / DICOM_SEG / f"{case_id}.dcm"
        images = {output / MASKS / name: found.mask}
        if found.probabilities is not None:
            images[output / PROBABILITIES / name] = found.probabilities
        files = [*images, *([seg_path] if segmentation else [])]
        files += [view_path(output, case_id)] if "report" in wanted else []
        with self.ledger.writing(case_id, files, recipe) as facts:
            facts |= {"row": row, "holds": [what for what in wanted if what != DICOM_SEG or problem is None]}
            facts["computed_by"] = self.segmenter.way
            facts |= {} if problem is None else {"problem": problem}
            for path, image in images.items():
                write_volume(image, path)
            if segmentation is not None:
                with atomic_write(seg_path) as temporary:
                    segmentation.save_as(temporary)
            if "report" in wanted:
                shown = ReportCase(case_id, raw.ct, raw.hu, lesion > 0, None, raw.lungs, row)
                write_view(encode_case(shown), output)
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
    """Write summary.csv, one row per scan, and summary.json.

    Args:
        done: entries of the results, by id.
        failed: id to reason.
        options: what the results depend on.
        model: checkpoint of the segmenter.
        output: folder of the results.
    """
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
