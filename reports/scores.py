"""Report page of a test: predicted lesions, reference masks if known, and scores of every scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reports.cases import Column, View, write_case_report

COLUMNS = (
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


def write_score_report(path: Path, views: Sequence[View], facts: Mapping[str, str]) -> None:
    """Write the page of a test atomically.

    Args:
        path: path of the page.
        views: views of all scans.
        facts: value by name for the footer.

    Raises:
        OSError: it cannot be written.
    """
    write_case_report(path, "Test of a segmenter", COLUMNS, views, facts)
