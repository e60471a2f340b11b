"""Scores of predicted lesion masks, one scan at a time and over a cohort; docs/scores.md defines them.

The scores of a scan are a row, a dictionary with the keys `COLUMNS`. What is undefined is None, an empty cell: a scan
without lesion has no Dice, and where the truth is not known, all that compares with it is None.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from datasets.geometry import bounding_box

RATIOS = ("dice", "sensitivity", "specificity", "iou")

COLUMNS = (
    *("id", "split", "kind", *RATIOS, "predicted_ml", "true_ml", "predicted_percent_of_lung", "true_percent_of_lung"),
    *("false_positive_ml", "hd95_mm", "surface_dice", "volume_error_ml", "volume_error_percent"),
    *("lesions", "lesions_found", "lesion_sensitivity", "false_positive_lesions", "lesion_f1"),
)
"""Columns of metrics.csv. A row has two keys more: ``voxels``, TP, FP, FN and TN, and ``tolerance_mm``."""

CONNECTED = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner belong to one lesion: 26-connected components."""

_ROUNDING_MM = 1e-4
"""By which a distance may exceed the tolerance: headers keep spacings in single precision."""

Row = dict[str, Any]

Distances = tuple[np.ndarray, np.ndarray]
"""Of each boundary voxel of the prediction to the nearest one of the truth, and the other way round, in mm."""


def score_scan(
    case_id: str,
    split: str,
    prediction: np.ndarray,
    truth: np.ndarray | None,
    lung: np.ndarray,
    spacing: Sequence[float],
    tolerance_mm: float | None = None,
) -> Row:
    """Score the predicted mask of one scan of a split, a key in DATASET.SPLIT.

    Masks are bool (z, y, x): the prediction, the truth or None where it is not known, and the lungs, not empty. The
    spacing is in mm, in this order. Without the tolerance of the surface Dice, the scores of surfaces and lesions are
    left out, which take seconds on a scan of full size.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    lung_voxels, predicted = (int(np.count_nonzero(mask)) for mask in (lung, prediction))
    row: Row = {
        **dict.fromkeys((*COLUMNS, "voxels", "tolerance_mm")),
        "id": case_id,
        "split": split,
        "kind": "unknown",
        "predicted_ml": predicted * voxel_ml,
        "predicted_percent_of_lung": 100 * predicted / lung_voxels,
    }
    if truth is None:
        return row
    true, tp = (int(np.count_nonzero(mask)) for mask in (truth, prediction & truth))
    fp, fn = predicted - tp, true - tp
    tn = truth.size - tp - fp - fn
    row |= {
        "kind": "lesion" if true else "no lesion",
        "true_ml": true * voxel_ml,
        "true_percent_of_lung": 100 * true / lung_voxels,
        "volume_error_ml": (predicted - true) * voxel_ml,
        "voxels": [tp, fp, fn, tn],
    }
    if true:
        row |= {
            "dice": 2 * tp / (2 * tp + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "iou": tp / (tp + fp + fn),
            "volume_error_percent": 100 * (predicted - true) / true,
        }
    else:
        row["false_positive_ml"] = row["predicted_ml"]
    if tolerance_mm is not None:
        row |= _surfaces_and_lesions(prediction, truth, spacing, tolerance_mm)
    return row


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _surfaces_and_lesions(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> Row:
    box = bounding_box(prediction | truth)
    if box is not None:
        prediction, truth = prediction[box], truth[box]
    row = {"tolerance_mm": tolerance_mm, "surface_dice": 0.0 if truth.any() else None}
    row |= count_lesions(prediction, truth)
    if prediction.any() and truth.any():
        distances = surface_distances(prediction, truth, spacing)
        row |= {"hd95_mm": hd95(distances), "surface_dice": surface_dice(distances, tolerance_mm)}
    return row


def count_lesions(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Lesion-wise detection by the rule of ISLES 2022 (Hernandez Petzsche et al., Scientific Data 9, 2022).

    A lesion is found if at least one of its voxels is predicted, and a predicted component is a false positive if none
    of its voxels is lesion. Components are not matched one to one, and a single voxel counts. Masks are bool (z, y, x).

    Returns:
        Numbers of ``lesions``, ``lesions_found`` and ``false_positive_lesions``; ``lesion_sensitivity``, found /
        lesions, and ``lesion_f1``, 2 found / (2 found + missed + false positive), None without lesions.
    """
    overlap = prediction & truth
    lesions, found = _components(truth, overlap)
    predicted, on_lesions = _components(prediction, overlap)
    false = predicted - on_lesions
    return {
        "lesions": lesions,
        "lesions_found": found,
        "lesion_sensitivity": found / lesions if lesions else None,
        "false_positive_lesions": false,
        "lesion_f1": 2 * found / (found + lesions + false) if lesions else None,
    }


def _components(mask: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
    """The number of components of a mask, and of those that hold voxels of a part of it."""
    labels, count = ndimage.label(mask, CONNECTED)
    return int(count), len(np.unique(labels[inside]))


def surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> Distances:
    """Distances between the boundary voxels of two masks, which are not empty, from voxel centre to voxel centre.

    Boundary voxels have a face towards a voxel that is not of the mask or towards the end of the volume, as in MONAI's
    `get_mask_edges`. Time and memory follow the size of the arrays: give the box around both masks only. Masks are
    bool (z, y, x); the spacing is in mm, in this order.
    """
    predicted, true = (mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth))
    return _distances(predicted, true, spacing), _distances(true, predicted, spacing)


def _distances(start: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """From each voxel of a mask to the nearest one of another, by a map of distances.

    The k-d tree of MONAI's `get_surface_distance` takes minutes where large surfaces lie far apart.
    """
    # With a margin, for ITK measures to the contour of the target, and sees none at the end of an image. Voxels inside
    # of it have a negative distance to that.
    image = sitk.GetImageFromArray(np.pad(target, 1).astype(np.uint8))
    image.SetSpacing([float(mm) for mm in reversed(spacing)])
    distances = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayViewFromImage(distances)[1:-1, 1:-1, 1:-1][start], 0)


def hd95(distances: Distances) -> float:
    """The larger one of the two directed 95th percentiles, in mm, as MONAI's `compute_hausdorff_distance`."""
    return float(max(np.percentile(directed, 95) for directed in distances))


def surface_dice(distances: Distances, tolerance_mm: float) -> float:
    """The share, 0 to 1, of both surfaces that lies within a tolerance of the other one.

    Of Nikolov et al. (arXiv:1809.04430), on boundary voxels as in MONAI's `compute_surface_dice`.
    """
    return float(np.mean(np.concatenate(distances) <= tolerance_mm + _ROUNDING_MM))


def mean_and_deviation(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean and population standard deviation of the values that are not None; None of nothing."""
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)), "std": float(np.std(known))} if known else None


def summarise(rows: Iterable[Row]) -> dict[str, Any]:
    """The scores of a cohort in one place.

    Returns:
        ``lesion``: number of scans with lesion; mean and population standard deviation over them of `RATIOS`, of the
        volumes and their signed errors and, if they were scored, of surfaces and lesions, beside the sums of lesions
        and of those found. ``hd95_mm`` is over the ``scans`` where it is defined, and names the number of the others
        as ``undefined``. ``no_lesion`` and ``unknown``: number of scans, the volume found in them, and in how many it
        is not 0. ``pooled``: IoU of lesion and of background over all voxels of all scans whose truth is known.
    """
    rows = list(rows)
    lesion, healthy, unknown = ([r for r in rows if r["kind"] == k] for k in ("lesion", "no lesion", "unknown"))
    means = (*RATIOS, "predicted_ml", "true_ml", "volume_error_ml", "volume_error_percent")
    pooled = None
    if counted := [row["voxels"] for row in rows if row["voxels"] is not None]:
        tp, fp, fn, tn = (sum(column) for column in zip(*counted, strict=True))
        pooled = {"iou_lesion": _ratio(tp, tp + fp + fn), "iou_background": _ratio(tn, tn + fp + fn)}
    return {
        "lesion": {"scans": len(lesion), **{n: _mean(lesion, n) for n in means}, **_summarise_details(lesion)},
        "no_lesion": {**_found_in(healthy, "false_positive_ml"), **_false_positives(healthy)},
        "unknown": _found_in(unknown, "predicted_ml"),
        "pooled": pooled,
    }


def _mean(rows: Sequence[Row], name: str) -> dict[str, float] | None:
    return mean_and_deviation(row[name] for row in rows)


def _found_in(rows: Sequence[Row], name: str) -> Row:
    found = sum(row["predicted_ml"] > 0 for row in rows)
    return {"scans": len(rows), "scans_with_prediction": found, name: _mean(rows, "predicted_ml")}


def _summarise_details(rows: Sequence[Row]) -> Row:
    rows = [row for row in rows if row["tolerance_mm"] is not None]
    if not rows:
        return {}
    defined = sum(row["hd95_mm"] is not None for row in rows)
    distance = _mean(rows, "hd95_mm") or {"mean": None, "std": None}
    return {
        "hd95_mm": {"scans": defined, "undefined": len(rows) - defined, **distance},
        "surface_dice": {"tolerance_mm": rows[0]["tolerance_mm"], **_mean(rows, "surface_dice")},
        "lesions": sum(row["lesions"] for row in rows),
        "lesions_found": sum(row["lesions_found"] for row in rows),
        "lesion_sensitivity": _mean(rows, "lesion_sensitivity"),
        **_false_positives(rows),
        "lesion_f1": _mean(rows, "lesion_f1"),
    }


def _false_positives(rows: Sequence[Row]) -> Row:
    found = _mean(rows, "false_positive_lesions")
    return {} if found is None else {"false_positive_lesions": found}


def as_table(summary: dict[str, Any]) -> str:
    """A summary as the lines that test.py prints: mean +- standard deviation, ratios in percent."""
    lines = []
    for kind, title in (("lesion", "with lesion"), ("no_lesion", "without lesion"), ("unknown", "unknown")):
        if (part := summary[kind])["scans"]:
            found = f", something found in {part['scans_with_prediction']}" if "scans_with_prediction" in part else ""
            lines.append(f"{title} ({part['scans']} scans{found})")
            lines += [_line(name, value) for name, value in part.items() if isinstance(value, dict)]
            if "lesions" in part:
                lines.append(f"  {part['lesions_found']} of {part['lesions']} lesions found")
    return "\n".join(lines)


def _line(name: str, value: Row) -> str:
    end = name.rsplit("_")[-1]
    factor, unit = {"ml": (1, "ml"), "mm": (1, "mm"), "percent": (1, "%"), "lesions": (1, "")}.get(end, (100, "%"))
    more = ", ".join(f"{key} {value[key]:g}" for key in ("scans", "undefined", "tolerance_mm") if key in value)
    mean, sd = value["mean"], value["std"]
    numbers = "    -" if mean is None else f"{factor * mean:5.1f} ± {factor * sd:.1f} {unit}"
    return f"  {name:22} {numbers}  ({more})" if more else f"  {name:22} {numbers}".rstrip()
