"""Scores of predicted lesion masks, one scan at a time and over a cohort.

A scan without lesion has no Dice: there is nothing to overlap with. It is scored by the volume of what was found
all the same, in a row of its own. The rule for empty masks, of all scores (None: undefined, an empty cell):

    score                          truth and prediction   only the truth is      only the prediction is
                                   are empty              empty                  empty
    dice, iou, sensitivity         None                   None                   0
    specificity                    None                   None                   1
    hd95_mm                        None                   None                   None, and counted in the summary
    surface_dice                   None                   None                   0
    volume_error_ml                0                      predicted_ml           -true_ml
    volume_error_percent           None                   None                   -100
    lesions, lesions_found         0, 0                   0, 0                   their number, 0
    lesion_sensitivity, lesion_f1  None                   None                   0
    false_positive_lesions         0                      all that was found     0
    false_positive_ml              0                      predicted_ml           None

Where the truth is not known, all that compares with it is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.crop import bounding_box
from evaluation.lesions import LesionCounts, count_lesions
from evaluation.surface import TOLERANCE_MM, surface_distances

THRESHOLD = 0.5
"""Probabilities above it are lesion."""

RATIOS = ("dice", "sensitivity", "specificity", "iou")


@dataclass(frozen=True)
class Counts:
    """Voxels by truth and prediction."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN)."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP)."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), intersection over union of the lesion."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def background_iou(self) -> float:
        """TN / (TN + FP + FN), intersection over union of the background."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive + self.false_negative)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def count_voxels(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    """Voxels by truth and prediction, of two boolean arrays of one shape."""
    return Counts(
        true_positive=int((prediction & truth).sum()),
        false_positive=int((prediction & ~truth).sum()),
        false_negative=int((~prediction & truth).sum()),
        true_negative=int((~prediction & ~truth).sum()),
    )


@dataclass(frozen=True)
class Details:
    """What is measured of the shape of a prediction, which takes longer than counting voxels.

    Attributes:
        hd95_mm: 95th percentile of the Hausdorff distance, None where a mask is empty.
        surface_dice: 0 to 1, None where the truth is empty.
        tolerance_mm: of the surface Dice.
        lesions: counted one by one.
    """

    hd95_mm: float | None
    surface_dice: float | None
    tolerance_mm: float
    lesions: LesionCounts


@dataclass(frozen=True)
class Score:
    """The scores of one scan.

    Attributes:
        id: of the scan.
        split: key in DATASET.SPLIT.
        kind: ``lesion`` and ``no lesion`` by the true mask, ``unknown`` without one.
        counts: None without a true mask.
        predicted_ml: lesion volume found.
        true_ml: true lesion volume, None without a true mask.
        lung_ml: lung volume.
        details: None without a true mask, or where they were not asked for.
    """

    id: str
    split: str
    kind: str
    counts: Counts | None
    predicted_ml: float
    true_ml: float | None
    lung_ml: float
    details: Details | None = None

    @property
    def volume_error_ml(self) -> float | None:
        """Predicted - true volume; None without a true mask."""
        return None if self.true_ml is None else self.predicted_ml - self.true_ml

    @property
    def volume_error_percent(self) -> float | None:
        """Predicted - true volume in percent of the true one; None where that is 0 or not known."""
        return 100 * self.volume_error_ml / self.true_ml if self.true_ml else None

    def row(self) -> dict[str, str | float | None]:
        """This score as a row of a table; what does not apply is None."""
        known, lesion = self.counts is not None, self.kind == "lesion"
        details = self.details
        lesions = details.lesions if details else None
        return {
            "id": self.id,
            "split": self.split,
            "kind": self.kind,
            **{name: getattr(self.counts, name) if lesion else None for name in RATIOS},
            "predicted_ml": self.predicted_ml,
            "true_ml": self.true_ml,
            "predicted_percent_of_lung": 100 * self.predicted_ml / self.lung_ml,
            "true_percent_of_lung": 100 * self.true_ml / self.lung_ml if known else None,
            "false_positive_ml": self.predicted_ml if self.kind == "no lesion" else None,
            "hd95_mm": details.hd95_mm if details else None,
            "surface_dice": details.surface_dice if details else None,
            "volume_error_ml": self.volume_error_ml,
            "volume_error_percent": self.volume_error_percent,
            "lesions": lesions.lesions if lesions else None,
            "lesions_found": lesions.found if lesions else None,
            "lesion_sensitivity": lesions.sensitivity if lesions else None,
            "false_positive_lesions": lesions.false_positive if lesions else None,
            "lesion_f1": lesions.f1 if lesions else None,
        }


def score_scan(
    case_id: str, split: str, prediction: np.ndarray, truth: np.ndarray | None, lung: np.ndarray, voxel_ml: float
) -> Score:
    """Score the predicted mask of one scan.

    Args:
        case_id: of the scan.
        split: key in DATASET.SPLIT.
        prediction: bool, (z, y, x).
        truth: bool, of the same shape; None where it is not known.
        lung: bool, of the same shape.
        voxel_ml: volume of a voxel in millilitres.
    """
    counts = None if truth is None else count_voxels(prediction, truth)
    return Score(
        id=case_id,
        split=split,
        kind="unknown" if truth is None else "lesion" if truth.any() else "no lesion",
        counts=counts,
        predicted_ml=float(prediction.sum()) * voxel_ml,
        true_ml=None if truth is None else float(truth.sum()) * voxel_ml,
        lung_ml=float(lung.sum()) * voxel_ml,
    )


def with_details(
    score: Score,
    prediction: np.ndarray,
    truth: np.ndarray | None,
    spacing: Sequence[float],
    tolerance_mm: float = TOLERANCE_MM,
) -> Score:
    """A score with its details, which takes seconds on a scan of full size.

    Args:
        score: of the same masks.
        prediction: bool, (z, y, x).
        truth: bool, of the same shape; None where it is not known, and the score then stays as it is.
        spacing: of the voxels in mm, (z, y, x).
        tolerance_mm: of the surface Dice, at least 0.
    """
    if truth is None:
        return score
    box = bounding_box(prediction | truth)
    if box is None:
        return replace(score, details=Details(None, None, tolerance_mm, LesionCounts(0, 0, 0)))
    prediction, truth = prediction[box], truth[box]
    hd95 = surface_dice = None
    if prediction.any() and truth.any():
        distances = surface_distances(prediction, truth, spacing)
        hd95, surface_dice = distances.hd95, distances.surface_dice(tolerance_mm)
    elif truth.any():
        surface_dice = 0.0
    return replace(score, details=Details(hd95, surface_dice, tolerance_mm, count_lesions(prediction, truth)))


def mean_and_deviation(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and population standard deviation, None of nothing."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values))} if len(values) else None


def summarise(scores: Iterable[Score]) -> dict[str, dict]:
    """The scores of a cohort in one place.

    Returns:
        ``lesion``: number of scans with lesion; mean and population standard deviation over them of `RATIOS`, of the
        volumes and their signed errors and, where there are details, of the scores of surfaces and lesions, beside
        the sums of lesions and of those found. ``hd95_mm`` is over the ``scans`` where it is defined, and names the
        number of the others as ``undefined``. ``no_lesion`` and ``unknown``: number of scans, the volume found in
        them, and in how many it is not 0. ``pooled``: IoU of lesion and of background over all voxels of all scans
        whose truth is known.
    """
    scores = list(scores)
    by_kind = {kind: [s for s in scores if s.kind == kind] for kind in ("lesion", "no lesion", "unknown")}
    lesion = by_kind["lesion"]
    known = [s.counts for s in scores if s.counts is not None]
    pooled = (
        Counts(*(sum(column) for column in zip(*(vars(c).values() for c in known), strict=True))) if known else None
    )
    volumes = ("predicted_ml", "true_ml", "volume_error_ml", "volume_error_percent")
    return {
        "lesion": {
            "scans": len(lesion),
            **{name: mean_and_deviation([getattr(s.counts, name) for s in lesion]) for name in RATIOS},
            **{name: mean_and_deviation([getattr(s, name) for s in lesion]) for name in volumes},
            **_summarise_details(lesion),
        },
        "no_lesion": {
            **_found_in(by_kind["no lesion"], "false_positive_ml"),
            **_false_positives(by_kind["no lesion"]),
        },
        "unknown": _found_in(by_kind["unknown"], "predicted_ml"),
        "pooled": {"iou_lesion": pooled.iou, "iou_background": pooled.background_iou} if pooled else None,
    }


def _found_in(scores: Sequence[Score], name: str) -> dict:
    return {
        "scans": len(scores),
        "scans_with_prediction": sum(s.predicted_ml > 0 for s in scores),
        name: mean_and_deviation([s.predicted_ml for s in scores]),
    }


def _summarise_details(scores: Sequence[Score]) -> dict:
    details = [s.details for s in scores if s.details is not None]
    if not details:
        return {}
    hd95 = [d.hd95_mm for d in details if d.hd95_mm is not None]
    lesions = [d.lesions for d in details]
    return {
        "hd95_mm": {
            "scans": len(hd95),
            "undefined": len(details) - len(hd95),
            **(mean_and_deviation(hd95) or {"mean": None, "std": None}),
        },
        "surface_dice": {
            "tolerance_mm": details[0].tolerance_mm,
            **mean_and_deviation([d.surface_dice for d in details]),
        },
        "lesions": sum(n.lesions for n in lesions),
        "lesions_found": sum(n.found for n in lesions),
        "lesion_sensitivity": mean_and_deviation([n.sensitivity for n in lesions]),
        **_false_positives(scores),
        "lesion_f1": mean_and_deviation([n.f1 for n in lesions]),
    }


def _false_positives(scores: Sequence[Score]) -> dict:
    details = [s.details for s in scores if s.details is not None]
    if not details:
        return {}
    return {"false_positive_lesions": mean_and_deviation([d.lesions.false_positive for d in details])}


def as_table(summary: dict[str, dict]) -> str:
    """A summary as the lines that test.py prints: mean +- standard deviation, ratios in percent."""
    lesion, no_lesion, unknown = (summary[kind] for kind in ("lesion", "no_lesion", "unknown"))
    lines = []
    if lesion["scans"]:
        lines.append(f"with lesion ({lesion['scans']} scans)")
        lines += [_line(lesion, name, "%", 100) for name in RATIOS]
        lines += [_line(lesion, name, "ml") for name in ("predicted_ml", "true_ml", "volume_error_ml")]
        lines.append(_line(lesion, "volume_error_percent", "%"))
        if "hd95_mm" in lesion:
            lines += _lines_of_details(lesion)
    for what, part, name in (("without lesion", no_lesion, "false_positive_ml"), ("unknown", unknown, "predicted_ml")):
        if part["scans"]:
            lines.append(f"{what} ({part['scans']} scans, something found in {part['scans_with_prediction']})")
            lines.append(_line(part, name, "ml"))
            if "false_positive_lesions" in part:
                lines.append(_line(part, "false_positive_lesions"))
    return "\n".join(lines)


def _lines_of_details(lesion: dict) -> list[str]:
    hd95 = lesion["hd95_mm"]
    missing = f"  (over {hd95['scans']} scans; in {hd95['undefined']} nothing was found)" if hd95["undefined"] else ""
    return [
        _line(lesion, "hd95_mm", "mm") + missing,
        _line(lesion, "surface_dice", "%", 100) + f"  (within {lesion['surface_dice']['tolerance_mm']:g} mm)",
        _line(lesion, "lesion_sensitivity", "%", 100)
        + f"  ({lesion['lesions_found']} of {lesion['lesions']} lesions found)",
        _line(lesion, "false_positive_lesions"),
        _line(lesion, "lesion_f1", "%", 100),
    ]


def _line(part: dict, name: str, unit: str = "", factor: float = 1) -> str:
    value = part[name]
    if value["mean"] is None:
        return f"  {name:22}     -"
    return f"  {name:22} {factor * value['mean']:5.1f} ± {factor * value['std']:.1f} {unit}".rstrip()
