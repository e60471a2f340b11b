"""Voxel grids in the anatomical frame, correlated random fields, implicit shapes, and trees of tapering tubes.

The anatomical frame has x to the patient's left, y to the back, z to the head; z = 0 is the top of the right diaphragm
dome. Scans are slightly rotated and gently warped against it. An implicit shape is an approximate distance in mm,
negative inside.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Array = np.ndarray
Box = tuple[slice, slice, slice]

HALF_LENGTH_TO_SIGMA = 1 / (2 * np.sqrt(np.log(2)))
"""Sigma of the Gaussian that gives white noise an autocorrelation of one half at distance 1."""

WARP_KNOT, WARP_SD = 70.0, 4.0
"""Scale and SD of the warp, in mm."""

_TINY = 1e-6


@dataclass(frozen=True)
class Frame:
    """Anatomical coordinates of a voxel grid; x, y and z of every voxel centre in mm, float32 (z, y, x)."""

    spacing: tuple[float, float, float]  # of the voxels in mm, (x, y, z)
    x: Array
    y: Array
    z: Array
    centre: Array  # scan position of the anatomical origin, (x, y, z) in mm from the first voxel
    rotation: Array  # (2, 2), from the scan to the anatomical frame in the axial plane
    pitch: float | None = None  # of the points that sample tubes, in mm; None for 0.6 of the smallest voxel side

    def box(self, centre: tuple[float, float, float], reach: float) -> Box:
        """Slices of the voxels within ``reach`` mm of an anatomical point, plus a margin for the warp."""
        middle, reach = self.to_scan(np.asarray([centre], float))[0], reach + 2 * WARP_SD
        return tuple(
            slice(max(0, int((m - reach) / s)), max(0, int((m + reach) / s) + 2))
            for m, s in zip(middle[::-1], self.spacing[::-1], strict=True)
        )

    def strip(self, half_width: float) -> Box:
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
        offset = scan - np.stack((i, j, k), 1) * self.spacing
        offset[:, :2] = offset[:, :2] @ self.rotation.T
        error -= offset
        error[:, :2] = error[:, :2] @ self.rotation
        return scan + error * inside[:, None]


def spline_weights(at: Array, knots: int) -> Array:
    """Cubic B-spline weights, (len(at), knots), at positions in units of the knot distance; float32."""
    u = np.abs(at[:, None] - np.arange(knots))
    near, far = 2 / 3 - u**2 + u**3 / 2, np.maximum(2 - u, 0) ** 3 / 6
    return np.where(u < 1, near, far).astype(np.float32)


def spline_field(coefficients: Array, weights: list[Array]) -> Array:
    """Evaluate a tensor-product spline, scaled to roughly unit SD for coefficients of unit SD.

    Coefficients are (knots z, knots y, knots x), weights those of the samples along z, y and x, see `spline_weights`.
    """
    field = coefficients
    for matrix in weights:  # contracts the first axis and appends the new one, so the order is restored
        field = np.tensordot(field, matrix, axes=(0, 1))
    return field / 0.33  # SD of the tensor product of cubic B-splines, averaged over positions


def smooth_field(rng: np.random.Generator, shape: tuple, spacing: tuple, knot: float) -> Array:
    """Draw a smooth random field, float32 (z, y, x), of roughly unit SD: a spline with knots every ``knot`` mm."""
    weights = []
    for count, step in zip(shape, spacing[::-1], strict=True):
        at = np.arange(count) * step / knot + 1.5
        weights.append(spline_weights(at, int(at[-1]) + 3))
    return spline_field(rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32), weights)


def filtered_noise(rng: np.random.Generator, shape: tuple, sigma: Array) -> Array:
    """Draw white noise, filter it with a Gaussian of ``sigma`` voxels (z, y, x) and scale it to unit SD; float32."""
    field = rng.standard_normal(shape, dtype=np.float32)
    ndimage.gaussian_filter(field, sigma, output=field, truncate=3)
    return field / max(float(field.std()), _TINY)


def distance_inside(mask: Array, spacing: Array) -> Array:
    """Distance in mm, with ``spacing`` (z, y, x), from the voxels of a mask to its border; the image's is one, too."""
    return ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]


def ellipse(x: Array, y: Array, a: Array, b: Array, power: float = 2.0) -> Array:
    """A superellipse with half-axes ``a`` and ``b``: distance along the ray to the centre."""
    if power == 2:
        rho = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    else:
        rho = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / (rho + _TINY))


def ellipsoid(x: Array, y: Array, z: Array, axes: tuple[float, float, float]) -> Array:
    """An ellipsoid at the origin with half-axes ``axes``."""
    rho = np.sqrt((x / axes[0]) ** 2 + (y / axes[1]) ** 2 + (z / axes[2]) ** 2)
    return np.sqrt(x * x + y * y + z * z) * (1 - 1 / (rho + _TINY))


def intersect(a: Array, b: Array, round_mm: float = 5.0) -> Array:
    """Intersection of two shapes with a rounded edge."""
    return 0.5 * (a + b + np.sqrt((a - b) ** 2 + round_mm**2))


def smooth_step(x: Array, low: float, high: float) -> Array:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def paint(hu: Array, distance: Array, value: Array | float, width: float) -> None:
    """Blend HU into ``hu`` inside a shape, in place; ``width`` in mm is that of the partial volume at its border."""
    hu += np.clip(0.5 - distance / width, 0, 1) * (value - hu)


def fill_tubes(frame: Frame, start: Array, end: Array, r_start: Array, r_end: Array) -> Array:
    """Fraction (0..1, float32) of every voxel that is covered by straight tapering tubes.

    Points are distributed evenly in the tubes, and each adds its share of the tube's volume to its voxel, so tubes much
    thinner than a voxel get the correct partial volume. Start and end points (n, 3) are scan positions (x, y, z) in mm;
    the radii there, (n,), are in mm.
    """
    pitch = frame.pitch or 0.6 * min(frame.spacing)
    axis = end - start
    length = np.linalg.norm(axis, axis=1) + _TINY
    axis /= length[:, None]
    side = np.cross(axis, np.where(np.abs(axis[:, :1]) < 0.7, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    side /= np.linalg.norm(side, axis=1)[:, None]
    rings = np.maximum(1, np.ceil(length / pitch)).astype(int)
    tube = np.repeat(np.arange(len(length)), rings)
    along = (np.arange(len(tube)) - np.repeat(np.cumsum(rings) - rings, rings) + 0.5) / rings[tube]
    radius = r_start[tube] + along * (r_end - r_start)[tube]
    dots = np.maximum(1, np.ceil(np.pi * radius**2 / pitch**2)).astype(int)
    ring = np.repeat(np.arange(len(tube)), dots)
    number = np.arange(len(ring)) - np.repeat(np.cumsum(dots) - dots, dots)
    # A sunflower pattern covers a disc evenly; rotating it from ring to ring avoids columns of points.
    out = radius[ring] * np.sqrt((number + 0.5) / dots[ring])
    angle = number * 2.39996 + ring
    up = np.cross(axis, side)
    tube_of = tube[ring]
    points = start[tube_of] + (along * length[tube])[ring][:, None] * axis[tube_of]
    points += (out * np.cos(angle))[:, None] * side[tube_of] + (out * np.sin(angle))[:, None] * up[tube_of]
    weight = (length / rings)[tube_of] * (np.pi * radius**2 / dots)[ring] / np.prod(frame.spacing)
    index = np.rint(points / frame.spacing)[:, ::-1].astype(int)
    shape = frame.x.shape
    keep = ((index >= 0) & (index < shape)).all(1)
    filled = np.zeros(shape, np.float32)
    if keep.any():  # only the box around the tubes is touched
        index = index[keep]
        first = index.min(0)
        box = index.max(0) - first + 1
        part = np.zeros(np.prod(box), np.float32)
        np.add.at(part, np.ravel_multi_index((index - first).T, box), weight[keep].astype(np.float32))
        where = tuple(slice(a, a + n) for a, n in zip(first, box, strict=True))
        filled[where] = np.minimum(part, 1).reshape(box)
    return filled


def fill_paths(frame: Frame, paths: list[tuple[list, list | float]], grow: float = 0.0) -> Array:
    """Voxel fractions of tubes, each given as anatomical points (x, y, z) and radii in mm, which ``grow`` widens."""
    filled = np.zeros(frame.x.shape, np.float32)
    for points, radii in paths:
        scan = frame.to_scan(np.asarray(points, float))
        wide = np.broadcast_to(np.asarray(radii, float), len(scan)) + grow
        np.maximum(filled, fill_tubes(frame, scan[:-1], scan[1:], wide[:-1], wide[1:]), out=filled)
    return filled


def grow_tree(rng: np.random.Generator, root: Array, targets: Array, leaf: int = 1) -> tuple[Array, Array, Array]:
    """Grow a tree from ``root`` to every target by recursively splitting the targets in two.

    Positions are (x, y, z) in the scan in mm, targets (n, 3); up to ``leaf`` are reached from one point, without more
    splits. Returns start points (m, 3), end points (m, 3) and number of downstream targets (m,) of the branches.
    """
    starts, ends, counts = [], [], []
    todo = [(root, targets)]
    while todo:
        at, goals = todo.pop()
        if 1 < len(goals) <= leaf:
            starts += [at] * len(goals)
            ends += list(goals)
            counts += [1] * len(goals)
            continue
        heading = goals.mean(0) - at
        share = 1.0 if len(goals) == 1 else rng.uniform(0.25, 0.5)
        stop = at + share * heading
        if len(goals) > 1:
            stop = stop + rng.normal(0, 0.07 * np.linalg.norm(heading), 3)
            spread = goals - goals.mean(0)
            along = spread @ np.linalg.eigh(spread.T @ spread)[1][:, -1]
            order, cut = np.argsort(along), int(np.ceil(len(goals) * rng.uniform(0.25, 0.75)))
            cut = min(max(cut, 1), len(goals) - 1)
            todo += [(stop, goals[order[:cut]]), (stop, goals[order[cut:]])]
        starts.append(at)
        ends.append(stop)
        counts.append(len(goals))
    return np.array(starts), np.array(ends), np.array(counts, float)
