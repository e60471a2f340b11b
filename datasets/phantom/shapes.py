"""Implicit functions (approximate distance in mm, negative inside) and trees of tapering tubes."""

from __future__ import annotations

import numpy as np

from datasets.phantom.frame import Frame

Array = np.ndarray

_TINY = 1e-6


def ellipse(x: Array, y: Array, a: Array, b: Array, power: float = 2.0) -> Array:
    """Distance in mm, along the ray to the centre, to a superellipse with half-axes ``a`` and ``b``."""
    if power == 2:
        rho = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    else:
        rho = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / (rho + _TINY))


def ellipsoid(x: Array, y: Array, z: Array, axes: tuple[float, float, float]) -> Array:
    """Approximate distance in mm to an ellipsoid at the origin with half-axes ``axes``."""
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
    """Blend ``value`` into ``hu`` inside a shape, in place.

    Args:
        hu: HU; changed in place.
        distance: implicit function of the shape, in mm.
        value: HU inside the shape.
        width: width in mm of the partial volume at its border.
    """
    hu += np.clip(0.5 - distance / width, 0, 1) * (value - hu)


def fill_tubes(frame: Frame, start: Array, end: Array, r_start: Array, r_end: Array) -> Array:
    """Fraction (0..1) of every voxel that is covered by straight tapering tubes.

    Points are distributed evenly in the tubes, and each adds its share of the tube's volume to its voxel, so tubes much
    thinner than a voxel get the correct partial volume.

    Args:
        frame: voxel grid.
        start: start points as scan positions (x, y, z) in mm, (n, 3).
        end: end points, (n, 3).
        r_start: radii in mm at the start points, (n,).
        r_end: radii at the end points, (n,).

    Returns:
        float32.
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


def fill_path(frame: Frame, points: list, radii: list | float, grow: float = 0.0) -> Array:
    """Voxel fractions of a tube through anatomical points.

    Args:
        frame: voxel grid.
        points: (x, y, z) in mm.
        radii: radius in mm at each point, or one for all.
        grow: mm added to the radii.
    """
    scan = frame.to_scan(np.asarray(points, float))
    radii = np.broadcast_to(np.asarray(radii, float), len(scan)) + grow
    return fill_tubes(frame, scan[:-1], scan[1:], radii[:-1], radii[1:])


def grow_tree(rng: np.random.Generator, root: Array, targets: Array, leaf: int = 1) -> tuple[Array, Array, Array]:
    """Grow a tree from ``root`` to every target by recursively splitting the targets in two.

    Args:
        rng: random generator.
        root: scan position (x, y, z) in mm.
        targets: scan positions, (n, 3).
        leaf: up to this many targets are reached from one point, without further splits.

    Returns:
        Start points (m, 3), end points (m, 3) and number of downstream targets (m,) of the branches.
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
