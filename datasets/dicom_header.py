"""The elements of DICOM headers that the index needs.

An archive has tens of thousands of headers, and most of their elements are not needed, or alike in all slices of a
series. So pydicom's parser walks a usual file, and each value is converted once, in a quarter of the time. What is
not little endian, has functional groups or no meta header is left to pydicom as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, BinaryIO

import pydicom
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import AllTransferSyntaxes, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

NAMES = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "PatientName", "PatientBirthDate"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "BodyPartExamined"),
    *("AcquisitionNumber", "AcquisitionTime", "AcquisitionDateTime", "ImagesInAcquisition", "InstanceNumber"),
    *("ConvolutionKernel", "TemporalPositionIdentifier", "SliceThickness", "SamplesPerPixel", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("RescaleSlope", "RescaleIntercept", "PixelRepresentation", "PixelPaddingValue", "SpecificCharacterSet"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
"""Elements that are read."""

_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag of PixelData in both byte orders
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_NAME_OF = {BaseTag(tag_for_keyword(name)): name for name in NAMES}
_SYNTAXES = {*AllTransferSyntaxes} - {ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}


class _Unusual(Exception):
    """A file is left to pydicom."""


def read_elements(file: BinaryIO) -> tuple[Mapping[str, Any] | Dataset, Mapping[str, Any] | Dataset, bool]:
    """Read `NAMES` of a DICOM file that was opened.

    Returns:
        The data set and the file meta header, whose `get` and `in` know pydicom's values by keyword; and whether
        pixels follow.

    Raises:
        Exception: whatever pydicom raises if the file is damaged.
    """
    try:
        values = _usual_values(file)
        return values, values, True
    except Exception:  # it is unusual, or pydicom raises whatever it comes across
        file.seek(0)
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=NAMES, force=True)
    return header, getattr(header, "file_meta", Dataset()), file.read(4) in _PIXELS


def _usual_values(file: BinaryIO) -> dict[str, Any]:
    """The values of a header by keyword.

    Raises:
        Exception: the file is left to pydicom.
    """
    read_preamble(file, force=False)
    values = {
        name: _value(name, element.VR, element.value)
        for element in data_element_generator(file, False, True, lambda tag, *_: tag >> 16 != 2)
        if (name := keyword_for_tag(element.tag)) in ("MediaStorageSOPClassUID", "TransferSyntaxUID")
    }
    implicit, start = values["TransferSyntaxUID"] == ImplicitVRLittleEndian, file.read(6)
    # pydicom goes by the first element where that contradicts the transfer syntax, and reads commands first.
    if values["TransferSyntaxUID"] not in _SYNTAXES or start[4:].isupper() == implicit or start[:2] == b"\0\0":
        raise _Unusual
    file.seek(-6, os.SEEK_CUR)
    found = {
        _NAME_OF[element.tag]: element
        for element in data_element_generator(
            file, implicit, True, lambda tag, *_: tag in _PIXEL_TAGS, specific_tags=list(_NAME_OF)
        )
    }
    if file.read(4) != _PIXELS[0] or any("SQ" in (e.VR, dictionary_VR(e.tag)) for e in found.values()):
        raise _Unusual
    charset = found["SpecificCharacterSet"].value if "SpecificCharacterSet" in found else None
    for name in (name for name in NAMES if name in found):
        vr = found[name].VR
        if vr is None and name == "PixelPaddingValue":  # its type depends on another element
            vr = "SS" if values.get("PixelRepresentation") else "US"
        values[name] = _value(name, vr, found[name].value, charset)
    return values


@lru_cache(maxsize=1 << 13)
def _value(name: str, vr: str | None, raw: bytes | None, charset: bytes | None = None) -> Any:
    """A value as pydicom converts it; most are alike in all slices of a series."""
    encodings = default_encoding
    if charset is not None and name != "SpecificCharacterSet":
        encodings = convert_encodings(_value("SpecificCharacterSet", "CS", charset))
    tag = BaseTag(tag_for_keyword(name))
    element = RawDataElement(tag, vr, len(raw or b""), raw, 0, vr is None, is_little_endian=True)
    return convert_raw_data_element(element, encoding=encodings).value
