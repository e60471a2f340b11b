"""Scores at native resolution: predictions pasted back onto the grids of the raw scans.

On the crop, a prediction is compared with a reference mask that was cropped and resized like the scan. Here it is
compared with the original mask, voxel by voxel. The score therefore includes resampling errors and lesions outside the
lung box, which cannot be found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from datasets.cohort import HEALTHY, WITH_LESION
from datasets.crop import lay_over
from datasets.geometry import image_like, shape_of, voxel_ml
from datasets.io.scan import Scan
from datasets.io.volume import DEFAULT, Reading, read_geometry, read_mask_on
from datasets.pairs import match_masks
from datasets.scans import find_scans
from evaluation.inference import Prediction
from evaluation.metrics import THRESHOLD, Score, score_scan, with_details
from evaluation.surface import TOLERANCE_MM
from utils.errors import VolumeError


@dataclass(frozen=True)
class RawScans:
    """The raw scans of a cohort and their lesion labels.

    Attributes:
        scans: id to CT; only the geometry is used.
        labels: id to lesion label.
        folder: folder of the scans, for messages.
        label_folder: folder of the labels, for messages; None if none were given.
        reading: how the files are read.
    """

    scans: dict[str, Scan]
    labels: dict[str, Path]
    folder: Path
    label_folder: Path | None
    reading: Reading = DEFAULT


def find_raw_scans(folder: Path, label_folder: Path | None = None, reading: Reading = DEFAULT) -> RawScans:
    """Find raw scans and their lesion labels.

    Args:
        folder: folder of CTs, or one CT, see `find_scans`.
        label_folder: folder of labels, see `match_masks`; None if none are needed.
        reading: how the files are read.

    Raises:
        VolumeError: no scan was found, or two files belong to one id.
    """
    scans = find_scans(folder, series=reading.series)
    labels = {} if label_folder is None else match_masks(label_folder, scans)[0]
    return RawScans(scans, labels, folder, label_folder, reading)


def score_on_raw_scan(prediction: Prediction, raw: RawScans, tolerance_mm: float = TOLERANCE_MM) -> Score:
    """Score a prediction on the grid of its raw scan.

    Probabilities are pasted back by linear interpolation and then thresholded. The lung mask, for the percentages, is
    that of the crop, pasted back by nearest neighbour.

    Args:
        prediction: prediction on the crop; its split says whether the truth is a mask, no lesion, or unknown.
        raw: raw scans.
        tolerance_mm: tolerance of the surface Dice.

    Raises:
        VolumeError: the scan or its label is missing, cannot be read, or does not fit.
    """
    case, volumes = prediction.case, prediction.volumes
    split, scan, label = prediction.score.split, raw.scans.get(case.id), raw.labels.get(case.id)
    if scan is None:
        raise VolumeError(f"{raw.folder}: holds no raw scan named {case.id}; add it, or leave it out of the split")
    if split in WITH_LESION and label is None:
        raise VolumeError(f"{raw.label_folder}: holds no label for {case.id}; add it, or leave it out of the split")
    ct = read_geometry(scan, raw.reading)
    lung = _voxels(lay_over(scan, ct, image_like(volumes.geometry, volumes.lung), case.lung))
    mask = _voxels(lay_over(scan, ct, image_like(volumes.geometry, prediction.probability), case.image, THRESHOLD))
    truth = None
    if split in WITH_LESION:
        truth = read_mask_on(label, scan, ct, raw.reading) > 0
    elif split in HEALTHY:
        truth = np.zeros(shape_of(ct), bool)
    score = score_scan(case.id, split, mask, truth, lung, voxel_ml(ct))
    return with_details(score, mask, truth, ct.GetSpacing()[::-1], tolerance_mm)


def _voxels(mask: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(mask) > 0
