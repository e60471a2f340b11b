"""Checks of a scan with its lungs and lesion: what cannot be is refused, what is rarely meant is warned of.

Each check takes the name of what it checks, and raises a VolumeError or logs a warning. Arrays are (z, y, x) in LPS
order: x to the patient's left, y to the back, z to the head. Spacings are (z, y, x) in mm.
"""

import logging
from collections.abc import Collection, Sequence

import cv2
import numpy as np

from utils.errors import VolumeError

log = logging.getLogger(__name__)

MOST_LUNG_ML = 12_000
"""Larger lungs come from a wrong spacing: the total lung capacity of the tallest adults is 9 to 10 l."""

ACROSS = 0.25
"""Share of a lung that may lie on the other lung's side of the middle between both."""

OUTSIDE_WARNED, OUTSIDE_REFUSED = 0.2, 0.8
"""Shares of a lesion outside of the lungs."""

ALL_LUNG = 0.95
"""A lesion of this share of the lungs is their mask."""

CONSTANT = 0.5
"""Share of one value around the lungs: the CT was erased there."""

GAS_HU = (-1200, -300)
"""Lung that holds gas, noise included."""

GAS_WARNED, GAS_REFUSED = 0.8, 0.1
"""Shares of such voxels in the lungs. The masks of 22 patients, COVID-19 and other pneumonia among them, have 0.93 to
0.99; turned upside down or front to back 0.54 to 0.84. A CT that is not in HU has none."""

END = 0.4
"""Share of the largest area of lungs in a slice; an end of this area cuts through them."""

_SHELL_MM = 10.0  # width of what surrounds the lungs
_SLICES = 32  # looked at, over the height of the lungs
_SEVERAL = 4  # slices
_GRADED_VALUES = 10  # so many values that pass into others: no labels


def label_sides(name: object, labels: np.ndarray) -> np.ndarray | None:
    """Right lung 1 and left lung 2 by where they lie, with a warning if the labels say otherwise.

    The labels include 1 and 2; higher ones belong to the side they lie in. Returns uint8 labels, 0 to 2; the same array
    if they are right, and None if they are no sides: lung and infection, or lobes, do not lie side by side.
    """
    columns = [np.bincount(np.nonzero(labels == side)[2], minlength=labels.shape[2]) for side in (1, 2)]
    places = np.arange(labels.shape[2])
    first, second = (float(column @ places / column.sum()) for column in columns)
    swapped, middle = first > second, (first + second) / 2
    shares_to_the_left = [column[places > middle].sum() / column.sum() for column in columns]
    if np.abs(np.subtract(shares_to_the_left, (1, 0) if swapped else (0, 1))).max() > ACROSS:
        log.warning("%s: labels 1 and 2 of the lung mask are not right and left; sides are told by shape", name)
        return None
    if swapped:
        log.warning("%s: label 1 of the lung mask lies to the left of label 2; sides follow the geometry", name)
    elif labels.max() <= 2:
        return labels
    sides = np.where(places <= middle, np.uint8(1), np.uint8(2)) * (labels > 2).astype(np.uint8)
    sides[labels == 1], sides[labels == 2] = (2, 1) if swapped else (1, 2)
    return sides


def check_label_values(name: object, values: np.ndarray) -> None:
    """Refuse an integer mask that holds a graded image, such as probabilities stored as 0..255.

    Labels are regions: inside them, neighbours are equal. A value is graded if most of its neighbours along x have
    other values above 0. Ten graded values are no labels.
    """
    count = np.count_nonzero(np.bincount(values.ravel(), minlength=256))
    if count <= _GRADED_VALUES:
        return
    left, right = values[..., :-1], values[..., 1:]
    touching = (left > 0) & (right > 0)
    pairs = np.bincount(left[touching], minlength=256)
    equal = np.bincount(left[touching & (left == right)], minlength=256)
    if ((pairs > 0) & (equal < 0.5 * pairs)).sum() >= _GRADED_VALUES:
        raise VolumeError(
            f"{name}: {count} values up to {values.max()} that pass into each other are no labels; are they "
            "probabilities? Cut them at a threshold and store 0 and 1"
        )


def check_lungs(
    name: object, ct: np.ndarray, lungs: np.ndarray, spacing: Sequence[float], accept_airless: bool = False
) -> None:
    """Check the lungs of a CT in HU; every label above 0 is lung, an empty mask passes.

    Refused are lungs that are too large, drawn in every n-th slice only, or that hold almost no gas (with
    `accept_airless`, a warning). Lungs of which much holds none, a mask that ends within the lungs, and a CT erased
    around them, are warned of.
    """
    areas = np.count_nonzero(lungs, axis=(1, 2))
    ml = areas.sum() * float(np.prod(spacing)) / 1000
    if ml > MOST_LUNG_ML:
        sizes = "x".join(f"{mm:.3g}" for mm in spacing)
        raise VolumeError(
            f"{name}: lungs of {ml / 1000:.1f} l are impossible; check the spacing of {sizes} mm (z, y, x)"
        )
    slices = np.flatnonzero(areas)
    if _lie_apart(slices):
        raise VolumeError(
            f"{name}: the lung mask has no two slices that are neighbours; draw the slices between them, too"
        )
    if len(slices):
        _check_ends(name, ct, lungs, areas)
        slices = np.unique(slices[np.linspace(0, len(slices) - 1, _SLICES).astype(int)])
        planes = [(ct[z], (lungs[z] > 0).astype(np.uint8)) for z in slices]
        _check_gas(name, np.concatenate([plane[lung > 0] for plane, lung in planes]), accept_airless)
        _check_surroundings(name, planes, spacing)


def _check_ends(name: object, ct: np.ndarray, lungs: np.ndarray, areas: np.ndarray) -> None:
    first, last = np.flatnonzero(areas)[[0, -1]]
    for end, beyond in ((first, first - 1), (last, last + 1)):
        cut = 0 <= beyond < len(ct) and areas[end] > END * areas.max()
        if cut and _gas_share(ct[beyond][lungs[end] > 0]) > GAS_WARNED:
            log.warning("%s: the lung mask ends at slice %d, and the lungs do not; is it complete?", name, end)


def _lie_apart(slices: np.ndarray) -> bool:
    """Whether no two of several slices with a label are neighbours: it was drawn in every n-th slice."""
    return len(slices) >= _SEVERAL and bool(np.diff(slices).min() > 1)


def _gas_share(values: np.ndarray) -> float:
    return np.count_nonzero((values >= GAS_HU[0]) & (values <= GAS_HU[1])) / len(values)


def _check_gas(name: object, values: np.ndarray, accept_airless: bool) -> None:
    share = _gas_share(values)
    text = (
        f"{name}: {share:.0%} of the lungs have {GAS_HU[0]} to {GAS_HU[1]} HU (median {np.median(values):.0f}); is the "
        "CT in HU? Is the lung mask flipped, shifted, or of another scan?"
    )
    if share < GAS_REFUSED and not accept_airless:
        raise VolumeError(f"{text} --airless-lungs keeps it")
    if share < GAS_WARNED:
        log.warning("%s", text)


def _check_surroundings(
    name: object, planes: Sequence[tuple[np.ndarray, np.ndarray]], spacing: Sequence[float]
) -> None:
    width, height = (2 * max(round(_SHELL_MM / mm), 1) + 1 for mm in (spacing[2], spacing[1]))
    kernel = np.ones((height, width), np.uint8)
    around = [plane[(cv2.dilate(lung, kernel) > 0) & (lung == 0)] for plane, lung in planes]
    values, counts = np.unique(np.concatenate(around), return_counts=True)
    if len(values) and (share := counts.max() / counts.sum()) > CONSTANT:
        log.warning(
            "%s: %.0f%% of what surrounds the lungs is %g HU: was the CT erased outside of them? Results on such a CT "
            "are not those of a whole one",
            *(name, 100 * share, values[counts.argmax()]),
        )


def check_lesion(
    name: object,
    lesion: np.ndarray,
    lungs: np.ndarray,
    labels: Collection[int] = (),
    accept_outside: bool = False,
) -> None:
    """Check where a lesion lies: in the lungs, and not all over them; every label above 0 counts, an empty mask passes.

    The message names the labels in the mask's file. `accept_outside` warns of a mask outside the lungs instead of
    refusing it.
    """
    voxels, inside = np.count_nonzero(lesion), np.count_nonzero((lesion > 0) & (lungs > 0))
    if not voxels:
        return
    if 255 in labels and len(labels) > 1:
        log.warning(
            "%s: label 255 counts as lesion, like the others; does it mark what is unknown? Then set it to 0", name
        )
    outside = (voxels - inside) / voxels
    text = (
        f"{name}: {outside:.0%} of the lesion mask lie outside the lungs. Lungs by thresholds lose consolidation; "
        "--lungs lungmask keeps it. Otherwise, is the mask flipped, or of another scan?"
    )
    if outside >= OUTSIDE_REFUSED and not accept_outside:
        raise VolumeError(f"{text} lungCrop.py --lesions-anywhere keeps it")
    if outside >= OUTSIDE_WARNED:
        log.warning("%s", text)
    if _lie_apart(np.flatnonzero(lesion.any((1, 2)))):
        log.warning(
            "%s: the lesion mask has no two slices that are neighbours; is it drawn in every n-th slice only?", name
        )
    share = inside / max(np.count_nonzero(lungs), 1)
    if share >= ALL_LUNG:
        which = f" (labels {', '.join(map(str, sorted(labels)))})" if labels else ""
        log.warning(
            "%s: the lesion mask%s covers %.0f%% of the lungs; is it the lungs' own? See --lesion-labels",
            *(name, which, 100 * share),
        )
