"""From a scan to a crop around its lungs, and from a crop back onto the scan's grid.

The centres of the first and last voxel of the lungs' box and of the crop coincide, so that a crop's spacing is
``spacing * (n_box - 1) / (n_crop - 1)`` and its origin the box's first voxel. Written into the header, this lays a
crop over its scan in any viewer, and is all that pasting back needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from datasets.grid import Grid, check_same_grid
from datasets.lungs import load_lungmask
from datasets.volume import DEFAULT, Reading, read_ct, read_labels
from errors import VolumeError

CROP_SIZE = (40, 160, 160)
"""Depth, height, width of a crop."""

WINDOW = (-1250.0, 250.0)
"""HU that become 0 and 255."""

SMALLEST_COMPONENT = 1e-3
"""Components of the lungs below this share of the scan are not lung."""

NEAREST, LINEAR = 0, 1
"""Orders of interpolation: nearest for masks, linear for CTs and probabilities."""

Box = tuple[slice, slice, slice]

_ORIENTATION = "LPS"
_ALIGNED = 0.05
"""How far, in voxels, a crop's corner may lie from a voxel centre of its scan; headers keep single precision."""


def map_window(hu: np.ndarray, window: tuple[float, float] = WINDOW) -> np.ndarray:
    """HU clipped to the window and mapped to 0..255, float32."""
    low, high = window
    return ((np.clip(hu, low, high) - low) * (255.0 / (high - low))).astype(np.float32)


def remove_small_components(mask: np.ndarray, share: float = SMALLEST_COMPONENT) -> np.ndarray:
    """A mask without its connected components below a share of the volume.

    Args:
        mask: (z, y, x), bool.
        share: of all voxels of the volume.
    """
    components, _ = ndimage.label(mask)
    kept = np.bincount(components.ravel()) >= share * mask.size
    kept[0] = False
    return kept[components]


def bounding_box(mask: np.ndarray) -> Box | None:
    """Slices of the smallest box around the voxels that are not 0, or None where there are none."""
    boxes = ndimage.find_objects((mask != 0).astype(np.uint8))
    return boxes[0] if boxes else None


def resize(array: np.ndarray, size: tuple[int, int, int], order: int) -> np.ndarray:
    """Resample an array so that its first and last voxel centres stay where they are.

    Args:
        array: (z, y, x).
        size: of the result, at least 2 along each axis.
        order: `NEAREST` or `LINEAR`.
    """
    factors = [new / old for new, old in zip(size, array.shape, strict=True)]
    return ndimage.zoom(array, factors, order=order, mode="nearest")


def crop_to_box(image: sitk.Image, box: Box, size: tuple[int, int, int], order: int) -> sitk.Image:
    """The part of an image inside a box, resized, with the geometry that lays it over the image.

    Args:
        image: any scalar image.
        box: slices along (z, y, x), at least two voxels long each.
        size: (z, y, x) of the result.
        order: `NEAREST` or `LINEAR`.
    """
    array = sitk.GetArrayViewFromImage(image)[box]
    crop = sitk.GetImageFromArray(resize(array, size, order))
    lengths = zip(image.GetSpacing(), reversed(array.shape), reversed(size), strict=True)
    crop.SetSpacing([spacing * (old - 1) / (new - 1) for spacing, old, new in lengths])
    crop.SetOrigin(image.TransformIndexToPhysicalPoint([s.start for s in reversed(box)]))
    crop.SetDirection(image.GetDirection())
    return crop


def paste_back(crop: sitk.Image, scan: Grid, threshold: float | None = None) -> sitk.Image:
    """A cropped mask on the grid of its scan, 0 outside the lungs' box.

    Args:
        crop: a mask (nearest neighbour), or with a threshold a probability or soft mask (linear interpolation).
        scan: size, spacing, origin and direction of the scan.
        threshold: values above it are lesion.

    Returns:
        uint8, 0 or 1 (with a threshold) or the mask's labels, with exactly the geometry of the scan.

    Raises:
        VolumeError: the crop was not cut from a scan of this geometry.
    """
    unpasted = scan.image(np.zeros(scan.shape, np.uint8))
    own_orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(scan.direction)
    grid = Grid.of(sitk.DICOMOrient(unpasted, _ORIENTATION))
    box = _box_of(Grid.of(crop), grid)

    array = sitk.GetArrayViewFromImage(crop)
    size = tuple(s.stop - s.start for s in box)
    pasted = np.zeros(grid.shape, np.uint8)
    if threshold is None:
        pasted[box] = resize(array, size, NEAREST)
    else:
        pasted[box] = resize(array.astype(np.float32), size, LINEAR) > threshold

    mask = sitk.DICOMOrient(grid.image(pasted), own_orientation)
    mask.CopyInformation(unpasted)
    return mask


def _box_of(crop: Grid, grid: Grid) -> Box:
    first = grid.index(crop.origin)
    last = grid.index(crop.point([n - 1 for n in crop.size]))
    start, stop = np.rint(first).astype(int), np.rint(last).astype(int) + 1
    aligned = np.allclose(first, start, atol=_ALIGNED) and np.allclose(last, stop - 1, atol=_ALIGNED)
    straight = np.allclose(crop.direction, grid.direction, atol=1e-3)
    if not (aligned and straight and (start >= 0).all() and (stop <= grid.size).all()):
        raise VolumeError(
            f"the crop spans voxels {first.round(2).tolist()} to {last.round(2).tolist()} of a scan of "
            f"{list(grid.size)} (x, y, z); expected a crop that lungCrop.py made from this very scan"
        )
    return tuple(slice(int(a), int(b)) for a, b in zip(start[::-1], stop[::-1], strict=True))


class LungMaskCrop:
    """Crops CTs, lung masks and lesion labels to the lungs.

    Args:
        lungs: gives the lung labels (1 right, 2 left; uint8, (z, y, x)) of a CT in HU. By default lungmask's model
            R231, which fetches its weights on first use.
        size: (z, y, x) of the crops, at least 2 each.
        reading: how the scans are read.

    Raises:
        VolumeError: lungmask's weights cannot be had.
    """

    def __init__(
        self,
        lungs: Callable[[sitk.Image], np.ndarray] | None = None,
        size: tuple[int, int, int] = CROP_SIZE,
        reading: Reading = DEFAULT,
    ) -> None:
        self.lungs = lungs if lungs is not None else load_lungmask()
        self.size = size
        self.reading = reading

    def crop(
        self, imagepath: Path | str, labelpath: Path | str | None = None, lungpath: Path | str | None = None
    ) -> tuple[sitk.Image, ...]:
        """Crop one CT, and its lesion label where there is one.

        Args:
            imagepath: CT in HU, a file or a folder with a DICOM series, in any orientation.
            labelpath: lesion labels on the CT's grid; every label above 0 is lesion.
            lungpath: lung labels on the CT's grid, to be used instead of finding the lungs.

        Returns:
            image (float32, 0..255), lung and, with a label, lesion (uint8, 0 or 1), all in LPS orientation with the
            geometry that lays them over the CT.

        Raises:
            VolumeError: a file cannot be read, does not fit the CT, or shows no lung.
        """
        imagepath = Path(imagepath)
        ct = read_ct(imagepath, self.reading)
        lung = self._find_lungs(imagepath, ct, lungpath)
        lesion = None if labelpath is None else self._read_fitting(Path(labelpath), imagepath, ct) > 0

        ct, lung = sitk.DICOMOrient(ct, _ORIENTATION), sitk.DICOMOrient(lung, _ORIENTATION)
        mask = remove_small_components(sitk.GetArrayViewFromImage(lung) > 0)
        box = bounding_box(mask)
        if box is None or min(s.stop - s.start for s in box) < 2:
            raise VolumeError(f"{imagepath}: no lung found; is it a chest CT in HU? Lung masks can be given instead")
        kept = sitk.GetImageFromArray(mask.astype(np.uint8))
        kept.CopyInformation(lung)

        image = crop_to_box(sitk.Cast(ct, sitk.sitkFloat32), box, self.size, LINEAR)
        windowed = sitk.GetImageFromArray(map_window(sitk.GetArrayViewFromImage(image)))
        windowed.CopyInformation(image)
        crops = [windowed, crop_to_box(kept, box, self.size, NEAREST)]
        if lesion is not None:
            crops.append(crop_to_box(sitk.DICOMOrient(lesion, _ORIENTATION), box, self.size, NEAREST))
        return tuple(crops)

    def _find_lungs(self, imagepath: Path, ct: sitk.Image, lungpath: Path | str | None) -> sitk.Image:
        if lungpath is not None:
            return self._read_fitting(Path(lungpath), imagepath, ct)
        try:
            labels = self.lungs(ct)
        except VolumeError as error:
            raise VolumeError(f"{imagepath}: {error}") from None
        lung = sitk.GetImageFromArray(labels.astype(np.uint8))
        lung.CopyInformation(ct)
        return lung

    def _read_fitting(self, path: Path, imagepath: Path, ct: sitk.Image) -> sitk.Image:
        labels = read_labels(path, self.reading)
        check_same_grid(path, Grid.of(labels), imagepath, Grid.of(ct))
        # Equal within the tolerance; from here on equal to the last bit.
        labels.CopyInformation(ct)
        return labels
