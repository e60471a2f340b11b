"""The steps of lungmask around its network: each slice to the network's input, and its labels to those of the CT.

They give what lungmask 0.2.22 gives, voxel for voxel, in a fraction of its time and memory.
"""

from functools import cache

import fill_voids
import numpy as np
import skimage
from scipy import ndimage

SIZE = 256
"""Rows and columns of the network's input."""

LOWEST_HU, HIGHEST_HU = -1024, 600
BODY_ABOVE_HU = -500
BODY_SIZE = 128
SMALLEST_MOVED = 3
"""Smaller components do not go to the lung that they touch; they are removed."""

Array = np.ndarray
Box = tuple[slice, ...]


@cache
def _nearest(size: int, wanted: int) -> Array:
    """Which of `size` samples `ndimage.zoom` takes for each of `wanted`; -1 where rounding leaves it without one."""
    return ndimage.zoom(np.arange(1.0, size + 1), wanted / size, order=0).astype(int) - 1


def resize_nearest(plane: Array, shape: tuple[int, int]) -> Array:
    """As `ndimage.zoom` of order 0, to a shape."""
    rows, columns = (_nearest(n, m) for n, m in zip(plane.shape, shape, strict=True))
    found = plane[rows[:, None], columns]
    found[rows < 0] = 0
    found[:, columns < 0] = 0
    return found


def _resize_linear(plane: Array) -> Array:
    """As `ndimage.zoom` of order 1, to `SIZE`: the same products of float64, added in the same order."""
    steps = [np.arange(SIZE) * ((n - 1) / (SIZE - 1)) for n in plane.shape]
    (row, column), last = [np.floor(at).astype(int) for at in steps], [n - 1 for n in plane.shape]
    below, right = steps[0][:, None] - row[:, None], steps[1] - column
    found = np.zeros((SIZE, SIZE))
    for rows, weight in ((row, 1 - below), (np.minimum(row + 1, last[0]), below)):
        weighted = plane[rows] * weight
        found += weighted[:, column] * (1 - right)
        found += weighted[:, np.minimum(column + 1, last[1])] * right
    found[steps[0] > last[0]] = 0
    found[:, steps[1] > last[1]] = 0
    if plane.dtype.kind == "f":
        return found.astype(plane.dtype)
    return np.trunc(found + np.copysign(0.5, found)).astype(plane.dtype)


def _body_box(plane: Array) -> Box:
    """The box around the body in a slice, or the whole slice if it shows none."""
    body = ndimage.binary_closing(resize_nearest(plane, (BODY_SIZE, BODY_SIZE)) > BODY_ABOVE_HU)
    outside, _ = ndimage.label(np.pad(~body, 1, constant_values=True), np.ones((3, 3)))
    body = ndimage.binary_erosion(outside[1:-1, 1:-1] != outside[0, 0], iterations=2)
    parts = skimage.measure.label(body, connectivity=1)
    if parts.any():
        body = ndimage.binary_dilation(parts == 1 + np.argmax(np.bincount(parts.flat)[1:]), iterations=2)
    body = resize_nearest(body, plane.shape)
    if min(plane.shape) < 2 * BODY_SIZE:  # lines of the small mask may be left out, and the body fall apart
        body = skimage.measure.label(body) == 1
    lines = [np.flatnonzero(body.any(axis)) for axis in (1, 0)]
    return tuple(slice(at[0], at[-1] + 1) for at in lines) if len(lines[0]) else (slice(None), slice(None))


def prepare_slice(plane: Array) -> tuple[Array, Box]:
    """The network's input for an axial slice.

    Args:
        plane: HU (y, x), of a signed type.

    Returns:
        float32 (SIZE, SIZE), 0 to 1, and the box in the slice that it shows.
    """
    plane = np.clip(plane, LOWEST_HU, HIGHEST_HU)
    box = _body_box(plane)
    resized = np.minimum(_resize_linear(plane[box]), HIGHEST_HU)
    return ((resized - LOWEST_HU) / (HIGHEST_HU - LOWEST_HU)).astype(np.float32), box


def clean(labels: Array) -> Array:
    """Give components to the neighbours that they share most border with, keep the largest of each label, fill it.

    Args:
        labels: uint8 (z, y, x).

    Returns:
        uint8, of the same shape.
    """
    cleaned = np.zeros(labels.shape, np.uint8)
    if not labels.any():
        return cleaned
    inside = _box(labels > 0)
    parts = skimage.measure.label(labels[inside])
    kept = _merge(parts, labels[inside])[parts]
    for label in np.unique(kept[kept > 0]):
        mask = np.zeros(labels.shape, bool)
        mask[inside] = _largest(kept == label)
        cleaned[_fill(mask)] = label
    return cleaned


def _merge(parts: Array, labels: Array) -> Array:
    """Merge components, the smallest first, changing `parts`; returns the label of each, 0 if it is removed."""
    boxes, areas = ndimage.find_objects(parts), np.bincount(parts.flat)
    label_of = np.zeros(len(areas), np.uint8)
    label_of[parts] = labels
    order = np.argsort(areas[1:], kind="stable") + 1
    largest, kept = np.zeros(256, int), np.zeros_like(label_of)
    for part in order:
        if areas[part] > largest[label_of[part]]:
            largest[label_of[part]], kept[part] = areas[part], label_of[part]
    for part in order:
        if not SMALLEST_MOVED <= areas[part] < largest[label_of[part]]:
            continue
        around = parts[tuple(slice(max(0, b.start - 1), b.stop + 1) for b in boxes[part - 1])]
        mask = around == part
        others, counts = np.unique(around[ndimage.binary_dilation(mask)], return_counts=True)
        counts[(others == 0) | (others == part)] = 0
        if not counts.any():
            continue
        neighbour = others[counts.argmax()]
        around[mask] = neighbour
        both = zip(boxes[part - 1], boxes[neighbour - 1], strict=True)
        boxes[neighbour - 1] = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in both)
        if areas[neighbour] == largest[label_of[neighbour]]:
            largest[label_of[neighbour]] += areas[part]
        areas[neighbour] += areas[part]
    return kept


def _box(mask: Array) -> Box:
    return ndimage.find_objects(mask.view(np.uint8))[0]


def _largest(mask: Array) -> Array:
    """The largest component of a mask that has one."""
    box = _box(mask)
    parts = skimage.measure.label(mask[box])
    largest = np.zeros_like(mask)
    # lungmask's way of choosing among components of one size
    largest[box] = parts == np.argsort(np.bincount(parts.flat)[1:].astype(float))[-1] + 1
    return largest


def _fill(mask: Array) -> Array:
    """Fill holes; what fill_voids takes for one depends on the edges of the array."""
    if len(mask) > 1:
        return fill_voids.fill(mask)
    closed = skimage.morphology.area_closing(mask[0], area_threshold=64)
    return (closed & ndimage.binary_fill_holes(mask[0]))[None]
