"""DICOM: which files are CT slices, which slices are one volume, and whether it is complete.

Slices are grouped by what their headers say, wherever the files lie. A volume has one orientation, slices stacked at
right angles and at even distances, none missing, double or damaged. Only headers are read here, with pydicom.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.misc import is_dicom
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from datasets.io.grid import Grid
from utils.errors import VolumeError, one_line
from utils.files import visible_files

log = logging.getLogger(__name__)
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

_UNEVEN = 0.1
"""Largest distance of a slice from an evenly spaced grid, as a share of the distance between slices."""

_TILT = 2e-3
"""Largest sideways shift from slice to slice, as a share of their distance: a tenth of a degree of gantry tilt."""

_SAME = 2e-3
"""How far direction cosines may differ within a series, and from right angles; some are written with three digits."""

_SAME_SPACING = 1e-3
"""Relative difference of pixel spacings within a series."""

_OWN_VOLUME = 4
"""Slices of another size or orientation are a volume of their own from this number on; fewer are refused."""

_HIGHEST_HU = 3071
"""Highest HU of 12 bits; padding values above it become air."""

_AIR_HU = -1024

AXIAL, LUNGS_MM, THIN_MM = 0.8, 200.0, 5.0
"""Cosine to the patient's axis from which a series is axial; length that covers the lungs; limit of a thin slice."""


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


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in order along its third axis.

    Attributes:
        slices: the slices; in the order of their files if there is a problem.
        grid: geometry; None if there is a problem.
        notes: what was passed over in it, such as copies.
        problem: why it cannot be read; one line that names the folder or file.
    """

    slices: tuple[Slice, ...]
    grid: Grid | None
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def first(self) -> Slice:
        """The first slice."""
        return self.slices[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in order, each once."""
        return tuple(dict.fromkeys(s.path for s in self.slices))

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all files."""
        return common_folder(self.files)

    @property
    def label(self) -> str:
        """Number, description, kernel, acquisition and number of slices, for messages."""
        first = self.first
        parts = [f"number {first.number or '-'}", first.description or "no description"]
        parts += [f"kernel {first.kernel}"] if first.kernel else []
        parts += [f"acquisition {first.acquisition}"] if first.acquisition else []
        return f"{first.series} ({', '.join(parts)}, {len(self.slices)} slices)"


def common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all files."""
    folder = files[0].parent
    while not all(path.is_relative_to(folder) for path in files):
        folder = folder.parent
    return folder


def short_hash(*parts: str) -> str:
    """Eight hexadecimal digits that tell apart what the parts name, without naming it."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


# ------------------------------------------------------------------------------------------- one file


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM, by its extension or its content; files without preamble by their first element.

    Raises:
        OSError: it cannot be read.
    """
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in EXTENSIONS or is_dicom(path):
        return True
    with path.open("rb") as file:
        head = file.read(8)
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

    Never raises for what is in the file: damage is a kind of `Other`, or the problem of a slice.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            rest = file.read(12)
            behind = file.tell()
        return _slices_of(path, header, rest, behind)
    except OSError:
        raise
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
    if not np.allclose(rows @ rows.T, np.eye(2), rtol=0, atol=_SAME):
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


def read_native(series: Series) -> np.ndarray | None:
    """The voxels of a series in HU, int16 (z, y, x), read without a decoder.

    Returns:
        None if a slice needs a decoder, or its values are no whole numbers of 16 bits.

    Raises:
        VolumeError: a file cannot be read.
    """
    scalings = {number for one in series.slices for number in one.scaling}
    if any(one.native is None for one in series.slices) or any(n % 1 or abs(n) > 32767 for n in scalings):
        return None
    voxels = np.empty((len(series.slices), *series.slices[0].size[::-1]), np.int16)
    for plane, one in zip(voxels, series.slices, strict=True):
        pixels, (slope, intercept) = one.native, one.scaling
        try:
            stored = np.fromfile(one.path, "<i2" if pixels.signed else "<u2", plane.size, offset=pixels.offset)
        except OSError as error:
            raise VolumeError(f"{one.path}: cannot be read ({error.strerror}); check the file") from None
        if stored.size < plane.size:
            return None
        lowest, highest = int(stored.min()), int(stored.max())
        least = -(1 << pixels.bits - 1) if pixels.signed else 0
        ends = (lowest * slope + intercept, highest * slope + intercept)
        if not (
            least <= lowest and highest < least + (1 << pixels.bits) and min(ends) >= -32768 and max(ends) <= 32767
        ):
            return None
        # Whole numbers whose result fits into 16 bits: what overflows on the way comes back.
        plane[...] = (stored.astype(np.int16, copy=False) * np.int16(slope) + np.int16(intercept)).reshape(plane.shape)
    return voxels


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


def read_with_pydicom(series: Series) -> np.ndarray:
    """The voxels of a series in HU, (z, y, x), decoded by pydicom and its plug-ins.

    Raises:
        VolumeError: they cannot be decoded; the message names the plug-in that is missing.
    """
    files: dict[Path, np.ndarray] = {}
    planes = []
    for one in series.slices:
        if one.path not in files:
            files = {one.path: _pixels(one.path)}  # one file at a time
        slope, intercept = one.scaling
        stored = files[one.path][one.frame or 0]
        planes.append(stored.astype(np.float32 if slope % 1 or intercept % 1 else np.int32) * slope + intercept)
    voxels = np.stack(planes)
    whole = not (voxels % 1).any() and voxels.min() >= -32768 and voxels.max() <= 32767
    return voxels.astype(np.int16 if whole else np.float32)


def _pixels(path: Path) -> np.ndarray:
    """Stored values, (frame, row, column)."""
    try:
        with warnings.catch_warnings(action="ignore"):
            data = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in getattr(data, "file_meta", Dataset()):
                data.file_meta = FileMetaDataset()
                data.file_meta.TransferSyntaxUID = (
                    ImplicitVRLittleEndian if data.is_implicit_VR else ExplicitVRLittleEndian
                )
            pixels = data.pixel_array
    except Exception as error:  # pydicom raises whatever it comes across
        raise VolumeError(
            f"{path}: cannot be decoded ({one_line(error, 300)}); install pylibjpeg, pylibjpeg-libjpeg and "
            "pylibjpeg-openjpeg with pip, or decompress it with dcmdjpeg of DCMTK"
        ) from None
    return pixels if pixels.ndim == 3 else pixels[None]


def find_series(folder: Path, choice: str | None = None) -> Series:
    """The CT series in a folder, at any depth.

    Args:
        folder: folder of one patient and study.
        choice: as for `choose_series`.

    Raises:
        VolumeError: there is no CT series, more than one study, no clear choice, or the series is not complete.
    """
    files = visible_files(folder)
    with warnings.catch_warnings(action="ignore"):
        found = [one for path in files if is_dicom_file(path) for one in read_slices(path)]
    slices, others = ([one for one in found if isinstance(one, kind)] for kind in (Slice, Other))
    studies = studies_of(group_series(slices, others))
    if not studies:
        damaged = next((other for other in others if other.damaged), None)
        if damaged is not None:
            raise VolumeError(f"{damaged.path}: {damaged.kind}; copy it again")
        raise VolumeError(f"{folder}: holds no CT series; expected a folder of DICOM slices, or a CT file")
    if len(studies) > 1:
        names = "; ".join(volumes[0].label for volumes in studies.values())
        raise VolumeError(f"{folder}: holds {len(studies)} studies: {names}; name the folder of one of them")
    chosen = choose_series(next(iter(studies.values())), choice)
    if chosen.series is None:
        raise VolumeError(f"{folder}: {chosen.problem}")
    if chosen.note:
        log.warning("%s: %s", folder, chosen.note)
    return chosen.series


def studies_of(series: Iterable[Series]) -> dict[tuple[str, str], list[Series]]:
    """Series by patient and study."""
    studies: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        studies[one.first.patient, one.first.study].append(one)
    return dict(studies)


# ---------------------------------------------------------------------------------------- one volume


def group_series(slices: Sequence[Slice], others: Sequence[Other]) -> list[Series]:
    """Group slices into volumes, order each, and find its problems.

    Args:
        slices: of any number of patients and studies.
        others: DICOM files beside them that are no slices.
    """
    by_uid: dict[tuple[str, str, str], list[Slice]] = defaultdict(list)
    for one in slices:
        by_uid[one.patient, one.study, one.series].append(one)
    damaged: dict[Path, Other] = {}
    strays: dict[str, Other] = {}
    for other in others:
        if other.damaged:
            damaged.setdefault(other.path.parent, other)
        elif other.like is not None:
            strays.setdefault(other.like.series, other)
    found = []
    for (_, _, uid), members in by_uid.items():
        members.sort(key=lambda s: (s.path, s.frame or 0))
        for volume in _volumes(members):
            found.append(_problem_beside(volume, damaged, strays.get(uid)))
    lone = [s.first for s in found if len(s.slices) == 1]
    return _without_lost_slices(found, [*lone, *(other.like for other in others if other.like is not None)])


def _problem_beside(series: Series, damaged: dict[Path, Other], stray: Other | None) -> Series:
    """A series is not complete if a damaged file beside it may belong to it, or another image has its UID."""
    if series.problem is None and stray is not None and stray.path.parent in {s.path.parent for s in series.slices}:
        problem = f"{stray.path}: belongs to the series but is no slice of a CT ({stray.kind}); copy it again if it is "
        return replace(series, problem=problem + "damaged, move it out of the folder if not")
    for folder in {s.path.parent for s in series.slices}:
        if folder in damaged:
            other = damaged[folder]
            return replace(series, problem=f"{other.path}: {other.kind}; copy the slice again")
    return series


def _volumes(slices: list[Slice]) -> list[Series]:
    """The volumes under one SeriesInstanceUID; a series that cannot be split is one volume with a problem."""
    if problem := next((f"{s.path}: {s.problem}" for s in slices if s.problem), None):
        return [Series(tuple(slices), None, (), problem)]
    slices, notes = _without_copies(slices)
    shapes = _split(slices, _same_shape)
    if len(shapes) > 1 and min(map(len, shapes)) < _OWN_VOLUME:
        return [Series(tuple(slices), None, tuple(notes), _shape_problem(slices))]
    return [_ordered(part, notes) for shape in shapes for part in _acquisitions(shape)]


def _split(slices: Sequence[Slice], same: Callable[[Slice, Slice], bool]) -> list[list[Slice]]:
    parts: list[list[Slice]] = []
    for one in slices:
        for part in parts:
            if same(part[0], one):
                part.append(one)
                break
        else:
            parts.append([one])
    return parts


def _same_shape(a: Slice, b: Slice) -> bool:
    return (
        a.size == b.size
        and np.allclose(a.spacing, b.spacing, rtol=_SAME_SPACING, atol=0)
        and np.allclose(a.rows, b.rows, rtol=0, atol=_SAME)
    )


def _shape_problem(slices: Sequence[Slice]) -> str:
    """The first slice that does not fit the majority, in words."""
    usual = max(_split(slices, _same_shape), key=len)[0]
    odd = next(s for s in slices if not _same_shape(usual, s))
    if odd.size != usual.size or not np.allclose(odd.spacing, usual.spacing, rtol=_SAME_SPACING, atol=0):
        return (
            f"{odd.path}: {odd.size} pixels of {odd.spacing} mm, {usual.name} has {usual.size} of {usual.spacing}; "
            "move slices of other kinds out of the folder"
        )
    return f"{odd.path}: is oriented otherwise than {usual.name}; move scout views out of the folder"


def _without_copies(slices: list[Slice]) -> tuple[list[Slice], list[str]]:
    """Keep one of several files with the same SOPInstanceUID and the same pixels."""
    seen: dict[tuple[str, int | None], Slice] = {}
    kept, copies = [], 0
    for one in slices:
        twin = seen.setdefault((one.instance, one.frame), one)
        if twin is one or not one.instance or not _same_content(twin, one):
            kept.append(one)
        else:
            copies += 1
    return kept, [f"{copies} copies of slices passed over"] if copies else []


def _same_content(a: Slice, b: Slice) -> bool:
    if not np.array_equal(a.position, b.position):
        return False
    try:
        pixels = []
        for one in (a, b):
            with warnings.catch_warnings(action="ignore"):
                pixels.append(pydicom.dcmread(one.path, force=True).get("PixelData"))
    except Exception:
        return False
    return pixels[0] is not None and pixels[0] == pixels[1]


def _acquisitions(slices: list[Slice]) -> list[list[Slice]]:
    """Split slices that lie at the same places by acquisition, kernel, temporal position or image type."""
    if not _overlap(slices):
        return [slices]
    for key in (
        lambda s: s.acquisition,
        lambda s: s.kernel,
        lambda s: s.temporal,
        lambda s: (s.acquisition, s.kernel),
        lambda s: (s.acquisition, s.kernel, s.temporal, s.image_type),
    ):
        parts: dict[Any, list[Slice]] = defaultdict(list)
        for one in slices:
            parts[key(one)].append(one)
        if len(parts) > 1 and not any(_overlap(part) for part in parts.values()):
            return list(parts.values())
    return [slices]


def _heights(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Unit normal of the slices, and their positions along it in mm."""
    row, column = slices[0].rows[:3], slices[0].rows[3:]
    normal = np.cross(row, column)
    normal = normal / np.linalg.norm(normal)
    return normal, np.array([s.position @ normal for s in slices])


def _overlap(slices: Sequence[Slice]) -> bool:
    """Whether two slices lie at the same place."""
    steps = np.diff(np.sort(_heights(slices)[1]))
    apart = steps[steps > 1e-6]
    return bool(len(steps)) and (not len(apart) or bool((steps <= _UNEVEN * np.median(apart)).any()))


def _ordered(slices: list[Slice], notes: list[str]) -> Series:
    """Order slices along their normal, and check that they are one complete volume."""
    normal, heights = _heights(slices)
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[k] for k in order], heights[order]
    if problem := _rescale_problem(slices) or _step_problem(slices, heights, normal):
        folder = common_folder([s.path for s in slices])
        return Series(tuple(slices), None, tuple(notes), f"{folder}: {problem}")
    first = slices[0]
    row = first.rows[:3] / np.linalg.norm(first.rows[:3])
    column = np.cross(normal, row)  # at right angles exactly
    step = float((heights[-1] - heights[0]) / (len(slices) - 1))
    grid = Grid(
        (*first.size, len(slices)),
        (*first.spacing, step),
        tuple(first.position.tolist()),
        tuple((np.stack([row, column, normal], axis=1) + 0.0).ravel().tolist()),
    )
    return Series(tuple(slices), grid, tuple(notes))


def _rescale_problem(slices: Sequence[Slice]) -> str | None:
    """Slope and intercept must be in all slices or in none."""
    for index, name in enumerate(("RescaleSlope", "RescaleIntercept")):
        without = [s for s in slices if s.rescale[index] is None]
        if without and len(without) < len(slices):
            names = ", ".join(s.name for s in without[:3]) + (", ..." if len(without) > 3 else "")
            return (
                f"{len(without)} of {len(slices)} slices have no {name} ({names}), so that their values are not HU; "
                "restore it or export the series again"
            )
    return None


def _step_problem(slices: Sequence[Slice], heights: np.ndarray, normal: np.ndarray) -> str | None:
    """Why slices are not evenly spaced at right angles."""
    if len(slices) < 2:
        return "its series has one slice; expected a volume of several slices"
    steps = np.diff(heights)
    usual = float(np.median(steps))
    for k in np.flatnonzero(steps <= _UNEVEN * usual):
        return f"{slices[k].name} and {slices[k + 1].name} lie at the same place; remove one of them"
    numbers = np.arange(len(slices))
    step, start = np.polyfit(numbers, heights, 1)  # positions may be rounded
    off = np.abs(heights - (start + step * numbers))
    if off.max() > _UNEVEN * step:
        k = int(np.abs(steps - usual).argmax())
        return (
            f"its slices are not evenly spaced: {steps[k]:g} mm between {slices[k].name} and {slices[k + 1].name}, "
            f"{usual:g} mm elsewhere; one is missing or damaged: export the series again"
        )
    positions = np.array([s.position for s in slices])
    drift = (positions - positions[0]) - np.outer(heights - heights[0], normal)
    sideways = np.linalg.norm(drift[-1]) / (heights[-1] - heights[0])
    wobble = np.linalg.norm(drift - np.outer(numbers, drift[-1] / (len(slices) - 1)), axis=1).max()
    if sideways > _TILT:
        return (
            f"its slices are shifted sideways, as by a gantry tilt of {np.degrees(np.arctan(sideways)):.1f} degrees; "
            "resample the series onto a straight grid, for example with dcm2niix"
        )
    if wobble > _UNEVEN * step:
        return "its slices are shifted sideways by different distances; export the series again"
    return None


def _without_lost_slices(found: list[Series], lone: list[Slice]) -> list[Series]:
    """A single slice that continues another series has most likely lost its UIDs: neither is complete."""
    result = list(found)
    for number, series in enumerate(found):
        if series.problem is not None:
            continue
        normal = np.reshape(series.grid.direction, (3, 3))[:, 2] * series.grid.spacing[2]
        ends = series.slices[0].position - normal, series.slices[-1].position + normal
        for other in lone:
            near = any(np.linalg.norm(other.position - end) < _UNEVEN * series.grid.spacing[2] for end in ends)
            if near and _same_shape(other, series.first):
                result[number] = replace(
                    series,
                    problem=f"{other.path}: continues the series of {series.first.name}, but as another series or kind "
                    "of object; copy it again if it is damaged, move it out of the folder if not",
                )
    return result


# ------------------------------------------------------------------------------------- choice of series


@dataclass(frozen=True)
class Choice:
    """The series taken from a study.

    Attributes:
        series: the series that is taken; None if the choice is not clear.
        reason: the rule that decided.
        passed_over: the other series, each with its reason.
        problem: why there is no choice.
    """

    series: Series | None
    reason: str
    passed_over: tuple[tuple[Series, str], ...] = ()
    problem: str | None = None

    @property
    def note(self) -> str | None:
        """Which series was taken by which rule, if a rule and not the user chose it from several."""
        if not self.passed_over or self.reason.startswith("--series"):
            return None
        others = "; ".join(series.label for series, _ in self.passed_over)
        return f"takes the series {self.series.label} ({self.reason}); --series picks another of: {others}"


def kernel_kind(kernel: str) -> str:
    """Whether a reconstruction kernel is ``soft`` or ``sharp``; ``unknown`` otherwise.

    By the vendors' naming: Siemens B/Br/Bf/Bl/I and a number (sharp from 50 on), Canon FC and a number (sharp from 30
    on), GE by words, Philips by letters.
    """
    name = kernel.upper().replace("\\", " ")
    if match := re.search(r"\b(?:[BIHQDJ][FRLVSPI]?)(\d{2})", name):
        return "sharp" if int(match[1]) >= 50 else "soft"
    if match := re.search(r"\bFC(\d{2})", name):
        return "sharp" if int(match[1]) >= 30 else "soft"
    if re.search(r"LUNG|BONE|EDGE|SHARP|\b(?:L|D|E|YB|YC|YD)\b", name):
        return "sharp"
    if re.search(r"STANDARD|SOFT|SMOOTH|DETAIL|\b(?:A|B|C|YA)\b", name):
        return "soft"
    return "unknown"


RULES: tuple[tuple[str, Callable[[Series], Any]], ...] = (
    ("original before derived", lambda s: s.first.image_type[:2] in ((), ("ORIGINAL", "PRIMARY"))),
    ("axial before others", lambda s: abs(np.cross(s.first.rows[:3], s.first.rows[3:])[2]) >= AXIAL),
    (f"covers {LUNGS_MM:g} mm, the length of lungs", lambda s: extent_mm(s) >= LUNGS_MM),
    (f"slices less than {THIN_MM:g} mm apart", lambda s: step_mm(s) < THIN_MM),
    ("soft kernel before others, sharp last", lambda s: {"soft": 2, "unknown": 1}.get(kernel_kind(s.first.kernel), 0)),
    ("most slices", lambda s: len(s.slices)),
)
"""How the series of a study are compared, in this order; the first rule that tells two apart decides.

Soft kernels come first because edge enhancement changes the HU of ground glass, on which segmenters rely; lung kernels
are used if there is no other.
"""


def extent_mm(series: Series) -> float:
    """Length of a series along its normal in mm, slice thickness included."""
    heights = _heights(series.slices)[1]
    return float(heights.max() - heights.min()) + max(series.first.thickness, step_mm(series))


def step_mm(series: Series) -> float:
    """Distance between slices in mm; the median if it is uneven, 0 for one slice."""
    steps = np.diff(np.sort(_heights(series.slices)[1]))
    return float(np.median(steps)) if len(steps) else 0.0


def matches(series: Series, choice: str) -> int:
    """How well a series fits ``--series``: 3 by UID, 2 by number, acquisition or kernel, 1 by text, 0 not at all."""
    first = series.first
    if choice == first.series:
        return 3
    if choice in (first.number, f"acquisition {first.acquisition}", first.acquisition) or (
        first.kernel and choice.lower() == first.kernel.lower()
    ):
        return 2
    return int(choice.lower() in f"{first.description}\n{first.kernel}".lower())


def choose_series(candidates: Sequence[Series], choice: str | None) -> Choice:
    """Choose the series of one study.

    Args:
        candidates: the volumes of the study.
        choice: SeriesInstanceUID, SeriesNumber, AcquisitionNumber, kernel or part of the SeriesDescription.
    """
    left, reason = list(candidates), "the only series"
    if choice is not None:
        fit = max(matches(series, choice) for series in candidates)
        if not fit:
            names = "; ".join(series.label for series in candidates)
            return Choice(None, "", (), f"no series {choice!r}; it holds {names}")
        left, reason = [s for s in candidates if matches(s, choice) == fit], f"--series {choice}"
    passed = [(series, reason) for series in candidates if series not in left]
    for rule, key in RULES:
        if len(left) == 1:
            break
        best = max(key(series) for series in left)
        worse = [series for series in left if key(series) != best]
        if worse:
            passed += [(series, rule) for series in worse]
            left, reason = [series for series in left if key(series) == best], rule
    if len(left) > 1:
        names = "; ".join(series.label for series in left)
        problem = f"several series of {len(left[0].slices)} slices that no rule tells apart: {names}; "
        problem += "pick one with --series"
        return Choice(None, "", tuple((series, problem) for series in left), problem)
    return Choice(left[0], reason, tuple(passed))


def padding_to_air(series: Series, voxels: np.ndarray) -> np.ndarray:
    """Replace padding values above the range of CT, which lie outside the field of view, by air."""
    found = set()
    for one in series.slices:
        if one.padding is None:
            continue
        slope, intercept = one.scaling
        for stored in {one.padding, one.padding % 65536, (one.padding + 32768) % 65536 - 32768}:
            if stored * slope + intercept > _HIGHEST_HU:
                found.add(stored * slope + intercept)
    return np.where(np.isin(voxels, list(found)), voxels.dtype.type(_AIR_HU), voxels) if found else voxels
