"""The folder that predict.py writes: masks, the records of which scans are done, summary and report.

Of each scan there is a record, written when all of its other files are: what was not recorded is not done.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from pydicom.dataset import Dataset

from datasets.io.grid import Grid
from datasets.io.volume import write_volume
from datasets.scans import result_name
from evaluation.burden import GRADING, NOTICE, Burden
from evaluation.dicom_seg import write_dicom_seg
from evaluation.metrics import mean_and_deviation
from evaluation.raw_scans import FullSize, RawScan
from reports.cases import CaseView, Column, ReportCase, write_case_report
from utils.files import atomic_write, write_text
from utils.manifest import project_version

MASKS, PROBABILITIES, DICOM_SEG, RECORDS = "masks", "probabilities", "dicom_seg", ".scans"
"""Folders in the output; the last, hidden, has a file for every scan that is done."""

COLUMNS = ("id", *(field.name for field in fields(Burden)))
"""Of summary.csv."""

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
    """What is written of every scan.

    Attributes:
        output: folder.
        made_by: what results depend on; kept with them, so that they are made again when it is another.
        threshold: probabilities above it are lesion.
        probabilities: whether to write them, too.
        dicom_seg: whether to write a DICOM SEG of scans that are DICOM series.
        report: whether to keep what report.html shows of them.
    """

    output: Path
    made_by: dict[str, Any]
    threshold: float
    probabilities: bool
    dicom_seg: bool
    report: bool


def report_case(scan: RawScan, found: FullSize, row: Row) -> ReportCase:
    """What the report is told of a scan: it upright, without copies."""
    grid = Grid.of(scan.ct)
    return ReportCase(
        id=row["id"],
        grid=grid.upright(),
        hu=grid.uprighted(scan.hu),
        predicted=grid.uprighted(sitk.GetArrayViewFromImage(found.mask)) > 0,
        true=None,
        lung=grid.uprighted(scan.lungs),
        values=row,
    )


def write_results(
    row: Row, path: Path, found: FullSize, source: list[Dataset] | None, view: CaseView | None, wanted: Wanted
) -> None:
    """Write all files of a scan, the record that it is done last.

    Args:
        row: of summary.csv; its id names the files.
        path: of the scan.
        found: what S found in it.
        source: headers of its slices, where a DICOM SEG is to be made of them.
        view: what the report shows of it, if anything.
        wanted: what is written.

    Raises:
        VolumeError: a file cannot be written.
    """
    output, case_id = wanted.output, row["id"]
    name = result_name(case_id, path)
    for kind in ("json", "view"):
        record_path(output, case_id, kind).unlink(missing_ok=True)
    if found.probabilities is not None:
        write_volume(found.probabilities, output / PROBABILITIES / name)
    segmentation = output / DICOM_SEG / f"{case_id}.dcm"
    lesion = sitk.GetArrayViewFromImage(found.mask)
    if source is not None and lesion.any():
        write_dicom_seg(lesion, source, segmentation, project_version(), wanted.made_by["model"][:16], wanted.threshold)
    else:
        segmentation.unlink(missing_ok=True)  # of another model, that found a lesion
    write_volume(found.mask, output / MASKS / name)
    if view is not None:
        with atomic_write(record_path(output, case_id, "view")) as temporary:
            temporary.write_bytes(view.to_bytes())
    record = {"made_by": wanted.made_by, "mask": name, "row": row}
    write_text(record_path(output, case_id), json.dumps(record) + "\n")


def record_path(output: Path, case_id: str, kind: str = "json") -> Path:
    """Where it is written down that a scan is done (``json``), and what the report shows of it (``view``)."""
    return output / RECORDS / f"{case_id}.{kind}"


def read_records(output: Path) -> dict[str, dict[str, Any]]:
    """The records of all scans whose masks are in a folder, by id and in their order; damaged ones are passed over."""
    records = {}
    for path in sorted((output / RECORDS).glob("[!.]*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            done = (output / MASKS / record["mask"]).is_file() and set(record["row"]) == set(COLUMNS)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if done:
            records[path.name.removesuffix(".json")] = record
    return records


def read_view(output: Path, case_id: str) -> CaseView | None:
    """What the report shows of a scan that is done; None where it was not kept, or is damaged."""
    try:
        return CaseView.from_bytes(record_path(output, case_id, "view").read_bytes())
    except (OSError, ValueError):
        return None


def is_done(record: dict[str, Any] | None, path: Path, wanted: Wanted) -> bool:
    """Whether everything that is asked for was made of a scan already, in the same way."""
    if record is None or record["made_by"] != wanted.made_by:
        return False
    if wanted.probabilities and not (wanted.output / PROBABILITIES / record["mask"]).is_file():
        return False
    if wanted.report and read_view(wanted.output, record["row"]["id"]) is None:
        return False
    # A mask without lesion has no DICOM SEG.
    needs_seg = wanted.dicom_seg and path.is_dir() and record["row"]["lesion_ml"] > 0
    return not needs_seg or (wanted.output / DICOM_SEG / f"{record['row']['id']}.dcm").is_file()


def what_is_left(
    scans: dict[str, Path], wanted: Wanted, overwrite: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The records in the output folder, and the ids of the scans that are left to do.

    Args:
        scans: id to CT.
        wanted: what is to be written.
        overwrite: leave all to do.
    """
    records = read_records(wanted.output)
    return records, [
        case_id for case_id, path in scans.items() if overwrite or not is_done(records.get(case_id), path, wanted)
    ]


def write_summary(
    rows: dict[str, Row], failed: dict[str, str], made_by: dict[str, Any], model: Path, output: Path
) -> None:
    """Write summary.csv, a row a scan in the order of the ids, and summary.json.

    Args:
        rows: by id.
        failed: id to reason.
        made_by: what the results depend on.
        model: file of the segmenter.
        output: folder.
    """
    ordered = [rows[case_id] for case_id in sorted(rows)]
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in ordered:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
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
    write_text(output / "summary.csv", table.getvalue())
    write_text(output / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def write_report(rows: dict[str, Row], output: Path, facts: dict[str, str]) -> None:
    """Write report.html of the scans with a row, in the order of their ids."""
    views = [view for case_id in sorted(rows) if (view := read_view(output, case_id)) is not None]
    write_case_report(output / "report.html", "Lesions found in chest CTs", REPORT_COLUMNS, views, facts)
