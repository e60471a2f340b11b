"""Single lesions: which of them were found, and what was found that is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CONNECTED = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner belong to one lesion: 26-connected components."""


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one scan.

    Attributes:
        lesions: components of the truth.
        found: those of them that the prediction overlaps.
        false_positive: components of the prediction that overlap with no lesion.
    """

    lesions: int
    found: int
    false_positive: int

    @property
    def sensitivity(self) -> float | None:
        """Found / lesions; None where there is no lesion."""
        return self.found / self.lesions if self.lesions else None

    @property
    def f1(self) -> float | None:
        """2 found / (2 found + missed + false positive); None where there is no lesion."""
        return 2 * self.found / (self.found + self.lesions + self.false_positive) if self.lesions else None


def count_lesions(prediction: np.ndarray, truth: np.ndarray) -> LesionCounts:
    """Match the lesions of two masks.

    The rule is that of the ISLES 2022 challenge (Hernandez Petzsche et al., Scientific Data 9, 2022): a lesion is
    found if at least one of its voxels is predicted, and a predicted component is a false positive if none of its
    voxels is lesion. Components are not matched one to one: a single prediction may find several lesions, and several
    may lie on one. There is no smallest lesion: a single voxel counts.

    Args:
        prediction: bool, (z, y, x).
        truth: bool, of the same shape.
    """
    overlap = prediction & truth
    lesions, found = _components(truth, overlap)
    predicted, on_lesions = _components(prediction, overlap)
    return LesionCounts(lesions, found, predicted - on_lesions)


def _components(mask: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
    """The number of components of a mask, and of those that hold voxels of a part of it."""
    labels, count = ndimage.label(mask, CONNECTED)
    return count, len(np.unique(labels[inside]))
