"""Lesion masks as DICOM SEG, beside the CT series that they were found in.

An object of one binary segment, written by highdicom. Its frames are the slices of the series on which there is
lesion, each with the position of its slice and a reference to it; study, frame of reference and patient are those of
the series, as text in UTF-8. A mask without lesion has no object: the standard knows no segmentation without a frame.
"""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import UID
from pydicom.valuerep import DA, PersonName, validate_value

from datasets.scan import Scan
from datasets.volumes import DEFAULT, Reading
from evaluation.burden import NOTICE
from utils.errors import VolumeError

log = logging.getLogger(__name__)

logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every attribute that it copies

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""UIDs that the standard asks for in every CT, and without which a segmentation belongs to nothing."""

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes of patient and study that the standard lets be empty: where a CT lacks them, so does its segmentation."""

_COPIED = ("StudyDescription", "PositionReferenceIndicator")
"""What highdicom copies besides `_MAY_BE_EMPTY` and the attributes of the patient's group."""

_PATIENT = 0x0010
"""Group of the patient's attributes."""

_SEXES = ("", "M", "F", "O")

_ACR_NEMA = {"DA": re.compile(r"(\d{4})\.(\d\d)\.(\d\d)"), "TM": re.compile(r"(\d\d):(\d\d):(\d\d(?:\.\d{1,6})?)")}
"""Dates and times as DICOM's predecessor wrote them; without their dots and colons they are those of DICOM."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ufffd]")
"""Characters that no name or text has, and the one that stands for bytes that could not be decoded."""

_OF_ALL = ("StudyInstanceUID", "FrameOfReferenceUID")
"""What all slices of a series share."""

_SERIES_NUMBER = 1000
"""Added to that of the CT, so that both can be told apart in a list."""

_COLOUR = (53.0, 80.0, 67.0)
"""CIELab of a clear red, which viewers take by default."""


@dataclass(frozen=True)
class Source:
    """The headers of a CT series.

    Attributes:
        headers: of the slices along z, or of the one file that holds all slices as frames.
        frames: index of the frame of each slice along z; None for one file per slice.
    """

    headers: tuple[Dataset, ...]
    frames: tuple[int, ...] | None = None


def read_source(scan: Scan, reading: Reading = DEFAULT) -> Source:
    """The headers of a CT series, complete enough for a segmentation.

    What the standard lets be empty is filled in empty where it is missing, and emptied where it is not what the
    standard allows, with a warning. The distance of the slices is the measured one.

    Args:
        scan: a DICOM series.
        reading: how scans are read.

    Raises:
        VolumeError: there is no such series, or a header lacks what a segmentation needs, or holds it damaged.
    """
    series = scan.complete_series(reading)
    if series is None:
        raise VolumeError(f"{scan}: not a DICOM series")
    frames = [one.frame for one in series.slices]
    paths = tuple(dict.fromkeys(series.files))
    if frames[0] is not None and len(paths) > 1:
        raise VolumeError(f"{paths[0]}: slices in {len(paths)} files of several, of which no DICOM SEG is made")
    headers: list[Dataset] = []
    emptied: set[str] = set()
    for path in paths:
        with warnings.catch_warnings(action="ignore"):  # what matters is checked
            header = pydicom.dcmread(path, stop_before_pixels=True)
            emptied |= _complete(path, header)
        for name in _OF_ALL:
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
    """Fill in what may be empty and empty what is not allowed; all text becomes Unicode.

    Returns:
        Names of what was emptied or left out.

    Raises:
        VolumeError: a UID is missing or damaged.
    """
    for name in _NEEDED:
        if not header.get(name) or not UID(header[name].value).is_valid:
            raise VolumeError(
                f"{path}: has no valid {name}, which a DICOM SEG needs; export the series again, or leave out "
                "--dicom-seg"
            )
    encodings = _encodings(header)
    emptied = set()
    names = (*_MAY_BE_EMPTY, *_COPIED)
    for element in [e for e in header if e.tag.group == _PATIENT or e.keyword in names]:
        if element.VR == "SQ":
            continue
        text = _text_of(element, encodings)
        if text is not None and _allowed(element, text):
            element.value = text
        else:
            emptied.add(element.keyword or str(element.tag))
            del header[element.tag]
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    header.SpecificCharacterSet = "ISO_IR 192"
    return emptied


def _encodings(header: Dataset) -> list[str] | None:
    """Python's names of the character sets of a header; None for ASCII, and for sets that are not known."""
    declared = header.get("SpecificCharacterSet") or "ISO_IR 6"
    if declared in ("ISO_IR 6", "ISO 2022 IR 6"):
        return None
    try:
        with warnings.catch_warnings(action="error"):
            return convert_encodings(declared)
    except (LookupError, UserWarning):
        return None


def _text_of(element: DataElement, encodings: list[str] | None) -> str | None:
    """The value of an element as text; None if it has several values, or bytes that its character sets do not have."""
    value = element.value
    if isinstance(value, MultiValue):
        return None
    if isinstance(value, PersonName) and value.original_string and encodings is not None:
        value = PersonName(value.original_string, encodings)
    text = "" if value is None else str(value)
    # pydicom reads undeclared text as Latin-1; DICOM has ASCII there, and the true character set is not known.
    if encodings is None and not text.isascii():
        return None
    if (form := _ACR_NEMA.get(element.VR)) is not None and (found := form.fullmatch(text)) is not None:
        return "".join(found.groups())
    return text


def _allowed(element: DataElement, text: str) -> bool:
    """Whether the standard allows a text as the value of an element."""
    if _CONTROL.search(text) or (element.keyword == "PatientSex" and text not in _SEXES):
        return False
    try:
        validate_value(element.VR, text, pydicom.config.RAISE)
        if element.VR == "DA":
            DA(text)  # whether there is such a day
    except ValueError:
        return False
    return True


def make_dicom_seg(mask: np.ndarray, source: Source, version: str, model: str, threshold: float) -> hd.seg.Segmentation:
    """A DICOM SEG of a lesion mask.

    Args:
        mask: (z, y, x), not 0 in lesion, on the grid of the series; some of it is lesion.
        source: headers of the series, from `read_source`.
        version: of the software.
        model: what identifies the segmenter.
        threshold: at which its probabilities were cut.
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
