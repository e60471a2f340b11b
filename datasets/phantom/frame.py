"""The voxel grid of a synthetic scan, in the anatomical frame.

The anatomical frame has x to the patient's left, y to the back, z to the head; z = 0 is the top of the right diaphragm
dome. Scans are slightly rotated and gently warped against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.phantom.anatomy import Anatomy
from datasets.phantom.fields import smooth_field

Array = np.ndarray

WARP_KNOT, WARP_SD = 70.0, 4.0
"""Scale and SD of the warp, in mm."""


@dataclass(frozen=True)
class Frame:
    """Anatomical coordinates of a voxel grid.

    Attributes:
        spacing: voxel size in mm, (x, y, z).
        x: anatomical x of every voxel centre in mm, float32 (z, y, x); likewise `y` and `z`.
        y: see `x`.
        z: see `x`.
        centre: scan position of the anatomical origin, (x, y, z) in mm from the first voxel.
        rotation: (2, 2), from the scan to the anatomical frame in the axial plane.
        pitch: distance in mm of the points that sample tubes; None for 0.6 of the smallest voxel side.
    """

    spacing: tuple[float, float, float]
    x: Array
    y: Array
    z: Array
    centre: Array
    rotation: Array
    pitch: float | None = None

    def box(self, centre: tuple[float, float, float], reach: float) -> tuple[slice, slice, slice]:
        """Slices of the voxels within ``reach`` mm of an anatomical point, plus a margin for the warp."""
        middle, reach = self.to_scan(np.asarray([centre], float))[0], reach + 2 * WARP_SD
        return tuple(
            slice(max(0, int((m - reach) / s)), max(0, int((m + reach) / s) + 2))
            for m, s in zip(middle[::-1], self.spacing[::-1], strict=True)
        )

    def strip(self, half_width: float) -> tuple[slice, slice, slice]:
        """Slices of the sagittal planes within ``half_width`` mm of the body's midplane."""
        planes = np.flatnonzero((np.abs(self.x[::4, ::4]) < half_width).any((0, 1)))
        return slice(None), slice(None), slice(planes[0], planes[-1] + 1)

    def to_scan(self, points: Array) -> Array:
        """Map anatomical points to scan positions in mm from the first voxel; both (n, 3) as (x, y, z)."""
        scan = np.array(points, float)
        scan[:, :2] = scan[:, :2] @ self.rotation
        scan += self.centre
        # One step of fixed-point iteration inverts the slowly varying warp to well below a millimetre.
        last = np.array(self.x.shape) - 1
        k, j, i = np.clip(np.rint(scan / self.spacing)[:, ::-1].astype(int), 0, last).T
        inside = ((scan >= 0) & (scan / self.spacing <= last[::-1])).all(1)
        error = points - np.stack([self.x[k, j, i], self.y[k, j, i], self.z[k, j, i]], 1)
        error -= self._offset(scan, (k, j, i))
        error[:, :2] = error[:, :2] @ self.rotation
        return scan + error * inside[:, None]

    def _offset(self, scan: Array, index: tuple[Array, Array, Array]) -> Array:
        """Anatomical vector from the centres of the voxels ``index`` (z, y, x) to the scan positions."""
        offset = scan - np.stack(index[::-1], 1) * self.spacing
        offset[:, :2] = offset[:, :2] @ self.rotation.T
        return offset


def draw_frame(rng: np.random.Generator, size: tuple[int, int, int], body: Anatomy) -> Frame:
    """Draw field of view, position, rotation and warp of a scan.

    Args:
        rng: random generator.
        size: matrix, (z, y, x).
        body: anatomy, which the field of view covers.
    """
    view = float(np.clip(2 * (body.half_width + body.wall) + rng.uniform(-10, 30), 300, 380))
    cover = float(np.clip((body.height + 70) * rng.uniform(1.0, 1.18), 240, 320))
    nz, ny, nx = size
    spacing = (view / nx, view / ny, cover / nz)
    # The lungs extend from about -70 mm to the apex; the couch lies at the lower edge of the field of view.
    middle = 0.5 * (body.height - 68) + rng.uniform(-6, 6)
    centre = np.array([view / 2 + rng.uniform(-8, 8), view / 2 + rng.uniform(-22, -2), cover / 2 - middle])
    angle = np.deg2rad(rng.normal(0, 2.5))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    axes = [np.arange(n, dtype=np.float32) * s for n, s in zip(size, spacing[::-1], strict=True)]
    z, y, x = np.meshgrid(*(a - c for a, c in zip(axes, centre[::-1], strict=True)), indexing="ij", sparse=True)
    turned = (rotation[0, 0] * x + rotation[0, 1] * y, rotation[1, 0] * x + rotation[1, 1] * y, z)
    warped = [(axis + WARP_SD * smooth_field(rng, size, spacing, WARP_KNOT)).astype(np.float32) for axis in turned]
    return Frame(spacing, *warped, centre, rotation)
