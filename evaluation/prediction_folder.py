"""The output folder of predict.py: masks, records of finished scans, summary and report.

The record of a scan (`utils.results`) holds its row of the summary. It is written after the scan's other files; a scan
without a finished record is not done.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from pydicom.dataset import Dataset

from datasets.crop_scans import Masks
from datasets.geometry import lps_geometry, lps_view
from datasets.io.scan import Scan
from datasets.io.volume import write_volume
from datasets.scans import result_name
from evaluation.burden import GRADING, NOTICE, Burden
from evaluation.dicom_seg import read_source, write_dicom_seg
from evaluation.lesion_segmenter import FullSize, LesionSegmenter, RawScan
from evaluation.metrics import mean_and_deviation
from reports.cases import CaseView, Column, ReportCase, encode_case, write_case_report
from utils.errors import VolumeError
from utils.failures import for_each
from utils.files import atomic_write, write_text
from utils.manifest import project_version
from utils.prefetch import one_ahead
from utils.results import Results
from utils.tables import as_csv

log = logging.getLogger(__name__)

FOLDERS = MASKS, PROBABILITIES, DICOM_SEG, VIEWS = "masks", "probabilities", "dicom_seg", ".views"
"""Subfolders of the output; the last one is hidden and holds what the report shows of each scan."""

SUMMARIES = ("summary.csv", "summary.json", "report.html")
"""Files about all scans."""

COLUMNS = ("id", *(entry.name for entry in fields(Burden)))
"""Columns of summary.csv."""

REPORT_COLUMNS = (
    Column("id", "Scan"),
    Column("lesion_ml", "Lesion", "ml", help="Volume of the mask."),
    Column("lung_ml", "Lungs", "ml", digits=0),
    Column("lesion_percent_of_lung", "Lesion of lungs", "%", help="Share of the lungs that is lesion."),
    Column("right_lung_percent", "Of right lung", "%"),
    Column("left_lung_percent", "Of left lung", "%"),
    Column("lesion_mean_hu", "Mean of lesion", "HU", digits=0),
    Column("severity", "Grade", help=f"{GRADING}."),
)

Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Wanted:
    """What is written for every scan.

    Attributes:
        output: folder of the results.
        made_by: what results depend on; stored with them, so that they are redone when it changes.
        probabilities: write probabilities, too.
        dicom_seg: write a DICOM SEG of scans that are DICOM series.
        report: keep what report.html shows of each scan.
        masks: given lung masks.
    """

    output: Path
    made_by: dict[str, Any]
    probabilities: bool = False
    dicom_seg: bool = False
    report: bool = True
    masks: Masks = field(default_factory=Masks)


@dataclass(frozen=True)
class Prepared:
    """A scan ready for S.

    Attributes:
        scan: the prepared scan.
        source: headers of its slices, if a DICOM SEG is wanted; None otherwise.
        problem: why there can be no DICOM SEG.
    """

    scan: RawScan
    source: list[Dataset] | None = None
    problem: str | None = None


def predict_folder(
    scans: Mapping[str, Scan],
    segmenter: LesionSegmenter,
    wanted: Wanted,
    finished: Callable[[Row], None],
    progress: bool = True,
) -> dict[str, str]:
    """Predict scans one after the other, while the next one is prepared in a thread.

    Args:
        scans: id to CT.
        segmenter: the segmenter.
        wanted: what is written, and the given lung masks; if there are any, every scan needs one.
        finished: called with the row of each scan once its mask and its record are written.
        progress: show a progress bar.

    Returns:
        Id to reason of the scans that failed; a scan without its DICOM SEG is one of them, and keeps its mask.
    """

    def prepare(item: tuple[str, Scan]) -> Prepared:
        case_id, scan = item
        lungpath = wanted.masks.lung_of(case_id, scan)
        source = problem = None
        if wanted.dicom_seg and scan.is_dicom:
            try:
                source = read_source(scan, segmenter.reading)
            except VolumeError as error:
                problem = str(error)
        return Prepared(segmenter.prepare(scan, lungpath), source, problem)

    def predict(case_id: str, ready: tuple[Scan, Future[Prepared]]) -> None:
        scan, future = ready
        prepared = future.result()
        start = time.monotonic()
        found = segmenter.predict(prepared.scan, wanted.probabilities)
        row = found.burden.row(case_id)
        view = encode_case(report_case(prepared.scan, found, row)) if wanted.report else None
        write_results(row, scan, found, view, wanted)
        finished(row)
        log.info(
            "%s: %.1f ml, %.1f %% of the lungs, %s; %.1f s, after %.1f s of reading it and finding its lungs",
            *(case_id, row["lesion_ml"], row["lesion_percent_of_lung"], row["severity"]),
            *(time.monotonic() - start, prepared.scan.seconds),
        )
        write_segmentation(case_id, found, prepared, wanted)

    ahead = ((case_id, (scan, ready)) for (case_id, scan), ready in one_ahead(list(scans.items()), prepare))
    return for_each(ahead, predict, "predicting", total=len(scans), progress=progress)


def report_case(scan: RawScan, found: FullSize, row: Row) -> ReportCase:
    """What the report shows of a scan, upright and without copies."""
    return ReportCase(
        id=row["id"],
        geometry=lps_geometry(scan.ct),
        hu=lps_view(scan.hu, scan.ct),
        predicted=lps_view(sitk.GetArrayViewFromImage(found.mask), scan.ct) > 0,
        true=None,
        lung=lps_view(scan.lungs, scan.ct),
        values=row,
    )


def write_results(row: Row, scan: Scan, found: FullSize, view: CaseView | None, wanted: Wanted) -> None:
    """Write the files of a scan, its record last.

    Args:
        row: row of summary.csv; its id names the files.
        scan: the scan.
        found: the prediction.
        view: what the report shows of it, if anything.
        wanted: what is written.

    Raises:
        VolumeError: a file cannot be written.
        FolderError: a file of that name is there and was not written by predict.py.
    """
    output, case_id = wanted.output, row["id"]
    name = result_name(case_id, scan)
    files = [output / MASKS / name, *([output / PROBABILITIES / name] if found.probabilities is not None else [])]
    inputs = wanted.masks.digests(case_id, scan)
    segmentation = segmentation_path(output, case_id)
    Results(output).remove(f"{DICOM_SEG}/{case_id}", segmentation)  # of an earlier mask
    with Results(output).writing(case_id, files, wanted.made_by, inputs, {"mask": name, "row": row}):
        view_path(output, case_id).unlink(missing_ok=True)
        if found.probabilities is not None:
            write_volume(found.probabilities, output / PROBABILITIES / name)
        write_volume(found.mask, output / MASKS / name)
        if view is not None:
            with atomic_write(view_path(output, case_id)) as temporary:
                temporary.write_bytes(view.to_bytes())


def write_segmentation(case_id: str, found: FullSize, prepared: Prepared, wanted: Wanted) -> None:
    """Write the DICOM SEG of a scan, if it is wanted and there is lesion; the mask is written before.

    Raises:
        VolumeError: it cannot be made or written; the mask stays.
        OSError: its record cannot be written.
    """
    lesion = sitk.GetArrayViewFromImage(found.mask)
    if (prepared.source is None and prepared.problem is None) or not lesion.any():
        return
    try:
        if prepared.problem is not None:
            raise VolumeError(prepared.problem)
        model, threshold = wanted.made_by["model"][:16], wanted.made_by["threshold"]
        path = segmentation_path(wanted.output, case_id)
        with Results(wanted.output).writing(f"{DICOM_SEG}/{case_id}", [path], wanted.made_by, {}):
            write_dicom_seg(lesion, prepared.source, path, project_version(), model, threshold)
    except VolumeError as error:
        raise VolumeError(f"mask written, DICOM SEG not: {error}") from None


def segmentation_path(output: Path, case_id: str) -> Path:
    """Path of the DICOM SEG of a scan."""
    return output / DICOM_SEG / f"{case_id}.dcm"


def view_path(output: Path, case_id: str) -> Path:
    """Path of what the report shows of a scan."""
    return output / VIEWS / f"{case_id}.view"


def read_records(output: Path) -> dict[str, dict[str, Any]]:
    """The records of all scans with a mask in the folder, sorted by id; damaged records are ignored.

    Returns:
        By id, ``made_by``, the name of the ``mask``, and the ``row`` of the summary.
    """
    records = {}
    for case_id, record in Results(output).finished().items():
        try:
            mask, row = record["facts"]["mask"], record["facts"]["row"]
            done = (output / MASKS / mask).is_file() and set(row) == set(COLUMNS)
        except (KeyError, TypeError):
            continue
        if done:
            records[case_id] = {"made_by": record["made_by"], "mask": mask, "row": row}
    return records


def read_view(output: Path, case_id: str) -> CaseView | None:
    """What the report shows of a finished scan; None if it was not kept or is damaged."""
    try:
        return CaseView.from_bytes(view_path(output, case_id).read_bytes())
    except (OSError, ValueError):
        return None


def is_done(record: dict[str, Any] | None, scan: Scan, wanted: Wanted) -> bool:
    """Whether all requested results of a scan exist and were made in the same way."""
    if record is None or record["made_by"] != wanted.made_by:
        return False
    difference = Results(wanted.output).difference(
        record["row"]["id"], wanted.made_by, wanted.masks.digests(scan.id, scan)
    )
    if difference is not None:
        log.warning("%s: predicted again (%s)", scan.id, difference)
        return False
    if wanted.probabilities and not (wanted.output / PROBABILITIES / record["mask"]).is_file():
        return False
    if wanted.report and read_view(wanted.output, record["row"]["id"]) is None:
        return False
    # A mask without lesion has no DICOM SEG.
    needs_seg = wanted.dicom_seg and scan.is_dicom and record["row"]["lesion_ml"] > 0
    return not needs_seg or segmentation_path(wanted.output, record["row"]["id"]).is_file()


def what_is_left(
    scans: Mapping[str, Scan], wanted: Wanted, overwrite: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The records in the output folder, and the ids of the scans that are left.

    Args:
        scans: id to CT.
        wanted: what is written.
        overwrite: redo all scans.
    """
    records = read_records(wanted.output)
    return records, [
        case_id for case_id, scan in scans.items() if overwrite or not is_done(records.get(case_id), scan, wanted)
    ]


def write_summary(
    rows: dict[str, Row], failed: dict[str, str], made_by: dict[str, Any], model: Path, output: Path
) -> None:
    """Write summary.csv, one row per scan sorted by id, and summary.json.

    Args:
        rows: row by id.
        failed: id to reason.
        made_by: what the results depend on.
        model: checkpoint of the segmenter.
        output: folder of the results.
    """
    ordered = [rows[case_id] for case_id in sorted(rows)]
    numbers = [key for key in COLUMNS if key not in ("id", "severity")]
    summary = {
        "notice": NOTICE,
        "model": str(model),
        "made_by": made_by,
        "grading": GRADING,
        "scans": len(ordered),
        "severity": dict(sorted(Counter(row["severity"] for row in ordered if row["severity"]).items())),
        **{key: mean_and_deviation([row[key] for row in ordered if row[key] is not None]) for key in numbers},
        "rows": ordered,
        "failed": failed,
    }
    write_text(output / "summary.csv", as_csv(COLUMNS, ordered))
    write_text(output / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def write_report(rows: dict[str, Row], output: Path, facts: dict[str, str]) -> None:
    """Write report.html of the scans with a row, sorted by id."""
    views = [view for case_id in sorted(rows) if (view := read_view(output, case_id)) is not None]
    write_case_report(output / "report.html", "Lesions found in chest CTs", REPORT_COLUMNS, views, facts)
