"""The voxels of a DICOM series in HU: uncompressed ones as they lie, others decoded by pydicom."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from datasets.io.dicom_series import Series
from utils.errors import VolumeError, one_line

_HIGHEST_HU = 3071
"""Highest HU of 12 bits; padding values above it become air."""

_AIR_HU = -1024


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
