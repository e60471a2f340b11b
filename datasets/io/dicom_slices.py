"""Which DICOM files are slices of a CT, from their headers, and what each slice says of itself."""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from utils.errors import one_line
from utils.files import is_dangling

logging.getLogger("pydicom").setLevel(logging.ERROR)  # it logs every oddity of a header; what matters is checked

EXTENSIONS = (".dcm", ".dicom", ".ima")
"""Files that claim to be DICOM, and must be."""

CT, ENHANCED_CT, LEGACY_ENHANCED_CT = (f"1.2.840.10008.5.1.4.1.1.2{end}" for end in ("", ".1", ".2"))
_MULTI_FRAME = (ENHANCED_CT, LEGACY_ENHANCED_CT)
_DIRECTORY = "1.2.840.10008.1.3.10"

_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "PatientName", "PatientBirthDate"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "AcquisitionNumber"),
    *("ConvolutionKernel", "TemporalPositionIdentifier", "InstanceNumber", "SliceThickness", "SamplesPerPixel"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated"),
    *("RescaleSlope", "RescaleIntercept", "NumberOfFrames", "PixelPaddingValue", "PixelRepresentation"),
    *("BitsStored", "HighBit", "PhotometricInterpretation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SpecificCharacterSet"),
]

SCOUT = "scout view"
_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag of PixelData in both byte orders

SAME_DIRECTION = 2e-3
"""How far direction cosines may differ within a series, and from right angles; some are written with three digits."""


@dataclass(frozen=True)
class NativePixels:
    """Where uncompressed pixels of 16 bits lie in a file, in little-endian order.

    Attributes:
        offset: bytes before them.
        signed: whether they are signed.
        bits: bits of the stored values, at most 16; higher ones should repeat the sign, or be 0.
    """

    offset: int
    signed: bool
    bits: int


@dataclass(frozen=True)
class Slice:
    """One slice of a CT: a file, or a frame of a multi-frame file.

    Attributes:
        path: the file.
        frame: index of the frame in a multi-frame file, otherwise None.
        instance: SOPInstanceUID.
        patient: hash of the patient's identity.
        study: StudyInstanceUID.
        series: SeriesInstanceUID or, without one, a key made of number, description and folder.
        number: SeriesNumber.
        description: SeriesDescription.
        kernel: ConvolutionKernel.
        acquisition: AcquisitionNumber.
        temporal: TemporalPositionIdentifier.
        image_type: ImageType.
        position: centre of the first pixel in mm, (3,).
        rows: direction cosines along a row and along a column, (6,).
        spacing: mm from column to column, and from row to row.
        thickness: SliceThickness in mm; 0 if it is not given.
        size: columns and rows.
        rescale: RescaleSlope and RescaleIntercept as written; None if missing.
        padding: PixelPaddingValue; None if missing.
        preamble: whether the file has one; readers other than pydicom need it.
        problem: why it cannot be used.
        native: where its pixels lie, if they need no decoder.
    """

    path: Path
    frame: int | None
    instance: str
    patient: str
    study: str
    series: str
    number: str
    description: str
    kernel: str
    acquisition: str
    temporal: str
    image_type: tuple[str, ...]
    position: np.ndarray
    rows: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    size: tuple[int, int]
    rescale: tuple[str | None, str | None]
    padding: int | None
    preamble: bool
    problem: str | None = None
    native: NativePixels | None = None

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept; 1 and 0 if missing."""
        slope, intercept = self.rescale
        return float(slope or 1), float(intercept or 0)

    @property
    def name(self) -> str:
        """File name, and the number of the frame."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"


@dataclass(frozen=True)
class Other:
    """A DICOM file that is no slice of a CT.

    Attributes:
        path: the file.
        kind: what it is.
        like: the slice that it would be if its kind were damaged; None without position, orientation and size.
        damaged: whether its header cannot be read.
    """

    path: Path
    kind: str
    like: Slice | None = None
    damaged: bool = False


def short_hash(*parts: str) -> str:
    """Eight hexadecimal digits that tell apart what the parts name, without naming it."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM, by its extension or its content; files without preamble by their first element.

    A file that cannot be opened is, unless it has an extension of another kind; numbers are parts of a UID.
    """
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return not path.suffix or path.suffix[1:].isdigit()
    if start[128:] == b"DICM":
        return True
    head = start[:8]
    # Without preamble and file meta header: an element of group 2 or 8, little endian, of a plausible length.
    return (
        len(head) == 8
        and head[1] == 0
        and head[0] in (2, 8)
        and head[3] == 0
        and (head[4:6] in (b"CS", b"UI", b"DA", b"UL", b"LO") or struct.unpack("<I", head[4:])[0] < 256)
    )


def read_slices(path: Path) -> list[Slice | Other]:
    """The slices in a DICOM file: one, or one per frame; or what else the file is.

    Never raises: damage is a kind of `Other`, or the problem of a slice.
    """
    try:
        with path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            rest = file.read(12)
            behind = file.tell()
        return _slices_of(path, header, rest, behind)
    except OSError as error:
        reason = "a link to a file that is not there" if is_dangling(path) else f"cannot be read ({error.strerror})"
        return [Other(path, reason, damaged=True)]
    except Exception as error:  # pydicom raises whatever it comes across
        return [Other(path, f"damaged, or not DICOM ({one_line(error)})", damaged=True)]


def _slices_of(path: Path, header: Dataset, rest: bytes, behind: int) -> list[Slice | Other]:
    meta = getattr(header, "file_meta", Dataset())
    sop_class = str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    modality = str(header.get("Modality") or "")
    if sop_class == _DIRECTORY or str(meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
        return [Other(path, "DICOM directory")]
    if _is_impossible(sop_class):
        reason = f"{' '.join(sop_class.split())[:64]} is no kind of object"
        return [Other(path, f"damaged, or not DICOM ({reason})", damaged=True)]
    if "SOPClassUID" not in header and not modality and "Rows" not in header:
        return [Other(path, "damaged, or not DICOM (no image and no kind of object)", damaged=True)]
    image_type = tuple(str(word).upper() for word in _several(header.get("ImageType")))
    has_place = all(header.get(name) for name in ("ImagePositionPatient", "ImageOrientationPatient", "Rows"))
    kind = _kind_of_other(sop_class, modality, image_type, header, has_place)
    if kind is not None:
        like = _slice_or_none(path, header, image_type) if kind != SCOUT else None
        # Damage can turn a slice into another kind of object; it then claims a place, or CT, without the rest of one.
        claims = CT in (sop_class, str(meta.get("MediaStorageSOPClassUID", ""))) or not sop_class
        broken = claims and not rest.startswith(_PIXELS) and modality != "SR"
        return [Other(path, kind, like, damaged=like is None and (has_place or broken) and kind != SCOUT)]
    if sop_class in _MULTI_FRAME:
        return list(_frames(path, header, image_type))
    one = _slice_of(path, header, image_type)
    problem = _pixel_problem(path, header, rest, stored=path.stat().st_size - behind)
    return [replace(one, problem=problem, native=_native(header, rest, behind))]


def _is_impossible(sop_class: str) -> bool:
    """Whether a SOP class is neither known nor a vendor's own, but a damaged one of the standard."""
    uid = UID(sop_class)
    known = not sop_class or uid.name != sop_class
    return not known and (
        not uid.is_valid or uid.count(".") < 5 or bool(re.search(r"^1\.2\.840\.\d{5}(\.|$)|10008|\.5\.1\.4", uid))
    )


def _kind_of_other(
    sop_class: str, modality: str, image_type: tuple[str, ...], header: Dataset, has_place: bool
) -> str | None:
    """What a file is that is no slice of a CT; None for slices."""
    if sop_class not in ("", CT, *_MULTI_FRAME):
        return UID(sop_class).name.removesuffix(" Storage")
    if modality not in ("", "CT"):
        return f"image of modality {modality}"
    if "LOCALIZER" in image_type:
        return SCOUT
    if header.get("SamplesPerPixel", 1) != 1:
        return "colour picture"
    secondary = image_type[:1] == ("DERIVED",) or image_type[1:2] == ("SECONDARY",)
    if not has_place and secondary and sop_class not in _MULTI_FRAME:
        return "picture without position"
    return None


def _several(value: Any) -> Sequence[Any]:
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, MultiValue | list | tuple) else (value,)


def _text(header: Dataset, name: str) -> str:
    return "\\".join(str(part) for part in _several(header.get(name))).strip()


def _number(value: Any) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{value} is no number")
    return number


def _slice_of(path: Path, header: Dataset, image_type: tuple[str, ...]) -> Slice:
    """The slice of a header; position, orientation and spacing must be there.

    Raises:
        Exception: whatever a missing or impossible element raises.
    """
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
        if not header.get(name):
            raise ValueError(f"a slice of a CT without {name}")
    rows = np.array([_number(v) for v in header.ImageOrientationPatient]).reshape(2, 3)
    if not np.allclose(rows @ rows.T, np.eye(2), rtol=0, atol=SAME_DIRECTION):
        raise ValueError("its ImageOrientationPatient is impossible")
    rescale = tuple(_text(header, name) or None for name in ("RescaleSlope", "RescaleIntercept"))
    for value in rescale:
        _number(value or 0)
    padding = header.get("PixelPaddingValue")
    number, description = _text(header, "SeriesNumber"), _text(header, "SeriesDescription")
    return Slice(
        path=path,
        frame=None,
        instance=_text(header, "SOPInstanceUID"),
        patient=short_hash(*(_text(header, name) for name in ("PatientID", "PatientName", "PatientBirthDate"))),
        study=_text(header, "StudyInstanceUID"),
        series=_text(header, "SeriesInstanceUID") or f"without UID {short_hash(number, description, str(path.parent))}",
        number=number,
        description=description,
        kernel=_text(header, "ConvolutionKernel"),
        acquisition=_text(header, "AcquisitionNumber"),
        temporal=_text(header, "TemporalPositionIdentifier"),
        image_type=image_type,
        position=np.array([_number(v) for v in header.ImagePositionPatient]).reshape(3),
        rows=rows.ravel(),
        spacing=(_number(header.PixelSpacing[1]), _number(header.PixelSpacing[0])),
        thickness=_number(header.get("SliceThickness") or 0),
        size=(int(header.Columns), int(header.Rows)),
        rescale=rescale,
        padding=padding if isinstance(padding, int) else None,
        preamble=getattr(header, "preamble", None) is not None,
    )


def _slice_or_none(path: Path, header: Dataset, image_type: tuple[str, ...]) -> Slice | None:
    try:
        return _slice_of(path, header, image_type)
    except Exception:  # whatever a missing or impossible element raises
        return None


def _pixel_problem(path: Path, header: Dataset, rest: bytes, stored: int) -> str | None:
    """Why the pixels of a slice cannot be used, from the element that follows the header.

    Args:
        path: the file.
        header: header of the slice.
        rest: the first 12 bytes from the pixel element on; empty if there is none.
        stored: bytes in the file after `rest`.
    """
    syntax = getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID")
    if syntax is not None and syntax.is_deflated:
        return None  # unpacked as a whole by pydicom; the decoder checks its length
    if len(rest) < 8 or not rest.startswith(_PIXELS):
        return "damaged, or not DICOM (no pixels); copy the slice again"
    explicit, length = _pixel_element(rest)
    if length == 0xFFFFFFFF:  # encapsulated
        return None
    there = stored + (0 if explicit else 4)
    needed = _pixel_bytes(header)
    if min(length, there) < needed:
        return f"cut short: {min(length, there)} of {needed} bytes of pixels; copy it again"
    return None


def _pixel_element(rest: bytes) -> tuple[bool, int]:
    """Whether the element of the pixels names its type, and the length that it states."""
    order = "<" if rest.startswith(_PIXELS[0]) else ">"
    explicit = rest[4:6] in (b"OW", b"OB", b"UN")
    return explicit, struct.unpack(f"{order}I", rest[8:12] if explicit else rest[4:8])[0]


def _pixel_bytes(header: Dataset) -> int:
    """Bytes of the pixels of a slice, uncompressed."""
    return int(header.Columns) * int(header.Rows) * int(header.get("BitsAllocated", 16)) // 8


def _native(header: Dataset, rest: bytes, behind: int) -> NativePixels | None:
    """Where the pixels of a slice lie, if they need no decoder; None otherwise.

    Args:
        header: header of the slice.
        rest: as for `_pixel_problem`.
        behind: bytes before the end of `rest`.
    """
    syntax = getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID")
    bits = header.get("BitsStored")
    plain = (
        syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
        and rest.startswith(_PIXELS[0])
        and header.get("BitsAllocated") == 16
        and isinstance(bits, int)
        and 1 < bits <= 16
        and header.get("HighBit") == bits - 1
        and header.get("PhotometricInterpretation") == "MONOCHROME2"
        and header.get("PixelRepresentation") in (0, 1)
    )
    if not plain:
        return None
    explicit, length = _pixel_element(rest)
    if length != _pixel_bytes(header):
        return None
    return NativePixels(behind - (0 if explicit else 4), bool(header.PixelRepresentation), bits)


def _frames(path: Path, header: Dataset, image_type: tuple[str, ...]) -> Iterable[Slice]:
    """The frames of an enhanced CT as slices."""
    (shared,) = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for number, group in enumerate(header.PerFrameFunctionalGroupsSequence):

        def find(sequence: str, name: str, group: Dataset = group) -> Any:
            for source in (group, shared):
                if source.get(sequence):
                    return source[sequence][0].get(name)
            return None

        flat = Dataset()
        for name in _TAGS:
            if name in header and not name.endswith("GroupsSequence"):
                flat[name] = header[name]
        for sequence, name in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
            ("PixelMeasuresSequence", "SliceThickness"),
            ("PixelValueTransformationSequence", "RescaleSlope"),
            ("PixelValueTransformationSequence", "RescaleIntercept"),
            ("CTReconstructionSequence", "ConvolutionKernel"),
            ("FrameContentSequence", "TemporalPositionIndex"),
        ):
            if (value := find(sequence, name)) is not None:
                setattr(flat, name.replace("PositionIndex", "PositionIdentifier"), value)
        kinds = tuple(str(w).upper() for w in _several(find("CTImageFrameTypeSequence", "FrameType")))
        acquisition = find("FrameContentSequence", "FrameAcquisitionNumber")
        one = replace(_slice_of(path, flat, kinds or image_type), frame=number)
        yield replace(one, acquisition=one.acquisition if acquisition is None else str(acquisition))
