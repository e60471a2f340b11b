"""NIfTI, MetaImage and NRRD: what their headers say, and their voxels.

What the usual readers do not check is checked here: they fill files that are cut short with zeros, drop slices that a
header does not mention, take 1 mm where there is no spacing, and some crash on damaged headers. A header is read and
checked first, then the length of the file and its checksum, if it has one.
"""

from __future__ import annotations

import bz2
import io
import logging
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import nibabel as nib
import nrrd
import numpy as np
from isal import igzip, isal_zlib

from datasets.geometry import ORTHONORMAL, check_geometry
from utils.errors import VolumeError, one_line

log = logging.getLogger(__name__)

NIFTI = (".nii.gz", ".nii", ".hdr.gz", ".hdr")
_METAIMAGE = (".mha", ".mhd")
_NRRD = (".nrrd", ".nhdr")

EXTENSIONS = (*NIFTI, *_METAIMAGE, *_NRRD)
"""Files with one of these are volumes."""

HEADERS_ALONE = (".hdr.gz", ".hdr", ".mhd", ".nhdr")
"""Their voxels are in another file."""

_PAIRS = {".hdr.gz": (".img.gz", ".img"), ".hdr": (".img", ".img.gz")}
"""Extensions of the files of voxels, by that of a NIfTI header; the first that exists is read."""

_NIFTI_VERSIONS = {348: (nib.Nifti1Header, (b"n+1", b"ni1")), 540: (nib.Nifti2Header, (b"n+2", b"ni2"))}
"""By size of the header: its class, and its magic in files with and without voxels."""

_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_MET_TYPES = {"CHAR": "i1", "SHORT": "i2", "INT": "i4", "LONG": "i4", "LONG_LONG": "i8"}
_MET_TYPES |= {f"U{name}": kind.replace("i", "u") for name, kind in _MET_TYPES.items()}
_MET_TYPES |= {"FLOAT": "f4", "DOUBLE": "f8"}
_NRRD_TYPES = (("char|int8", "i1"), ("short|int16", "i2"), ("long long|longlong|int64", "i8"), ("int", "i4"))
_NRRD_FLOATS = {"float": "f4", "double": "f8"}
_NRRD_ENCODINGS = {"raw": "raw", "gz": "zlib", "gzip": "zlib", "bz2": "bzip2", "bzip2": "bzip2"}
_NRRD_ENCODINGS |= dict.fromkeys(("txt", "text", "ascii"), "text")

_MARK = 4
"""Bytes behind a NIfTI header that say whether extensions follow; the voxels begin behind them at the earliest."""

_CHUNK = 1 << 24
_LONGEST_HEADER = 1 << 20

_LEANING = 1e-3
"""Axes may be this far from right angles, in radians; the nearest straight ones are then taken."""

_SAME = 1e-3
"""How far spacing (relatively) and axes may differ where a header gives them twice."""

_SHIFTED = 0.01
"""How far the origins may then be apart, in voxels."""


@dataclass(frozen=True)
class Header:
    """What a file says of its volume."""

    path: Path  # the file that was named
    size: tuple[int, ...]  # voxels, (x, y, z); of a segmentation with layers, those of a layer
    spacing: tuple[float, ...]  # mm
    origin: tuple[float, ...]  # mm, LPS
    direction: tuple[float, ...]  # cosines, row by row; the columns are the axes
    voxel: np.dtype  # type of the stored values, in the file's byte order
    data: Path  # the file that holds them
    offset: int  # where they begin, in bytes; in NIfTI, of the decompressed file
    encoding: str  # ``nifti`` (compressed or not), ``raw``, ``zlib``, ``bzip2`` or ``text``
    slope: float = 1.0  # of the scaling
    intercept: float = 0.0  # of the scaling
    notes: str = ""  # free text of a NIfTI header
    layers: int = 1  # layers of segments, in front of z
    fields: dict[str, Any] | None = None  # all fields of an NRRD header


def read_header(path: Path, max_voxels: int, layered: bool = False) -> Header:
    """Read and check a header.

    Args:
        path: a file with one of `EXTENSIONS`.
        max_voxels: most voxels that are read.
        layered: an NRRD file may have layers of segments as a fourth dimension.

    Raises:
        VolumeError: it is damaged, contradicts itself, or describes no volume of one number per voxel, in mm, of at
            most `max_voxels` voxels, with a known orientation; or the file of its voxels is missing.
    """
    name = path.name.lower()
    try:
        with _opened(path, name.endswith(NIFTI)) as file:
            if name.endswith(NIFTI):
                header = _nifti(path, file)
            else:
                header = _nrrd(path, file, layered) if name.endswith(_NRRD) else _metaimage(path, file)
    except VolumeError:
        raise
    except Exception as error:  # nibabel and pynrrd raise whatever a damaged header makes them
        raise VolumeError(f"{path}: damaged or contradictory header ({one_line(error)}); export it again") from None
    voxels = max_voxels // header.layers
    check_geometry(path, header.size, header.spacing, header.origin, header.direction, voxels)
    return header


def read_voxels(header: Header) -> np.ndarray:
    """Read the voxels of a header.

    Returns:
        (z, y, x), or (layer, z, y, x) of a segmentation with layers; in the file's type or, where the header scales
        them, as float32 (float64 for types of more than 16 bits).

    Raises:
        VolumeError: the file is damaged, or shorter or longer than its header says.
    """
    before = header.offset if header.encoding in ("nifti", "raw") else 0
    with _opened(header.data, header.encoding == "nifti") as stored:
        voxels = np.empty((*header.size[::-1], header.layers), header.voxel)
        target = memoryview(voxels.reshape(-1).view(np.uint8))
        stored.seek(header.offset)
        file = _decoded(stored, header, len(target) + 1)
        read = 0
        while read < len(target) and (count := file.readinto(target[read : read + _CHUNK])):
            read += count
        if read < len(target):
            raise _cut_short(header.data, before + read, before + len(target))
        if file.read(1):  # which compares the checksum of a compressed file, too
            raise VolumeError(
                f"{header.data}: holds more than the {before + len(target)} bytes of its header; one of them is damaged"
            )
    layers = np.moveaxis(voxels, -1, 0)  # in the file, they vary fastest
    return _scaled(layers if header.layers > 1 else layers[0], header)


def files_of(path: Path) -> tuple[Path, ...]:
    """A volume file, and the file of its voxels if that is another one that exists."""
    try:
        return tuple(dict.fromkeys((path, read_header(path, 2**63).data)))
    except VolumeError:
        return (path,)


def is_separate_header(path: Path) -> bool:
    """Whether a ``.hdr`` file is the header of a NIfTI or ANALYZE volume; other formats share the extension."""
    try:
        with _opened(path) as file:
            return _nifti_version(file.read(4)) is not None
    except VolumeError:
        return False


@contextmanager
def _opened(path: Path, decompress: bool = True) -> Iterator[BinaryIO]:
    """A file, decompressed if its first bytes are those of gzip."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with (igzip.open if zipped and decompress else open)(path, "rb") as file:
            yield file
    except MemoryError:
        raise VolumeError(f"{path}: its voxels do not fit into memory; use a machine with more of it") from None
    except (EOFError, OSError, isal_zlib.error) as error:
        raise VolumeError(f"{path}: damaged, cut short or unreadable ({error}); copy the file again") from None


def _decoded(file: BinaryIO, header: Header, most: int) -> BinaryIO:
    """The voxels behind the place in a file, decoded to at most so many bytes."""
    if header.encoding in ("nifti", "raw"):
        return file
    if header.encoding == "text":
        try:
            return io.BytesIO(np.array(file.read().split(), header.voxel).tobytes())
        except (ValueError, OverflowError) as error:
            reason = f"holds other values than {header.voxel} ({one_line(error)})"
            raise VolumeError(f"{header.data}: {reason}; export it again") from None
    inflate = bz2.BZ2Decompressor() if header.encoding == "bzip2" else isal_zlib.decompressobj(wbits=32 + 15)
    content = inflate.decompress(file.read(), most)
    if len(content) < most and not inflate.eof:
        raise EOFError("it ends too early")
    return io.BytesIO(content)


def _warn(path: Path, text: str) -> None:
    _warn_once(path, text, path.stat().st_ino, path.stat().st_mtime_ns)


@lru_cache
def _warn_once(path: Path, text: str, *_file: int) -> None:  # headers are read several times, files may be replaced
    log.warning("%s: %s", path, text)


def _cut_short(path: Path, found: int, expected: int) -> VolumeError:
    return VolumeError(f"{path}: cut short: {found} of {expected} bytes; copy the file again")


def _scaled(voxels: np.ndarray, header: Header) -> np.ndarray:
    native = voxels.dtype.newbyteorder("=")
    if (header.slope, header.intercept) == (1.0, 0.0):
        return voxels.astype(native, copy=False)
    kind = np.float32 if native.itemsize <= 2 or native == np.float32 else np.float64
    scaled = np.empty(voxels.shape, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for plane, target in zip(voxels, scaled, strict=True):  # no copy of the whole in double precision
            target[...] = plane * np.float64(header.slope) + header.intercept
    return scaled


def _voxel_file(path: Path, name: str) -> Path:
    """The file of voxels that a header names, by a path of this system or of Windows, or beside the header."""
    if name.upper().split()[:1] == ["LIST"] or "%" in name:
        raise VolumeError(f"{path}: its voxels are in several files; convert it to one")
    windows = PureWindowsPath(name)
    for place in (path.parent / name, path.parent / windows.as_posix(), path.parent / windows.name):
        if place.is_file():
            if place != path.parent / name:
                _warn(path, f"its voxels are read from {place}; the header names {name}")
            return place
    raise VolumeError(f"{path}: its voxels, {name}, are missing; copy both files")


_MOST_DIMENSIONS = 7
_FLAT = "is not three-dimensional; expected one volume of several slices"


# ---------------------------------------------------------------------------------------------- NIfTI


def _nifti_version(start: bytes) -> tuple[str, int] | None:
    """Byte order and length of a NIfTI or ANALYZE header by its first four bytes."""
    return next(((o, n) for n in _NIFTI_VERSIONS for o in "<>" if start == struct.pack(o + "i", n)), None)


def _nifti(path: Path, file: BinaryIO) -> Header:
    block = file.read(max(_NIFTI_VERSIONS))
    order, length = _nifti_version(block[:4]) or ("<", min(_NIFTI_VERSIONS))
    if len(block) < length:
        raise _cut_short(path, len(block), length)
    kind, (single, separate) = _NIFTI_VERSIONS[length]
    header = kind(block[:length], order, check=False)
    magic, extension = header["magic"].item(), next((e for e in _PAIRS if path.name.lower().endswith(e)), None)
    if header["sizeof_hdr"] != length or magic not in (single, separate):
        raise VolumeError(f"{path}: not a NIfTI file; if ANALYZE, it does not say how it is oriented: convert it")
    if (magic == separate) != (extension is not None):
        raise VolumeError(f"{path}: NIfTI in one file ends in .nii or .nii.gz, in two in .hdr and .img; rename it")
    dimensions, code, offset = int(header["dim"][0]), int(header["datatype"]), float(header["vox_offset"])
    if not 3 <= dimensions <= _MOST_DIMENSIONS or (header["dim"][4 : max(4, dimensions + 1)] != 1).any():
        raise VolumeError(f"{path}: {_FLAT}")
    if code not in _NIFTI_TYPES:
        raise VolumeError(f"{path}: holds values of NIfTI's type {code}; expected one number per voxel")
    voxel = np.dtype(order + _NIFTI_TYPES[code])
    if header["bitpix"] != 8 * voxel.itemsize:
        raise ValueError(f"{header['bitpix']} bits per voxel of {voxel}")
    if not (length + _MARK if magic == single else 0) <= offset < 2**31 or offset % 1:
        raise ValueError(f"voxels at {offset:g}")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        slope, intercept = 1.0, intercept if np.isfinite(intercept) and intercept else 0.0
    if not np.isfinite(intercept) or (intercept and slope != header["scl_slope"]):
        # Readers disagree: nibabel ignores the intercept where SimpleITK adds it, or the other way round.
        raise ValueError(f"scaled by {header['scl_slope']:g} and {intercept:g}")
    data = path
    if extension is not None:
        stem, upper = path.name[: -len(extension)], path.name.endswith(extension.upper())
        names = [stem + (other.upper() if upper else other) for other in _PAIRS[extension]]
        data = _voxel_file(path, next((name for name in names if path.with_name(name).is_file()), names[0]))
    size, geometry = tuple(header["dim"][1:4].tolist()), _nifti_geometry(path, header)
    notes = header["descrip"].item().decode("latin-1")
    return Header(path, size, *geometry, voxel, data, int(offset), "nifti", slope, intercept, notes)


def _nifti_geometry(path: Path, header: nib.Nifti1Header) -> tuple[tuple[float, ...], ...]:
    """Spacing, origin and direction in LPS."""
    if header["xyzt_units"] % 8 not in (0, 2):  # not said, and mm
        raise VolumeError(f"{path}: its spacing is not in mm; convert it")
    spacing = header["pixdim"][1:4].astype(float)
    if header["pixdim"][0] == 0:  # qfac, which some programs leave out
        header["pixdim"][0] = 1
    affines = [header.get_sform()] if header["sform_code"] > 0 else []
    affines += [header.get_qform()] if header["qform_code"] > 0 else []
    if not affines:
        raise VolumeError(f"{path}: does not say how it is oriented (no qform, no sform); set one in the header")
    axes = []
    for affine in affines:
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        with np.errstate(invalid="ignore"):
            axes.append(affine[:3, :3] / np.maximum(lengths, 1e-9))
        _refuse_tilt(path, axes[-1])
        if not np.allclose(lengths, spacing, rtol=_SAME, atol=0):
            raise ValueError(f"axes with steps of {lengths.round(4)} mm, voxels of {spacing.round(4)}")
    shift = np.abs(affines[0][:3, 3] - affines[-1][:3, 3]).max()
    if not np.allclose(axes[0], axes[-1], rtol=0, atol=_SAME) or shift > _SHIFTED * spacing.min():
        raise VolumeError(f"{path}: its qform and sform contradict each other; remove the wrong one from the header")
    # NIfTI's x and y grow to the right and to the front, ours (LPS) to the left and to the back.
    flip = np.array([-1.0, -1.0, 1.0])
    # Adding 0 turns -0 into 0.
    direction = flip[:, None] * _straightened(path, axes[0]) + 0.0
    origin = flip * affines[0][:3, 3] + 0.0
    return tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist())


def _refuse_tilt(path: Path, axes: np.ndarray) -> None:
    """Refuse a slice axis that leans in the plane of straight rows and columns: a gantry tilt, as dcm2niix keeps it."""
    products = axes.T @ axes
    lean = max(abs(products[0, 2]), abs(products[1, 2]))
    if abs(products[0, 1]) <= _LEANING < lean < 0.9:
        raise VolumeError(
            f"{path}: its slices are sheared by {np.degrees(np.arcsin(lean)):.1f} degrees, as by a gantry tilt; "
            "take the file that dcm2niix wrote beside it with _Tilt (or _Tilt_Eq) at the end of its name, or resample "
            "the scan"
        )


def _straightened(path: Path, axes: np.ndarray) -> np.ndarray:
    """The nearest axes at right angles, if axes lean a little; other axes as they are."""
    leaning = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if not ORTHONORMAL < leaning <= _LEANING:
        return axes
    _warn(path, f"its axes are {leaning:.1g} radians from right angles; taken as straight")
    left, _, right = np.linalg.svd(axes)
    return left @ right


# ------------------------------------------------------------------------------------------ MetaImage


def _metaimage(path: Path, file: BinaryIO) -> Header:
    content = file.read(_LONGEST_HEADER)
    stop = content.find(b"\n", content.lower().find(b"elementdatafile")) + 1
    lines = content[:stop].decode("utf-8", "surrogateescape").splitlines()
    fields = {
        key.strip().lower(): value.strip() for key, found, value in (line.partition("=") for line in lines) if found
    }

    def first(*names: str, default: str = "") -> str:
        return next((fields[name] for name in names if name in fields), default)

    def numbers(*names: str, default: str = "") -> tuple[float, ...]:
        return tuple(float(n) for n in first(*names, default=default).split())

    name, size = fields["elementdatafile"], tuple(int(n) for n in fields["dimsize"].split())
    kind, channels = first("elementtype").upper().removeprefix("MET_"), first("elementnumberofchannels", default="1")
    units, spacing = first("distanceunits", default="mm").lower(), numbers("elementspacing", "elementsize")
    count = len(size)
    if not 3 <= count <= _MOST_DIMENSIONS or first("ndims") != str(count) or set(size[3:]) - {1}:
        raise VolumeError(f"{path}: {_FLAT}")
    origin = numbers("offset", "position", "origin", default=count * "0 ")
    axes = numbers("transformmatrix", "rotation", "orientation", default=" ".join(map(str, np.eye(count).ravel())))
    slope = numbers("elementtointensityfunctionslope", default="1")
    intercept = numbers("elementtointensityfunctionoffset", default="0")
    if not spacing:
        raise VolumeError(f"{path}: does not say how large its voxels are (no ElementSpacing); set it in the header")
    if kind not in _MET_TYPES or channels != "1" or first("binarydata", default="true").lower() != "true":
        raise VolumeError(f"{path}: has voxels of {channels} {kind}; expected one binary number per voxel")
    if units not in ("mm", "?"):
        raise VolumeError(f"{path}: its spacing is not in mm but in {units}; convert it")
    if {*map(len, (spacing, origin)), len(axes) / count} != {count}:
        raise VolumeError(f"{path}: {_FLAT}")
    if (slope, intercept) != ((1,), (0,)):
        raise VolumeError(f"{path}: its header scales its values, which some readers ignore; store the scaled values")
    if first("headersize", default="0") not in ("0", "-1"):
        raise ValueError("voxels at an offset")
    direction = tuple(np.reshape(axes, (count, count))[:3, :3].T.ravel().tolist())  # the file has an axis per row
    data, offset = (path, stop) if name.upper() == "LOCAL" else (_voxel_file(path, name), 0)
    swapped = first("binarydatabyteordermsb", "elementbyteordermsb", default="false").lower() == "true"
    encoding = "zlib" if first("compresseddata", default="false").lower() == "true" else "raw"
    voxel = np.dtype((">" if swapped else "<") + _MET_TYPES[kind])
    return Header(path, size[:3], spacing[:3], origin[:3], direction, voxel, data, offset, encoding)


# ----------------------------------------------------------------------------------------------- NRRD


def _nrrd(path: Path, file: BinaryIO, layered: bool) -> Header:
    fields = dict(nrrd.read_header(file))
    offset = file.tell()
    sizes = [int(n) for n in fields["sizes"]]
    layers = len(sizes) == 4 and layered
    units = {str(unit).lower() for key in ("space units", "units") for unit in fields.get(key, [])} - {"mm", ""}
    voxel = _nrrd_type(str(fields["type"]), str(fields.get("endian", "little")))
    if len(sizes) < 3:
        raise VolumeError(f"{path}: {_FLAT}")
    if voxel is None:
        raise VolumeError(f"{path}: has voxels of the type {fields['type']}; expected one number per voxel")
    if units:
        raise VolumeError(f"{path}: its spacing is not in mm but in {', '.join(sorted(units))}; convert it")
    if "space directions" not in fields and "spacings" not in fields:
        raise VolumeError(f"{path}: does not say how large its voxels are (no space directions); set them")
    if any(fields.get(key) for key in ("line skip", "byte skip")):
        raise ValueError("voxels at an offset")
    directions, origin = _nrrd_axes(path, fields)
    axes = np.arange(layers, layers + 3)
    if len(sizes) > 3 and not layers:  # such as of time, or of the values of a voxel
        axes = np.flatnonzero(np.abs(directions).max(1) > 0)
        if len(axes) != 3 or math.prod(np.delete(sizes, axes).tolist()) != 1:
            raise VolumeError(f"{path}: {_FLAT}")
    directions = directions[axes].reshape(3, 3)
    spacing = np.linalg.norm(directions, axis=1)
    with np.errstate(all="ignore"):
        direction = (directions / spacing[:, None]).T
    file.seek(0)
    named = re.search(rb"(?im)^data ?file:[ \t]*(.+?)[ \t\r]*$", file.read(offset))  # pynrrd knows ASCII only
    name = os.fsdecode(named[1]) if named else ""
    data, offset = (_voxel_file(path, name), 0) if name else (path, offset)
    return Header(
        path,
        tuple(sizes[k] for k in axes),
        *(tuple(values.ravel().tolist()) for values in (spacing, origin.reshape(3), direction)),
        voxel,
        data,
        offset,
        _NRRD_ENCODINGS[str(fields["encoding"]).lower()],
        layers=sizes[0] if layers else 1,
        fields=fields,
    )


def _nrrd_type(name: str, endian: str) -> np.dtype | None:
    """The type of an NRRD's voxels; None if they are no numbers."""
    name = name.lower()
    kind = _NRRD_FLOATS.get(name) or next((kind for pattern, kind in _NRRD_TYPES if re.search(pattern, name)), None)
    if kind is None:
        return None
    return np.dtype((">" if endian == "big" else "<") + (kind.replace("i", "u") if name.startswith("u") else kind))


_NRRD_SPACE = re.compile(r"(l|r|left-|right-)(p|a|posterior-|anterior-)(s|i|superior|inferior)(t|-time)?")
_NRRD_NO_PATIENT = ("", "scanner-xyz", "scanner-xyz-time", "3d-right-handed", "3d-right-handed-time")


def _nrrd_axes(path: Path, fields: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The steps along the axes, one row per axis, and the origin; in LPS."""
    space = str(fields.get("space", "")).lower()
    if (match := _NRRD_SPACE.fullmatch(space)) is None:
        if space not in _NRRD_NO_PATIENT:
            raise ValueError(f"its space is {space}")
        said = f"its space is {space}" if space else "no space"
        _warn(path, f"does not say how the patient lies ({said}); taken as LPS, as by ITK")
    signs = [1.0 if word[0] in "lps" else -1.0 for word in match.groups()[:3]] if match else [1.0, 1.0, 1.0]
    if "space directions" not in fields:
        return np.diag(np.array(fields["spacings"], float))[:, :3], np.zeros(3)
    directions = [[np.nan] * 3 if row is None else row for row in fields["space directions"]]
    origin = fields.get("space origin")
    return np.array(directions, float)[:, :3] * signs, np.array([0, 0, 0] if origin is None else origin)[:3] * signs
