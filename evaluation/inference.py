"""The segmenter on whole scans of a cohort."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from datasets.cohort import HEALTHY, WITH_LESION, Case, Volumes, read_volumes
from datasets.samples import as_input, normalise
from evaluation import THRESHOLD
from evaluation.metrics import Row, score_scan, summarise
from models.layers import autocast
from utils import distributed

DICE = "valid/dice"
"""Log name of the mean Dice on VALID."""


@dataclass(frozen=True)
class Prediction:
    """What the segmenter finds in one scan: probabilities, float32 (z, y, x), 0 outside the lungs, and their scores."""

    case: Case
    volumes: Volumes
    probability: np.ndarray
    threshold: float
    score: Row

    @property
    def mask(self) -> np.ndarray:
        """The predicted lesion, bool."""
        return self.probability > self.threshold


@torch.no_grad()
def segment(
    segmenter: nn.Module, image: np.ndarray, lung: np.ndarray, normalization: str, precision: str = "fp32"
) -> np.ndarray:
    """What S finds in one crop: probabilities, float32 (z, y, x), 0 outside the lungs.

    The image is (z, y, x), 0..255, not all the same, and the lung mask has its shape, 0 or 1. Normalization is that of
    the training, precision as SOLVER.PRECISION.
    """
    device = next(segmenter.parameters()).device
    with autocast(device, precision):
        logits = segmenter(as_input(normalise(image, normalization))[None].to(device))
    return logits[0, 0].float().sigmoid().cpu().numpy() * lung


def predict_case(
    segmenter: nn.Module,
    case: Case,
    split: str,
    normalization: str,
    precision: str = "fp32",
    threshold: float = THRESHOLD,
    tolerance_mm: float | None = None,
) -> Prediction:
    """Run the segmenter on a scan of a cohort, as `segment`, and score what it finds, as `score_scan`.

    The split says whether the truth is a mask, no lesion, or unknown.

    Raises:
        VolumeError: the scan cannot be read.
    """
    volumes = read_volumes(case)
    probability = segment(segmenter, volumes.image, volumes.lung, normalization, precision)
    known = split in WITH_LESION or split in HEALTHY
    score = score_scan(
        case.id,
        split,
        prediction=probability > threshold,
        truth=volumes.lesion.astype(bool) if known else None,
        lung=volumes.lung.astype(bool),
        spacing=volumes.geometry.GetSpacing()[::-1],
        tolerance_mm=tolerance_mm,
    )
    return Prediction(case, volumes, probability, threshold, score)


def validate(
    segmenter: nn.Module, cohort: Mapping[str, Sequence[Case]], normalization: str, precision: str
) -> dict[str, float]:
    """Score a segmenter on those of VALID, VALIDH and VALIDWL that a cohort has; all ranks must call this.

    Returns:
        By log name: mean Dice of scans with lesion, mean false positive volume in ml of scans without, and mean
        predicted volume in ml of scans without voxel label.
    """
    values: dict[str, float] = {}
    for split in ("VALID", "VALIDH", "VALIDWL"):
        mine = distributed.shard(cohort.get(split, ()))
        scores = [predict_case(segmenter, case, split, normalization, precision).score for case in mine]
        summary = summarise(distributed.unshard(scores))
        if summary["lesion"]["scans"]:
            values[DICE] = summary["lesion"]["dice"]["mean"]
        if summary["no_lesion"]["scans"]:
            values[f"{split.lower()}/false_positive_ml"] = summary["no_lesion"]["false_positive_ml"]["mean"]
        if summary["unknown"]["scans"]:
            values[f"{split.lower()}/predicted_ml"] = summary["unknown"]["predicted_ml"]["mean"]
    return values
