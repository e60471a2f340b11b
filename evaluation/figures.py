"""Figures of single scans, with the columns of the paper's result figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from utils.files import atomic_write


def slice_to_show(*masks: np.ndarray) -> int:
    """The axial slice with most voxels of the first mask that is not empty; the middle one if all are."""
    for mask in masks:
        if mask.any():
            return int(mask.sum(axis=(1, 2)).argmax())
    return masks[0].shape[0] // 2


def save_case_figure(columns: Mapping[str, np.ndarray], index: int, aspect: float, path: Path) -> None:
    """Save one axial slice of several volumes side by side.

    Args:
        columns: title to volume, (z, y, x) in [0, 1].
        index: of the slice.
        aspect: height of a pixel over its width.
        path: of the picture.
    """
    figure, axes = plt.subplots(1, len(columns), figsize=(2.4 * len(columns), 2.4 * aspect + 0.4), squeeze=False)
    for axis, (title, volume) in zip(axes[0], columns.items(), strict=True):
        axis.imshow(volume[index], cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    save_figure(figure, path, pad=0.4)


def save_figure(figure: Figure, path: Path, pad: float = 1.08) -> None:
    """Save a figure, whole or not at all, and close it.

    Args:
        figure: of pyplot.
        path: of the picture.
        pad: between and around its axes, in font sizes.
    """
    figure.tight_layout(pad=pad)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
