"""NIfTI-1 and NIfTI-2 files, believed only where header, length and checksum agree.

Common readers fill in what is missing with zeros, that is with soft tissue, replace NaN by 0, and each has a way of
its own with a header that contradicts itself. So the voxels are read here, the header with nibabel, and every
contradiction is an error.
"""

from __future__ import annotations

import errno
import gzip
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from datasets.io.grid import ORTHONORMAL, Grid, check_grid
from utils.errors import VolumeError

log = logging.getLogger(__name__)

EXTENSIONS = (".nii.gz", ".nii", ".hdr.gz", ".hdr")
"""Of volumes in one file, and of the headers of those in two."""

_VOXEL_FILES = {".hdr.gz": (".img.gz", ".img"), ".hdr": (".img", ".img.gz")}
"""Extensions of the files with the voxels, by that of the header; the first that exists is read."""

SEPARATE_HEADERS = tuple(_VOXEL_FILES)
"""Extensions of headers without voxels."""

NOTES = "ITK_FileNotes"
"""ITK's key for the description in a NIfTI header, at most 79 bytes."""

_VERSIONS = {
    348: (nib.Nifti1Header, (b"n+1", b"ni1")),
    540: (nib.Nifti2Header, (b"n+2", b"ni2")),
}
"""By size of the header: its class, and its magic in files with and without voxels."""

_MARK = 4
"""Bytes behind the header that say whether extensions follow; the voxels begin behind them at the earliest."""

_FIRST_VOXEL = 352
"""Where the voxels begin in the files that are written."""

_GZIP = b"\x1f\x8b"

_SIZE_FIELD = 42
"""Where the header has the size, x first."""

_COMPRESSION = 1
"""Of zlib's levels 1 to 9; higher ones take up to three times as long and save 1 percent of a CT."""

_CHUNK = 1 << 24

_SCALARS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""NIfTI's numbers of the types that have one value a voxel."""

_MILLIMETRES = (0, 2)
"""NIfTI's numbers of the units of length that mean mm: not said, and mm."""

_LEANING = 1e-3
"""How far axes may be from right angles, in radians; the nearest straight ones are then taken."""

_SAME = 1e-3
"""How far spacing (relatively) and axes may differ where a header gives them twice."""

_SHIFTED = 0.01
"""How far the origins may then be apart, in voxels."""


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says of its volume.

    Attributes:
        grid: size and geometry.
        voxel: type of the stored values, in the file's byte order.
        data: the file that holds them.
        offset: where they begin, in bytes.
        slope: of their scaling.
        intercept: of their scaling.
        notes: its free text.
        leaning: how far the stored axes were from right angles, in radians, if `grid` has others instead; 0 otherwise.
    """

    grid: Grid
    voxel: np.dtype
    data: Path
    offset: int
    slope: float
    intercept: float
    notes: str
    leaning: float


def is_nifti(path: Path) -> bool:
    """Whether a file has one of the `EXTENSIONS`."""
    return path.name.lower().endswith(EXTENSIONS)


def is_separate_header(path: Path) -> bool:
    """Whether a file is the header of a volume in two files, NIfTI or ANALYZE; other formats share the extension."""
    if not path.name.lower().endswith(SEPARATE_HEADERS):
        return False
    try:
        with _opened(path) as file:
            size = file.read(4)
    except VolumeError:
        return False
    return any(size == struct.pack(order + "i", length) for order in "<>" for length in _VERSIONS)


def voxel_file(path: Path) -> Path:
    """The file with the voxels that belong to a NIfTI file.

    Raises:
        VolumeError: it is missing.
    """
    extension = next((e for e in _VOXEL_FILES if path.name.lower().endswith(e)), None)
    if extension is None:
        return path
    stem = path.name[: -len(extension)]
    upper = path.name.endswith(extension.upper())
    names = [stem + (other.upper() if upper else other) for other in _VOXEL_FILES[extension]]
    found = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if found is None:
        raise VolumeError(f"{path}: its voxels, {names[0]}, are missing; copy both files")
    return found


def read_nifti_header(path: Path, max_voxels: int) -> NiftiHeader:
    """Read and check the header of a NIfTI file.

    Raises:
        VolumeError: it is not NIfTI, contradicts itself, or describes no volume of one value a voxel, of mm, of at most
            `max_voxels` voxels, with a known orientation.
    """
    with _opened(path) as file:
        return _read_header(path, file, max_voxels)


def read_nifti(path: Path, max_voxels: int) -> tuple[Grid, np.ndarray]:
    """Read a NIfTI file, compressed or not, whatever its name says.

    Returns:
        Its grid, and its voxels (z, y, x) in the file's type or, where the header scales them, as float32 (float64 for
        types of more than 16 bits).

    Raises:
        VolumeError: as `read_nifti_header`, or the file is damaged, shorter or longer than its header says.
    """
    with _opened(path) as file:
        header = _read_header(path, file, max_voxels)
        if header.data == path:
            voxels = _read_voxels(path, header, file, file.tell())
    if header.data != path:
        with _opened(header.data) as file:
            voxels = _read_voxels(header.data, header, file, 0)
    if header.leaning > 0:
        log.warning("%s: its axes are %.1g radians from right angles; taken as straight", path, header.leaning)
    return header.grid, _scaled(voxels, header)


def _read_voxels(path: Path, header: NiftiHeader, file: BinaryIO, place: int) -> np.ndarray:
    _skip(path, file, header.offset - place)
    voxels = np.empty(header.grid.shape, header.voxel)
    target = memoryview(voxels.reshape(-1).view(np.uint8))
    read = 0
    while read < len(target) and (count := file.readinto(target[read : read + _CHUNK])):
        read += count
    if read < len(target):
        raise _cut_short(path, header.offset + read, header.offset + len(target))
    # Reading on compares the checksum of a compressed file, too.
    if file.read(1):
        raise VolumeError(
            f"{path}: holds more than the {header.offset + len(target)} bytes of its header; one of them is damaged"
        )
    return voxels


def write_nifti(image: sitk.Image, path: Path) -> None:
    """Write a ``.nii`` with the bytes that ITK writes, or a ``.nii.gz`` that unpacks to them.

    ITK's own writer says nothing of a disk that is full. Equal images give equal files; so zlib compresses, as isal was
    seen to pack equal masks differently.

    Args:
        image: one number a voxel.
        path: of the file.

    Raises:
        OSError: it cannot be written.
        RuntimeError: ITK knows no NIfTI header for the image.
    """
    compressed = path.name.lower().endswith(".gz")
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", _COMPRESSION, raw, mtime=0) if compressed else nullcontext(raw) as file,
    ):
        file.write(_itk_header(image))
        for plane in sitk.GetArrayViewFromImage(image):
            file.write(plane)


def _itk_header(image: sitk.Image) -> bytes:
    """The header that ITK writes for an image, taken from a file with its first corner, whose size alone differs."""
    with TemporaryDirectory() as folder:
        corner = Path(folder) / "corner.nii"
        first = image[:2, :2, :2]
        if image.HasMetaDataKey(NOTES):
            first.SetMetaData(NOTES, image.GetMetaData(NOTES))
        sitk.WriteImage(first, str(corner))
        header = bytearray(corner.read_bytes()[:_FIRST_VOXEL])
    if len(header) < _FIRST_VOXEL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(corner))
    struct.pack_into("=3h", header, _SIZE_FIELD, *image.GetSize())
    return bytes(header)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as raw:
            compressed = raw.read(len(_GZIP)) == _GZIP
        with (igzip.open if compressed else open)(path, "rb") as file:
            yield file
    except MemoryError:
        raise VolumeError(f"{path}: its voxels do not fit into memory; use a machine with more of it") from None
    except (EOFError, OSError, isal_zlib.error) as error:
        raise VolumeError(f"{path}: damaged, cut short or unreadable ({error}); copy the file again") from None


def _read_header(path: Path, file: BinaryIO, max_voxels: int) -> NiftiHeader:
    block = file.read(min(_VERSIONS))
    if len(block) < min(_VERSIONS):
        raise _cut_short(path, len(block), min(_VERSIONS))
    # The size of the header, in the byte order of the file.
    length = next((n for n in _VERSIONS for order in "<>" if block[:4] == struct.pack(order + "i", n)), None)
    if length is None:
        raise VolumeError(f"{path}: not a NIfTI file; convert it, or give it the extension of what it is")
    block += file.read(length - len(block))
    if len(block) < length:
        raise _cut_short(path, len(block), length)
    kind, (single, separate) = _VERSIONS[length]
    header = kind(block, check=False)
    magic = header["magic"].item()
    if header["sizeof_hdr"] != length:
        raise VolumeError(f"{path}: its header mixes two byte orders; it is damaged")
    if magic not in (single, separate):
        raise VolumeError(f"{path}: not a NIfTI file; if ANALYZE, it does not say how it is oriented: convert it")
    if (magic == separate) != path.name.lower().endswith(SEPARATE_HEADERS):
        raise VolumeError(f"{path}: NIfTI in one file ends in .nii or .nii.gz, in two in .hdr and .img; rename it")
    dimensions = int(header["dim"][0])
    size, trailing = header["dim"][1:4], header["dim"][4 : max(4, dimensions + 1)]
    if not 3 <= dimensions <= 7 or (trailing != 1).any():
        raise VolumeError(f"{path}: is not three-dimensional; expected one volume of several slices")
    code = int(header["datatype"])
    if code not in _SCALARS:
        raise VolumeError(f"{path}: holds values of NIfTI's type {code}; expected one number a voxel")
    voxel = np.dtype(header.endianness + _SCALARS[code])
    if header["bitpix"] != 8 * voxel.itemsize:
        raise VolumeError(f"{path}: its header gives {header['bitpix']} bits a voxel of {voxel}; it is damaged")
    offset = float(header["vox_offset"])
    first = length + _MARK if magic == single else 0
    if not first <= offset < 2**31 or offset % 1:
        raise VolumeError(f"{path}: the place of its voxels is impossible ({offset:g}); repair the header")
    slope, intercept = _scaling(path, header)
    grid, leaning = _grid(path, header, tuple(int(n) for n in size))
    check_grid(path, grid, max_voxels)
    notes = header["descrip"].item().decode("latin-1")
    return NiftiHeader(grid, voxel, voxel_file(path), int(offset), slope, intercept, notes, leaning)


def _scaling(path: Path, header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; without a slope, values are not scaled."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    unscaled = slope == 0 or not np.isfinite(slope)
    if unscaled and (intercept == 0 or not np.isfinite(intercept)):
        return 1.0, 0.0
    if unscaled or not np.isfinite(intercept):
        # Readers disagree: nibabel ignores the intercept where SimpleITK adds it, or the other way round.
        raise VolumeError(f"{path}: its values are scaled by {slope:g} and {intercept:g}; repair the header")
    return slope, intercept


def _grid(path: Path, header: nib.Nifti1Header, size: tuple[int, int, int]) -> tuple[Grid, float]:
    """The grid, and how far the stored axes lean from its straight ones."""
    spacing = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise VolumeError(f"{path}: its spacing {tuple(spacing)} is impossible; repair the header")
    if header["xyzt_units"] % 8 not in _MILLIMETRES:
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
        if not np.allclose(lengths, spacing, rtol=_SAME, atol=0):
            raise VolumeError(
                f"{path}: axes with steps of {lengths.round(4)} mm, voxels of {spacing.round(4)}; repair the header"
            )
        axes.append(affine[:3, :3] / lengths)
    shift = np.abs(affines[0][:3, 3] - affines[-1][:3, 3]).max()
    if not np.allclose(axes[0], axes[-1], rtol=0, atol=_SAME) or shift > _SHIFTED * spacing.min():
        raise VolumeError(f"{path}: its qform and sform contradict each other; remove the wrong one from the header")
    # NIfTI's x and y grow to the right and to the front, ours (LPS) to the left and to the back.
    flip = np.array([-1.0, -1.0, 1.0])
    # Adding 0 turns -0 into 0.
    straight, leaning = _straightened(axes[0])
    direction = flip[:, None] * straight + 0.0
    origin = flip * affines[0][:3, 3] + 0.0
    return Grid(size, tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist())), leaning


def _straightened(axes: np.ndarray) -> tuple[np.ndarray, float]:
    """The nearest axes at right angles, if axes lean a little, and by how much; other axes as they are, and 0."""
    leaning = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if not ORTHONORMAL < leaning <= _LEANING:
        return axes, 0.0
    left, _, right = np.linalg.svd(axes)
    return left @ right, leaning


def _skip(path: Path, file: BinaryIO, count: int) -> None:
    """Pass over the header's extensions, which may be long."""
    while count:
        skipped = len(file.read(min(count, _CHUNK)))
        if not skipped:
            raise VolumeError(f"{path}: cut short before its voxels; copy the file again")
        count -= skipped


def _scaled(voxels: np.ndarray, header: NiftiHeader) -> np.ndarray:
    native = voxels.dtype.newbyteorder("=")
    if (header.slope, header.intercept) == (1.0, 0.0):
        return voxels.astype(native, copy=False)
    kind = np.float32 if native.itemsize <= 2 or native == np.float32 else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        # One slice after the other, so that no copy in double precision is made of the whole.
        scaled = np.empty(voxels.shape, kind)
        for k, plane in enumerate(voxels):
            scaled[k] = plane * np.float64(header.slope) + header.intercept
    return scaled


def _cut_short(path: Path, found: int, expected: int) -> VolumeError:
    return VolumeError(f"{path}: cut short: {found} of {expected} bytes; copy the file again")
