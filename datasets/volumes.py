"""Read, validate and write volumes. All file access goes through here.

Everything behind it may trust what it gets: three dimensions, one finite number per voxel, a plausible geometry, and
all the data that the file's header promises. `datasets.formats` reads volume files, `datasets.segments` segmentations
with named segments, `datasets.dicom` and `datasets.series` DICOM; `datasets.scans` finds scans.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from datasets.dicom import read_hu
from datasets.formats import EXTENSIONS, HEADERS_ALONE, NIFTI, files_of, is_separate_header, read_header, read_voxels
from datasets.geometry import MAX_VOXELS, blank, check_geometry, image_like, located, mask_onto
from datasets.plausibility import check_label_values
from datasets.segments import LESION, LUNG, is_segmentation, read_segments
from datasets.series import Series
from datasets.window import unmap_window
from utils.errors import VolumeError, one_line
from utils.files import atomic_write, is_dangling

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

_SPANNED = 0.5
"""Share of its scale that a mapped CT spans at least: it has air and bone. Standardised values span less of 0..255."""

_ROUNDING = 0.02
"""How far labels may lie from whole numbers. nibabel, given labels as floats for a file of integers, scales them to the
integers' whole range: labels up to 10 are off by 0.02 at most in 8 bits."""

NOTES = "ITK_FileNotes"
"""ITK's key for the description in a NIfTI header, at most 79 bytes."""


@dataclass(frozen=True)
class Reading:
    """How files are read, and what is accepted that is rarely meant."""

    # most voxels of a volume; a larger one is refused before memory is allocated for it
    max_voxels: int = MAX_VOXELS
    # which series to take from a study with several, see `datasets.choice.matches`; by default as its `RULES` say
    series: str | None = None
    # HU that became the ends of the scale in CTs that were mapped to 0..255, 0..1 or -1..1; by default they are refused
    grey_window: tuple[float, float] | None = None
    # names of the segments that count in segmentations; by default see `datasets.segments`
    segments: tuple[str, ...] | None = None
    # whether lungs that hold almost no gas, and lesion labels outside the lungs, are a warning instead of an error
    airless_lungs: bool = False
    lesions_anywhere: bool = False


DEFAULT = Reading()


@dataclass(frozen=True)
class Scan:
    """A CT that was found: a volume file, a DICOM series, or an image."""

    id: str  # names all results of it
    path: Path  # the file, or the deepest folder that holds all slices
    series: Series | None = None  # the slices; None for a volume file
    reason: str = ""  # why this series of its study was taken
    problem: str | None = None  # why it cannot be read; one line that names the file
    notes: tuple[str, ...] = ()  # what was concluded about it, and what was passed over in it
    image: sitk.Image | None = None  # the voxels of a scan that is no file

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_dicom(self) -> bool:
        """Whether the scan is a DICOM series."""
        return self.series is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the scan."""
        return files_of(self.path) if self.series is None else self.series.files

    def complete_series(self, reading: Reading = DEFAULT) -> Series | None:
        """The DICOM series; None for a volume file.

        Raises:
            VolumeError: the series is not complete, or larger than `reading` permits.
        """
        if self.problem is not None:
            raise VolumeError(self.problem)
        if self.series is not None:
            check_geometry(self, *self.series.geometry, reading.max_voxels)
        return self.series

    def geometry(self, reading: Reading = DEFAULT) -> sitk.Image:
        """The geometry of the scan as an image of zeros (uint8), from its headers alone; errors as for `read`."""
        series = self.complete_series(reading)
        return read_geometry(self.path, reading) if series is None else blank(*series.geometry)

    def read(self, reading: Reading = DEFAULT) -> sitk.Image:
        """Read the scan: the values of a file, or a DICOM series in HU (int16 if that holds them).

        Raises:
            VolumeError: as `read_volume`, or the DICOM series is not complete.
        """
        series = self.complete_series(reading)
        if self.image is not None:
            return check_image(self, self.image, reading)
        if series is None:
            return read_volume(self.path, reading)
        return located(read_hu(series.slices), *series.geometry[1:])


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
    return not name.endswith((".hdr", ".hdr.gz")) or is_separate_header(path)


def read_geometry(path: Path, reading: Reading = DEFAULT) -> sitk.Image:
    """The geometry of a volume file as an image of zeros (uint8), from its header alone.

    Raises:
        VolumeError: as `read_volume`, as far as the header tells.
    """
    _check_file(path)
    header = read_header(path, reading.max_voxels)
    return blank(header.size, header.spacing, header.origin, header.direction)


def read_volume(path: Path, reading: Reading = DEFAULT) -> sitk.Image:
    """Read a volume file: a three-dimensional image of one finite number per voxel, in the file's pixel type.

    Raises:
        VolumeError: the file is missing, unreadable, too large, cut short, damaged, not three-dimensional, has several
            values per voxel, an impossible geometry, or NaN or infinite voxels.
    """
    _check_file(path)
    header = read_header(path, reading.max_voxels)
    image = located(read_voxels(header), header.spacing, header.origin, header.direction)
    return check_image(path, image, reading)


def check_image(name: object, image: sitk.Image, reading: Reading = DEFAULT) -> sitk.Image:
    """Check that an image is one volume of finite numbers, with a plausible geometry; errors start with the name."""
    values = sitk.GetArrayViewFromImage(image)
    if image.GetDimension() != 3 or values.ndim != 3 or values.dtype.kind not in "iuf":
        raise VolumeError(f"{name}: is no three-dimensional volume of one number per voxel")
    place = image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    check_geometry(name, *place, reading.max_voxels)
    if values.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in values):
        raise VolumeError(f"{name}: holds NaN or infinite voxels; repair or leave out the scan")
    return image


def as_ct(name: object, image: sitk.Image, reading: Reading = DEFAULT) -> sitk.Image:
    """Check that the values of an image can be HU; map grey values back to HU if `reading` has a `grey_window`.

    Raises:
        VolumeError: the values cannot be HU; the error starts with the name.
    """
    values = sitk.GetArrayViewFromImage(image)
    lowest, highest = float(values.min()), float(values.max())
    scale = _grey_scale(values, lowest, highest)
    if scale is not None and reading.grey_window is not None:
        grey = (values - np.float32(scale[0])) * np.float32(255 / (scale[1] - scale[0]))
        return image_like(image, unmap_window(grey, reading.grey_window))
    problem = None
    if lowest == highest:
        problem = ", all are the same; leave the scan out"
    elif not (lowest >= _LOWEST_HU and highest <= _HIGHEST_HU):
        problem = " of anything; repair the scaling in the header"
    elif scale is not None:
        low, high = scale
        example = ", for the CovidSeg scans from Radiopaedia -1250 250" if high == 255 else ""
        problem = f", but as if mapped to {low:g}..{high:g}; state the HU of {low:g} and {high:g} with --grey-window"
        problem += example
    elif lowest > _AIR_HU:
        problem = " (no air): as if an intercept of -1024 were lost; restore it or leave the scan out"
    if problem is not None:
        raise VolumeError(f"{name}: values of {lowest:g}..{highest:g} are not HU{problem}")
    return image


def _grey_scale(values: np.ndarray, lowest: float, highest: float) -> tuple[float, float] | None:
    """The first of `_GREY_SCALES` that holds all values; None if none does, or the values are those of a mask."""
    for low, high in _GREY_SCALES:
        over = _OVERSHOOT * (high - low)
        if low - over <= lowest < highest <= high + over and highest - lowest >= _SPANNED * (high - low):
            return None if high == 1 and not (values % 1).any() else (low, high)
    return None


def read_labels(path: Path, reading: Reading = DEFAULT) -> sitk.Image:
    """Read a mask: whole numbers from 0 to 255, as uint8.

    Raises:
        VolumeError: as `read_volume`, or the values are not labels.
    """
    return as_labels(path, read_volume(path, reading))


def as_labels(path: object, image: sitk.Image) -> sitk.Image:
    """A mask that was read, as uint8; values within 0.02 of whole numbers are rounded.

    Raises:
        VolumeError: its values are not whole numbers from 0 to 255, or are no labels (see `check_label_values`).
    """
    values = sitk.GetArrayViewFromImage(image)
    fractional = values.dtype.kind == "f"
    if values.min() < 0 or values.max() > 255 or (fractional and np.abs(values - np.rint(values)).max() > _ROUNDING):
        raise VolumeError(
            f"{path}: values of {values.min():g}..{values.max():g} are not labels; expected whole numbers from 0 to 255"
        )
    labels = sitk.Cast(sitk.Round(image) if fractional else image, sitk.sitkUInt8)
    check_label_values(path, sitk.GetArrayViewFromImage(labels))
    return labels


def read_mask_on(
    path: Path, reference_name: object, reference: sitk.Image, reading: Reading = DEFAULT, lungs: bool = False
) -> np.ndarray:
    """Read a mask of lesions, or of lungs, onto the voxels of its CT (or the CT's geometry): labels, uint8 (z, y, x).

    A mask on the same voxels in another order of axes is turned; a segmentation of 3D Slicer or a DICOM SEG may cover a
    part of the CT. `reference_name` is for error messages.

    Raises:
        VolumeError: as `read_labels`, or the mask does not lie on the voxels of the CT.
    """
    _check_file(path, ("",))
    if is_segmentation(path):
        chosen = (None, LUNG) if lungs else (reading.segments, LESION)
        return read_segments(path, reference_name, reference, reading.max_voxels, *chosen)
    return mask_onto(path, read_labels(path, reading), reference_name, reference)


def write_volume(image: sitk.Image, path: Path) -> None:
    """Write a volume, compressed unless the name ends in ``.nii``; the write is atomic.

    MetaImage and NRRD are read again before they take their place: to ITK, a full disk is no error. Equal images give
    equal files.

    Raises:
        VolumeError: the file cannot be written, or would be two files, a header and its voxels.
    """
    if path.name.lower().endswith(HEADERS_ALONE):
        raise VolumeError(f"{path}: would be two files, a header and its voxels; write .mha or .nii.gz instead")
    try:
        with atomic_write(path) as temporary:
            if path.name.lower().endswith(NIFTI):
                _write_nifti(image, temporary)
            else:
                sitk.WriteImage(image, str(temporary), useCompression=True)
                read_volume(temporary)
    except VolumeError:
        raise VolumeError(f"{path}: cannot be written (it arrives damaged); check the disk") from None
    except Exception as error:  # ITK and nibabel raise errors of many types
        raise VolumeError(f"{path}: cannot be written ({one_line(error)}); check the folder and the disk") from None


def _write_nifti(image: sitk.Image, path: Path) -> None:
    voxels = sitk.GetArrayViewFromImage(image).T
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    nifti = nib.Nifti1Image(voxels, to_ras @ affine, dtype=voxels.dtype)
    nifti.set_qform(to_ras @ affine, "scanner")
    nifti.set_sform(to_ras @ affine, "scanner")
    nifti.header.set_xyzt_units("mm")
    if image.HasMetaDataKey(NOTES):
        nifti.header["descrip"] = image.GetMetaData(NOTES)
    nib.save(nifti, path)


def _check_file(path: Path, extensions: tuple[str, ...] = EXTENSIONS) -> None:
    known = ", ".join(EXTENSIONS)
    if is_dangling(path):
        raise VolumeError(f"{path}: a link to a file that is not there; fetch the file or remove the link")
    if not path.is_file():
        raise VolumeError(f"{path}: no such file; expected a CT or mask ({known}) or a DICOM folder")
    if not path.name.lower().endswith(extensions):
        hint = "name the .hdr beside an .img" if ".img" in path.suffixes else "convert it"
        raise VolumeError(f"{path}: is none of {known}; {hint}, or name the folder of a DICOM series")
