"""NIfTI, MetaImage and NRRD: what their headers say, and their voxels.

What the usual readers do not check is checked here: they fill files that are cut short with zeros, drop slices that a
header does not mention, take 1 mm where there is no spacing, and some crash on damaged headers. A header is read and
checked first, then the length of the file and its checksum, if it has one.
"""

from __future__ import annotations

import io
import logging
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import nibabel as nib
import nrrd
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

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
_MET_TYPES = {"CHAR": "i1", "SHORT": "i2", "INT": "i4", "LONG": "i4", "LONG_LONG": "i8", "FLOAT": "f4", "DOUBLE": "f8"}
_NRRD_TYPES = (("char|int8", "i1"), ("short|int16", "i2"), ("long long|longlong|int64", "i8"), ("int", "i4"))
_NRRD_FLOATS = {"float": "f4", "double": "f8"}

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
    encoding: str  # ``stream`` (NIfTI, compressed or not), ``raw``, ``compressed`` or ``nrrd``, which pynrrd decodes
    slope: float = 1.0  # of the scaling
    intercept: float = 0.0  # of the scaling
    notes: str = ""  # free text of a NIfTI header
    layers: int = 1  # layers of segments, in front of z
    fields: dict[str, Any] | None = None  # all fields of an NRRD header
    named: str = ""  # the file of voxels as the header names it; empty if there is no other file


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
    if name.endswith(NIFTI):
        with _opened(path) as file:
            header = _nifti(path, file)
    else:
        try:
            with path.open("rb") as file:
                header = _nrrd(path, file, layered) if name.endswith(_NRRD) else _metaimage(path, file)
        except OSError as error:
            raise VolumeError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
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
    if header.named and header.data != header.path.parent / header.named:
        log.warning("%s: its voxels are read from %s; the header names %s", header.path, header.data, header.named)
    shape = ((header.layers,) if header.layers > 1 else ()) + header.size[::-1]
    if header.encoding == "nrrd":
        return _decoded_by_pynrrd(header, shape)
    with _opened(header.data, header) as file:
        voxels = np.empty(shape, header.voxel)
        target = memoryview(voxels.reshape(-1).view(np.uint8))
        read = 0
        while read < len(target) and (count := file.readinto(target[read : read + _CHUNK])):
            read += count
        before = 0 if header.encoding == "compressed" else header.offset
        if read < len(target):
            raise _cut_short(header.data, before + read, before + len(target))
        if file.read(1):  # which compares the checksum of a compressed file, too
            raise VolumeError(
                f"{header.data}: holds more than the {before + len(target)} bytes of its header; one of them is damaged"
            )
    if header.layers > 1:  # the first axis of the file, which varies fastest
        voxels = np.moveaxis(voxels.reshape(*header.size[::-1], header.layers), -1, 0)
    return _scaled(voxels, header)


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
            size = file.read(4)
    except VolumeError:
        return False
    return any(size == struct.pack(order + "i", length) for order in "<>" for length in _NIFTI_VERSIONS)


@contextmanager
def _opened(path: Path, header: Header | None = None) -> Iterator[BinaryIO]:
    """A file, decompressed if its first bytes or its header say so, at its first voxel if there is a header."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        stream = header is None or header.encoding == "stream"
        with (igzip.open if zipped and stream else open)(path, "rb") as file:
            if header is None:
                yield file
            elif header.encoding == "compressed":
                file.seek(header.offset)
                yield _inflated(file, int(np.prod(header.size)) * header.layers * header.voxel.itemsize)
            else:
                file.seek(header.offset)
                yield file
    except MemoryError:
        raise VolumeError(f"{path}: its voxels do not fit into memory; use a machine with more of it") from None
    except (EOFError, OSError, isal_zlib.error) as error:
        raise VolumeError(f"{path}: damaged, cut short or unreadable ({error}); copy the file again") from None


def _inflated(file: BinaryIO, expected: int) -> BinaryIO:
    """A zlib or gzip stream, decompressed to at most one byte more than expected."""
    inflate = isal_zlib.decompressobj(wbits=32 + 15)  # zlib or gzip
    content = inflate.decompress(file.read(), expected + 1)
    if len(content) <= expected and not inflate.eof:
        raise EOFError("it ends too early")
    return io.BytesIO(content)


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
    windows = PureWindowsPath(name)
    for place in (path.parent / name, path.parent / windows.as_posix(), path.parent / windows.name):
        if place.is_file():
            return place
    raise VolumeError(f"{path}: its voxels, {name}, are missing; copy both files")


# ---------------------------------------------------------------------------------------------- NIfTI


def _nifti(path: Path, file: BinaryIO) -> Header:
    shortest = min(_NIFTI_VERSIONS)
    block = file.read(shortest)
    if len(block) < shortest:
        raise _cut_short(path, len(block), shortest)
    length = next((n for n in _NIFTI_VERSIONS for order in "<>" if block[:4] == struct.pack(order + "i", n)), None)
    if length is None:
        raise VolumeError(f"{path}: not a NIfTI file; convert it, or give it the extension of what it is")
    block += file.read(length - len(block))
    if len(block) < length:
        raise _cut_short(path, len(block), length)
    kind, (single, separate) = _NIFTI_VERSIONS[length]
    header = kind(block, check=False)
    magic, extension = header["magic"].item(), next((e for e in _PAIRS if path.name.lower().endswith(e)), None)
    if header["sizeof_hdr"] != length:
        raise VolumeError(f"{path}: its header mixes two byte orders; it is damaged")
    if magic not in (single, separate):
        raise VolumeError(f"{path}: not a NIfTI file; if ANALYZE, it does not say how it is oriented: convert it")
    if (magic == separate) != (extension is not None):
        raise VolumeError(f"{path}: NIfTI in one file ends in .nii or .nii.gz, in two in .hdr and .img; rename it")
    dimensions = int(header["dim"][0])
    size, trailing = header["dim"][1:4], header["dim"][4 : max(4, dimensions + 1)]
    if not 3 <= dimensions <= 7 or (trailing != 1).any():
        raise VolumeError(f"{path}: is not three-dimensional; expected one volume of several slices")
    code = int(header["datatype"])
    if code not in _NIFTI_TYPES:
        raise VolumeError(f"{path}: holds values of NIfTI's type {code}; expected one number per voxel")
    voxel = np.dtype(header.endianness + _NIFTI_TYPES[code])
    if header["bitpix"] != 8 * voxel.itemsize:
        raise VolumeError(f"{path}: its header gives {header['bitpix']} bits per voxel of {voxel}; it is damaged")
    offset = float(header["vox_offset"])
    if not (length + _MARK if magic == single else 0) <= offset < 2**31 or offset % 1:
        raise VolumeError(f"{path}: the place of its voxels is impossible ({offset:g}); repair the header")
    slope, intercept = _nifti_scaling(path, header)
    data = path if extension is None else _nifti_voxel_file(path, extension)
    notes = header["descrip"].item().decode("latin-1")
    size = tuple(int(n) for n in size)
    return Header(
        path, size, *_nifti_geometry(path, header), voxel, data, int(offset), "stream", slope, intercept, notes
    )


def _nifti_voxel_file(path: Path, extension: str) -> Path:
    stem, upper = path.name[: -len(extension)], path.name.endswith(extension.upper())
    names = [stem + (other.upper() if upper else other) for other in _PAIRS[extension]]
    found = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if found is None:
        raise VolumeError(f"{path}: its voxels, {names[0]}, are missing; copy both files")
    return found


def _nifti_scaling(path: Path, header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; without a slope, values are not scaled."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    unscaled = slope == 0 or not np.isfinite(slope)
    if unscaled and (intercept == 0 or not np.isfinite(intercept)):
        return 1.0, 0.0
    if unscaled or not np.isfinite(intercept):
        # Readers disagree: nibabel ignores the intercept where SimpleITK adds it, or the other way round.
        raise VolumeError(f"{path}: its values are scaled by {slope:g} and {intercept:g}; repair the header")
    return slope, intercept


def _nifti_geometry(
    path: Path, header: nib.Nifti1Header
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Spacing, origin and direction in LPS."""
    spacing = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise VolumeError(f"{path}: its spacing {tuple(spacing)} is impossible; repair the header")
    if header["xyzt_units"] % 8 not in (0, 2):  # not said, and mm
        raise VolumeError(f"{path}: its spacing is not in mm; convert it")
    if header["pixdim"][0] == 0:  # qfac, which some programs leave out
        header["pixdim"][0] = 1
    affines = []
    if header["sform_code"] > 0:
        affines.append(header.get_sform())
    if header["qform_code"] > 0:
        try:
            affines.append(header.get_qform())
        except (ValueError, HeaderDataError) as error:
            raise VolumeError(f"{path}: its qform is no rotation ({error}); repair the header") from None
    if not affines:
        raise VolumeError(f"{path}: does not say how it is oriented (no qform, no sform); set one in the header")
    if not np.isfinite(affines).all():
        raise VolumeError(f"{path}: its axes or its origin are not finite; repair the header")
    axes = []
    for affine in affines:
        lengths = np.sqrt((affine[:3, :3] ** 2).sum(0))
        if np.allclose(lengths, spacing, rtol=_SAME, atol=0):
            axes.append(affine[:3, :3] / lengths)
            continue
        _refuse_tilt(path, affine[:3, :3] / np.maximum(lengths, 1e-9))
        raise VolumeError(
            f"{path}: axes with steps of {lengths.round(4)} mm, voxels of {spacing.round(4)}; repair the header"
        )
    for one in axes:
        _refuse_tilt(path, one)
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
    log.warning("%s: its axes are %.1g radians from right angles; taken as straight", path, leaning)
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
    if not stop or "elementdatafile" not in fields:
        raise VolumeError(f"{path}: its header has no ElementDataFile; export it again")

    def first(*names: str, default: str = "") -> str:
        return next((fields[name] for name in names if name in fields), default)

    spacing = first("elementspacing", "elementsize")
    if not spacing:
        raise VolumeError(f"{path}: does not say how large its voxels are (no ElementSpacing); set it in the header")
    name = fields["elementdatafile"]
    if name.upper().startswith("LIST") or "%" in name:
        raise VolumeError(f"{path}: its voxels are in several files; convert it to .mha or .nii.gz")
    if first("headersize", default="0") not in ("0", "-1"):
        raise VolumeError(f"{path}: its voxels begin at an offset; convert it to .mha or .nii.gz")
    kind, channels = first("elementtype").upper().removeprefix("MET_"), first("elementnumberofchannels", default="1")
    plain = kind.removeprefix("U") if kind not in _MET_TYPES else kind
    if plain not in _MET_TYPES or channels != "1" or first("binarydata", default="true").lower() != "true":
        raise VolumeError(f"{path}: has voxels of {channels} {kind}; expected one binary number per voxel")
    voxel = _MET_TYPES[plain].replace("i", "u") if plain != kind else _MET_TYPES[plain]
    swapped = first("binarydatabyteordermsb", "elementbyteordermsb", default="false").lower() == "true"
    if (units := first("distanceunits", default="mm").lower()) not in ("mm", "?"):
        raise VolumeError(f"{path}: its spacing is not in mm but in {units}; convert it")
    try:
        slope = float(first("elementtointensityfunctionslope", default="1"))
        intercept = float(first("elementtointensityfunctionoffset", default="0"))
        size = tuple(int(n) for n in first("dimsize").split())
        numbers = [tuple(float(n) for n in text.split()) for text in (
            spacing,
            first("offset", "position", "origin", default="0 0 0"),
            first("transformmatrix", "rotation", "orientation", default="1 0 0 0 1 0 0 0 1"),
        )]  # fmt: skip
    except ValueError as error:
        raise VolumeError(f"{path}: not a readable image ({error}); export it again") from None
    if first("ndims") != "3" or len(size) != 3 or [len(values) for values in numbers] != [3, 3, 9]:
        raise VolumeError(f"{path}: is not three-dimensional; expected one volume of several slices")
    if (slope, intercept) != (1, 0):
        raise VolumeError(
            f"{path}: ElementToIntensityFunctionSlope and Offset scale its values, which some readers ignore; store "
            "the scaled values"
        )
    direction = tuple(np.reshape(numbers[2], (3, 3)).T.ravel().tolist())  # the file has an axis per row
    data, offset = (path, stop) if name.upper() == "LOCAL" else (_voxel_file(path, name), 0)
    encoding = "compressed" if first("compresseddata", default="false").lower() == "true" else "raw"
    voxel, named = np.dtype((">" if swapped else "<") + voxel), name if data != path else ""
    return Header(path, size, *numbers[:2], direction, voxel, data, offset, encoding, named=named)


# ----------------------------------------------------------------------------------------------- NRRD


def _nrrd(path: Path, file: BinaryIO, layered: bool) -> Header:
    try:
        fields = dict(nrrd.read_header(file))
        sizes = [int(n) for n in fields["sizes"]]
        layers = len(sizes) == 4 and layered
        if len(sizes) - layers != 3:
            raise VolumeError(f"{path}: is not three-dimensional; expected one volume of several slices")
        voxel = _nrrd_type(str(fields["type"]), str(fields.get("endian", "little")))
        directions, origin = _nrrd_axes(path, fields)
        encoding = {"raw": "raw", "gz": "compressed", "gzip": "compressed"}.get(str(fields["encoding"]).lower(), "nrrd")
    except VolumeError:
        raise
    except Exception as error:  # a damaged header makes pynrrd raise whatever it comes across
        raise VolumeError(f"{path}: not a readable image ({one_line(error)}); export it again") from None
    directions = directions[layers:]
    if directions.shape != (3, 3) or origin.shape != (3,):
        raise VolumeError(f"{path}: its axes or its origin have no three dimensions; export it again")
    if voxel is None:
        raise VolumeError(f"{path}: has voxels of the type {fields['type']}; expected one number per voxel")
    if any(fields.get(key) for key in ("line skip", "byte skip")):
        raise VolumeError(f"{path}: its voxels are behind an offset; save it as one file")
    offset = file.tell()
    file.seek(0)
    named = re.search(rb"(?im)^data ?file:[ \t]*(.+?)[ \t\r]*$", file.read(offset))  # pynrrd knows ASCII only
    name = named and os.fsdecode(named[1])
    if name and (name.split()[0] == "LIST" or "%" in name):
        raise VolumeError(f"{path}: its voxels are in several files; save it as one file")
    data, offset = (_voxel_file(path, name), 0) if name else (path, offset)
    spacing = np.linalg.norm(directions, axis=1)
    with np.errstate(all="ignore"):
        direction = (directions / spacing[:, None]).T
    geometry = (tuple(values.ravel().tolist()) for values in (spacing, origin, direction))
    count = sizes[0] if layers else 1
    size = tuple(sizes[-3:])
    return Header(path, size, *geometry, voxel, data, offset, encoding, layers=count, fields=fields, named=name or "")


def _nrrd_type(name: str, endian: str) -> np.dtype | None:
    """The type of an NRRD's voxels; None if they are no numbers."""
    name = name.lower()
    kind = _NRRD_FLOATS.get(name) or next((kind for pattern, kind in _NRRD_TYPES if re.search(pattern, name)), None)
    if kind is None:
        return None
    return np.dtype((">" if endian == "big" else "<") + (kind.replace("i", "u") if name.startswith("u") else kind))


def _nrrd_axes(path: Path, fields: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The steps along the axes, one row per axis, and the origin; in LPS."""
    units = {str(unit).lower() for key in ("space units", "units") for unit in fields.get(key, [])}
    if units - {"mm", ""}:
        raise VolumeError(f"{path}: its spacing is not in mm but in {', '.join(sorted(units))}; convert it")
    if "space directions" not in fields and "spacings" not in fields:
        raise VolumeError(
            f"{path}: does not say how large its voxels are (no space directions); set them in the header"
        )
    if "space directions" not in fields:
        return np.diag(np.array(fields["spacings"], float)), np.zeros(3)
    space = str(fields.get("space", "")).lower()
    words = space.split("-") if "-" in space else list(space)
    anatomical = len(words) >= 3 and all(word[:1] in "lraps" + "i" for word in words[:3])
    signs = np.array([1.0 if not anatomical or word[0] in "lps" else -1.0 for word in (words + ["l"] * 3)[:3]])
    directions = [[np.nan] * 3 if row is None else row for row in fields["space directions"]]
    origin = fields.get("space origin")
    return np.array(directions, float) * signs, (np.zeros(3) if origin is None else np.array(origin, float)) * signs


def _decoded_by_pynrrd(header: Header, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with header.path.open("rb") as file:
            fields = nrrd.read_header(file)
            fields["data file"] = str(header.data) if header.data != header.path else None
            if fields["data file"] is None:
                del fields["data file"]
            voxels = nrrd.read_data(fields, file, str(header.path), index_order="C")
    except Exception as error:  # pynrrd raises whatever it comes across
        raise VolumeError(f"{header.path}: cannot be decoded ({one_line(error)}); export it again") from None
    voxels = np.moveaxis(voxels, -1, 0) if header.layers > 1 else voxels
    if voxels.shape != shape:
        raise VolumeError(f"{header.path}: holds {voxels.shape} voxels, its header says {shape}; export it again")
    return np.ascontiguousarray(voxels)
