"""The elements of DICOM headers that the index needs.

An archive has tens of thousands of headers, and most of their elements are not needed, or alike in all slices of a
series. So a usual file is walked here, from element to element up to its pixels, and pydicom converts each value that
is needed once. All else is left to pydicom as a whole: files without a meta header, big endian, deflated and private
transfer syntaxes, multi-frame files, unknown value representations, and files that end early or contradict themselves.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

import pydicom
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.tag import BaseTag
from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

Elements = Mapping[str, Any]
"""Values by keyword; of PixelData, where its value begins and its bytes, which are 0 in files that pydicom read."""

NAMES = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "PatientName", "PatientBirthDate"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "BodyPartExamined"),
    *("AcquisitionNumber", "AcquisitionTime", "AcquisitionDateTime", "ImagesInAcquisition", "InstanceNumber"),
    *("ConvolutionKernel", "TemporalPositionIdentifier", "SliceThickness", "SamplesPerPixel", "BitsStored"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "SpecificCharacterSet"),
    *("BitsAllocated", "HighBit", "PhotometricInterpretation", "NumberOfFrames", "StudyDate"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
"""Elements that are read."""

_META = ("MediaStorageSOPClassUID", "TransferSyntaxUID")

_BLOCKS = (1 << 14, 1 << 17, 1 << 20)
"""Bytes that are read of a file, block after block, until its pixels begin."""

_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag of PixelData in both byte orders
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"  # the first element of a file meta header, but for its value
_UNDEFINED = 0xFFFFFFFF
_LONGEST = 4096
"""Bytes of a value that is kept for other slices."""

_BEFORE_VALUE = {vr.encode(): 12 if vr in EXPLICIT_VR_LENGTH_32 else 8 for vr in STANDARD_VR}
"""Bytes of an element before its value, by value representation."""

_EXPLICIT = {*AllTransferSyntaxes} - {ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}

_tag_and_length = struct.Struct("<II").unpack_from
_tag_vr_and_length = struct.Struct("<I2sH").unpack_from
_length = struct.Struct("<I").unpack_from


def _swapped(tag: int) -> int:
    """A tag as its four bytes are read here, with the group in the lower half; and back."""
    return (tag & 0xFFFF) << 16 | tag >> 16


_FOR_PYDICOM = ("FloatPixelData", "DoubleFloatPixelData", "ItemDelimitationItem", *NAMES[-2:])
"""Where pydicom ends a data set, and what makes a file a multi-frame one."""

_KNOWN = {_swapped(tag_for_keyword(name)): name for name in (*NAMES, *_META, "PixelData", *_FOR_PYDICOM)}
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = (_swapped(tag) for tag in (0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD))


class _Unusual(Exception):
    """A file is left to pydicom."""


def read_elements(file: BinaryIO) -> Elements:
    """Read `NAMES`, and what `_META` names of the file meta header, of a DICOM file that was opened.

    Returns:
        Values as pydicom converts them, or its errors; PixelData if pixels follow.

    Raises:
        Exception: whatever pydicom raises if the file is damaged.
    """
    data = b""
    for size in _BLOCKS:
        data += file.read(size)
        try:
            return _usual_values(data)
        except struct.error:  # the header is longer
            continue
        except Exception:  # it is unusual, or pydicom raises whatever it comes across
            break
    file.seek(0)
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(NAMES), force=True)
    values: dict[str, Any] = {name: header.file_meta[name].value for name in _META if name in header.file_meta}
    if file.read(4) in _PIXELS:
        values["PixelData"] = file.tell(), 0
    for tag in sorted(header.keys()):
        raw = header.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.length not in (_UNDEFINED, len(raw.value or b"")):
            raise EOFError("its header is cut short")
        try:
            values[keyword_for_tag(tag)] = header[tag].value
        except Exception as error:  # such as of a report's number, which nothing needs
            values[keyword_for_tag(tag)] = error
    return values


def _usual_values(data: bytes) -> dict[str, Any]:
    """The values of a header by keyword.

    Raises:
        _Unusual: the file is left to pydicom.
        struct.error: the header does not end within the data.
        Exception: a value cannot be converted.
    """
    if data[128:140] != b"DICM" + _GROUP_LENGTH:
        raise _Unusual
    start = 144 + _length(data, 140)[0]
    found: dict[str, tuple[bytes | None, bytes]] = {}
    for tag, vr, place, length in _elements(data, 144, start, implicit=False):
        if tag & 0xFFFF != 2:
            raise _Unusual
        if tag in _KNOWN:
            found[_KNOWN[tag]] = vr, data[place : place + length]
    syntax = _value("TransferSyntaxUID", *found["TransferSyntaxUID"])
    implicit = syntax == ImplicitVRLittleEndian
    first, vr, _ = _tag_vr_and_length(data, start)
    # pydicom reads commands first, and goes by the first element where that contradicts the transfer syntax.
    if first & 0xFFFF <= 2 or not (implicit or syntax in _EXPLICIT) or (implicit and vr.isalpha() and vr.isupper()):
        raise _Unusual
    for tag, vr, place, length in _elements(data, start, math.inf, implicit):
        name = _KNOWN.get(tag)
        if name is None:
            continue
        if name == "PixelData":
            break
        if name in _FOR_PYDICOM or vr == b"SQ" or length > _LONGEST:
            raise _Unusual
        if place + length > len(data):
            raise struct.error
        found[name] = vr, data[place : place + length]
    charset, padding = found.get("SpecificCharacterSet"), found.pop("PixelPaddingValue", None)
    values: dict[str, Any] = {name: _value(name, vr, raw, charset) for name, (vr, raw) in found.items()}
    values["PixelData"] = place, length
    if padding is not None:
        vr, raw = padding
        signed = values.get("PixelRepresentation", 0) != 0
        values["PixelPaddingValue"] = _value("PixelPaddingValue", vr or (b"SS" if signed else b"US"), raw)
        if not isinstance(values["PixelPaddingValue"], int):
            raise _Unusual
    return values


def _elements(data: bytes, place: int, end: float, implicit: bool) -> Iterator[tuple[int, bytes | None, int, int]]:
    """The elements from a place to an end: swapped tag, value representation, place and length of the value.

    Sequences of undefined length are passed over once the next element is asked for.
    """
    vr: bytes | None = None
    while place < end:
        if implicit:
            tag, length = _tag_and_length(data, place)
            place += 8
        else:
            tag, vr, length = _tag_vr_and_length(data, place)
            before = 8 if tag == _END_OF_ITEM else _BEFORE_VALUE.get(vr)
            if before is None:
                raise _Unusual
            if before == 12:
                (length,) = _length(data, place + 8)
            place += before
        yield tag, vr, place, length
        if length == _UNDEFINED:
            if not (_is_sequence(tag) if implicit else vr == b"SQ"):
                raise _Unusual
            place = _after_items(data, place, implicit)
        else:
            place += length
    if place != end:
        raise _Unusual


def _after_items(data: bytes, place: int, implicit: bool) -> int:
    """Where a sequence of undefined length ends."""
    while True:
        tag, length = _tag_and_length(data, place)
        place += 8
        if tag == _END_OF_SEQUENCE:
            return place
        if tag != _ITEM:
            raise _Unusual
        if length == _UNDEFINED:
            elements = _elements(data, place, math.inf, implicit)
            place = next(after for tag, _, after, _ in elements if tag == _END_OF_ITEM)
        else:
            if any(tag == _END_OF_ITEM for tag, *_ in _elements(data, place, place + length, implicit)):
                raise _Unusual
            place += length


@lru_cache
def _is_sequence(tag: int) -> bool:
    """Whether an element of undefined length without a value representation is a sequence; what is not known is."""
    try:
        return dictionary_VR(_swapped(tag)) == "SQ"
    except KeyError:
        return True


@lru_cache(maxsize=1 << 13)
def _value(name: str, vr: bytes | None, raw: bytes, charset: tuple[bytes | None, bytes] | None = None) -> Any:
    """A value as pydicom converts it; most are alike in all slices of a series."""
    encodings = default_encoding
    if charset is not None and name != "SpecificCharacterSet":
        encodings = convert_encodings(_value("SpecificCharacterSet", *charset))
    tag, kind = BaseTag(tag_for_keyword(name)), vr and vr.decode()
    element = RawDataElement(tag, kind, len(raw), raw, 0, vr is None, is_little_endian=True)
    return convert_raw_data_element(element, encoding=encodings).value
