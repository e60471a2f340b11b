"""Results of test.py: masks, figures and scores of each scan, on its crop and at its native resolution."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.geometry import image_like, lps_geometry, lps_view
from datasets.io.volume import write_volume
from datasets.samples import normalise, scan_input
from datasets.window import unmap_window
from evaluation.figures import save_case_figure, slice_to_show
from evaluation.inference import Prediction
from evaluation.metrics import Score, as_table, summarise, with_details
from evaluation.native_resolution import RawScans, score_on_raw_scan
from evaluation.surface import TOLERANCE_MM
from models import Generator
from models.generator import generate_scan
from models.objectives import synthesise
from reports.cases import CaseView, ReportCase, encode_case
from utils.errors import GasnetError
from utils.failures import failure_lines
from utils.files import write_text
from utils.results import Results, digest_of
from utils.tables import as_csv

log = logging.getLogger(__name__)


SUMMARIES = ("metrics.csv", "metrics_raw.csv", "summary.json", "report.html")
"""Files about all scans."""


@dataclass(frozen=True)
class Scored:
    """The scores of one scan.

    Attributes:
        crop: scores on the crop, with details.
        raw: scores at the native resolution; None without raw scans, or if they could not be computed.
        problem: why they could not be computed, in one line.
    """

    crop: Score
    raw: Score | None = None
    problem: str | None = None


def score_prediction(prediction: Prediction, raw: RawScans | None = None, tolerance_mm: float = TOLERANCE_MM) -> Scored:
    """Score a prediction. A failure on its raw scan is logged and recorded, not raised.

    Args:
        prediction: prediction on the crop.
        raw: raw scans, to score at native resolution as well.
        tolerance_mm: tolerance of the surface Dice.
    """
    truth = None if prediction.score.counts is None else prediction.volumes.lesion.astype(bool)
    spacing = prediction.volumes.geometry.GetSpacing()[::-1]
    crop = with_details(prediction.score, prediction.mask, truth, spacing, tolerance_mm)
    if raw is None:
        return Scored(crop)
    try:
        return Scored(crop, score_on_raw_scan(prediction, raw, tolerance_mm))
    except GasnetError as error:
        log.warning("%s", error)
        return Scored(crop, problem=str(error))


def write_prediction(
    prediction: Prediction, output: Path, save_figure: Callable[[Prediction, Path], None] | None = None
) -> None:
    """Write the mask and the probabilities of a scan, with the geometry of its crop, and its figure.

    Args:
        prediction: prediction on the crop.
        output: folder of the results.
        save_figure: saves a figure of the prediction; None leaves it out.

    Raises:
        VolumeError: a file cannot be written.
        FolderError: a file of that name is there and was not written by test.py.
    """
    case_id, results = prediction.case.id, Results(output)
    arrays = {
        output / "probabilities" / f"{case_id}.nii.gz": prediction.probability.astype(np.float32),
        output / "masks" / f"{case_id}.nii.gz": prediction.mask.astype(np.uint8),
    }
    figures = [] if save_figure is None else [output / "figures" / f"{case_id}.png"]
    with results.writing(case_id, [*arrays, *figures], {}, {"crop": digest_of([prediction.case.image])}):
        for path, array in arrays.items():
            write_volume(image_like(prediction.volumes.geometry, array), path)
        for path in figures:
            save_figure(prediction, path)


def save_prediction_figure(
    prediction: Prediction, normalization: str, generator: Generator | None, slices: int, path: Path
) -> None:
    """Save the figure of a scan: input, M, predicted and true label and, if G is given, I_g and I_s.

    Args:
        prediction: prediction on the crop.
        normalization: IMAGE.NORMALIZATION of the training.
        generator: G.
        slices: slices that G takes.
        path: path of the picture.
    """
    volumes = prediction.volumes
    columns = {
        "input": normalise(volumes.image, normalization),
        "M": prediction.probability,
        "predicted": prediction.mask,
    }
    if prediction.score.counts is not None:
        columns["true"] = volumes.lesion
    if generator is not None:
        scan = scan_input(volumes, normalization).to(next(generator.parameters()).device)
        generated = generate_scan(generator, scan, slices)
        lesion = torch.from_numpy(prediction.probability).to(scan)[None, None]
        # The probabilities are 0 outside the lungs already.
        synthetic = synthesise(scan, lesion, torch.ones_like(lesion), generated)
        for title, volume in (("I_g", generated), ("I_s", synthetic)):
            columns[title] = ((volume[0, 0] + 1) / 2).cpu().numpy()
    x, y, _ = volumes.geometry.GetSpacing()
    save_case_figure(columns, slice_to_show(volumes.lesion, prediction.mask), y / x, path)


def view_of(prediction: Prediction, score: Score, window: tuple[float, float]) -> CaseView:
    """Encode a tested scan for the report.

    Args:
        prediction: prediction on the crop.
        score: its scores.
        window: HU mapped to 0 and 255 in the crop.
    """
    volumes, crop = prediction.volumes, prediction.volumes.geometry
    known = score.counts is not None
    return encode_case(
        ReportCase(
            id=prediction.case.id,
            geometry=lps_geometry(crop),
            hu=unmap_window(lps_view(volumes.image, crop), window),
            predicted=lps_view(prediction.mask, crop),
            true=lps_view(volumes.lesion > 0, crop) if known else None,
            lung=lps_view(volumes.lung, crop),
            values=score.row(),
        )
    )


def write_scores(
    scored: Sequence[Scored], output: Path, model: Path, with_raw: bool, protocols: Sequence[str] = ()
) -> dict[str, Any]:
    """Write metrics.csv, one row per scan, and summary.json; with raw scans, also metrics_raw.csv.

    Args:
        scored: scores of at least one scan.
        output: folder of the results.
        model: checkpoint of the segmenter, for the summary.
        with_raw: whether raw scans were given; their scores are in the part ``raw`` of the summary.
        protocols: which labels count as lesion, see `lesion_protocols`.

    Returns:
        The summary, see `summarise`.
    """
    crops = [s.crop for s in scored]
    columns = list(crops[0].row())
    summary = {"model": str(model), "protocols": list(protocols), **summarise(crops)}
    write_text(output / "metrics.csv", as_csv(columns, [score.row() for score in crops]))
    if with_raw:
        own = [s.raw for s in scored if s.raw is not None]
        failed = {s.crop.id: s.problem for s in scored if s.problem is not None}
        summary["raw"] = {**summarise(own), "failed": failed}
        write_text(output / "metrics_raw.csv", as_csv(columns, [score.row() for score in own]))
    else:
        (output / "metrics_raw.csv").unlink(missing_ok=True)  # from an earlier test
    write_text(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def as_text(summary: dict[str, Any]) -> str:
    """Format a summary for the screen: the table and, with raw scans, a second table and the failed scans."""
    crops = [*summary["protocols"], as_table(summary)]
    if "raw" not in summary:
        return "\n".join(crops)
    lines = ["at the resolution of the crops", *crops, "", "at the scans' own resolution"]
    if summary["protocols"]:
        lines.append("lesion is every label above 0 of the given masks")
    lines.append(as_table(summary["raw"]) or "no scan was scored")
    return "\n".join([*lines, *failure_lines(summary["raw"]["failed"])])
