"""Geometry of volumes. A `sitk.Image` carries it; arrays are (z, y, x); coordinates are LPS, in mm.

LPS is the order of axes to which scans are turned before they are cropped: x to the patient's left, y to the back
(posterior), z to the head (superior).
"""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from datasets import MAX_VOXELS
from utils.errors import VolumeError

_SPACING_MM = (1e-3, 1e3)
"""Smallest and largest plausible spacing; others are in other units, or damaged."""

_FARTHEST_MM = 1e5
"""No scanner lies farther from its own origin."""

ORTHONORMAL = 1e-4
"""How far the products of direction cosines may be from 0 and 1."""

_SAME = 1e-3
"""Relative difference of spacings, absolute one of direction cosines, and shift of the origin in voxels times 10."""

WHOLE = 0.02
"""How far, in voxels, a mask of a part of a scan may lie from the scan's voxels."""

Box = tuple[slice, slice, slice]


def located(
    voxels: np.ndarray | sitk.Image, spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]
) -> sitk.Image:
    """An image of an array (copied; bool becomes uint8) with a geometry in the order (x, y, z)."""
    if not isinstance(voxels, sitk.Image):
        voxels = sitk.GetImageFromArray(voxels.astype(np.uint8) if voxels.dtype == bool else voxels)
    voxels.SetSpacing(spacing)
    voxels.SetOrigin(origin)
    voxels.SetDirection(direction)
    return voxels


def bounding_box(mask: np.ndarray) -> Box | None:
    """Slices of the smallest box around the non-zero voxels, or None if there are none."""
    outline = mask.any(0)
    if not outline.any():
        return None
    inside = [np.flatnonzero(line) for line in (mask.any((1, 2)), outline.any(1), outline.any(0))]
    return tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in inside)


def blank(
    size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]
) -> sitk.Image:
    """A geometry alone: an image of zeros (uint8)."""
    return located(sitk.Image([int(n) for n in size], sitk.sitkUInt8), spacing, origin, direction)


def image_like(reference: sitk.Image, voxels: np.ndarray) -> sitk.Image:
    """An image of an array (z, y, x) with the geometry of another image."""
    return located(voxels, reference.GetSpacing(), reference.GetOrigin(), reference.GetDirection())


def shape_of(image: sitk.Image) -> tuple[int, int, int]:
    """Size of an image in the order of arrays, (z, y, x)."""
    return image.GetSize()[::-1]


def voxel_ml(image: sitk.Image) -> float:
    """Volume of a voxel in ml."""
    return float(np.prod(image.GetSpacing())) / 1000


def orientation(image: sitk.Image) -> str:
    """The directions in which x, y and z increase, to the nearest axis of the patient, such as ``LPS``."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def lps_view(voxels: np.ndarray, image: sitk.Image) -> np.ndarray:
    """A view of an array on the geometry of an image, (z, y, x), with its axes in the order of LPS."""
    axes, against = _lps_axes(image)
    turned = voxels[tuple(slice(None, None, -1 if flipped else 1) for flipped in reversed(against))]
    return turned.transpose([2 - axis for axis in reversed(axes)])


def lps_geometry(image: sitk.Image) -> sitk.Image:
    """The geometry of `lps_view`, as an image of zeros (uint8)."""
    axes, against = _lps_axes(image)
    corner = [n - 1 if flipped else 0 for n, flipped in zip(image.GetSize(), against, strict=True)]
    direction = (np.reshape(image.GetDirection(), (3, 3)) * np.where(against, -1.0, 1.0))[:, axes]
    size, spacing = ([values[axis] for axis in axes] for values in (image.GetSize(), image.GetSpacing()))
    return blank(size, spacing, image.TransformIndexToPhysicalPoint(corner), direction.ravel().tolist())


def _lps_axes(image: sitk.Image) -> tuple[list[int], list[bool]]:
    """Which axes of an image run along x, y and z of LPS, either way; and of each axis, whether against it."""
    code = orientation(image)
    axes = [next(axis for axis, letter in enumerate(code) if letter in pair) for pair in ("LR", "PA", "SI")]
    return axes, [letter in "RAI" for letter in code]


def check_geometry(
    name: object,
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: Sequence[float],
    max_voxels: int = MAX_VOXELS,
) -> None:
    """Check that a header describes a plausible volume that fits in memory; all in the order (x, y, z).

    Raises:
        VolumeError: what is impossible or too large.
    """
    if len(size) != 3 or min(size) < 2:
        raise VolumeError(f"{name}: has the size {tuple(size)}; expected one volume of several slices")
    if np.prod(size, dtype=float) > max_voxels:
        found = f"has {'x'.join(map(str, size))} voxels, more than {max_voxels}"
        raise VolumeError(f"{name}: {found}; if that is right, allow it with --max-voxels")
    axes = np.reshape(direction, (3, 3))
    if not np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=ORTHONORMAL):  # NaN neither
        raise VolumeError(f"{name}: its axes {rounded(direction)} are not at right angles; resample it")
    # NaN is in no range.
    if not (
        all(_SPACING_MM[0] <= mm <= _SPACING_MM[1] for mm in spacing) and all(abs(mm) <= _FARTHEST_MM for mm in origin)
    ):
        raise VolumeError(
            f"{name}: its spacing {rounded(spacing)} or origin {rounded(origin)} cannot be in mm; repair the header"
        )


def check_same_geometry(name: object, image: sitk.Image, reference_name: object, reference: sitk.Image) -> None:
    """Check that two volumes have the same size, and the same geometry within a thousandth.

    Spacings may differ by 0.1 %, direction cosines by 0.001 and origins by a hundredth of the smallest spacing.

    Raises:
        VolumeError: naming both files and the first difference.
    """
    smallest = min(reference.GetSpacing())
    shift = 10 * _SAME * smallest
    for what, rtol, atol in (("Size", 0, 0), ("Spacing", _SAME, 0), ("Origin", 0, shift), ("Direction", 0, _SAME)):
        ours, theirs = (getattr(one, f"Get{what}")() for one in (image, reference))
        if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=rtol, atol=atol):
            raise VolumeError(
                f"{name}: its {what.lower()} {rounded(ours)} differs from {rounded(theirs)} of {reference_name}; use "
                "the mask that was drawn on this scan"
            )


def mask_onto(name: object, mask: sitk.Image, reference_name: object, reference: sitk.Image) -> np.ndarray:
    """The labels of a mask on the voxels of its scan, (z, y, x); a mask in another order of axes is turned.

    Raises:
        VolumeError: the mask does not lie on the same voxels; the error names both.
    """
    mask = _turned(mask, reference)
    check_same_geometry(name, mask, reference_name, reference)
    return sitk.GetArrayFromImage(mask)


def part_onto(name: object, mask: sitk.Image, reference_name: object, reference: sitk.Image) -> np.ndarray:
    """As `mask_onto`, for a mask that covers a part of its scan, or reaches beyond it where it is empty."""
    mask = _turned(mask, reference)
    first = reference.TransformPhysicalPointToContinuousIndex(mask.GetOrigin())
    start = np.rint(first).astype(int).tolist()
    if not (
        np.allclose(mask.GetSpacing(), reference.GetSpacing(), rtol=_SAME, atol=0)
        and np.allclose(mask.GetDirection(), reference.GetDirection(), atol=_SAME)
        and np.allclose(first, start, rtol=0, atol=WHOLE)
    ):
        raise VolumeError(
            f"{name}: its voxels (spacing {rounded(mask.GetSpacing())}, origin {rounded(mask.GetOrigin())}) are not "
            f"those of {reference_name} ({rounded(reference.GetSpacing())}, {rounded(reference.GetOrigin())}); export "
            "it in the geometry of the CT"
        )
    place = reference.GetSpacing(), reference.TransformIndexToPhysicalPoint(start), reference.GetDirection()
    mask = located(sitk.Image(mask), *place)  # so that each voxel lies exactly on one of the reference
    found = sitk.GetArrayFromImage(sitk.Resample(mask, reference, sitk.Transform(), sitk.sitkNearestNeighbor))
    if np.count_nonzero(found) < np.count_nonzero(sitk.GetArrayViewFromImage(mask)):
        raise VolumeError(f"{name}: segments lie outside {reference_name}; use the segmentation that was drawn on it")
    return found


def _turned(mask: sitk.Image, reference: sitk.Image) -> sitk.Image:
    code = orientation(reference)
    return mask if orientation(mask) == code else sitk.DICOMOrient(mask, code)


def rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers short enough for a message."""
    return tuple(round(value, 4) for value in values)
