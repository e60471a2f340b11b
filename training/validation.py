"""Score a segmenter on the validation splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from configs.settings import Settings
from datasets.cohort import Case
from evaluation.inference import predict_cohort
from evaluation.metrics import summarise
from utils import distributed

DICE = "valid/dice"
"""Log name of the mean Dice on VALID."""


def validate(segmenter: nn.Module, cohort: Mapping[str, Sequence[Case]], settings: Settings) -> dict[str, float]:
    """Score a segmenter on VALID, VALIDH and VALIDWL; all ranks must call this.

    Args:
        segmenter: S.
        cohort: cases by key of DATASET.SPLIT; missing splits are skipped.
        settings: normalization and precision.

    Returns:
        By log name: mean Dice of scans with lesion, mean false positive volume in ml of scans without, and mean
        predicted volume in ml of scans without voxel label.
    """
    values: dict[str, float] = {}
    for split in ("VALID", "VALIDH", "VALIDWL"):
        mine = distributed.shard(cohort.get(split, ()))
        predictions = predict_cohort(segmenter, mine, split, settings.image.normalization, settings.solver.precision)
        summary = summarise(distributed.unshard([prediction.score for prediction in predictions]))
        if summary["lesion"]["scans"]:
            values[DICE] = summary["lesion"]["dice"]["mean"]
        if summary["no_lesion"]["scans"]:
            values[f"{split.lower()}/false_positive_ml"] = summary["no_lesion"]["false_positive_ml"]["mean"]
        if summary["unknown"]["scans"]:
            values[f"{split.lower()}/predicted_ml"] = summary["unknown"]["predicted_ml"]["mean"]
    return values
