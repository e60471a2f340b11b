"""Finds lung that is cut by the edge of the image.

Such lung is open to the edge in axial slices, as the air around the body is. Free air is darker; foam and blankets
hold no vessels; and the couch lies behind the body, so that air at the back edge of the image never counts as lung.
What looks like lung there is found, too, so that it can be named.
"""

import numpy as np
from scipy import ndimage

PADDING_HU = -1024.0  # constant outside a round field of view, after clipping
PADDING_MM = 8.0  # width of the narrowest padding
FREE_AIR_BELOW_HU = -940.0  # or FREE_AIR_HU above the darkest voxels, as HU may be estimated
FREE_AIR_HU = 60.0
DARKEST = 0.5  # percentile
FREE_AIR_SHARE = 0.4  # of lung may be as dark as free air (emphysema)
VESSEL_ABOVE_HU = -700.0
VESSEL_SHARE = 0.01  # of lung is vessels, at least
BACK_SHARE = 0.35  # of the cut may lie at the back edge
RIM_MM = 5.0  # partial volume along the border of air
MIN_AREA_MM2 = 300.0

Array = np.ndarray


def find_cut_lung(hu: Array, body: Array, spacing: Array) -> tuple[Array, Array]:
    """Find lung, with its vessels, that is open to the edge of the image or of a round field of view.

    Arrays are (z, y, x) in LPS order: HU, not below -1024, and the tissue of the body with all that it encloses in an
    axial slice. The spacing is (z, y, x) in mm. Returns two masks outside of the body: lung that is open to the front
    or a side, and what looks like lung but is open to the back.
    """
    found, behind = np.zeros(body.shape, bool), np.zeros(body.shape, bool)
    back = _back(body.shape[1:])
    rim = np.ones(2 * np.maximum(1, np.rint(RIM_MM / spacing[1:])).astype(int) + 1)
    free_air = max(FREE_AIR_BELOW_HU, np.percentile(hu, DARKEST) + FREE_AIR_HU)
    for k, plane in enumerate(hu):
        if body[k].any():
            found[k], behind[k] = _open_lung(plane, body[k], back, rim, spacing, free_air)
    return _with_vessels(found, hu, rim), _with_vessels(behind, hu, rim)


def _with_vessels(found: Array, hu: Array, rim: Array) -> Array:
    """The components that hold as many vessels as lung does."""
    interior = ndimage.binary_erosion(found, rim[None])
    labels, count = ndimage.label(found)
    inside = np.bincount(labels[interior], minlength=count + 1)
    vessels = np.bincount(labels[interior & (hu > VESSEL_ABOVE_HU)], minlength=count + 1)
    accepted = (inside > 0) & (vessels >= VESSEL_SHARE * inside)
    accepted[0] = False
    return accepted[labels]


def _padding(hu: Array, spacing: Array) -> Array:
    """What surrounds a round field of view: constant, wide somewhere, and reaching the corners of the image."""
    width = np.maximum(2, np.ceil(PADDING_MM / spacing[1:])).astype(int)
    constant = hu <= PADDING_HU
    wide = ndimage.binary_opening(np.pad(constant, [(n, n) for n in width], mode="edge"), np.ones(width))
    return ndimage.binary_propagation(wide[width[0] : -width[0], width[1] : -width[1]], mask=constant)


def _back(shape: tuple[int, ...]) -> Array:
    """The quadrant of a slice behind its centre."""
    y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    return y >= np.abs(x)


def _open_lung(hu: Array, body: Array, back: Array, rim: Array, spacing: Array, free_air: float) -> tuple[Array, Array]:
    """What looks like lung in one slice and is open to the edge: to the front or a side, and to the back."""
    found, at_back = np.zeros(body.shape, bool), np.zeros(body.shape, bool)
    padding = _padding(hu, spacing) & ~body
    edge = ndimage.binary_dilation(padding, border_value=1)
    labels, count = ndimage.label(~body & ~padding)
    area = np.bincount(labels.ravel(), minlength=count + 1)
    cut = np.bincount(labels[edge], minlength=count + 1)
    behind = np.bincount(labels[edge & back], minlength=count + 1)
    large = area * spacing[1] * spacing[2] >= MIN_AREA_MM2
    for part in 1 + np.flatnonzero((large & (cut > 0))[1:]):
        air = labels == part
        inside = hu[ndimage.binary_erosion(air, rim, border_value=1)]
        if inside.size and (inside < free_air).mean() < FREE_AIR_SHARE:
            (found if behind[part] <= BACK_SHARE * cut[part] else at_back)[air] = True
    return found, at_back
