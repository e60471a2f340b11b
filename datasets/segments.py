"""Segmentations with named segments, laid onto the voxels of their CT: 3D Slicer's ``.seg.nrrd``, and DICOM SEG.

Slicer cuts a segmentation to the extent of its segments, and stores overlapping segments in layers of a fourth
dimension. The header names the segments, their layers and label values:
https://slicer.readthedocs.io/en/latest/user_guide/modules/segmentations.html

A DICOM SEG has a frame per segment and slice, with the place of that slice; slices without the segment have none.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from datasets.dicom import CONTOURS, SEGMENTATIONS, is_dicom_file, of_frame, value_in
from datasets.formats import EXTENSIONS, read_header, read_voxels
from datasets.geometry import WHOLE, located, part_onto
from utils.errors import VolumeError, one_line

log = logging.getLogger(__name__)

SLICER = ".seg.nrrd"

Reader = Callable[[Path, object, sitk.Image, int, Collection[str] | None], np.ndarray]

_LESION = re.compile(r"lesion|infect|covid|opaci|ggo|ground.?glass|consolid|pneumon|tumou?r|nodule", re.IGNORECASE)
_LUNG = re.compile(r"lung", re.IGNORECASE)


@dataclass(frozen=True)
class Segment:
    """One segment of a segmentation."""

    name: str  # as shown in a viewer
    value: int  # its label, or its number in a DICOM SEG
    layer: int = 0  # index along the fourth dimension


def is_segmentation(path: Path) -> bool:
    """Whether a file is a segmentation of 3D Slicer, a DICOM SEG, or a DICOM RTSTRUCT."""
    return reader_of(path) is not None


def reader_of(path: Path) -> Reader | None:
    """What reads a file onto a CT; None for masks whose values are labels."""
    if path.name.lower().endswith(SLICER):
        return read_slicer
    if path.name.lower().endswith(EXTENSIONS) or not path.is_file() or not is_dicom_file(path):
        return None
    readers = {**dict.fromkeys(SEGMENTATIONS, read_dicom_seg), CONTOURS: _refuse_contours}
    return readers.get(str(value_in(path, "SOPClassUID")))


def referenced_series(path: Path) -> str:
    """SeriesInstanceUID of the CT that a DICOM SEG or RTSTRUCT was drawn on; empty if it does not say."""
    try:
        with warnings.catch_warnings(action="ignore"):
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if header.get("ReferencedSeriesSequence"):
            return str(header.ReferencedSeriesSequence[0].SeriesInstanceUID)
        study = header.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        return str(study.RTReferencedSeriesSequence[0].SeriesInstanceUID)
    except Exception:  # pydicom raises whatever it comes across
        return ""


def read_slicer(
    path: Path, reference_name: object, reference: sitk.Image, max_voxels: int, names: Collection[str] | None = None
) -> np.ndarray:
    """Read a segmentation of 3D Slicer onto the voxels of its CT.

    Of several segments, those in `names` are read or, without names, those whose name says lesion, or all if each says
    lung. A file that names no segments is a mask in which every value above 0 counts.

    Args:
        path: the file.
        reference_name: the CT, for error messages.
        reference: the CT, or its geometry.
        max_voxels: most voxels that are read.
        names: names of segments; None chooses by name.

    Returns:
        uint8 (z, y, x) on the voxels of the CT, 0 or 1.

    Raises:
        VolumeError: the file is damaged, does not lie on the voxels of the CT, or it is not clear which segments count.
    """
    header = read_header(path, max_voxels, layered=True)
    fields = header.fields or {}
    numbers = sorted({int(m[1]) for key in fields if (m := re.match(r"Segment(\d+)_", key))})
    try:
        segments = [
            Segment(
                str(fields.get(f"Segment{n}_Name", fields.get(f"Segment{n}_ID", n))),
                int(fields.get(f"Segment{n}_LabelValue", 1)),
                int(fields.get(f"Segment{n}_Layer", 0)),
            )
            for n in numbers
        ]
    except ValueError as error:
        raise VolumeError(f"{path}: not a readable segmentation ({one_line(error)}); export it again") from None
    voxels = read_voxels(header)
    layers = voxels if header.layers > 1 else voxels[None]
    chosen = _chosen(path, segments, names)
    inside = np.zeros(layers.shape[1:], bool) if chosen else (layers > 0).any(0)
    for segment in chosen:
        if segment.layer >= len(layers):
            raise VolumeError(f"{path}: its segment {segment.name} is in a layer that is missing; export it again")
        inside |= layers[segment.layer] == segment.value
    image = located(inside, header.spacing, header.origin, header.direction)
    return part_onto(path, image, reference_name, reference)


def read_dicom_seg(
    path: Path, reference_name: object, reference: sitk.Image, max_voxels: int, names: Collection[str] | None = None
) -> np.ndarray:
    """Read a DICOM SEG onto the voxels of its CT; arguments, result and errors as for `read_slicer`."""
    import highdicom as hd

    try:
        with warnings.catch_warnings(action="ignore"):
            seg = hd.seg.segread(path)
            segments = [Segment(seg.get_segment_description(n).segment_label, n) for n in seg.segment_numbers]
            frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
            places = [_place_of_frame(seg, k) for k in range(len(frames))]
    except Exception as error:  # highdicom raises whatever it comes across
        raise VolumeError(f"{path}: not a readable DICOM SEG ({one_line(error)}); export it again") from None
    if seg.SegmentationType == "FRACTIONAL":
        highest = int(seg.MaximumFractionalValue)
        if not np.isin(frames, (0, highest)).all():
            raise VolumeError(f"{path}: holds probabilities; export it as a binary segmentation")
    wanted = {segment.value for segment in _chosen(path, segments, names) or segments}
    labelmap = seg.SegmentationType == "LABELMAP"
    axes = {tuple(np.round(axes, 4).ravel()) for axes, _, _, _ in places}
    if len(axes) != 1:
        raise VolumeError(f"{path}: its frames have several orientations; export it in the geometry of the CT")
    rows, _, spacing, _ = places[0]
    normal = np.cross(*rows)
    axes_of_ct = np.reshape(reference.GetDirection(), (3, 3))
    step = reference.GetSpacing()[int(np.abs(normal @ axes_of_ct).argmax())]
    heights = np.array([position @ normal for _, position, _, _ in places])
    count = (heights - heights.min()) / step
    index = np.rint(count).astype(int)
    if np.abs(count - index).max() > WHOLE:
        raise VolumeError(
            f"{path}: its slices are not those of {reference_name}, {step:g} mm apart; use the segmentation that was "
            "drawn on it"
        )
    inside = np.zeros((index.max() + 1, *frames.shape[1:]), bool)
    for k, (frame, (_, _, _, number)) in enumerate(zip(frames, places, strict=True)):
        if labelmap:
            inside[index[k]] |= np.isin(frame, list(wanted))
        elif number in wanted:
            inside[index[k]] |= frame > 0
    direction = np.stack([*rows, normal], axis=1).ravel().tolist()
    origin = places[int(heights.argmin())][1].tolist()
    return part_onto(path, located(inside, (*spacing, step), origin, direction), reference_name, reference)


def _place_of_frame(
    seg: pydicom.Dataset, number: int
) -> tuple[np.ndarray, np.ndarray, tuple[float, float], int | None]:
    """Direction of rows and columns (2, 3), position, spacing (x, y) and segment of a frame."""
    groups = seg.PerFrameFunctionalGroupsSequence[number], seg.SharedFunctionalGroupsSequence[0]
    down, across = map(float, of_frame(*groups, "PixelMeasuresSequence", "PixelSpacing"))
    rows = np.array(of_frame(*groups, "PlaneOrientationSequence", "ImageOrientationPatient"), float).reshape(2, 3)
    position = np.array(of_frame(*groups, "PlanePositionSequence", "ImagePositionPatient"), float).reshape(3)
    if seg.SegmentationType == "LABELMAP":
        return rows, position, (across, down), None
    segment = of_frame(*groups, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
    return rows, position, (across, down), int(segment)


def _refuse_contours(path: Path, *_: object) -> np.ndarray:
    raise VolumeError(
        f"{path}: holds contours (DICOM RTSTRUCT), which are not read; convert it to a mask or a DICOM SEG, with 3D "
        "Slicer or plastimatch"
    )


def _chosen(path: Path, segments: list[Segment], names: Collection[str] | None) -> list[Segment]:
    known = ", ".join(segment.name for segment in segments) or "none"
    if names is not None:
        wanted = {name.lower() for name in names}
        chosen = [segment for segment in segments if segment.name.lower() in wanted]
        if len({segment.name.lower() for segment in chosen}) < len(wanted):
            raise VolumeError(f"{path}: has no segment of some of these names: {', '.join(names)}; it has {known}")
        return chosen
    if len(segments) < 2:
        return segments
    chosen = [s for s in segments if _LESION.search(s.name)] or (
        [s for s in segments if _LUNG.search(s.name)] if all(_LUNG.search(s.name) for s in segments) else []
    )
    if not chosen:
        raise VolumeError(f"{path}: has the segments {known}; name those that count with --segments")
    if len(chosen) < len(segments):
        log.warning("%s: reads %s of its segments %s", path, ", ".join(s.name for s in chosen), known)
    return chosen
