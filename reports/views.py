"""Views of a scan for a report page: selected slices as small pictures, with masks; no volumes.

Pictures map HU to grey values with finer steps in the mediastinal window than in the lung window, so that the page can
show both. Pictures are lossy WebP; masks are lossless WebP at the resolution of the scan.
"""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

from datasets.geometry import Box, bounding_box, lps_geometry, lps_view

LEVELS = ((-1350.0, 0), (-160.0, 112), (240.0, 255))
"""HU and their grey values, linear in between, from the lower end of the lung window to the upper end of the
mediastinal window."""

PREDICTED, TRUE = 1, 2
"""Bits of a mask's grey value, times `MASK_STEP`."""

MASK_STEP = 85

LARGEST_SIDE = 288
"""Largest side of a picture in pixels; larger slices are scaled down."""

MOST_SLICES = {"axial": 40, "coronal": 12}
"""Largest number of slices per plane."""

MOST_PIXELS = {"axial": 1_500_000, "coronal": 600_000}
"""Largest number of pixels of all slices of a plane: of larger slices, fewer are kept."""

QUALITY = 35
"""WebP quality of the pictures, 0 to 100."""

_MARGIN_MM = 8.0
_BODY_HU = -300.0
_FORMAT = 1

Values = Mapping[str, str | float | None]


@dataclass(frozen=True)
class ReportCase:
    """A scan and its prediction, for a page.

    Arrays are (z, y, x): HU, predicted and reference lesion (bool), and a lung mask, not 0 inside; None if unknown. The
    geometry is that of an image in any orientation. Missing values of the table are None or NaN.
    """

    id: str
    geometry: sitk.Image
    hu: np.ndarray
    predicted: np.ndarray
    true: np.ndarray | None
    lung: np.ndarray | None
    values: Values


View = dict[str, Any]
"""A scan as shown on a page, JSON of at most some hundred kilobytes.

    id, values         of the scan and its row of the table
    truth              whether the reference lesion is known
    levels             HU and grey values of the pictures, see `LEVELS`
    planes             axial and coronal, each:
      name             ``axial`` or ``coronal``
      size, spacing    width and height of the slices in voxels, and of a voxel in mm
      first            index, in the scan, of the slice of the other plane that is the top row
      step             difference of this index to the next row, 1 or -1
      total, count     slices of the scan, and of the box from which slices were picked
      every            one of this many neighbouring slices is kept
      start            index, in `slices`, of the slice to show first
      slices           index in the scan, position of the centre (mm, LPS), image, and mask unless it is empty
"""


def read_view(content: bytes) -> View:
    """Read a view that was stored as JSON; ValueError if it is damaged or of another version."""
    view = json.loads(content)
    if not isinstance(view, dict) or view.get("format") != _FORMAT or "planes" not in view:
        raise ValueError("not a view of a case")
    return view


def to_grey(hu: np.ndarray) -> np.ndarray:
    """Map HU to grey values by `LEVELS`, uint8."""
    return np.rint(np.interp(hu, *zip(*LEVELS, strict=True))).astype(np.uint8)


def pick_slices(lesion: np.ndarray, most: int) -> tuple[list[int], int]:
    """Pick one slice of each block of neighbours: the one with most lesion or, without lesion, the middle one.

    From the lesion voxels of each slice. Returns indices of the slices, in order, and the number of slices in a block.
    """
    every = -(-len(lesion) // most)
    picked = []
    for start in range(0, len(lesion), every):
        block = lesion[start : start + every]
        picked.append(start + (int(block.argmax()) if block.any() else len(block) // 2))
    return picked, every


def encode_case(case: ReportCase) -> View:
    """Encode axial and coronal slices of a scan, within the box around its lungs and lesions.

    Without a lung mask, the box is that of the body. A crop is shown whole, since its box is the crop itself.
    """
    arrays = {name: getattr(case, name) for name in ("hu", "predicted", "true", "lung")}
    upright = {name: array if array is None else lps_view(array, case.geometry) for name, array in arrays.items()}
    case = replace(case, geometry=lps_geometry(case.geometry), **upright)
    box = _box(case)
    label = case.predicted[box].astype(np.uint8) * PREDICTED
    if case.true is not None:
        label += case.true[box].astype(np.uint8) * TRUE
    return {
        "format": _FORMAT,
        "id": case.id,
        "values": {key: _plain(value) for key, value in case.values.items()},
        "truth": case.true is not None,
        "levels": LEVELS,
        "planes": [_plane(case, box, label, name) for name in ("axial", "coronal")],
    }


def _plane(case: ReportCase, box: Box, label: np.ndarray, name: str) -> View:
    x, y, z = (round(mm, 6) for mm in case.geometry.GetSpacing())
    spacing, first, step = ((x, y), box[1].start, 1) if name == "axial" else ((x, z), box[0].stop - 1, -1)
    axis, coordinate = {"axial": (0, 2), "coronal": (1, 1)}[name]
    depth, height, width = label.shape
    size = (width, height if name == "axial" else depth)
    pixels = picture_size(size, spacing)
    most = max(min(MOST_SLICES[name], MOST_PIXELS[name] // (pixels[0] * pixels[1])), 1)
    lesion = np.count_nonzero(label, axis=tuple({0, 1, 2} - {axis}))
    picked, every = pick_slices(lesion, most)
    middle = [(s.start + s.stop - 1) / 2 for s in reversed(box)]
    slices = []
    for k in picked:
        plane = label.take(k, axis)[::step]
        region = tuple(s.start + k if number == axis else s for number, s in enumerate(box))
        index = box[axis].start + k
        middle[2 - axis] = index
        position = case.geometry.TransformContinuousIndexToPhysicalPoint(middle)[coordinate]
        slices.append(
            {
                "index": index,
                "position": round(float(position), 2),
                "image": _picture(case.hu[region][::step], pixels),
                "mask": _webp(plane * np.uint8(MASK_STEP), lossless=True) if plane.any() else None,
            }
        )
    start = int(np.argmax(lesion[picked])) if lesion.any() else len(picked) // 2
    return {
        "name": name,
        "size": size,
        "spacing": spacing,
        "first": first,
        "step": step,
        "total": case.hu.shape[axis],
        "count": len(lesion),
        "every": every,
        "start": start,
        "slices": slices,
    }


def picture_size(size: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Width and height of the picture of a slice in pixels: at most its voxels; scaled-down pixels are about square."""
    mm_per_pixel = max(n * mm for n, mm in zip(size, spacing, strict=True)) / LARGEST_SIDE
    width, height = (min(n, max(round(n * mm / mm_per_pixel), 1)) for n, mm in zip(size, spacing, strict=True))
    return width, height


def _box(case: ReportCase) -> Box:
    boxes = [] if case.lung is None else [bounding_box(case.lung)]
    if not any(boxes):
        boxes = [bounding_box(case.hu > _BODY_HU)]
    boxes += [bounding_box(mask) for mask in (case.predicted, case.true) if mask is not None]
    boxes = [box for box in boxes if box is not None]
    if not boxes:
        return tuple(slice(0, n) for n in case.hu.shape)
    margins = [0, *(round(_MARGIN_MM / mm) for mm in reversed(case.geometry.GetSpacing()[:2]))]
    return tuple(
        slice(max(min(s.start for s in along) - margin, 0), min(max(s.stop for s in along) + margin, n))
        for along, margin, n in zip(zip(*boxes, strict=True), margins, case.hu.shape, strict=True)
    )


def _picture(hu: np.ndarray, pixels: tuple[int, int]) -> str:
    hu = np.ascontiguousarray(hu, np.float32)
    if pixels != hu.shape[::-1]:
        hu = np.asarray(Image.fromarray(hu).resize(pixels, Image.Resampling.BILINEAR))
    return _webp(to_grey(hu), quality=QUALITY, method=4)


def _webp(grey: np.ndarray, **options: object) -> str:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "WEBP", **options)
    return base64.b64encode(file.getvalue()).decode()


def _plain(value: str | float | None) -> str | float | None:
    """A plain Python value; NaN becomes None."""
    if value is None or isinstance(value, str):
        return value
    return None if np.isnan(value) else int(value) if isinstance(value, int | np.integer) else float(value)
