"""Scores of predicted lesion masks, one scan at a time and over a cohort.

A scan without lesion has no Dice: there is nothing to overlap with. It is scored by the volume of what was found
all the same, in a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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
    """

    id: str
    split: str
    kind: str
    counts: Counts | None
    predicted_ml: float
    true_ml: float | None
    lung_ml: float

    def row(self) -> dict[str, str | float | None]:
        """This score as a row of a table; what does not apply is None."""
        known, lesion = self.counts is not None, self.kind == "lesion"
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


def mean_and_deviation(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and population standard deviation, None of nothing."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values))} if len(values) else None


def summarise(scores: Iterable[Score]) -> dict[str, dict]:
    """The scores of a cohort in one place.

    Returns:
        ``lesion``: number of scans with lesion; mean and population standard deviation over them of `RATIOS` and of
        the volumes. ``no_lesion`` and ``unknown``: number of scans, the volume found in them, and in how many it is
        not 0. ``pooled``: IoU of lesion and of background over all voxels of all scans whose truth is known.
    """
    scores = list(scores)
    by_kind = {kind: [s for s in scores if s.kind == kind] for kind in ("lesion", "no lesion", "unknown")}
    lesion = by_kind["lesion"]
    known = [s.counts for s in scores if s.counts is not None]
    pooled = (
        Counts(*(sum(column) for column in zip(*(vars(c).values() for c in known), strict=True))) if known else None
    )
    return {
        "lesion": {
            "scans": len(lesion),
            **{name: mean_and_deviation([getattr(s.counts, name) for s in lesion]) for name in RATIOS},
            "predicted_ml": mean_and_deviation([s.predicted_ml for s in lesion]),
            "true_ml": mean_and_deviation([s.true_ml for s in lesion]),
        },
        "no_lesion": _found_in(by_kind["no lesion"], "false_positive_ml"),
        "unknown": _found_in(by_kind["unknown"], "predicted_ml"),
        "pooled": {"iou_lesion": pooled.iou, "iou_background": pooled.background_iou} if pooled else None,
    }


def _found_in(scores: Sequence[Score], name: str) -> dict:
    return {
        "scans": len(scores),
        "scans_with_prediction": sum(s.predicted_ml > 0 for s in scores),
        name: mean_and_deviation([s.predicted_ml for s in scores]),
    }


def as_table(summary: dict[str, dict]) -> str:
    """A summary as the lines that test.py prints: ratios in percent, volumes in ml, mean +- standard deviation."""
    lesion, no_lesion, unknown = (summary[kind] for kind in ("lesion", "no_lesion", "unknown"))
    lines = []
    if lesion["scans"]:
        lines.append(f"with lesion ({lesion['scans']} scans)")
        lines += [f"  {name:22} {_percent(lesion[name])}" for name in RATIOS]
        lines += [f"  {name:22} {_plain(lesion[name])}" for name in ("predicted_ml", "true_ml")]
    for what, part, name in (("without lesion", no_lesion, "false_positive_ml"), ("unknown", unknown, "predicted_ml")):
        if part["scans"]:
            lines.append(f"{what} ({part['scans']} scans, something found in {part['scans_with_prediction']})")
            lines.append(f"  {name:22} {_plain(part[name])}")
    return "\n".join(lines)


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:5.1f} ± {100 * value['std']:.1f} %"


def _plain(value: dict[str, float]) -> str:
    return f"{value['mean']:5.1f} ± {value['std']:.1f} ml"
