"""How far the surface of a predicted mask lies from the true one.

A mask's surface is its boundary voxels, as MONAI's `get_mask_edges` takes them: voxels of the mask with a face
towards a voxel that is not of it, or towards the end of the volume. Distances go from voxel centre to voxel centre,
in mm, and each boundary voxel counts once, however large its faces are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from evaluation import TOLERANCE_MM

_ROUNDING_MM = 1e-4
"""By which a distance may exceed the tolerance: headers keep spacings in single precision."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm, float32, one a boundary voxel, to the nearest boundary voxel of the other mask.

    Attributes:
        to_truth: from the predicted surface.
        to_prediction: from the true surface.
    """

    to_truth: np.ndarray
    to_prediction: np.ndarray

    @property
    def hd95(self) -> float:
        """The 95th percentile of the Hausdorff distance in mm: the larger one of the two directed percentiles.

        Percentiles are interpolated linearly. The formula is that of MONAI's `compute_hausdorff_distance`; others take
        the percentile of both directions together, which is not the same.
        """
        return float(max(np.percentile(self.to_truth, 95), np.percentile(self.to_prediction, 95)))

    def surface_dice(self, tolerance_mm: float = TOLERANCE_MM) -> float:
        """The share, 0 to 1, of both surfaces that lies within a tolerance of the other one.

        Normalised surface Dice of Nikolov et al. (arXiv:1809.04430), on boundary voxels as in MONAI's
        `compute_surface_dice`: (predicted voxels with d <= t + true voxels with d <= t) / (predicted + true voxels).

        Args:
            tolerance_mm: at least 0; a distance of just this much is within.
        """
        limit = tolerance_mm + _ROUNDING_MM
        within = np.count_nonzero(self.to_truth <= limit) + np.count_nonzero(self.to_prediction <= limit)
        return float(within / (len(self.to_truth) + len(self.to_prediction)))


def surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """The distances between the surfaces of two masks.

    Time and memory follow the size of the arrays: give the box around both masks only.

    Args:
        prediction: bool, (z, y, x).
        truth: bool, of the same shape.
        spacing: of the voxels in mm, in the order of the axes, (z, y, x).

    Raises:
        ValueError: a mask is empty: there is no surface to measure from.
    """
    if not (prediction.any() and truth.any()):
        raise ValueError("an empty mask has no surface")
    predicted, true = _boundary(prediction), _boundary(truth)
    return SurfaceDistances(_distances(predicted, true, spacing), _distances(true, predicted, spacing))


def _boundary(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def _distances(start: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """From each voxel of a mask to the nearest one of another.

    By a map of distances, and not by the k-d tree of MONAI's `get_surface_distance`: that takes minutes where large
    surfaces lie far apart, as those of a prediction that fills the lungs.
    """
    # With a margin, for ITK measures to the contour of the target, and sees none at the end of an image. Voxels inside
    # of it have a negative distance to that.
    image = sitk.GetImageFromArray(np.pad(target, 1).astype(np.uint8))
    image.SetSpacing([float(mm) for mm in reversed(spacing)])
    distances = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayViewFromImage(distances)[1:-1, 1:-1, 1:-1][start], 0)
