"""Tells gas in stomach and bowel from air in the lungs.

A threshold joins the two where the dome of the diaphragm is only a voxel or two thick. Emphysema, bullae and
pneumothorax are as dark as the gas, so density alone cannot decide. Gut gas is a region of some millilitres that

1. has the density of free air throughout,
2. stays below the upper part of the lungs and has no lung below it,
3. is separated from the lung by a wall: on the way to the lung the CT rises well above lung nearly everywhere.
   The septum of a bulla is too thin for that.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

FREE_AIR_HU = -1000.0
FREE_AIR_RANGE_HU = (-1024.0, -950.0)  # plausible in a trachea
GAS_MARGIN_HU = 80.0  # gas is at most this much denser than free air, after smoothing
SMOOTHING_MM = 2.0
CORE_MM = 4.0  # half the width of the narrowest gas that is looked at
MIN_GAS_ML = 5.0
LUNG_BASE_SHARE = 0.1  # of the lungs' volume lies below their base; bowel contents may be counted among it
HIGHEST_PART = 0.6  # gut gas stays below this part of the height from the base to the top of the lungs
LUNG_BELOW_SHARE = 0.3  # of the columns through gut gas may have lung below
RIM_MM = 6.0  # air within this distance of gas may be partial volume of the gas
LUNG_REACH_MM = 14.0  # a surface faces the lung if that is within this distance
WALL_REACH_MM = 10.0  # and has a wall if, within this distance,
WALL_ABOVE_HU = -650.0  # the CT rises above this value; a thin wall is blurred
WALL_CONTRAST_HU = 150.0  # and above the lung behind it by this much
OPEN_SHARE = 0.35  # of the surface towards the lung may have no wall

Array = np.ndarray
Box = tuple[slice, slice, slice]


def find_gut_gas(hu: Array, air: Array, airway: Array, spacing: Array) -> Array:
    """Find gas in stomach and bowel: the part of the air that is gut gas, up to the crest of the wall to the lung.

    Arrays are (z, y, x) in LPS order on a grid of about 2 mm: HU, air inside the body, trachea and main bronchi. The
    spacing is (z, y, x) in mm.
    """
    found = np.zeros(air.shape, bool)
    air = air & ~airway
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), SMOOTHING_MM / spacing, truncate=2.5)
    gas = air & (smooth < _free_air(hu, airway, spacing) + GAS_MARGIN_HU)
    lung = air & ~ndimage.binary_dilation(gas, iterations=int(np.ceil(RIM_MM / spacing.min())))
    if not lung.any():
        return found
    highest = _highest_gut_gas(lung)
    for core, box in _cores(gas, highest, spacing):
        if _lung_below(core, lung[: box[0].stop, box[1], box[2]]):
            continue
        if _open_share(core, hu[box], air[box], spacing) < OPEN_SHARE:
            found[box] |= _up_to_the_wall(core, hu[box], air[box], spacing)
    return found


def _free_air(hu: Array, airway: Array, spacing: Array) -> float:
    """HU of free air in this CT, measured in the trachea."""
    lumen = ndimage.binary_erosion(airway, np.ones((1, 3, 3)), iterations=2)
    if lumen.sum() * np.prod(spacing) < 500:
        return FREE_AIR_HU
    return float(np.clip(np.median(hu[lumen]), *FREE_AIR_RANGE_HU))


def _highest_gut_gas(lung: Array) -> float:
    """The slice above which gas is not in the gut, from the distribution of the lung's volume over the slices."""
    below = np.cumsum(lung.sum((1, 2)))
    base, top = np.searchsorted(below, [LUNG_BASE_SHARE * below[-1], 0.99 * below[-1]])
    return base + HIGHEST_PART * (top - base)


def _cores(gas: Array, highest: float, spacing: Array) -> Iterator[tuple[Array, Box]]:
    """Pieces of gas, at least twice ``CORE_MM`` wide and not above ``highest``, as masks in boxes with a margin."""
    margin = np.ceil((LUNG_REACH_MM + RIM_MM) / spacing).astype(int)
    smallest = MIN_GAS_ML * 1000 / np.prod(spacing)
    labels, _ = ndimage.label(gas)
    sizes = np.bincount(labels.ravel())
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if sizes[number] < smallest or box[0].stop - 1 > highest:
            continue
        box = tuple(
            slice(max(0, b.start - m), min(b.stop + m, n)) for b, m, n in zip(box, margin, gas.shape, strict=True)
        )
        part = labels[box] == number
        seeds, count = ndimage.label(ndimage.distance_transform_edt(part, sampling=spacing) > CORE_MM)
        if count == 0:
            continue
        distance, nearest = ndimage.distance_transform_edt(seeds == 0, sampling=spacing, return_indices=True)
        pieces = np.where(part & (distance <= CORE_MM + spacing.max()), seeds[tuple(nearest)], 0)
        for piece in 1 + np.flatnonzero(np.bincount(pieces.ravel(), minlength=count + 1)[1:] >= smallest):
            yield pieces == piece, box


def _lung_below(core: Array, lung: Array) -> bool:
    """Whether ``lung``, from the bottom of the scan to the top of the gas, lies below many of the gas's columns."""
    columns = core.any(0)
    bottom = len(lung) - len(core) + core.argmax(0)
    below = np.take_along_axis(np.cumsum(lung, axis=0), bottom[None], 0)[0]
    return bool((below[columns] > 0).mean() > LUNG_BELOW_SHARE)


def _open_share(core: Array, hu: Array, air: Array, spacing: Array) -> float:
    """Share of the gas's surface towards the lung that has no wall; 0 for gas that is far from any lung."""
    distance, nearest = ndimage.distance_transform_edt(~core, sampling=spacing, return_indices=True)

    def surface(of: Array) -> Array:
        return np.ravel_multi_index(tuple(axis[of] for axis in nearest), core.shape)

    shell = (distance > 0) & (distance <= WALL_REACH_MM)
    highest = np.full(core.size, -np.inf)
    np.maximum.at(highest, surface(shell), hu[shell])
    beyond = air & (distance > RIM_MM) & (distance <= LUNG_REACH_MM)
    if not beyond.any():
        return 0.0
    wall = max(WALL_ABOVE_HU, np.median(hu[beyond]) + WALL_CONTRAST_HU)
    return float((highest[np.unique(surface(beyond))] < wall).mean())


def _up_to_the_wall(core: Array, hu: Array, air: Array, spacing: Array) -> Array:
    """Grow the gas through the air around it; where lung is near, up to the crest of the wall between them."""
    from skimage.segmentation import watershed

    far = ndimage.distance_transform_edt(~core, sampling=spacing) > max(RIM_MM, 2 * spacing.max())
    markers = core.astype(np.uint8) + 2 * (air & far & ~core).astype(np.uint8)
    return watershed(hu, markers, mask=air) == 1
