"""Segmentations with named segments, laid onto the voxels of their CT: 3D Slicer's ``.seg.nrrd``, and DICOM SEG.

Slicer cuts a segmentation to the extent of its segments, and stores overlapping segments in layers of a fourth
dimension. The header names the segments, their layers and label values:
https://slicer.readthedocs.io/en/latest/user_guide/modules/segmentations.html

A DICOM SEG has a frame per segment and slice, with the place of that slice; slices without the segment have none.
"""

import logging
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from datasets.dicom import CONTOURS, SEGMENTATIONS, is_dicom_file, of_frame, value_in
from datasets.formats import EXTENSIONS, read_header, read_voxels
from datasets.geometry import WHOLE, located, part_onto
from utils.errors import VolumeError, one_line

log = logging.getLogger(__name__)

_SLICER = (".nrrd", ".nhdr")
_SEGMENT = re.compile(r"Segment(\d+)_")
LESION = re.compile(r"lesion|infect|covid|opaci|ggo|ground.?glass|consolid|pneumon|tumou?r|nodule", re.IGNORECASE)
LUNG = re.compile(r"lung|lobe|pulmo", re.IGNORECASE)


@dataclass(frozen=True)
class _Segment:
    name: str  # as shown in a viewer
    value: int  # its label, or its number in a DICOM SEG
    layer: int = 0  # index along the fourth dimension


_Choose = Callable[[list[_Segment]], list[_Segment]]


def is_segmentation(path: Path) -> bool:
    """Whether a file is a segmentation of 3D Slicer, a DICOM SEG, or a DICOM RTSTRUCT; not a mask of labels."""
    return _is_slicer(path) or _dicom_kind(path) in (*SEGMENTATIONS, CONTOURS)


def _is_slicer(path: Path) -> bool:
    """Whether an NRRD file names segments, or is to by its name."""
    if not path.name.lower().endswith(_SLICER):
        return False
    if ".seg." in path.name.lower():
        return True
    try:
        return any(map(_SEGMENT.match, read_header(path, 2**63, layered=True).fields))
    except VolumeError:
        return False


def _dicom_kind(path: Path) -> str:
    """SOPClassUID of a DICOM file; empty for other files."""
    if path.name.lower().endswith(EXTENSIONS) or not path.is_file() or not is_dicom_file(path):
        return ""
    return str(value_in(path, "SOPClassUID"))


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


def read_segments(
    path: Path,
    reference_name: object,
    reference: sitk.Image,
    max_voxels: int,
    names: Collection[str] | None = None,
    what: re.Pattern[str] = LESION,
) -> np.ndarray:
    """Read a segmentation, see `is_segmentation`, onto the voxels of its CT.

    Of several segments, those in `names` are read or, without names, those whose name says `what`, `LESION` or `LUNG`,
    or all if each says lung. A file that names no segments is a mask in which every value above 0 counts.

    Returns:
        uint8 (z, y, x) on the voxels of the CT, or of its geometry, 0 or 1.

    Raises:
        VolumeError: the file is damaged or holds contours, does not lie on the voxels of the CT, or it is not clear
            which segments count.
    """
    choose = partial(_chosen, path, names=names, what=what)
    try:
        if path.name.lower().endswith(_SLICER):
            mask = _slicer(path, max_voxels, choose)
        elif _dicom_kind(path) == CONTOURS:
            raise VolumeError(
                f"{path}: holds contours (DICOM RTSTRUCT), which are not read; convert it to a mask or a DICOM SEG, "
                "with 3D Slicer or plastimatch"
            )
        else:
            mask = _dicom_seg(path, reference, choose)
    except VolumeError:
        raise
    except Exception as error:  # highdicom raises whatever it comes across
        raise VolumeError(f"{path}: not a readable segmentation ({one_line(error)}); export it again") from None
    return part_onto(path, mask, reference_name, reference)


def _slicer(path: Path, max_voxels: int, choose: _Choose) -> sitk.Image:
    header = read_header(path, max_voxels, layered=True)
    fields = header.fields
    numbers = {int(match[1]) for match in map(_SEGMENT.match, fields) if match}
    segments = [
        _Segment(
            str(fields.get(f"Segment{n}_Name", fields.get(f"Segment{n}_ID", n))),
            int(fields.get(f"Segment{n}_LabelValue", 1)),
            int(fields.get(f"Segment{n}_Layer", n if header.layers > 1 else 0)),  # older Slicers: a layer each
        )
        for n in sorted(numbers)
    ]
    voxels = read_voxels(header)
    layers = voxels if header.layers > 1 else voxels[None]
    chosen = choose(segments)
    inside = np.zeros(layers.shape[1:], bool) if chosen else (layers > 0).any(0)
    for segment in chosen:
        inside |= layers[segment.layer] == segment.value
    return located(inside, header.spacing, header.origin, header.direction)


def _dicom_seg(path: Path, reference: sitk.Image, choose: _Choose) -> sitk.Image:
    import highdicom as hd

    with warnings.catch_warnings(action="ignore"):
        seg = hd.seg.segread(path)
        segments = [_Segment(seg.get_segment_description(n).segment_label, n) for n in seg.segment_numbers]
        frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
        places = [_place_of_frame(seg, k) for k in range(len(frames))]
    if seg.SegmentationType == "FRACTIONAL" and not np.isin(frames, (0, int(seg.MaximumFractionalValue))).all():
        raise VolumeError(f"{path}: holds probabilities; export it as a binary segmentation")
    wanted = {segment.value for segment in choose(segments) or segments}
    rows, _, spacing, _ = places[0]
    if not all(np.allclose(rows, other, atol=1e-4) for other, *_ in places):
        raise VolumeError(f"{path}: its frames have several orientations; export it in the geometry of the CT")
    # A frame is missing where a slice has no segment, so that the CT says how far apart slices are.
    normal = np.cross(*rows)
    axes_of_ct = np.reshape(reference.GetDirection(), (3, 3))
    step = reference.GetSpacing()[int(np.abs(normal @ axes_of_ct).argmax())]
    heights = np.array([position @ normal for _, position, _, _ in places])
    count = (heights - heights.min()) / step
    index = np.rint(count).astype(int)
    if np.abs(count - index).max() > WHOLE:
        raise VolumeError(f"{path}: its slices are not those of the CT, {step:g} mm apart; was it drawn on this scan?")
    inside = np.zeros((index.max() + 1, *frames.shape[1:]), bool)
    for k, frame, (*_, number) in zip(index, frames, places, strict=True):
        if number is None:  # a frame of all segments
            inside[k] |= np.isin(frame, list(wanted))
        elif number in wanted:
            inside[k] |= frame > 0
    direction = np.stack([*rows, normal], axis=1).ravel().tolist()
    return located(inside, (*spacing, step), places[int(heights.argmin())][1].tolist(), direction)


def _place_of_frame(
    seg: pydicom.Dataset, number: int
) -> tuple[np.ndarray, np.ndarray, tuple[float, float], int | None]:
    """Direction of rows and columns (2, 3), position, spacing (x, y) and segment of a frame."""
    groups = seg.PerFrameFunctionalGroupsSequence[number], seg.SharedFunctionalGroupsSequence[0]
    down, across = map(float, of_frame(*groups, "PixelMeasuresSequence", "PixelSpacing"))
    rows = np.array(of_frame(*groups, "PlaneOrientationSequence", "ImageOrientationPatient"), float).reshape(2, 3)
    position = np.array(of_frame(*groups, "PlanePositionSequence", "ImagePositionPatient"), float).reshape(3)
    segment = of_frame(*groups, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
    return rows, position, (across, down), None if seg.SegmentationType == "LABELMAP" else int(segment)


def _chosen(
    path: Path, segments: list[_Segment], names: Collection[str] | None, what: re.Pattern[str]
) -> list[_Segment]:
    known = ", ".join(segment.name for segment in segments) or "none"
    if names is not None:
        wanted = {name.lower() for name in names}
        chosen = [segment for segment in segments if segment.name.lower() in wanted]
        if len({segment.name.lower() for segment in chosen}) < len(wanted):
            raise VolumeError(f"{path}: has no segment of some of these names: {', '.join(names)}; it has {known}")
        return chosen
    if len(segments) < 2:
        return segments
    chosen = [segment for segment in segments if what.search(segment.name)]
    if not chosen and all(LUNG.search(segment.name) for segment in segments):
        return segments
    if not chosen:
        raise VolumeError(f"{path}: has the segments {known}; name those that count with --segments")
    if len(chosen) < len(segments):
        log.warning("%s: reads %s of its segments %s", path, ", ".join(s.name for s in chosen), known)
    return chosen
