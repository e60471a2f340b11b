"""Views of a scan for a report page: selected slices as small pictures, with masks; no volumes.

Pictures map HU to grey values with finer steps in the mediastinal window than in the lung window, so that the page can
show both. Pictures are lossy WebP; masks are lossless WebP at the resolution of the scan.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import SimpleITK as sitk
from PIL import Image

from datasets.crop import Box, bounding_box
from datasets.geometry import orientation, shape_of

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

    Attributes:
        id: any text.
        geometry: image in LPS with the geometry of the arrays; its voxels are not used.
        hu: (z, y, x), HU.
        predicted: predicted lesion, bool, of the same shape.
        true: reference lesion, bool, of the same shape; None if unknown.
        lung: lung mask, non-zero inside, of the same shape; None if unknown.
        values: row of the table; missing values are None or NaN.
    """

    id: str
    geometry: sitk.Image
    hu: np.ndarray
    predicted: np.ndarray
    true: np.ndarray | None
    lung: np.ndarray | None
    values: Values


@dataclass(frozen=True)
class SliceView:
    """A slice: index in the scan from 0, position of its centre (mm, LPS), picture, and mask unless it is empty."""

    index: int
    position: float
    image: str
    mask: str | None


@dataclass(frozen=True)
class PlaneView:
    """The slices of one plane.

    Attributes:
        name: ``axial`` or ``coronal``.
        size: width and height of the slices in voxels.
        spacing: width and height of a voxel in mm.
        first: index, in the scan, of the slice of the other plane that is the top row.
        step: difference of this index to the next row, 1 or -1.
        total: number of slices of the scan.
        count: number of slices in the box from which slices were picked.
        every: one of this many neighbouring slices is kept.
        start: index, in `slices`, of the slice to show first.
        slices: in the order of the scan.
    """

    name: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    first: int
    step: int
    total: int
    count: int
    every: int
    start: int
    slices: tuple[SliceView, ...]


@dataclass(frozen=True)
class CaseView:
    """A scan as shown on a page; at most some hundred kilobytes.

    Attributes:
        id: id of the scan.
        values: row of the table.
        truth: whether the reference lesion is known.
        levels: HU and grey values of the pictures, see `LEVELS`.
        planes: axial and coronal.
    """

    id: str
    values: Values
    truth: bool
    levels: tuple[tuple[float, int], ...]
    planes: tuple[PlaneView, ...]

    def to_bytes(self) -> bytes:
        """Encode the view as JSON in UTF-8, for `from_bytes`."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> CaseView:
        """Decode a view that `to_bytes` encoded.

        Raises:
            ValueError: the content is damaged or of another version.
        """
        try:
            tree = json.loads(content)
            if tree.pop("format") != _FORMAT:
                raise ValueError("of another version")
            planes = []
            for plane in tree["planes"]:
                slices = tuple(SliceView(**one) for one in plane.pop("slices"))
                pairs = {name: tuple(plane.pop(name)) for name in ("size", "spacing")}
                planes.append(PlaneView(**plane, **pairs, slices=slices))
            levels = tuple((hu, grey) for hu, grey in tree["levels"])
            return cls(**{**tree, "levels": levels, "planes": tuple(planes)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a view of a case: {error}") from None

    def with_values(self, values: Values) -> CaseView:
        """Return the view with another row of the table."""
        return replace(self, values=_plain(values))


def to_grey(hu: np.ndarray) -> np.ndarray:
    """Map HU to grey values by `LEVELS`, uint8."""
    return np.rint(np.interp(hu, *zip(*LEVELS, strict=True))).astype(np.uint8)


def pick_slices(lesion: np.ndarray, most: int) -> tuple[list[int], int]:
    """Pick one slice of each block of neighbours: the one with most lesion or, without lesion, the middle one.

    Args:
        lesion: lesion voxels of each slice.
        most: largest number of slices to pick.

    Returns:
        Indices of the slices, in order, and the number of slices in a block.
    """
    every = -(-len(lesion) // most)
    picked = []
    for start in range(0, len(lesion), every):
        block = lesion[start : start + every]
        picked.append(start + (int(block.argmax()) if block.any() else len(block) // 2))
    return picked, every


def encode_case(case: ReportCase) -> CaseView:
    """Encode axial and coronal slices of a scan, within the box around its lungs and lesions.

    Without a lung mask, the box is that of the body. A crop is shown whole, since its box is the crop itself.

    Raises:
        ValueError: the arrays differ in shape, or the geometry is not upright.
    """
    for name in ("predicted", "true", "lung"):
        array = getattr(case, name)
        if array is not None and array.shape != case.hu.shape:
            raise ValueError(f"{case.id}: {name} has the shape {array.shape}, hu {case.hu.shape}")
    if shape_of(case.geometry) != case.hu.shape or orientation(case.geometry) != "LPS":
        raise ValueError(f"{case.id}: the geometry is not that of the arrays, or not upright")
    box = _box(case)
    label = case.predicted[box].astype(np.uint8) * PREDICTED
    if case.true is not None:
        label += case.true[box].astype(np.uint8) * TRUE
    planes = (_axial(case, box, label), _coronal(case, box, label))
    return CaseView(case.id, _plain(case.values), case.true is not None, LEVELS, planes)


def _axial(case: ReportCase, box: Box, label: np.ndarray) -> PlaneView:
    x, y, _ = case.geometry.GetSpacing()
    return _plane(case, box, label, "axial", (x, y), box[1].start, 1)


def _coronal(case: ReportCase, box: Box, label: np.ndarray) -> PlaneView:
    x, _, z = case.geometry.GetSpacing()
    return _plane(case, box, label, "coronal", (x, z), box[0].stop - 1, -1)


def _plane(
    case: ReportCase, box: Box, label: np.ndarray, name: str, spacing: tuple[float, float], first: int, step: int
) -> PlaneView:
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
        slices.append(
            SliceView(
                index=index,
                position=round(float(case.geometry.TransformContinuousIndexToPhysicalPoint(middle)[coordinate]), 2),
                image=_picture(case.hu[region][::step], pixels),
                mask=_webp(plane * np.uint8(MASK_STEP), lossless=True) if plane.any() else None,
            )
        )
    start = int(np.argmax(lesion[picked])) if lesion.any() else len(picked) // 2
    spacing = tuple(round(mm, 6) for mm in spacing)
    total = case.hu.shape[axis]
    return PlaneView(name, size, spacing, first, step, total, len(lesion), every, start, tuple(slices))


def picture_size(size: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Width and height of the picture of a slice in pixels: at most its voxels; scaled-down pixels are about square.

    Args:
        size: width and height in voxels.
        spacing: width and height of a voxel in mm.
    """
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


def _plain(values: Values) -> Values:
    """Convert values to plain Python types; NaN becomes None."""
    return {key: value if isinstance(value, str) else _number(value) for key, value in values.items()}


def _number(value: float | None) -> float | None:
    if value is None or np.isnan(value):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)
