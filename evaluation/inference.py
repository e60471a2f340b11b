"""The segmenter on whole scans of a cohort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from datasets.cohort import HEALTHY, WITH_LESION, Case, Volumes, read_volumes
from datasets.samples import as_input, normalise
from evaluation.metrics import THRESHOLD, Row, score_scan
from models import Segmenter

_SLOW_BELOW = 20480
"""Channels times slices times rows of a single volume up to which PyTorch does not use oneDNN."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision for a block of code, where it is asked for and the device computes in it; float32 elsewhere.

    Args:
        device: that computes.
        precision: SOLVER.PRECISION: ``bf16`` on CUDA, ``bf16_anywhere`` on CPUs too, or ``fp32``.
    """
    if device.type == "cuda":
        enabled = precision != "fp32" and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Processors without these instructions emulate it, slower than float32.
        has = torch.cpu.get_capabilities()
        enabled = precision == "bf16_anywhere" and bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _logits(segmenter: Segmenter, scan: torch.Tensor) -> torch.Tensor:
    """Logits of one scan, (1, 1, z, y, x).

    PyTorch leaves the convolutions of a single small volume on the CPU to a loop in which it takes four times as long
    as two of them do in the fast way; the scan then goes through twice.
    """
    _, _, depth, height, _ = scan.shape
    if scan.device.type == "cpu" and segmenter.width * depth * height <= _SLOW_BELOW:
        return segmenter(scan.expand(2, -1, -1, -1, -1))[:1]
    return segmenter(scan)


@dataclass(frozen=True)
class Prediction:
    """What the segmenter finds in one scan.

    Attributes:
        case: the scan.
        volumes: its arrays.
        probability: float32, (z, y, x), 0 outside the lungs.
        threshold: probabilities above it are lesion.
        score: row of scores of `mask`, see `evaluation.metrics`.
    """

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
    segmenter: Segmenter, image: np.ndarray, lung: np.ndarray, normalization: str, precision: str = "fp32"
) -> np.ndarray:
    """What the segmenter finds in one crop.

    Args:
        segmenter: S, on its device.
        image: (z, y, x), 0..255, not all the same.
        lung: of the same shape, 0 or 1.
        normalization: IMAGE.NORMALIZATION of the training.
        precision: SOLVER.PRECISION.

    Returns:
        Probabilities, float32 (z, y, x), 0 outside the lungs.
    """
    device = next(segmenter.parameters()).device
    with autocast(device, precision):
        logits = _logits(segmenter, as_input(normalise(image, normalization))[None].to(device))
    return logits[0, 0].float().sigmoid().cpu().numpy() * lung


def predict_cohort(
    segmenter: Segmenter,
    cases: Iterable[Case],
    split: str,
    normalization: str,
    precision: str = "fp32",
    threshold: float = THRESHOLD,
) -> Iterator[Prediction]:
    """Run the segmenter on the scans of a split, one after the other; arguments and errors as for `predict_case`."""
    for case in cases:
        yield predict_case(segmenter, case, split, normalization, precision, threshold)


def predict_case(
    segmenter: Segmenter,
    case: Case,
    split: str,
    normalization: str,
    precision: str = "fp32",
    threshold: float = THRESHOLD,
    tolerance_mm: float | None = None,
) -> Prediction:
    """Run the segmenter on a scan of a cohort, and score what it finds.

    Args:
        segmenter: S, on its device.
        case: the scan.
        split: key in DATASET.SPLIT; says whether the truth is a mask, no lesion, or unknown.
        normalization: IMAGE.NORMALIZATION of the training.
        precision: SOLVER.PRECISION.
        threshold: probabilities above it are lesion.
        tolerance_mm: of the surface Dice; None leaves out the scores of surfaces and lesions.

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
