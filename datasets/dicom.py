"""DICOM files: which are slices of a CT, what each slice says of itself, and its pixels in HU."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit, generate_uid

from datasets.dicom_header import Elements, read_elements
from utils.errors import VolumeError, one_line
from utils.files import is_dangling

logging.getLogger("pydicom").setLevel(logging.ERROR)  # it logs every oddity of a header; what matters is checked

EXTENSIONS = (".dcm", ".dicom", ".ima")
"""Files that claim to be DICOM, and must be."""

CT, ENHANCED_CT, LEGACY_ENHANCED_CT = (f"1.2.840.10008.5.1.4.1.1.2{end}" for end in ("", ".1", ".2"))
_MULTI_FRAME = (ENHANCED_CT, LEGACY_ENHANCED_CT)
_DIRECTORY = "1.2.840.10008.1.3.10"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"

SCOUT = "scout view"
SAME_DIRECTION = 2e-3
"""How far direction cosines may differ within a series, and from right angles; some are written with three digits."""

_HIGHEST_HU = 3071
"""Highest HU of 12 bits; padding values above it become air."""

_AIR_HU = -1024
_THREADS = 4

_TEXTS = {
    "instance": "SOPInstanceUID",
    "patient_id": "PatientID",
    "study": "StudyInstanceUID",
    "date": "StudyDate",
    "series": "SeriesInstanceUID",
    "number": "SeriesNumber",
    "description": "SeriesDescription",
    "kernel": "ConvolutionKernel",
    "acquisition": "AcquisitionNumber",
    "place_in_series": "InstanceNumber",
    "temporal": "TemporalPositionIdentifier",
    "quantity": "RescaleType",
}
"""Elements that a slice keeps as text."""


@dataclass(frozen=True)
class Slice:
    """One slice of a CT: a file, or a frame of a multi-frame file. Texts (see `_TEXTS`) may be empty."""

    path: Path  # the file
    frame: int | None  # index of the frame in a multi-frame file, otherwise None
    instance: str
    patient_id: str
    person: tuple[str, str]  # PatientName without empty components, and PatientBirthDate
    study: str
    date: str
    series: str
    number: str
    description: str
    shows: tuple[str, str]  # SeriesDescription and ProtocolName, and BodyPartExamined
    kernel: str
    acquisition: str
    acquired: str  # AcquisitionDateTime or AcquisitionTime
    of_acquisition: int  # ImagesInAcquisition, 0 if unknown
    place_in_series: str
    temporal: str
    quantity: str
    image_type: tuple[str, ...]
    position: np.ndarray  # centre of the first pixel in mm, (3,)
    rows: np.ndarray  # direction cosines along a row and along a column, (6,)
    spacing: tuple[float, float]  # mm from column to column, and from row to row
    thickness: float  # SliceThickness in mm; 0 if it is not given
    size: tuple[int, int]  # columns and rows
    rescale: tuple[str | None, str | None]  # RescaleSlope and RescaleIntercept as written; None if missing
    padding: int | None  # PixelPaddingValue; None if missing
    unsigned_16_bits: bool  # whether stored values are unsigned and have 16 bits
    # start, type, unused and (by HighBit) low bits of plain pixels of 16 bits that end the file; None: pydicom decodes
    plain: tuple[int, str, int, int] | None

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
    """A file beside the slices that is no slice of a CT."""

    path: Path  # the file
    kind: str  # what it is
    like: Slice | None = None  # the slice that it would be if its kind were damaged; None if it has no place
    damaged: bool = False  # whether its header cannot be read


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
    # Without preamble and file meta header: an element of group 2 or 8, little endian, of a plausible length.
    return re.match(rb"[\2\x08]\0.\0(CS|UI|DA|UL|LO|.\0\0\0)", start, re.DOTALL) is not None


def value_in(path: Path, name: str) -> Any:
    """The value of an element of a DICOM file; None if it has none or cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"):
            header = pydicom.dcmread(path, stop_before_pixels=name != "PixelData", specific_tags=[name], force=True)
            return header.get(name)
    except Exception:  # pydicom raises whatever it comes across
        return None


def read_slices(path: Path) -> list[Slice | Other]:
    """The slices in a DICOM file: one, or one per frame; or what else the file is. Damage is a kind of `Other`."""
    try:
        with path.open("rb") as file:
            return _slices_of(path, read_elements(file))
    except OSError as error:
        reason = "a link to a file that is not there" if is_dangling(path) else f"cannot be read ({error.strerror})"
        return [Other(path, reason, damaged=True)]
    except Exception as error:  # pydicom raises whatever it comes across
        return [Other(path, f"damaged, or not DICOM ({one_line(error)})", damaged=True)]


def _slices_of(path: Path, header: Elements) -> list[Slice | Other]:
    stored, has_pixels = str(header.get("MediaStorageSOPClassUID", "")), "PixelData" in header
    sop_class, modality = str(header.get("SOPClassUID") or stored), str(header.get("Modality") or "")
    if _DIRECTORY in (sop_class, stored):
        return [Other(path, "DICOM directory")]
    if sop_class and not UID(sop_class).is_valid:
        raise ValueError("no kind of object")
    if "SOPClassUID" not in header and not modality and "Rows" not in header:
        raise ValueError("no image and no kind of object")
    image_type = tuple(str(word).upper() for word in _several(header.get("ImageType")))
    has_place = all(header.get(name) for name in ("ImagePositionPatient", "ImageOrientationPatient", "Rows"))
    kind = _kind_of_other(sop_class, modality, image_type, header, has_place)
    if kind is not None:
        try:
            like = None if kind == SCOUT else _slice_of(path, header, image_type)
        except Exception:  # whatever a missing or impossible element raises
            like = None
        # Damage can turn a slice into another kind of object: it claims a place, CT or nothing known, without the rest.
        claims = CT in (sop_class, stored) or not sop_class or (kind == sop_class and not modality)
        no_kind = kind == sop_class and stored == CT
        broken = no_kind or (claims and not has_pixels and modality != "SR")
        return [Other(path, kind, like, damaged=like is None and (has_place or broken) and kind != SCOUT)]
    if sop_class in _MULTI_FRAME:
        return _frames(path, header, image_type)
    if not has_pixels and not getattr(header.get("TransferSyntaxUID"), "is_deflated", False):
        raise ValueError("no pixels")
    return [_slice_of(path, header, image_type)]


def _kind_of_other(
    sop_class: str, modality: str, image_type: tuple[str, ...], header: Elements, has_place: bool
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


def _text(header: Elements, name: str) -> str:
    value = header.get(name)
    return (value if isinstance(value, str) else "\\".join(str(part) for part in _several(value))).strip()


def _person(header: Elements) -> str:
    """A person's name as DICOM compares it: trailing empty components do not count, nor do case and extra spaces."""
    name = _text(header, "PatientName").split("=")[0]
    return "^".join(" ".join(part.split()) for part in name.split("^")).rstrip("^ ").upper()


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no number")
    return number


@lru_cache
def _cosines(*values: float) -> np.ndarray:  # the slices of a series share one array
    rows = np.array(values).reshape(2, 3)
    if not np.allclose(rows @ rows.T, np.eye(2), rtol=0, atol=SAME_DIRECTION):
        raise ValueError("its ImageOrientationPatient is impossible")
    return rows.ravel()


def _slice_of(path: Path, header: Elements, image_type: tuple[str, ...]) -> Slice:
    """The slice of a header; raises whatever a missing or impossible element does."""
    if errors := [value for value in header.values() if isinstance(value, Exception)]:
        raise errors[0]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
        if not header.get(name):
            raise ValueError(f"a slice of a CT without {name}")
    rescale = tuple(_text(header, name) or None for name in ("RescaleSlope", "RescaleIntercept"))
    for value in rescale:
        _number(value or 0)
    padding, spacing, count = map(header.get, ("PixelPaddingValue", "PixelSpacing", "ImagesInAcquisition"))
    return Slice(
        path=path,
        frame=None,
        **{field: _text(header, name) for field, name in _TEXTS.items()},
        person=(_person(header), _text(header, "PatientBirthDate")),
        shows=(
            f"{_text(header, 'SeriesDescription')} {_text(header, 'ProtocolName')}",
            _text(header, "BodyPartExamined"),
        ),
        acquired=_text(header, "AcquisitionDateTime") or _text(header, "AcquisitionTime"),
        of_acquisition=int(count) if str(count).isdecimal() else 0,
        image_type=image_type,
        position=np.array([_number(v) for v in header.get("ImagePositionPatient")]).reshape(3),
        rows=_cosines(*map(_number, header.get("ImageOrientationPatient"))),
        spacing=(_number(spacing[1]), _number(spacing[0])),
        thickness=_number(header.get("SliceThickness") or 0),
        size=(int(header.get("Columns")), int(header.get("Rows"))),
        rescale=rescale,
        padding=padding if isinstance(padding, int) else None,
        unsigned_16_bits=header.get("BitsStored") == 16 and header.get("PixelRepresentation") == 0,
        plain=_plain(header),
    )


def _plain(header: Elements) -> tuple[int, str, int, int] | None:
    bits, high, sign = map(header.get, ("BitsStored", "HighBit", "PixelRepresentation"))
    start, length = header.get("PixelData", (0, 0))
    usual = (
        header.get("TransferSyntaxUID") in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
        and header.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
        and (header.get("SamplesPerPixel"), header.get("BitsAllocated"), header.get("NumberOfFrames", 1)) == (1, 16, 1)
        and bits in range(1, 17)
        and sign in (0, 1)
        and length == 2 * header["Rows"] * header["Columns"]
    )
    return (start, "<i2" if sign else "<u2", 16 - bits, (high or 0) + 1 - bits) if usual else None


_OF_FRAMES = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
    ("PixelMeasuresSequence", "SliceThickness"),
    ("PixelValueTransformationSequence", "RescaleSlope"),
    ("PixelValueTransformationSequence", "RescaleIntercept"),
    ("PixelValueTransformationSequence", "RescaleType"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
    ("FrameContentSequence", "TemporalPositionIndex"),
)
"""What a frame has of its own, or shares with the others: functional group and element."""


def _frames(path: Path, header: Elements, image_type: tuple[str, ...]) -> list[Slice]:
    """The frames of an enhanced CT as slices."""
    (shared,) = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    slices = []
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        raise ValueError("an enhanced CT without its functional groups")
    if (count := header.get("NumberOfFrames")) != len(groups):
        raise ValueError(f"an enhanced CT of {count} frames, with places for {len(groups)}")
    for number, group in enumerate(groups):
        flat = {name: value for name, value in header.items() if not name.endswith("GroupsSequence")}
        for sequence, name in _OF_FRAMES:
            if (value := of_frame(group, shared, sequence, name)) is not None:
                flat[name.replace("PositionIndex", "PositionIdentifier")] = value
        kinds = _several(of_frame(group, shared, "CTImageFrameTypeSequence", "FrameType"))
        acquisition = of_frame(group, shared, "FrameContentSequence", "FrameAcquisitionNumber")
        one = _slice_of(path, flat, tuple(str(word).upper() for word in kinds) or image_type)
        acquisition = one.acquisition if acquisition is None else str(acquisition)
        slices.append(replace(one, frame=number, acquisition=acquisition, place_in_series="", of_acquisition=0))
    return slices


def of_frame(group: Dataset, shared: Dataset, sequence: str, name: str) -> Any:
    """An element of a functional group of one frame or, without it, of all frames; None if neither has the group."""
    return next((source[sequence][0].get(name) for source in (group, shared) if source.get(sequence)), None)


# --------------------------------------------------------------------------------------------- pixels


def read_hu(slices: Sequence[Slice]) -> np.ndarray:
    """The voxels of slices in HU, (z, y, x), each scaled by its own slope and intercept.

    int16 if that holds the values, otherwise float32. Padding above the range of CT, which lies outside the field of
    view, is air.

    Raises:
        VolumeError: a file cannot be decoded; the message names the plug-ins that may help.
    """
    by_file: dict[Path, list[int]] = defaultdict(list)
    for k, one in enumerate(slices):
        by_file[one.path].append(k)
    voxels = np.empty((len(slices), *slices[0].size[::-1]), np.int16)
    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings(action="ignore"):
        wide = list(chain.from_iterable(pool.map(lambda group: _fill(voxels, slices, group), by_file.values())))
    if wide:
        voxels = voxels.astype(np.float32)
    for k, plane in wide:
        voxels[k] = plane
    return _padding_to_air(slices, voxels)


def _fill(voxels: np.ndarray, slices: Sequence[Slice], group: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """Fill in the slices of one file; returns those that int16 does not hold, as float32, by their number."""
    stored, wide = _pixels(slices[group[0]]), []
    for k in group:
        plane, (slope, intercept) = stored[slices[k].frame or 0], slices[k].scaling
        if plane.shape != voxels.shape[1:]:
            raise VolumeError(f"{slices[k].path}: holds {plane.shape} pixels, its header says {voxels.shape[1:]}")
        ends = slope, intercept, *(int(end) * slope + intercept for end in (plane.min(), plane.max()))
        if all(number % 1 == 0 and -32768 <= number <= 32767 for number in ends):
            # What overflows on the way is right in the end.
            voxels[k] = plane.astype(np.int16) * np.int16(slope) + np.int16(intercept)
        else:
            wide.append((k, (plane.astype(np.float64) * slope + intercept).astype(np.float32)))
    return wide


def _pixels(one: Slice) -> np.ndarray:
    """Stored values of the file of a slice, (frame, row, column)."""
    path = one.path
    try:
        if one.plain is not None:
            start, kind, unused, low = one.plain
            content, shape = path.read_bytes(), (1, *one.size[::-1])
            if len(content) == start + 2 * math.prod(shape):
                stored = np.frombuffer(content, kind, offset=start).reshape(shape)
                if 0 < low <= unused and not (stored & (1 << low) - 1).any():  # otherwise HighBit is wrong
                    return stored << (unused - low) >> unused
                return stored << unused >> unused if unused else stored
        data = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in getattr(data, "file_meta", Dataset()):
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if data.is_implicit_VR else ExplicitVRLittleEndian
        # ITK scales all frames of a multi-frame file by the first one's slope, which cannot be undone here.
        by_itk = data.file_meta.TransferSyntaxUID == JPEGExtended12Bit and "SharedFunctionalGroupsSequence" not in data
        pixels = _pixels_by_itk(data) if by_itk else data.pixel_array
    except Exception as error:  # pydicom raises whatever it comes across
        raise VolumeError(
            f"{path}: damaged, cut short, or cannot be decoded ({one_line(error, 300)}); copy it again or, if it is "
            "compressed, install pylibjpeg, pylibjpeg-libjpeg and pylibjpeg-openjpeg with pip"
        ) from None
    return pixels if pixels.ndim == 3 else pixels[None]


def _pixels_by_itk(data: Dataset) -> np.ndarray:  # JPEG of 12 bits, which pydicom's plug-ins refuse; ITK scales it
    slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    scaled = sitk.GetArrayFromImage(sitk.ReadImage(data.filename)).astype(np.float64)
    return np.rint((scaled - intercept) / slope).astype(np.int32)


def _padding_to_air(slices: Sequence[Slice], voxels: np.ndarray) -> np.ndarray:
    found = set()
    for one in slices:
        if one.padding is None:
            continue
        slope, intercept = one.scaling
        for stored in {one.padding, one.padding % 65536, (one.padding + 32768) % 65536 - 32768}:
            if stored * slope + intercept > _HIGHEST_HU:
                found.add(stored * slope + intercept)
    return np.where(np.isin(voxels, list(found)), voxels.dtype.type(_AIR_HU), voxels) if found else voxels


# -------------------------------------------------------------------------------------------- writing


def write_series(ct: sitk.Image, folder: Path, patient: str, seed: str) -> None:
    """Write a CT (HU, whole numbers) as a DICOM series, one file per slice, as scanners export it.

    Values below -1024 become -1024. The folder must not exist yet, and is made once all slices are written. The UIDs
    depend on the seed alone.

    Raises:
        VolumeError: the folder cannot be written.
    """
    stored = (np.maximum(sitk.GetArrayViewFromImage(ct), _AIR_HU).astype(np.int32) - _AIR_HU).astype(np.uint16)
    axes, spacing = np.reshape(ct.GetDirection(), (3, 3)).T, ct.GetSpacing()
    shared = {
        **{f"{name}UID": generate_uid(entropy_srcs=[seed, name.removesuffix("Instance")]) for name in _SHARED_UIDS},
        "SOPClassUID": CT,
        "Modality": "CT",
        "SeriesNumber": 1,
        "SeriesDescription": "synthetic chest CT",
        "PatientID": patient,
        "PatientName": patient,
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "KVP": None,
        "BodyPartExamined": "CHEST",
        "PatientPosition": "HFS",
        "AcquisitionNumber": 1,
        "RescaleIntercept": _AIR_HU,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        **dict.fromkeys(_MAY_BE_EMPTY, ""),
        "ImageOrientationPatient": [f"{cosine:.9g}" for cosine in axes[:2].ravel()],
        "PixelSpacing": [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"],
        "SliceThickness": f"{spacing[2]:.9g}",
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
            part = Path(temporary) / folder.name
            part.mkdir()  # the temporary folder itself can be read by its owner alone
            for k, plane in enumerate(stored):
                header = Dataset()
                header.file_meta = FileMetaDataset()
                header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                for name, value in shared.items():
                    setattr(header, name, value)
                header.SOPInstanceUID, header.InstanceNumber = generate_uid(entropy_srcs=[seed, str(k)]), k + 1
                header.ImagePositionPatient = [f"{mm:.9g}" for mm in ct.TransformIndexToPhysicalPoint((0, 0, k))]
                header.set_pixel_data(plane, "MONOCHROME2", 16, generate_instance_uid=False)
                header.save_as(part / f"slice_{k + 1:04d}.dcm", enforce_file_format=True)
            part.rename(folder)
    except OSError as error:
        raise VolumeError(f"{folder}: cannot be written ({error.strerror}); check the folder and the disk") from None


_SHARED_UIDS = ("StudyInstance", "SeriesInstance", "FrameOfReference")
_MAY_BE_EMPTY = (
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "Manufacturer", "PositionReferenceIndicator"),
)  # CHEST is unpaired, so no Laterality
