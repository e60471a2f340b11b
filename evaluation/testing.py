"""Test a segmenter on a cohort: masks, figures and scores of each scan, on its crop and at its native resolution.

On the crop, a prediction is compared with a reference mask that was cropped and resized like the scan. At native
resolution it is compared with the original mask, voxel by voxel. That score therefore includes resampling errors and
lesions outside the lung box, which cannot be found.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure

from configs.settings import Settings, read_settings
from datasets.cohort import HEALTHY, WITH_LESION, Case, notes_of, read_cohort_of, warn_of_other_scan
from datasets.crop import lay_over
from datasets.crop_scans import Masks, masks_of_scans
from datasets.geometry import image_like, shape_of
from datasets.samples import normalise
from datasets.scans import find_scans
from datasets.volumes import Reading, Scan, read_mask_on
from datasets.window import unmap_window
from evaluation import TESTED
from evaluation.inference import Prediction, predict_case
from evaluation.metrics import COLUMNS, Row, as_table, score_scan, summarise
from evaluation.results import (
    FIGURES,
    MASKS,
    PROBABILITIES,
    make_results,
    ways_of,
    write_report,
    write_result,
)
from models.checkpoint import BEST, SegmenterInput, find_segmenter, fingerprint, load_segmenter
from models.engine import Engine
from models.layers import place
from reports.cases import Column
from reports.views import ReportCase
from utils import distributed
from utils.errors import CheckpointError, CohortError, GasnetError, VolumeError
from utils.files import as_csv, write_text
from utils.ledger import Entry, Ledger, Recipe
from utils.progress import print_failures

log = logging.getLogger(__name__)

REPORT_COLUMNS = (
    Column("id", "Scan"),
    Column("dice", "Dice", digits=3, help="Overlap of predicted and true lesion, 2 TP / (2 TP + FP + FN)."),
    Column("predicted_ml", "Predicted", "ml", help="Lesion volume that was found."),
    Column("true_ml", "True", "ml", help="True lesion volume."),
    Column("volume_error_ml", "Error", "ml", help="Predicted minus true lesion volume."),
    Column("volume_error_percent", "Error", "%", help="Predicted minus true lesion volume, of the true one."),
    Column("hd95_mm", "HD95", "mm", help="95th percentile of the distances between predicted and true surface."),
    Column("surface_dice", "Surface Dice", digits=3, help="Share of the surfaces that lie close to each other."),
    Column("sensitivity", "Sensitivity", digits=3, help="TP / (TP + FN), over voxels."),
    Column("specificity", "Specificity", digits=3, help="TN / (TN + FP), over voxels."),
    Column("iou", "IoU", digits=3, help="Intersection over union of the lesion, TP / (TP + FP + FN)."),
    Column("lesions", "Lesions", digits=0, help="Lesions in the truth: connected components."),
    Column("lesions_found", "Found", digits=0, help="Lesions in the truth that were found."),
    Column("lesion_sensitivity", "Lesion sensitivity", digits=3, help="Share of the lesions that were found."),
    Column("false_positive_lesions", "False lesions", digits=0, help="Predicted lesions where there is none."),
    Column("lesion_f1", "Lesion F1", digits=3, help="Harmonic mean of sensitivity and precision over lesions."),
    Column("predicted_percent_of_lung", "Predicted", "% of lung", help="Lesion that was found, of the lung's volume."),
    Column("true_percent_of_lung", "True", "% of lung", help="True lesion, of the lung's volume."),
    Column("false_positive_ml", "False positive", "ml", help="What was found in a scan without lesion."),
    Column("kind", "Truth", help="Whether the scan has a lesion, by its true mask."),
    Column("split", "Split", help="Key in DATASET.SPLIT."),
)


def score_on_raw_scan(
    prediction: Prediction, scan: Scan | None, label: Path | None, reading: Reading, tolerance_mm: float
) -> Row:
    """Score a prediction on the grid of its raw scan, of which only the geometry is used.

    Probabilities are pasted back by linear interpolation and then thresholded. The lung mask, for the percentages, is
    that of the crop, pasted back by nearest neighbour.

    Raises:
        VolumeError: the scan or its label is missing, cannot be read, or does not fit.
    """
    case, crop = prediction.case, prediction.volumes.geometry
    split = prediction.score["split"]
    if scan is None:
        raise VolumeError(f"{case.id}: no raw scan of this name; add it to --images, or leave it out of the split")
    if split in WITH_LESION and label is None:
        raise VolumeError(f"{case.id}: no label of this name; add it to --labels, or leave it out of the split")
    ct = scan.geometry(reading)
    warn_of_other_scan(case.image, scan, scan.files)
    lung = lay_over(scan, ct, image_like(crop, prediction.volumes.lung), case.lung)
    mask = lay_over(scan, ct, image_like(crop, prediction.probability), case.image, prediction.threshold)
    truth = None
    if split in WITH_LESION:
        truth = read_mask_on(label, scan, ct, reading) > 0
    elif split in HEALTHY:
        truth = np.zeros(shape_of(ct), bool)
    found, lung = (sitk.GetArrayViewFromImage(image) > 0 for image in (mask, lung))
    return score_scan(case.id, split, found, truth, lung, ct.GetSpacing()[::-1], tolerance_mm)


@dataclass(frozen=True)
class Tester:
    """Tests a segmenter on scans of a cohort and writes the results of each.

    With raw scans, by id, and their labels, it also scores on their grids.
    """

    segmenter: Engine
    normalization: str
    window: tuple[float, float]
    threshold: float
    tolerance_mm: float
    raw: Mapping[str, Scan] | None
    labels: Masks
    reading: Reading
    ledger: Ledger

    def recipe(self, case: Case, split: str, options: Mapping[str, Any], wanted: Sequence[str]) -> Recipe:
        """What the results of a scan are made from, and how."""
        sources = {"crop": [case.image], "lung": [case.lung]} | ({"lesion": [case.lesion]} if case.lesion else {})
        if self.raw is not None and case.id in self.raw:
            sources |= self.labels.sources(case.id, self.raw[case.id])
        return Recipe(sources, {**options, "split": split}, wanted)

    def test(self, case: Case, recipe: Recipe) -> None:
        """Predict and score a scan and write its results, as `write_result`.

        Raises:
            VolumeError: a file cannot be read, or the scan cannot be scored at its native resolution; its other
                results are written then.
        """
        settings = self.normalization, "fp32", self.threshold, self.tolerance_mm
        prediction = predict_case(self.segmenter, case, recipe.options["split"], *settings)
        facts = {"row": prediction.score}
        facts["computed_by"] = f"segmenter by {self.segmenter.way}"
        if self.raw is not None:
            try:
                files = self.raw.get(case.id), self.labels.labels.get(case.id)
                facts["raw"] = score_on_raw_scan(prediction, *files, self.reading, self.tolerance_mm)
            except GasnetError as error:
                facts["problem"] = str(error)
        facts["holds"] = [what for what in recipe.wanted if what != "raw" or what in facts]
        output, volumes, score = self.ledger.folder, prediction.volumes, prediction.score
        arrays = {MASKS: prediction.mask.astype(np.uint8), PROBABILITIES: prediction.probability.astype(np.float32)}
        images = {
            output / folder / f"{case.id}.nii.gz": image_like(volumes.geometry, array)
            for folder, array in arrays.items()
        }
        others = {}
        if FIGURES in recipe.wanted:
            others[output / FIGURES / f"{case.id}.png"] = partial(self._save_figure, prediction)
        hu, values = unmap_window(volumes.image, self.window), {key: score[key] for key in COLUMNS}
        true = None if score["true_ml"] is None else volumes.lesion > 0
        shown = ReportCase(case.id, volumes.geometry, hu, prediction.mask, true, volumes.lung, values)
        write_result(self.ledger, case.id, recipe, facts, images, shown, others)
        if "problem" in facts:
            raise VolumeError(facts["problem"])

    def _save_figure(self, prediction: Prediction, path: Path) -> None:
        """Save the figure of a scan: input, M, predicted and true label."""
        volumes = prediction.volumes
        columns = {
            "input": normalise(volumes.image, self.normalization),
            "M": prediction.probability,
            "predicted": prediction.mask,
        }
        if prediction.score["true_ml"] is not None:
            columns["true"] = volumes.lesion
        x, y, _ = volumes.geometry.GetSpacing()
        most = np.sum(volumes.lesion if volumes.lesion.any() else prediction.mask, (1, 2))
        save_case_figure(columns, int(most.argmax()) if most.any() else len(most) // 2, y / x, path)


def save_case_figure(columns: Mapping[str, np.ndarray], index: int, aspect: float, path: Path) -> None:
    """Save one axial slice of volumes, by title, (z, y, x) in [0, 1], side by side; aspect: pixel height over width."""
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * aspect + 0.4))
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, (title, volume) in zip(axes, columns.items(), strict=True):
        axis.imshow(volume[index], cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)


def write_scores(
    done: Mapping[str, Entry], output: Path, model: Path, with_raw: bool, seen: Sequence[str], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Write metrics.csv, one row per scan, and summary.json, see `summarise`; return the summary.

    If raw scans were given, their scores are in metrics_raw.csv and in the part ``raw`` of the summary.
    """
    rows = [entry.facts["row"] for entry in done.values()]
    summary = {"model": str(model), "computed_by": ways_of(done), "notes": list(notes), "seen": list(seen)}
    summary |= summarise(rows)
    write_text(output / "metrics.csv", as_csv(COLUMNS, rows))
    if with_raw:
        raw = [entry.facts["raw"] for entry in done.values() if "raw" in entry.facts]
        failed = {case_id: entry.facts["problem"] for case_id, entry in done.items() if "problem" in entry.facts}
        summary["raw"] = {**summarise(raw), "failed": failed}
        write_text(output / "metrics_raw.csv", as_csv(COLUMNS, raw))
    write_text(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def as_text(summary: Mapping[str, Any]) -> str:
    """Format a summary for the screen: the table and, with raw scans, a second table."""
    crops = [*summary["notes"], as_table(summary)]
    if "raw" not in summary:
        return "\n".join(crops)
    own = ["lesion is every label above 0 of the given masks"] if summary["notes"] else []
    table = as_table(summary["raw"]) or "no scan was scored"
    return "\n".join(["at the resolution of the crops", *crops, "", "at the scans' own resolution", *own, table])


def test_cohort(options: argparse.Namespace) -> int:
    """Test a segmenter on a cohort, by the options of test.py; return the exit code, 1 if a scan failed.

    Raises:
        GasnetError: settings, networks, cohort, raw scans or output cannot be used, or do not fit each other.
    """
    torch.backends.cudnn.allow_tf32 = False  # the same scores on every device
    settings = read_settings(options.config_path, options.overrides)
    device = distributed.choose_device(options.device)
    if device.type == "cpu":
        distributed.keep_freed_memory()
    image = settings.image
    model = find_segmenter(options.model_path) if options.model_path else settings.exp.folder / BEST
    segmenter, facts = load_segmenter(
        model, SegmenterInput(size=image.size, window=image.window, normalization=image.normalization)
    )
    trained_on = facts.trained_on
    for name, what in (("size", "crops of"), ("window", "crops with the window")):
        if (trained := getattr(trained_on, name)) != (wanted := getattr(image, name)):
            raise CheckpointError(
                f"{model}: was trained on {what} {trained}, IMAGE.{name.upper()} is {wanted}; crop the scans with that "
                f"{name} and set IMAGE.{name.upper()}"
            )
    cohort = read_cohort_of(settings, _splits(settings, options.split), not options.quiet)
    cases, splits = _by_id(cohort)
    seen = _check_unseen(cases, model, frozenset(facts.seen or ()), options.allow_seen)
    threshold = facts.threshold if options.threshold is None else options.threshold

    def find_raw_scans() -> tuple[dict[str, Scan] | None, Masks]:
        if options.images is None:
            return None, Masks()
        scans = find_scans(*options.images, series=options.series)
        return scans, Masks(masks_of_scans(options.labels or (), scans, "label", of_all=False))

    raw, labels = distributed.on_rank_zero(find_raw_scans)
    output = options.output or model.parent / "test"
    ledger = Ledger(output, TESTED)
    tester = Tester(
        segmenter=Engine(place(segmenter, device)),
        normalization=trained_on.normalization,
        window=image.window,
        threshold=threshold,
        tolerance_mm=options.surface_tolerance,
        raw=raw,
        labels=labels,
        reading=options.reading,
        ledger=ledger,
    )
    made_by = {
        "model": fingerprint(segmenter),
        "threshold": threshold,
        "tolerance_mm": options.surface_tolerance,
        "normalization": trained_on.normalization,
        "segments": options.segments,
    }
    wanted = [FIGURES] * options.save_vis + ["report"] * options.report + ["raw"] * (raw is not None)
    recipes = {case_id: tester.recipe(case, splits[case_id], made_by, wanted) for case_id, case in cases.items()}
    names = ["metrics.csv", "summary.json"]
    names += [name for name, asked in (("metrics_raw.csv", raw), ("report.html", options.report)) if asked]
    notes = notes_of(cases.values())

    def write(done: dict[str, Entry], _: dict[str, str]) -> None:
        print(as_text(write_scores(done, output, model, raw is not None, seen, notes)))
        if options.report:
            about = {"model": str(model), "cohort": settings.dataset.root, "splits": ", ".join(options.split)}
            about |= {"lesion": "; ".join(notes)} if notes else {}
            write_report(output, "Test of a segmenter", REPORT_COLUMNS, done, about, device)

    _, failed = make_results(
        ledger,
        recipes,
        lambda: lambda case_id, recipe: tester.test(cases[case_id], recipe),
        "testing",
        names,
        write,
        part=options.part,
        progress=not options.quiet,
        device=device,
        settings=settings,
        seed=settings.exp.seed,
        model=model,
    )
    print(f"results in {output}")
    return print_failures(failed)


def _splits(settings: Settings, keys: Sequence[str]) -> dict[str, str]:
    """The lists of these keys of DATASET.SPLIT."""
    splits = {key: getattr(settings.dataset.split, key.lower()) for key in keys}
    if unset := [key for key, name in splits.items() if name is None]:
        raise CohortError(
            f"--split {unset[0]}: DATASET.SPLIT.{unset[0]} names no list; set it, or choose another split"
        )
    return splits


def _by_id(cohort: Mapping[str, Sequence[Case]]) -> tuple[dict[str, Case], dict[str, str]]:
    """The scans and their splits by id."""
    cases: dict[str, Case] = {}
    splits: dict[str, str] = {}
    for split, of_split in cohort.items():
        for case in of_split:
            cases[case.id] = case
            if splits.setdefault(case.id, split) != split:
                raise CohortError(f"{case.id}: is in {splits[case.id]} and in {split}; test one of these splits")
    return cases, splits


def _check_unseen(cases: Mapping[str, Case], model: Path, seen: frozenset[str], allowed: bool) -> list[str]:
    """The ids of the scans that a model was trained on or chosen by; they are refused, or named if they are allowed."""
    found = [case.id for case in cases.values() if case.content in seen]
    if found:
        names = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
        finding = f"{model}: was trained on, or chosen by, {len(found)} of these scans: {names}"
        if not allowed:
            raise CohortError(f"{finding}; test other scans, or give --allow-seen")
        log.warning("%s", finding)
    return found
