"""Where the voxels of a volume lie: size, spacing, origin and direction, and what of them is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from utils.errors import VolumeError

MAX_VOXELS = 2**29
"""Voxels that a volume may have unless more are allowed: 512x512x2048."""

_SPACING_MM = (1e-3, 1e3)
"""No scanner of bodies has voxels outside this range; a header that says so has other units, or is damaged."""

_FARTHEST_MM = 1e5
"""No scanner lies farther from its own origin."""

ORTHONORMAL = 1e-4
"""How far the products of direction cosines may be from 0 and 1."""

_SAME = 1e-3
"""Relative difference of spacings, absolute one of direction cosines, and shift of the origin in voxels times 10."""


_AGAINST_LPS = "RAI"
"""Right, anterior, inferior."""


@dataclass(frozen=True)
class Grid:
    """Size and geometry of a volume, in the order (x, y, z) and in LPS coordinates, as SimpleITK has them.

    Attributes:
        size: voxels.
        spacing: mm.
        origin: mm, of the centre of the first voxel.
        direction: cosines of the axes, row by row: the columns are the axes of x, y and z.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """The grid of an image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in the order of arrays, (z, y, x)."""
        return self.size[::-1]

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(np.prod(self.spacing)) / 1000

    def point(self, index: Sequence[float]) -> np.ndarray:
        """Where an index (x, y, z) lies, in mm."""
        return np.array(self.origin) + np.reshape(self.direction, (3, 3)) @ (np.array(index) * self.spacing)

    def index(self, point: Sequence[float]) -> np.ndarray:
        """The index (x, y, z) of a point in mm; not rounded."""
        return np.linalg.solve(np.reshape(self.direction, (3, 3)), np.subtract(point, self.origin)) / self.spacing

    def image(self, voxels: np.ndarray) -> sitk.Image:
        """An image on this grid.

        Args:
            voxels: (z, y, x), copied; bool becomes uint8.
        """
        image = sitk.GetImageFromArray(voxels.astype(np.uint8) if voxels.dtype == bool else voxels)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def check_grid(name: object, grid: Grid, max_voxels: int) -> None:
    """Check that a header describes a volume that can be, and be held in memory.

    Args:
        name: of the file, for the message.
        grid: what its header says.
        max_voxels: most voxels that are read.

    Raises:
        VolumeError: naming what is impossible or too large.
    """
    if len(grid.size) != 3 or min(grid.size) < 2:
        raise VolumeError(f"{name}: has the size {grid.size}; expected one volume of several slices")
    if np.prod(grid.size, dtype=float) > max_voxels:
        raise VolumeError(
            f"{name}: has {'x'.join(map(str, grid.size))} voxels, more than {max_voxels}; if that is right, allow it "
            "with --max-voxels"
        )
    if not np.isfinite([*grid.spacing, *grid.origin, *grid.direction]).all():
        raise VolumeError(f"{name}: its spacing, origin or direction is not finite; repair the header")
    if not all(_SPACING_MM[0] <= spacing <= _SPACING_MM[1] for spacing in grid.spacing):
        raise VolumeError(f"{name}: its spacing {rounded(grid.spacing)} cannot be in mm; repair the header")
    if max(map(abs, grid.origin)) > _FARTHEST_MM:
        raise VolumeError(f"{name}: its origin {rounded(grid.origin)} cannot be in mm; repair the header")
    direction = np.reshape(grid.direction, (3, 3))
    if not np.allclose(direction.T @ direction, np.eye(3), rtol=0, atol=ORTHONORMAL):
        raise VolumeError(
            f"{name}: its axes {rounded(grid.direction)} are not at right angles; resample it onto a straight grid"
        )


def rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    """Numbers short enough for a message."""
    return tuple(round(value, 4) for value in values)
