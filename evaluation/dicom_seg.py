"""Lesion masks as DICOM SEG, beside the CT series that they were found in.

An object of one binary segment, written by highdicom. Its frames are the slices of the series on which there is
lesion, each with the position of its slice and a reference to it; study, frame of reference and patient are those of
the series, as text in UTF-8. A mask without lesion has no object: the standard knows no segmentation without a frame.
"""

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.charset import python_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import UID
from pydicom.valuerep import DA, validate_value

from datasets.volumes import DEFAULT, Reading, Scan
from evaluation.burden import NOTICE
from utils.errors import VolumeError

log = logging.getLogger(__name__)

logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every attribute that it copies

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""UIDs that the standard asks for in every CT, and without which a segmentation belongs to nothing."""

_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""Attributes of patient and study that the standard lets be empty: where a CT lacks them, so does its segmentation."""

_COPIED = (*_MAY_BE_EMPTY, "StudyDescription", "PositionReferenceIndicator")
"""What highdicom copies besides the attributes of the patient's group."""

_PATIENT = 0x0010
"""Group of the patient's attributes."""

_ASCII = ("", "ISO_IR 6", "ISO 2022 IR 6")

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ufffd]")
"""Characters that no name or text has, and the one that stands for bytes that could not be decoded."""

_SERIES_NUMBER = 1000
"""Added to that of the CT, so that both can be told apart in a list."""

_COLOUR = (53.0, 80.0, 67.0)
"""CIELab of a clear red, which viewers take by default."""


@dataclass(frozen=True)
class Source:
    """The headers of a CT series."""

    headers: tuple[Dataset, ...]  # of the slices along z, or of the one file that holds all slices as frames
    frames: tuple[int, ...] | None = None  # index of the frame of each slice along z; None for one file per slice


def read_source(scan: Scan, reading: Reading = DEFAULT) -> Source:
    """The headers of a CT series, complete enough for a segmentation.

    What the standard lets be empty is filled in empty where it is missing. What pydicom does not validate is left
    empty, with a warning. The distance of the slices is the measured one.

    Raises:
        VolumeError: there is no such series, or a header lacks what a segmentation needs, or holds it damaged.
    """
    series = scan.complete_series(reading)
    if series is None:
        raise VolumeError(f"{scan}: not a DICOM series")
    frames = [one.frame for one in series.slices]
    paths = tuple(dict.fromkeys(series.files))
    if frames[0] is not None and len(paths) > 1:
        raise VolumeError(
            f"{paths[0]}: the series is spread over {len(paths)} multi-frame files; a DICOM SEG needs one"
        )
    headers: list[Dataset] = []
    emptied: set[str] = set()
    for path in paths:
        with warnings.catch_warnings(action="ignore"):  # what matters is checked
            header = pydicom.dcmread(path, stop_before_pixels=True)
            emptied |= _complete(path, header)
        for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
            if headers and header[name].value != headers[0][name].value:
                raise VolumeError(
                    f"{path}: its {name} differs from that of {paths[0].name}, a DICOM SEG needs one; export the "
                    "series again, or leave out --dicom-seg"
                )
        header.SpacingBetweenSlices = series.geometry[1][2]
        if not header.get("SliceThickness"):
            header.SliceThickness = series.geometry[1][2]
        headers.append(header)
    if emptied:
        log.warning("%s: DICOM SEG without %s, which the standard does not allow", scan, ", ".join(sorted(emptied)))
    return Source(tuple(headers), None if frames[0] is None else tuple(frames))


def _complete(path: Path, header: Dataset) -> set[str]:
    """Fill in what may be empty and empty what is not valid; all text becomes Unicode. Returns names of the emptied.

    Raises:
        VolumeError: a UID is missing or damaged.
    """
    for name in _NEEDED:
        if not header.get(name) or not UID(header[name].value).is_valid:
            raise VolumeError(
                f"{path}: has no valid {name}, which a DICOM SEG needs; export the series again, or leave out "
                "--dicom-seg"
            )
    declared = header.get("SpecificCharacterSet") or ""
    sets = declared if isinstance(declared, MultiValue) else [declared]
    # pydicom reads text of undeclared or unknown sets as Latin-1; DICOM has ASCII there.
    ascii_only = all(one in _ASCII for one in sets) or not all(one in python_encoding for one in sets)
    emptied = set()
    for element in [e for e in header if e.tag.group == _PATIENT or e.keyword in _COPIED]:
        if element.VR != "SQ":
            try:
                element.value = _valid_text(element, ascii_only)
            except ValueError:
                emptied.add(element.keyword or str(element.tag))
                del header[element.tag]
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    header.SpecificCharacterSet = "ISO_IR 192"
    return emptied


def _valid_text(element: DataElement, ascii_only: bool) -> str:
    """The value of an element as text.

    Raises:
        ValueError: it is not what the standard allows.
    """
    text = "" if element.value is None else str(element.value)
    if isinstance(element.value, MultiValue) or _CONTROL.search(text) or (ascii_only and not text.isascii()):
        raise ValueError(text)
    validate_value(element.VR, text, pydicom.config.RAISE)
    if element.VR == "DA":
        DA(text)  # whether there is such a day
    return text


def make_dicom_seg(mask: np.ndarray, source: Source, version: str, model: str, threshold: float) -> hd.seg.Segmentation:
    """A DICOM SEG of a lesion mask, (z, y, x) on the grid of the series, not 0 in lesion, of which there is some.

    The version is that of the software; the model is what identifies the segmenter, whose probabilities were cut at the
    threshold.
    """
    algorithm = hd.AlgorithmIdentificationSequence(
        name="GASNet segmenter",
        family=codes.DCM.ArtificialIntelligence,
        version=version,
        source="GASNet",
        parameters={"model": model, "threshold": f"{threshold:g}"},
    )
    lesion = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id="GASNet lesion",
        anatomic_regions=[codes.SCT.Lung],
        display_color=hd.color.CIELabColor(*_COLOUR),
    )
    first = source.headers[0]
    number = str(first.get("SeriesNumber") or "")
    lesions = mask > 0
    if source.frames is not None:
        in_order, lesions = lesions, np.zeros((int(first.NumberOfFrames), *mask.shape[1:]), bool)
        lesions[list(source.frames)] = in_order
    with warnings.catch_warnings(action="ignore"):  # about names of patients that are unusual
        return hd.seg.Segmentation(
            source_images=source.headers,
            pixel_array=lesions,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[lesion],
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER + (int(number) if re.fullmatch(r"\d{1,8}", number) else 0),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="GASNet",
            manufacturer_model_name="GASNet segmenter",
            software_versions=version,
            device_serial_number=model,
            series_description="Lesions by GASNet, research use only",
            content_label="LESION",
            content_description=NOTICE,
        )
