"""Segment lesions in raw chest CTs: lungs, crop, S, and back onto the scan's grid.

    segmenter = LesionSegmenter("segmenter_best.pth")
    mask = segmenter.apply("scan.nii.gz")

The steps are those of lungCrop.py, test.py and post_processing.py, and so are the masks, voxel for voxel.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from datasets.crop import LungMaskCrop, crop_to_lungs, paste_back, paste_probabilities_back
from datasets.geometry import image_like, voxel_ml
from datasets.lung_finders import FindLungs, Lungs
from datasets.lungs import with_sides
from datasets.scans import open_scan
from datasets.volumes import DEFAULT, Reading, Scan
from evaluation.burden import Burden, measure_burden
from evaluation.inference import segment
from models.checkpoint import PUBLISHED_INPUT, find_segmenter, load_segmenter
from models.engine import Engine
from models.layers import place
from utils.distributed import choose_device
from utils.errors import VolumeError


@dataclass(frozen=True)
class RawScan:
    """A scan that is ready for S.

    The lungs are uint8 (z, y, x) on the CT's grid: 0 outside, 1 right, 2 left, 3 lung of unknown side; without the
    small components that the crop drops.
    """

    ct: sitk.Image  # in HU, in its own orientation
    lungs: np.ndarray
    image: sitk.Image  # the crop, float32, 0..255
    lung: sitk.Image  # the crop of the lung mask, uint8, 0 or 1
    seconds: float  # taken to prepare it


@dataclass(frozen=True)
class FullSize:
    """The prediction for a raw scan: mask, uint8, and probabilities, float32, if requested, on the scan's grid."""

    mask: sitk.Image
    probabilities: sitk.Image | None
    burden: Burden


def prepare_scan(
    source: Path | str | Scan | sitk.Image, cropper: LungMaskCrop, lungs: Path | str | sitk.Image | None = None
) -> RawScan:
    """Read a CT in HU, in any orientation; find its lungs, unless labels on its grid are given, and crop it.

    Raises:
        VolumeError: as `LungMaskCrop.crop`, or all voxels of the crop have one value.
    """
    start = time.monotonic()
    scan = open_scan(source, cropper.reading)
    ct, labels = cropper.read(scan, lungs)
    image, lung = crop_to_lungs(ct, labels, None, cropper.size, cropper.window, scan)
    values = sitk.GetArrayViewFromImage(image)
    if values.min() == values.max():
        raise VolumeError(f"{scan}: all voxels in the box around its lungs have one value; leave the scan out")
    # A lung finder labels the sides; given masks may not.
    labels = labels if lungs is None else with_sides(labels, ct, scan)
    return RawScan(ct, labels, image, lung, time.monotonic() - start)


class LesionSegmenter:
    """A trained segmenter, ready for raw chest CTs.

    Args:
        model: checkpoint of a segmenter, folder of a run or a release, or a published ``checkpointU_*.pth``.
        lungs: how lungs are found: ``"lungmask"`` (downloads its weights on first use), ``"threshold"``, or `Lungs`.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        threshold: probabilities above it are lesion; by default that of the segmenter's file.
        reading: how files are read.
        precision: ``fp32`` or ``bf16`` for S and lungmask, or ``auto``: float32 for S, and for lungmask what
            `models.engine.precision_of_lungs` says. `Lungs` have a precision of their own.

    Raises:
        CheckpointError: the model cannot be read.
        GasnetError: there is no such device.
    """

    def __init__(
        self,
        model: Path | str,
        lungs: Lungs | str = "lungmask",
        device: str = "auto",
        threshold: float | None = None,
        reading: Reading = DEFAULT,
        precision: str = "auto",
    ) -> None:
        self.model = find_segmenter(Path(model))
        segmenter, facts = load_segmenter(self.model, PUBLISHED_INPUT)
        self.trained_on = facts.trained_on
        self.seen = frozenset(facts.seen or ())
        self.device = choose_device(device)
        self.segmenter = place(segmenter, self.device)
        self.engine = Engine(self.segmenter, "fp32" if precision == "auto" else precision)
        self.lungs = Lungs(lungs, precision=precision) if isinstance(lungs, str) else lungs
        self.threshold = facts.threshold if threshold is None else threshold
        self.reading = reading

    @cached_property
    def _finder(self) -> FindLungs | None:
        return self.lungs.finder(self.device) if self.lungs.folder is None else None

    @property
    def way(self) -> str:
        """What computes the results, and in which precision; loads what finds the lungs."""
        ways = {"segmenter": self.engine.way, "lungs": getattr(self._finder, "way", None)}
        return ", ".join(f"{name} by {way}" for name, way in ways.items() if way is not None)

    @cached_property
    def cropper(self) -> LungMaskCrop:
        """Reads scans, finds lungs and crops; made on first use, since lungmask may download weights."""
        return LungMaskCrop(self._finder, self.trained_on.size, self.reading, self.trained_on.window)

    def apply(self, scan: Path | str | Scan | sitk.Image, lungs: Path | str | sitk.Image | None = None) -> sitk.Image:
        """Segment the lesions of a CT in HU: a file, a folder with a DICOM series, or an image.

        Lungs are found unless a mask on the CT's grid is given. Returns uint8, 0 or 1, with the CT's size, spacing,
        origin and direction.

        Raises:
            VolumeError: the CT cannot be read, is not in HU, or shows no lung.
        """
        return self.predict(self.prepare(scan, lungs)).mask

    def prepare(self, scan: Path | str | Scan | sitk.Image, lungs: Path | str | sitk.Image | None = None) -> RawScan:
        """Read, find lungs and crop; arguments and errors as for `apply`. May run in a thread of its own."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # per thread
        return prepare_scan(scan, self.cropper, lungs)

    def predict(self, scan: RawScan, with_probabilities: bool = False) -> FullSize:
        """Run S on the crop of a scan; returns mask, burden and, on request, probabilities on the scan's grid."""
        image, lung = (sitk.GetArrayViewFromImage(crop) for crop in (scan.image, scan.lung))
        crop = image_like(scan.image, segment(self.engine, image, lung, self.trained_on.normalization))
        mask = paste_back(crop, scan.ct, self.threshold)
        lesion = sitk.GetArrayViewFromImage(mask) > 0
        return FullSize(
            mask,
            paste_probabilities_back(crop, scan.ct) if with_probabilities else None,
            measure_burden(lesion, scan.lungs, sitk.GetArrayViewFromImage(scan.ct), voxel_ml(scan.ct)),
        )
