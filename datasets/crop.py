"""Crop a scan to its lungs, and paste a crop back onto the scan's grid.

The first and last voxel centres of the lungs' box and of the crop coincide, so the crop's spacing is
``spacing * (n_box - 1) / (n_crop - 1)`` and its origin is the box's first voxel. With this in the header, any viewer
overlays the crop on its scan, and pasting back needs nothing else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cc3d
import numpy as np
import SimpleITK as sitk

from datasets import CROP_SIZE, WINDOW
from datasets.formats import read_header
from datasets.geometry import Box, blank, bounding_box, image_like, located, lps_geometry, lps_view, mask_onto, shape_of
from datasets.lung_finders import FindLungs
from datasets.lungmask_model import load_lungmask
from datasets.plausibility import check_lesion, check_lungs
from datasets.scans import open_scan, read_ct
from datasets.volumes import DEFAULT, NOTES, Reading, Scan, as_labels, check_image, read_mask_on
from datasets.window import map_window
from utils.errors import VolumeError

log = logging.getLogger(__name__)

SMALLEST_COMPONENT = 1e-3
"""Components of found lungs below this share of the scan's voxels are removed."""

NEAREST, LINEAR = 0, 1
"""Orders of interpolation: nearest for masks, linear for CTs and probabilities."""

_ALIGNED = 0.05
"""Tolerance in voxels between a crop's corner and a voxel centre of its scan; headers have single precision."""

_WINDOW_NOTE = "GASNet crop, {!r} to {!r} HU"


def recorded(path: Path) -> tuple[tuple[float, float], str | None]:
    """Read window and checksum of the CT from the header of a crop; without a record, the published window and None.

    Raises:
        VolumeError: the header cannot be read.
    """
    notes = read_header(path, DEFAULT.max_voxels).notes
    match = re.match(r"GASNet crop, (\S+) to (\S+) HU(?:, CT ([0-9a-f]{32}))?", notes)
    return (WINDOW, None) if match is None else ((float(match[1]), float(match[2])), match[3])


def remove_small_components(lungs: np.ndarray, share: float = SMALLEST_COMPONENT) -> np.ndarray:
    """Remove small components from lung labels, if there are more than two components.

    Components are 26-connected. With labels 1 (right) and 2 (left), components of the two sides are separate even where
    they touch; with more labels, such as lobes, all labels count as one lung.

    Small is below this share of all voxels of the volume; for a matrix of 512x512 this is the published rule. Labels
    are (z, y, x), 0 outside; the same array is returned if there are no small components.
    """
    sides = [lungs == 1, lungs == 2] if lungs.max(initial=0) == 2 else [lungs != 0]
    found = []
    for side in sides:
        if (box := bounding_box(side)) is not None:
            components = cc3d.connected_components(side[box], connectivity=26)
            found.append((box, components, np.bincount(components.ravel())))
    if sum(len(sizes) - 1 for *_, sizes in found) <= 2:
        return lungs
    cleaned = lungs.copy()
    for box, components, sizes in found:
        small = sizes < share * lungs.size
        small[0] = False
        cleaned[box][small[components]] = 0
    return cleaned


def resize(array: np.ndarray, size: tuple[int, int, int], order: int) -> np.ndarray:
    """Resample an array (z, y, x) to a size of at least 2 along each axis; its first and last voxel centres stay.

    The result has the array's type for `NEAREST`, and is float32 for `LINEAR`.
    """
    if order == NEAREST:
        return array[np.ix_(*(_nearest(np.linspace(0, n - 1, m)) for n, m in zip(array.shape, size, strict=True)))]
    image = sitk.GetImageFromArray(array)
    steps = [(n - 1) / (m - 1) for n, m in zip(array.shape[::-1], size[::-1], strict=True)]
    grid = blank(size[::-1], steps, image.GetOrigin(), image.GetDirection())
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32))


def crop_image(voxels: np.ndarray, scan: sitk.Image, box: Box) -> sitk.Image:
    """An image of a resized box, with the geometry that overlays it on its scan in LPS, or on that one's geometry.

    Voxels are (z, y, x) and, like the box, at least 2 along each axis.
    """
    lengths = [s.stop - s.start for s in reversed(box)]
    sizes = zip(scan.GetSpacing(), lengths, reversed(voxels.shape), strict=True)
    origin = scan.TransformIndexToPhysicalPoint([s.start for s in reversed(box)])
    return located(voxels, [mm * (old - 1) / (new - 1) for mm, old, new in sizes], origin, scan.GetDirection())


def crop_to_lungs(
    ct: sitk.Image,
    lungs: np.ndarray,
    lesion: np.ndarray | None = None,
    size: tuple[int, int, int] = CROP_SIZE,
    window: tuple[float, float] = WINDOW,
    name: object = "the CT",
) -> tuple[sitk.Image, ...]:
    """Crop a CT, its lung mask and optionally its lesion label to the box around the lungs.

    The CT is in HU, in any orientation; labels are (z, y, x) on its voxels, and each above 0 counts. Size and window
    are those of `LungMaskCrop`, and the result is that of its `crop`. Errors name the CT.

    Raises:
        VolumeError: the lung mask is empty.
    """
    # Only views are reoriented, and only the box is converted, so no whole scan is copied.
    lung = lps_view(lungs, ct)
    box = bounding_box(lung)
    if box is None or min(s.stop - s.start for s in box) < 2:
        raise VolumeError(f"{name}: no lung found; is it a chest CT in HU? Lung masks can be given instead")
    hu = resize(lps_view(sitk.GetArrayViewFromImage(ct), ct)[box], size, LINEAR)
    crops = [map_window(hu, window), resize(lung[box], size, NEAREST) > 0]
    if lesion is not None:
        crops.append(_resized_lesion(lps_view(lesion, ct)[box] > 0, size))
    scan = lps_geometry(ct)
    image, *masks = (crop_image(crop, scan, box) for crop in crops)
    image.SetMetaData(NOTES, _WINDOW_NOTE.format(*map(float, window)))
    return image, *masks


def _resized_lesion(lesion: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Take the nearest voxels; of a lesion that all of them miss, keep the voxels that lie nearest to it."""
    resized = resize(lesion, size, NEAREST)
    if not resized.any():
        places = np.argwhere(lesion) * (np.subtract(size, 1) / np.subtract(lesion.shape, 1))
        resized[tuple(_nearest(places).T)] = True
    return resized


def paste_back(crop: sitk.Image, scan: sitk.Image, threshold: float | None = None) -> sitk.Image:
    """Paste a cropped mask onto the voxels of its scan, or of that one's geometry; 0 outside the lungs' box.

    Without a threshold, by nearest neighbour. With one, probabilities or soft masks are interpolated linearly, and what
    is above is lesion. Returns uint8, the mask's labels or 0 and 1, with exactly the geometry of the scan.

    Raises:
        VolumeError: the crop does not fit a scan of this geometry.
    """
    if threshold is None:
        return _paste(sitk.Cast(crop, sitk.sitkUInt8), scan, NEAREST)
    return _paste(crop, scan, LINEAR, threshold)


def paste_probabilities_back(crop: sitk.Image, scan: sitk.Image) -> sitk.Image:
    """Paste cropped probabilities, float32, onto the voxels of their scan, as `paste_back` before its threshold."""
    return _paste(crop, scan, LINEAR)


def has_no_geometry(image: sitk.Image) -> bool:
    """Whether a volume has the geometry of files without one: spacing 1, origin 0, identity direction (LPS or RAS)."""
    found = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    return np.allclose(np.abs(found), (1, 1, 1, 0, 0, 0, *np.eye(3).ravel()), rtol=0, atol=1e-6)


def lay_over(
    name_of_scan: object, scan: sitk.Image, crop: sitk.Image, name: object, threshold: float | None = None
) -> sitk.Image:
    """Paste a crop onto the voxels of its scan, see `paste_back`; errors name both files."""
    if has_no_geometry(crop) and has_no_geometry(scan) and crop.GetSize() != scan.GetSize():
        raise VolumeError(
            f"{name}: has no geometry (spacing 1, origin 0, identity direction), like crops of the published code, and "
            f"neither has {name_of_scan}, so nothing says where it belongs; crop the scan again with lungCrop.py"
        )
    try:
        return paste_back(crop, scan, threshold)
    except VolumeError as error:
        raise VolumeError(f"{name}: does not lie on {name_of_scan}: {error}") from None


def _paste(crop: sitk.Image, scan: sitk.Image, order: int, threshold: float | None = None) -> sitk.Image:
    """Paste a crop, resized to its box and, with a threshold, cut there."""
    box = _box_of(crop, lps_geometry(scan))
    part = resize(sitk.GetArrayViewFromImage(crop), tuple(s.stop - s.start for s in box), order)
    part = part if threshold is None else part > threshold
    pasted = np.zeros(shape_of(scan), part.dtype)
    lps_view(pasted, scan)[box] = part
    return image_like(scan, pasted)


def _box_of(crop: sitk.Image, scan: sitk.Image) -> Box:
    """The box of a scan that a crop was made from."""
    corners = ([0, 0, 0], [n - 1 for n in crop.GetSize()])
    points = (crop.TransformIndexToPhysicalPoint(corner) for corner in corners)
    first, last = (np.array(scan.TransformPhysicalPointToContinuousIndex(point)) for point in points)
    start, stop = np.rint(first).astype(int), np.rint(last).astype(int) + 1
    aligned = np.allclose(first, start, atol=_ALIGNED) and np.allclose(last, stop - 1, atol=_ALIGNED)
    straight = np.allclose(crop.GetDirection(), scan.GetDirection(), atol=1e-3)
    if not (aligned and straight and (start >= 0).all() and (stop <= scan.GetSize()).all()):
        raise VolumeError(
            f"the crop spans voxels {first.round(2).tolist()} to {last.round(2).tolist()} of a scan of "
            f"{list(scan.GetSize())} (x, y, z); expected a crop that lungCrop.py made from this very scan"
        )
    return tuple(slice(int(a), int(b)) for a, b in zip(start[::-1], stop[::-1], strict=True))


def _nearest(positions: np.ndarray) -> np.ndarray:
    return np.floor(positions + 0.5).astype(int)


@dataclass
class LungMaskCrop:
    """Crops CTs, lung masks and lesion labels to the lungs.

    By default, lungs are found by lungmask's model R231, which downloads its weights on first use; a `VolumeError` says
    that they are not available.
    """

    finder: FindLungs | None = None
    size: tuple[int, int, int] = CROP_SIZE  # (z, y, x) of the crops, at least 2 each
    reading: Reading = DEFAULT
    window: tuple[float, float] = WINDOW  # HU that become 0 and 255
    lung_labels: Collection[int] | None = None  # what counts as lung in given masks; by default every label above 0
    lesion_labels: Collection[int] | None = None  # what counts as lesion; by default every label above 0

    @cached_property
    def lungs(self) -> FindLungs:
        """Finds the lungs; lungmask is loaded when it is first needed."""
        return self.finder or load_lungmask()

    def crop(
        self, imagepath: Path | str | Scan, labelpath: Path | str | None = None, lungpath: Path | str | None = None
    ) -> tuple[sitk.Image, ...]:
        """Crop one CT in HU, a file or a folder with a DICOM series, and optionally its lesion label.

        Labels lie on the CT's voxels; with lung labels, no lungs are looked for.

        Returns:
            image (float32, 0..255), lung and, with a label, lesion (uint8, 0 or 1), in LPS orientation and with a
            geometry that overlays them on the CT.

        Raises:
            VolumeError: a file cannot be read, does not fit the CT, or no lung was found.
        """
        return self.crop_scan(open_scan(imagepath, self.reading), labelpath, lungpath)[1]

    def crop_scan(
        self, scan: Scan, labelpath: Path | str | None = None, lungpath: Path | str | None = None
    ) -> tuple[sitk.Image, tuple[sitk.Image, ...]]:
        """The CT in HU, and what `crop` returns; arguments and errors are the same."""
        ct, lungs = self.read(scan, lungpath)
        lesion = None if labelpath is None else self._read_lesion(labelpath, scan, ct, lungs)
        return ct, crop_to_lungs(ct, lungs, lesion, self.size, self.window, scan)

    def read(
        self, source: Path | str | Scan | sitk.Image, lungs: Path | str | sitk.Image | None = None
    ) -> tuple[sitk.Image, np.ndarray]:
        """Read a CT and find its lungs.

        Small components of lungs that were found are removed, see `remove_small_components`; given labels stay as they
        are, with a warning if small components enlarge their box. Returns the CT in HU, and its lung labels, (z, y, x)
        on the CT's voxels.

        Raises:
            VolumeError: a file cannot be read, does not fit the CT, or no lung was found.
        """
        scan = open_scan(source, self.reading)
        ct = read_ct(scan, self.reading)
        if has_no_geometry(ct):
            log.warning("%s: spacing 1, origin 0: its header may be lost; then volumes in ml and sides are wrong", scan)
        if lungs is not None:
            given = self._read_fitting(lungs, scan, ct, lungs=True)
            if bounding_box(remove_small_components(given)) != bounding_box(given):
                log.warning("%s: small components of its lung mask enlarge the box; remove what is not lung", scan)
            labels = given
        else:
            try:
                labels = remove_small_components(self.lungs(ct))
            except VolumeError as error:
                raise VolumeError(f"{scan}: {error}") from None
        voxels, spacing = sitk.GetArrayViewFromImage(ct), ct.GetSpacing()[::-1]
        check_lungs(scan, voxels, labels, spacing, self.reading.airless_lungs)
        return ct, labels

    def _read_lesion(self, path: Path | str, name: object, ct: sitk.Image, lungs: np.ndarray) -> np.ndarray:
        values = self._read_fitting(path, name, ct, lungs=False)
        labels = np.flatnonzero(np.bincount(values.ravel(), minlength=256)[1:]) + 1
        lesion = self._counted(values, self.lesion_labels)
        check_lesion(name, lesion, lungs, labels.tolist(), self.reading.lesions_anywhere)
        return lesion

    def _read_fitting(self, mask: Path | str | sitk.Image, name: object, ct: sitk.Image, lungs: bool) -> np.ndarray:
        """The labels of a mask of lungs, or of lesions, on the voxels of its CT; of lungs those that count."""
        if isinstance(mask, sitk.Image):
            values = mask_onto("the mask", as_labels("the mask", check_image("the mask", mask)), name, ct)
        else:
            values = read_mask_on(Path(mask), name, ct, self.reading, lungs)
        return self._counted(values, self.lung_labels) if lungs else values

    @staticmethod
    def _counted(values: np.ndarray, labels: Collection[int] | None) -> np.ndarray:
        return values if labels is None else np.isin(np.arange(256), list(labels))[values]
