"""Reading, checking and writing volumes: the one place where files become images.

Everything behind it may trust what it gets: three dimensions, one finite value a voxel, a finite geometry, and a
file that holds all the data its header promises.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from errors import VolumeError
from whole_files import replacing

EXTENSIONS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
"""File types that are read; a folder is read as a DICOM series."""

_AIR_HU = -200
"""Every chest CT has air; one without a voxel below this is not in HU."""

_NIFTI_DATA = 352
"""Where the voxels of a NIfTI file begin at the earliest."""

_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""NIfTI's numbers of the types of scalar voxels; the reader goes by them, not by the header's bits a voxel."""

_POSITION = "0020|0032"
"""DICOM's Image Position (Patient)."""

_UNEVEN = 0.1
"""Largest difference between the distances of slices in a series, as a share of their median."""

_NOT_FINITE = "{}: holds NaN or infinite voxels; repair or leave out the scan"

_GEOMETRY_TOLERANCE = 1e-3
"""Relative difference of spacings, absolute one of direction cosines, and shift of the origin in voxels times 10."""


def volume_id(path: Path) -> str:
    """The id of a volume: its file name without the extension, or the name of its DICOM folder."""
    extension = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(extension)]


def is_volume_file(path: Path) -> bool:
    """Whether a file has one of the extensions that are read, and is not hidden."""
    return path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".") and path.is_file()


def read_geometry(path: Path) -> sitk.Image:
    """An image of the size, spacing, origin and direction of a volume; its voxels are all 0 (uint8).

    Only the header is read, except of a DICOM series.

    Raises:
        VolumeError: as `read_volume`, as far as the header tells.
    """
    if path.is_dir():
        image = _read_dicom(path)
        grid = sitk.Image(image.GetSize(), sitk.sitkUInt8)
        grid.CopyInformation(image)
        return grid
    reader = _read_header(path)
    grid = sitk.Image(reader.GetSize(), sitk.sitkUInt8)
    grid.SetSpacing(reader.GetSpacing())
    grid.SetOrigin(reader.GetOrigin())
    grid.SetDirection(reader.GetDirection())
    return grid


def read_volume(path: Path) -> sitk.Image:
    """Read a volume and check it.

    Args:
        path: a file with one of `EXTENSIONS`, or a folder with a DICOM series.

    Returns:
        A three-dimensional image of one finite number a voxel, in the file's pixel type.

    Raises:
        VolumeError: the file is missing, unreadable, cut short, damaged, not three-dimensional, has several values
            a voxel, a geometry that is not finite, or voxels that are NaN or infinite.
    """
    if path.is_dir():
        image = _read_dicom(path)
    else:
        reader = _read_header(path)
        if path.name.lower().endswith((".nii", ".nii.gz")):
            _check_nifti(path)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise VolumeError(f"{path}: cannot be decoded ({_last_line(error)}); copy the file again") from None
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise VolumeError(_NOT_FINITE.format(path))
    return image


def read_ct(path: Path) -> sitk.Image:
    """Read a chest CT in HU.

    Raises:
        VolumeError: as `read_volume`, or the values cannot be HU.
    """
    image = read_volume(path)
    values = sitk.GetArrayViewFromImage(image)
    lowest, highest = float(values.min()), float(values.max())
    if lowest > _AIR_HU or lowest == highest:
        raise VolumeError(
            f"{path}: values of {lowest:g}..{highest:g} are not HU (no air); map the scan back to HU or leave it out"
        )
    return image


def read_labels(path: Path) -> sitk.Image:
    """Read a mask: whole numbers from 0 to 255, as uint8.

    Raises:
        VolumeError: as `read_volume`, or the values are not labels.
    """
    image = read_volume(path)
    values = sitk.GetArrayViewFromImage(image)
    if values.min() < 0 or values.max() > 255 or (values.dtype.kind == "f" and (values % 1).any()):
        raise VolumeError(
            f"{path}: values of {values.min():g}..{values.max():g} are not labels; expected whole numbers from 0 to 255"
        )
    return sitk.Cast(image, sitk.sitkUInt8)


def check_same_grid(path: Path, grid: sitk.Image, reference_path: Path, reference: sitk.Image) -> None:
    """Check that two volumes have the same size, and the same geometry within a thousandth.

    Spacings may differ by 0.1 %, direction cosines by 0.001 and origins by a hundredth of the smallest spacing.

    Raises:
        VolumeError: naming both files and the first difference.
    """
    spacing = np.array(reference.GetSpacing())
    differences = {
        "size": grid.GetSize() != reference.GetSize(),
        "spacing": not np.allclose(grid.GetSpacing(), spacing, rtol=_GEOMETRY_TOLERANCE, atol=0),
        "origin": not np.allclose(
            grid.GetOrigin(), reference.GetOrigin(), rtol=0, atol=10 * _GEOMETRY_TOLERANCE * spacing.min()
        ),
        "direction": not np.allclose(grid.GetDirection(), reference.GetDirection(), rtol=0, atol=_GEOMETRY_TOLERANCE),
    }
    for what, differs in differences.items():
        if differs:
            ours, theirs = (getattr(image, f"Get{what.capitalize()}")() for image in (grid, reference))
            raise VolumeError(
                f"{path}: its {what} {_rounded(ours)} differs from {_rounded(theirs)} of {reference_path}; "
                "use the mask that was drawn on this scan"
            )


def write_volume(image: sitk.Image, path: Path) -> None:
    """Write a volume, compressed unless the name ends in ``.nii``; the file appears whole or not at all.

    It is read again before it takes its place: a full disk is no error to the library, which leaves a file cut short.

    Raises:
        VolumeError: the file cannot be written, or is to be a ``.mhd``, which is two files.
    """
    if path.name.lower().endswith(".mhd"):
        raise VolumeError(f"{path}: would be two files, a header and its voxels; write .mha instead")
    try:
        with replacing(path) as temporary:
            sitk.WriteImage(image, str(temporary), useCompression=not path.name.endswith(".nii"))
            read_volume(temporary)
    except VolumeError:
        raise VolumeError(f"{path}: cannot be written (it arrives damaged); check the disk") from None
    except (OSError, RuntimeError) as error:
        raise VolumeError(f"{path}: cannot be written ({_last_line(error)}); check the folder and the disk") from None


def _read_header(path: Path) -> sitk.ImageFileReader:
    if not path.is_file():
        raise VolumeError(f"{path}: no such file; expected a CT or mask ({', '.join(EXTENSIONS)}) or a DICOM folder")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(f"{path}: not a readable image ({_last_line(error)}); export it again") from None
    if reader.GetDimension() != 3 or min(reader.GetSize()) < 2:
        raise VolumeError(f"{path}: has the size {reader.GetSize()}; expected one volume of several slices")
    if reader.GetNumberOfComponents() != 1 or "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise VolumeError(f"{path}: has several values a voxel; expected one")
    geometry = (*reader.GetSpacing(), *reader.GetOrigin(), *reader.GetDirection())
    if not np.isfinite(geometry).all() or min(reader.GetSpacing()) <= 0:
        raise VolumeError(f"{path}: its spacing, origin or direction is not finite; repair the header")
    return reader


def _check_nifti(path: Path) -> None:
    """Find what the reader passes over in a NIfTI file.

    A file that was cut short, and a voxel that is NaN, would be read as 0, that is as soft tissue.
    """
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            header = file.read(_NIFTI_DATA)
            if len(header) < _NIFTI_DATA:
                raise VolumeError(f"{path}: cut short: {len(header)} bytes; copy the file again")
            order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"
            size = struct.unpack_from(f"{order}3h", header, 42)
            voxel = np.dtype(order + _NIFTI_TYPES.get(struct.unpack_from(f"{order}h", header, 70)[0], "u1"))
            *spacing, offset = (
                *struct.unpack_from(f"{order}3f", header, 80),
                *struct.unpack_from(f"{order}f", header, 108),
            )
            if not np.isfinite([*spacing, offset]).all() or 0 in spacing or not _NIFTI_DATA <= offset < 2**31:
                raise VolumeError(f"{path}: its spacing or the place of its voxels is impossible; repair the header")
            skipped = len(file.read(int(offset) - _NIFTI_DATA))
            expected = int(np.prod(size, dtype=np.int64)) * voxel.itemsize
            length = 0
            while chunk := file.read(1 << 22):
                if voxel.kind == "f":
                    # Whole numbers only, and nothing that follows the voxels.
                    whole = max(min(len(chunk), expected - length), 0) // voxel.itemsize
                    if not np.isfinite(np.frombuffer(chunk, voxel, whole)).all():
                        raise VolumeError(_NOT_FINITE.format(path))
                length += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise VolumeError(f"{path}: damaged or cut short ({_last_line(error)}); copy the file again") from None
    if length < expected:
        found = _NIFTI_DATA + skipped + length
        raise VolumeError(f"{path}: cut short: {found} of {int(offset) + expected} bytes; copy the file again")


def _read_dicom(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    series = {uid: reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))}
    if not series:
        raise VolumeError(f"{folder}: holds no DICOM series; expected a folder of slices, or a CT file")
    names = max(series.values(), key=len)
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise VolumeError(f"{folder}: its DICOM series cannot be read ({_last_line(error)}); export it again") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or min(image.GetSize()) < 2:
        raise VolumeError(f"{folder}: its largest DICOM series is not a CT volume; export the CT series alone")
    _check_slices(folder, reader, len(names), image.GetDirection())
    return image


def _check_slices(folder: Path, reader: sitk.ImageSeriesReader, count: int, direction: tuple[float, ...]) -> None:
    """A missing slice, or one that is there twice, would shift all slices behind it without a word."""
    if not all(reader.HasMetaDataKey(k, _POSITION) for k in range(count)):
        return
    positions = [[float(x) for x in reader.GetMetaData(k, _POSITION).split("\\")] for k in range(count)]
    steps = np.abs(np.diff(np.array(positions) @ np.array(direction)[2::3]))
    if np.abs(steps - np.median(steps)).max() > _UNEVEN * np.median(steps):
        raise VolumeError(
            f"{folder}: its slices are not evenly spaced ({steps.min():g} to {steps.max():g} mm): one is missing, "
            "damaged or there twice; export the series again"
        )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
