"""Reading, checking and writing volumes: the one door through which files become images.

Everything behind it may trust what it gets: three dimensions, one finite value a voxel, a geometry that can be, and
all the data that the file's header promises. In this order: the header alone is read and checked; then the length of
the file, and the checksum where it has one; then the voxels. NIfTI is read by `datasets.io.nifti`; DICOM folders are
ordered by `datasets.io.dicom_series`; they and the other types are decoded in a process of their own
(`datasets.io.decoder`).
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from datasets.geometry import blank, image_like, mask_onto
from datasets.io import nifti, slicer, text_headers
from datasets.io.decoder import Decoder, DecoderError
from datasets.io.dicom_choice import find_series
from datasets.io.dicom_pixels import padding_to_air, read_native, read_with_pydicom
from datasets.io.dicom_series import Series
from datasets.io.grid import MAX_VOXELS, Grid, check_grid
from datasets.io.scan import Scan
from datasets.window import unmap_window
from utils.errors import VolumeError
from utils.files import atomic_write, is_dangling

EXTENSIONS = (*nifti.EXTENSIONS, *text_headers.EXTENSIONS)
"""File types that are read; a folder is read as a DICOM series."""

_AIR_HU = -200
"""Every chest CT has air; one without a voxel below this is not in HU."""

_HIGHEST_HU = 100_000
"""Above the HU of any metal, on extended scales too."""

_LOWEST_HU = -32_768
"""Scanners write no less outside their field of view."""

_GREY_SCALES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Scales to which programs map CTs."""

_OVERSHOOT = 0.1
"""How far the values of a mapped CT may leave their scale, relative to its length: interpolation overshoots."""

_decoder = Decoder()


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        max_voxels: most voxels of a volume; a larger one is refused before memory is taken for it.
        series: SeriesInstanceUID, SeriesNumber, AcquisitionNumber, kernel or part of the SeriesDescription to take
            from a study with several CT series; by default as `datasets.io.dicom_choice.RULES` say.
        grey_window: HU that became the ends of the scale in CTs whose values were mapped to 0..255, 0..1 or -1..1;
            those are mapped back. By default such CTs are refused.
        segments: names of the segments that count in segmentations of Slicer; by default see `datasets.io.slicer`.
    """

    max_voxels: int = MAX_VOXELS
    series: str | None = None
    grey_window: tuple[float, float] | None = None
    segments: tuple[str, ...] | None = None


DEFAULT = Reading()


def volume_id(path: Path) -> str:
    """The id of a volume: its file name without the extension, or the name of its DICOM folder."""
    extension = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(extension)]


def is_volume_file(path: Path) -> bool:
    """Whether a file, or a link to one that is lost, has one of the extensions that are read, and is not hidden.

    Files ending in .hdr are, if they are headers of NIfTI or ANALYZE; other formats use that extension, too.
    """
    name = path.name.lower()
    if not name.endswith(EXTENSIONS) or name.startswith("."):
        return False
    if not path.is_file():
        return is_dangling(path)
    return not name.endswith(nifti.SEPARATE_HEADERS) or nifti.is_separate_header(path)


def read_geometry(source: Path | Scan, reading: Reading = DEFAULT) -> sitk.Image:
    """The geometry of a volume as an image of zeros (uint8), from its header alone.

    Raises:
        VolumeError: as `read_volume`, as far as the header tells.
    """
    grid = _grid_of(source, reading)
    return blank(grid.size, grid.spacing, grid.origin, grid.direction)


def _grid_of(source: Path | Scan, reading: Reading) -> Grid:
    series = _series_of(source, reading)
    if series is not None:
        return series.grid
    path = _path_of(source)
    if nifti.is_nifti(path):
        return nifti.read_nifti_header(path, reading.max_voxels).grid
    with text_headers.for_itk(text_headers.read_text_header(path)) as file:
        return _read_header(path, file, reading.max_voxels)[0]


def read_volume(source: Path | Scan, reading: Reading = DEFAULT) -> sitk.Image:
    """Read a volume and check it.

    Args:
        source: a file with one of `EXTENSIONS`, a folder with a DICOM series, or a scan that was found.
        reading: how files are read.

    Returns:
        A three-dimensional image of one finite number per voxel, in the file's pixel type (HU of DICOM as int16).

    Raises:
        VolumeError: the file is missing, unreadable, too large, cut short, damaged, crashes its reader, is not
            three-dimensional, has several values per voxel, impossible geometry, or NaN or infinite voxels; or the
            DICOM series is not complete.
    """
    series = _series_of(source, reading)
    if series is not None:
        grid, voxels = series.grid, _series_voxels(source, series)
    else:
        path = _path_of(source)
        if nifti.is_nifti(path):
            grid, voxels = nifti.read_nifti(path, reading.max_voxels)
        else:
            header = text_headers.read_text_header(path)
            with text_headers.for_itk(header) as file:
                grid, voxel_bytes = _read_header(path, file, reading.max_voxels)
                text_headers.check_data_length(header, int(np.prod(grid.size)) * voxel_bytes)
                voxels = _decoded(path, [file], grid, voxel_bytes)
    if voxels.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in voxels):
        raise VolumeError(f"{source}: holds NaN or infinite voxels; repair or leave out the scan")
    return grid.image(voxels)


def read_series(source: Path | Scan, reading: Reading = DEFAULT) -> Series:
    """The complete DICOM series of a scan.

    Raises:
        VolumeError: it is no DICOM series, or as `read_geometry`.
    """
    series = _series_of(source, reading)
    if series is None:
        raise VolumeError(f"{source}: not a DICOM series")
    return series


def _series_of(source: Path | Scan, reading: Reading) -> Series | None:
    """The checked DICOM series of a source; None for volume files."""
    if isinstance(source, Scan):
        if source.problem is not None:
            raise VolumeError(source.problem)
        series = source.series
    else:
        series = find_series(source, reading.series) if source.is_dir() else None
    if series is None:
        return None
    if series.problem is not None:
        raise VolumeError(series.problem)
    check_grid(source, series.grid, reading.max_voxels)
    return series


def _path_of(source: Path | Scan) -> Path:
    path = source.path if isinstance(source, Scan) else source
    _check_file(path)
    return path


def _series_voxels(source: Path | Scan, series: Series) -> np.ndarray:
    """HU of a series; ITK decodes what is compressed, pydicom frames and files without preamble, or what ITK cannot."""
    if (native := read_native(series)) is not None:
        return padding_to_air(series, native)
    if any(one.frame is not None for one in series.slices) or not all(one.preamble for one in series.slices):
        return padding_to_air(series, read_with_pydicom(series))
    path = source.path if isinstance(source, Scan) else source
    try:
        voxels = _decoded(path, list(series.files), series.grid, 8)
    except VolumeError:
        if not any(_is_compressed(file) for file in series.files[:1]):
            raise
        voxels = read_with_pydicom(series)
    return padding_to_air(series, voxels)


def _is_compressed(path: Path) -> bool:
    with warnings.catch_warnings(action="ignore"):
        meta = pydicom.filereader.read_file_meta_info(path)
    syntax = meta.get("TransferSyntaxUID")
    return syntax is not None and syntax.is_compressed


def read_ct(path: Path | Scan, reading: Reading = DEFAULT) -> sitk.Image:
    """Read a chest CT in HU.

    Raises:
        VolumeError: as `read_volume`, or the values cannot be HU.
    """
    return as_ct(path, read_volume(path, reading), reading)


def as_ct(name: object, image: sitk.Image, reading: Reading = DEFAULT) -> sitk.Image:
    """Check that the values of an image can be HU; map grey values back to HU if `reading` says how.

    Args:
        name: of the image, for error messages.
        image: three-dimensional, one value per voxel.
        reading: its `grey_window` is used.

    Raises:
        VolumeError: the values cannot be HU.
    """
    values = sitk.GetArrayViewFromImage(image)
    lowest, highest = float(values.min()), float(values.max())
    found = f"{name}: values of {lowest:g}..{highest:g} are not HU"
    if lowest == highest:
        raise VolumeError(f"{found}, all are the same; leave the scan out")
    if not (lowest >= _LOWEST_HU and highest <= _HIGHEST_HU):
        raise VolumeError(f"{found} of anything; repair the scaling in the header")
    if (scale := _grey_scale(values, lowest, highest)) is not None:
        low, high = scale
        if reading.grey_window is None:
            example = ", for the CovidSeg scans from Radiopaedia -1250 250" if high == 255 else ""
            raise VolumeError(
                f"{found}, but as if mapped to {low:g}..{high:g}; state the HU of {low:g} and {high:g} with "
                f"--grey-window{example}"
            )
        grey = (values - np.float32(low)) * np.float32(255 / (high - low))
        return image_like(image, unmap_window(grey, reading.grey_window))
    if lowest > _AIR_HU:
        raise VolumeError(f"{found} (no air): as if an intercept of -1024 were lost; restore it or leave the scan out")
    return image


def _grey_scale(values: np.ndarray, lowest: float, highest: float) -> tuple[float, float] | None:
    """The first of `_GREY_SCALES` that holds all values; None if none does, or the values are those of a mask."""
    for low, high in _GREY_SCALES:
        over = _OVERSHOOT * (high - low)
        if low - over <= lowest and highest <= high + over:
            return None if high == 1 and not (values % 1).any() else (low, high)
    return None


def read_labels(path: Path, reading: Reading = DEFAULT) -> sitk.Image:
    """Read a mask: whole numbers from 0 to 255, as uint8.

    Raises:
        VolumeError: as `read_volume`, or the values are not labels.
    """
    return as_labels(path, read_volume(path, reading))


def read_mask_on(path: Path, reference_name: object, reference: sitk.Image, reading: Reading = DEFAULT) -> np.ndarray:
    """Read a mask onto the voxels of its CT.

    A mask on the same voxels in another axis order is turned; a segmentation of Slicer may cover a part of the CT.

    Args:
        path: the mask.
        reference_name: the CT, for error messages.
        reference: the CT, or its geometry.
        reading: how files are read.

    Returns:
        Labels, uint8 (z, y, x).

    Raises:
        VolumeError: as `read_labels`, or the mask does not lie on the voxels of the CT.
    """
    if slicer.is_segmentation(path):
        _check_file(path)
        return slicer.read_segmentation(path, reference_name, reference, reading.max_voxels, reading.segments)
    return mask_onto(path, read_labels(path, reading), reference_name, reference)


def as_labels(path: Path, image: sitk.Image) -> sitk.Image:
    """A mask that was read, as uint8.

    Raises:
        VolumeError: its values are not whole numbers from 0 to 255.
    """
    values = sitk.GetArrayViewFromImage(image)
    if values.min() < 0 or values.max() > 255 or (values.dtype.kind == "f" and (values % 1).any()):
        raise VolumeError(
            f"{path}: values of {values.min():g}..{values.max():g} are not labels; expected whole numbers from 0 to 255"
        )
    return sitk.Cast(image, sitk.sitkUInt8)


def write_volume(image: sitk.Image, path: Path) -> None:
    """Write a volume, compressed unless the name ends in ``.nii``; the file appears whole or not at all.

    MetaImage and NRRD are read again before they take their place: to ITK, a full disk is no error.

    Raises:
        VolumeError: the file cannot be written, or would be two files, a header and its voxels.
    """
    if path.name.lower().endswith((".mhd", ".nhdr", *nifti.SEPARATE_HEADERS)):
        raise VolumeError(f"{path}: would be two files, a header and its voxels; write .mha or .nii.gz instead")
    try:
        with atomic_write(path) as temporary:
            if nifti.is_nifti(path):
                nifti.write_nifti(image, temporary)
            else:
                sitk.WriteImage(image, str(temporary), useCompression=True)
                read_volume(temporary)
    except VolumeError:
        raise VolumeError(f"{path}: cannot be written (it arrives damaged); check the disk") from None
    except (OSError, RuntimeError, struct.error) as error:
        raise VolumeError(f"{path}: cannot be written ({_last_line(error)}); check the folder and the disk") from None


def _check_file(path: Path) -> None:
    if is_dangling(path):
        raise VolumeError(f"{path}: a link to a file that is not there; fetch the file or remove the link")
    if not path.is_file():
        raise VolumeError(f"{path}: no such file; expected a CT or mask ({', '.join(EXTENSIONS)}) or a DICOM folder")
    if not path.name.lower().endswith(EXTENSIONS):
        if path.name.lower().endswith((".img", ".img.gz")):
            raise VolumeError(f"{path}: holds voxels without a header; name the .hdr beside it")
        raise VolumeError(
            f"{path}: is none of {', '.join(EXTENSIONS)}; convert it, or name the folder of a DICOM series"
        )


def _read_header(path: Path, file: Path, max_voxels: int) -> tuple[Grid, int]:
    """The grid of a file that ITK reads, and the bytes of a voxel; messages name `path`."""
    try:
        header = _decoder.header(file)
    except DecoderError as error:
        raise VolumeError(f"{path}: not a readable image ({error}); export it again") from None
    if header.values != 1:
        raise VolumeError(f"{path}: has {header.values} values a voxel ({header.kind}); expected one")
    check_grid(path, header.grid, max_voxels)
    return header.grid, header.bytes


def _decoded(path: Path, files: list[Path], grid: Grid, voxel_bytes: int) -> np.ndarray:
    try:
        voxels = _decoder.voxels(files, int(np.prod(grid.size)) * voxel_bytes)
    except DecoderError as error:
        raise VolumeError(f"{path}: cannot be decoded ({error}); copy or export it again") from None
    if voxels.shape != grid.shape:
        raise VolumeError(f"{path}: holds {voxels.shape} voxels, its header says {grid.shape}; export it again")
    return voxels


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
