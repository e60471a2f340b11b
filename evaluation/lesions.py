"""Lesion-wise detection: hits, misses, false positives."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

CONNECTED = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner belong to one lesion: 26-connected components."""


def count_lesions(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Match the lesions of two masks.

    The rule is that of the ISLES 2022 challenge (Hernandez Petzsche et al., Scientific Data 9, 2022): a lesion is
    found if at least one of its voxels is predicted, and a predicted component is a false positive if none of its
    voxels is lesion. Components are not matched one to one: a single prediction may find several lesions, and several
    may lie on one. There is no smallest lesion: a single voxel counts.

    Args:
        prediction: bool, (z, y, x).
        truth: bool, of the same shape.

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
