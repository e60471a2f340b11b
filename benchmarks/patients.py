"""Measures segmenters on CTs of patients: crops, segments and scores them, by group of scans.

FOLDER holds ct/, lung/ (lung masks), lesion/ (lesion masks, for those scans that have one) and lists/<group>.txt with
one id per line; scans in no list are left out. Without lists/, all scans are one group. Scans with lesions are scored
by Dice on the crops, with a 95 % interval (bootstrap over scans); of the others, the volume that was found is given.
Prints a table and, with --output, writes it as Markdown, and all numbers as JSON beside it.

All files are looked for before the first scan is segmented.

Examples:
  python -m benchmarks.patients covid --model-path pretrained --output results/patients.md
  python -m benchmarks.patients covid --model-path a.pth b.pth --threshold 0.3 0.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks.records import as_json, as_table
from datasets.cohort import read_id_list
from datasets.crop import LungMaskCrop
from datasets.pairs import match_masks
from datasets.scans import find_scans
from datasets.volumes import Scan
from evaluation.inference import segment
from evaluation.metrics import Row, score_scan
from models.checkpoint import PUBLISHED_INPUT, load_segmenter
from models.layers import place
from utils.cli import add_device, add_quiet, new_parser, run, start_logging
from utils.distributed import choose_device
from utils.errors import GasnetError
from utils.files import write_text
from utils.progress import progress_bar

DRAWS = 10_000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class Patients:
    """The CTs of a folder."""

    scans: dict[str, Scan]  # by id
    lungs: dict[str, Path]  # the lung mask of each
    lesions: dict[str, Path]  # the lesion masks of those scans that have one
    groups: dict[str, list[str]]  # ids by group: the lists of the folder, or one group of all scans


def find_patients(folder: Path) -> Patients:
    """Find CTs, masks and lists in a folder.

    Raises:
        GasnetError: a CT has no lung mask, or a list names a scan that is not there.
    """
    scans = find_scans(folder / "ct")
    lungs, lesions = (match_masks(folder / part, scans)[0] for part in ("lung", "lesion"))
    if without := [case_id for case_id in scans if case_id not in lungs]:
        raise GasnetError(f"{folder / 'lung'}: no lung mask of {without[0]}; add it or remove the scan")
    groups = {path.stem: read_id_list(path) for path in sorted((folder / "lists").glob("*.txt"))}
    for name, listed in groups.items():
        if missing := [case_id for case_id in listed if case_id not in scans]:
            raise GasnetError(f"{folder / 'lists' / name}.txt: {missing[0]} is not among the scans in {folder / 'ct'}")
    return Patients(scans, lungs, lesions, groups or {"all": list(scans)})


def score_patients(
    patients: Patients, model: Path, thresholds: Sequence[float], device: torch.device, progress: bool = False
) -> dict[float, dict[str, Row]]:
    """Crop and segment CTs, with a segmenter's file or the folder of a run.

    Args:
        patients: the CTs.
        model: file of a segmenter, or folder of a run.
        thresholds: probabilities above one are lesion; if empty, that of the segmenter's file.
        device: of the segmenter.
        progress: show a progress bar.

    Returns:
        Scores by threshold and id.
    """
    segmenter, facts = load_segmenter(model, PUBLISHED_INPUT)
    segmenter = place(segmenter, device).eval()
    thresholds = thresholds or [facts.threshold]
    cropper = LungMaskCrop(size=facts.trained_on.size, window=facts.trained_on.window)
    scores: dict[float, dict[str, Row]] = {threshold: {} for threshold in thresholds}
    listed = sorted({case_id for ids in patients.groups.values() for case_id in ids})
    for case_id in progress_bar(listed, "segmenting", unit="scan", shown=progress):
        crops = cropper.crop(patients.scans[case_id], patients.lesions.get(case_id), patients.lungs[case_id])
        image, lung, *lesion = (sitk.GetArrayFromImage(crop) for crop in crops)
        probability = segment(segmenter, image, lung, facts.trained_on.normalization)
        truth = lesion[0] > 0 if lesion else None
        spacing = crops[0].GetSpacing()[::-1]
        for threshold in thresholds:
            scores[threshold][case_id] = score_scan(case_id, "TEST", probability > threshold, truth, lung > 0, spacing)
    return scores


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean, a percentile bootstrap."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (DRAWS, len(values)))
    low, high = np.quantile(drawn.mean(1), (0.025, 0.975))
    return float(low), float(high)


def summarise(scores: Mapping[str, Row], ids: Sequence[str]) -> dict[str, Any]:
    """What a table says of a group: Dice and sensitivity where lesions are known, elsewhere the ml found."""
    known = {case_id: scores[case_id] for case_id in ids if scores[case_id]["kind"] == "lesion"}
    found = {case_id: round(scores[case_id]["predicted_ml"], 1) for case_id in ids if case_id not in known}
    summary: dict[str, Any] = {"scans": len(ids)}
    if known:
        dice = {case_id: row["dice"] for case_id, row in known.items()}
        low, high = interval(list(dice.values()))
        summary |= {
            "dice": round(float(np.mean(list(dice.values()))), 3),
            "interval": [round(low, 3), round(high, 3)],
            "worst": round(min(dice.values()), 3),
            "sensitivity": round(float(np.mean([row["sensitivity"] for row in known.values()])), 3),
            "dice by scan": {case_id: round(value, 3) for case_id, value in dice.items()},
        }
    if found:
        summary |= {"median ml": round(float(np.median(list(found.values()))), 1), "ml by scan": found}
    return summary


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row per segmenter, threshold and group."""
    return as_table(
        [
            {
                **{key: row[key] for key in ("segmenter", "threshold")},
                "group": group,
                "scans": found["scans"],
                "Dice": found.get("dice"),
                "95 % interval": "{} to {}".format(*found["interval"]) if "interval" in found else None,
                "worst": found.get("worst"),
                "sensitivity": found.get("sensitivity"),
                "found elsewhere, ml": ", ".join(f"{value:.0f}" for value in found.get("ml by scan", {}).values()),
            }
            for row in rows
            for group, found in row["groups"].items()
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.patients")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with ct/, lung/, lesion/ and lists/")
    parser.add_argument("--model-path", type=Path, nargs="+", required=True, metavar="FILE|DIR", help="segmenters")
    parser.add_argument("--threshold", type=float, nargs="+", default=[], metavar="P", help="default: the segmenter's")
    parser.add_argument("--output", type=Path, metavar="FILE", help="table (.md); the numbers are written to FILE.json")
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    start_logging(options.quiet)
    device, patients, rows = choose_device(options.device), find_patients(options.folder), []
    for model in options.model_path:
        by_threshold = score_patients(patients, model, options.threshold, device, not options.quiet)
        for threshold, scores in by_threshold.items():
            summaries = {name: summarise(scores, ids) for name, ids in patients.groups.items()}
            rows.append({"segmenter": str(model), "threshold": threshold, "groups": summaries})
    table = as_markdown(rows)
    if options.output is not None:
        write_text(options.output, table)
        write_text(options.output.with_suffix(".json"), as_json({"rows": rows}))
    print(table, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
