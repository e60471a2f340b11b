"""The scores of test.py: of each scan, at the resolution of its crop and at its own, and in files."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.inference import Prediction
from evaluation.metrics import Score, as_table, summarise, with_details
from evaluation.native_resolution import RawScans, score_on_raw_scan
from evaluation.surface import TOLERANCE_MM
from utils.errors import GasnetError
from utils.files import write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The scores of one scan.

    Attributes:
        crop: at the resolution of the crop, with details.
        raw: at the scan's own; None where raw scans are not given, or there is a problem.
        problem: why there is no score at the scan's own resolution, one line.
    """

    crop: Score
    raw: Score | None = None
    problem: str | None = None


def score_prediction(prediction: Prediction, raw: RawScans | None = None, tolerance_mm: float = TOLERANCE_MM) -> Scored:
    """All scores of a prediction. What is wrong with its raw scan is said and written down, and no error.

    Args:
        prediction: at the resolution of the crop.
        raw: the raw scans, where it is to be scored on their grids too.
        tolerance_mm: of the surface Dice.
    """
    truth = None if prediction.score.counts is None else prediction.volumes.lesion.astype(bool)
    spacing = prediction.volumes.grid.spacing[::-1]
    crop = with_details(prediction.score, prediction.mask, truth, spacing, tolerance_mm)
    if raw is None:
        return Scored(crop)
    try:
        return Scored(crop, score_on_raw_scan(prediction, raw, tolerance_mm))
    except GasnetError as error:
        log.warning("%s", error)
        return Scored(crop, problem=str(error))


def write_scores(scored: Sequence[Scored], output: Path, model: Path, with_raw: bool) -> dict[str, dict]:
    """Write metrics.csv, a row a scan, and summary.json; with raw scans, metrics_raw.csv too.

    Args:
        scored: at least one scan.
        output: folder.
        model: written into the summary.
        with_raw: whether raw scans were given; their scores are the part ``raw`` of the summary, which is otherwise
            that of the crops.

    Returns:
        The summary, see `summarise`.
    """
    crops = [s.crop for s in scored]
    columns = list(crops[0].row())
    summary = {"model": str(model), **summarise(crops)}
    write_text(output / "metrics.csv", _as_csv(columns, crops))
    if with_raw:
        own = [s.raw for s in scored if s.raw is not None]
        failed = {s.crop.id: s.problem for s in scored if s.problem is not None}
        summary["raw"] = {**summarise(own), "failed": failed}
        write_text(output / "metrics_raw.csv", _as_csv(columns, own))
    else:
        (output / "metrics_raw.csv").unlink(missing_ok=True)  # of an earlier test, which these scores replace
    write_text(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def as_text(summary: dict[str, dict]) -> str:
    """What test.py prints of a summary: the table and, with raw scans, a second one and the scans that failed."""
    if "raw" not in summary:
        return as_table(summary)
    failed = [f"failed: {case_id}: {reason}" for case_id, reason in summary["raw"]["failed"].items()]
    return "\n".join(
        ["at the resolution of the crops", as_table(summary), "", "at the scans' own resolution"]
        + ([table] if (table := as_table(summary["raw"])) else ["no scan was scored"])
        + failed
    )


def _as_csv(columns: Sequence[str], scores: Sequence[Score]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        row = score.row().items()
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row})
    return table.getvalue()
