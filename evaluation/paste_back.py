"""Paste masks of crops back onto the grids of their scans."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from datasets.crop import lay_over
from datasets.scans import open_scan
from datasets.volumes import DEFAULT, Reading, Scan, as_labels, read_volume
from evaluation import THRESHOLD
from utils.errors import VolumeError


def restore_mask(
    scan: Path | str | Scan, mask: Path, threshold: float = THRESHOLD, reading: Reading = DEFAULT
) -> sitk.Image:
    """Paste a cropped mask or probability back onto the grid of its scan.

    Args:
        scan: the raw CT, a file or a DICOM folder; only its geometry is used.
        mask: probabilities if the file holds floats, otherwise labels.
        threshold: probabilities above it are lesion.
        reading: how the scan is read.

    Returns:
        uint8 with exactly the geometry of the scan.

    Raises:
        VolumeError: a file cannot be read, or the mask was not cut from this scan.
    """
    crop = read_volume(mask)
    probability = crop.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64)
    if probability:
        values = sitk.GetArrayViewFromImage(crop)
        if values.min() < 0 or values.max() > 1:
            raise VolumeError(f"{mask}: values of {values.min():g}..{values.max():g} are not probabilities")
    else:
        crop = as_labels(mask, crop)
    return lay_over(scan, open_scan(scan, reading).geometry(reading), crop, mask, threshold if probability else None)
