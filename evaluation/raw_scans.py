"""From a raw scan to its lesion mask in one go: lungs, crop, S, and back onto the scan's grid.

The steps are those of lungCrop.py, test.py and post_processing.py, and the masks are theirs, voxel for voxel.

While S runs on one scan, a thread of its own prepares the next one, and no other: in memory are the raw volume and the
lung labels of two scans at most, and what finding lungs, or writing a result, takes besides.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from datasets.crop import LungMaskCrop, crop_to_lungs, paste_back, paste_probabilities_back, remove_small_components
from datasets.io.grid import Grid
from datasets.lungs import with_sides
from evaluation.burden import Burden, measure_burden
from evaluation.inference import segment
from evaluation.metrics import THRESHOLD
from models import Segmenter
from utils.errors import VolumeError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class RawScan:
    """A scan that is ready for S.

    Attributes:
        ct: in HU, in its own orientation.
        lungs: uint8 (z, y, x) on the CT's grid: 0 outside, 1 right, 2 left, 3 lung of no known side; without the small
            components that the crop leaves out, too.
        image: the crop, float32, 0..255.
        lung: the crop of the lungs, uint8, 0 or 1.
        seconds: that preparing it took.
    """

    ct: sitk.Image
    lungs: np.ndarray
    image: sitk.Image
    lung: sitk.Image
    seconds: float

    @property
    def hu(self) -> np.ndarray:
        """The CT's values, (z, y, x), not copied."""
        return sitk.GetArrayViewFromImage(self.ct)


@dataclass(frozen=True)
class FullSize:
    """What S finds in a raw scan, on the scan's grid.

    Attributes:
        mask: uint8, 0 or 1.
        probabilities: float32, of which the mask is cut; None where not asked for.
        burden: of the mask.
    """

    mask: sitk.Image
    probabilities: sitk.Image | None
    burden: Burden


def prepare_scan(path: Path, cropper: LungMaskCrop, lungpath: Path | None = None) -> RawScan:
    """Read a CT, find its lungs and crop it.

    Args:
        path: CT in HU, a file or a folder with a DICOM series, in any orientation.
        cropper: says how, and how large the crop is.
        lungpath: lung labels on the CT's grid, to be used instead of finding the lungs.

    Raises:
        VolumeError: as `LungMaskCrop.crop`, or all that is in the crop has one value.
    """
    start = time.monotonic()
    ct, lungs = cropper.read(path, lungpath)
    lungs[~remove_small_components(lungs)] = 0
    try:
        image, lung = crop_to_lungs(ct, lungs, size=cropper.size, window=cropper.window)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from None
    values = sitk.GetArrayViewFromImage(image)
    if values.min() == values.max():
        raise VolumeError(f"{path}: all in the box around its lungs is the same; leave the scan out")
    # What finds lungs tells the sides, and of a single lung its side; labels that were given may not.
    lungs = lungs if lungpath is None else with_sides(lungs, Grid.of(ct))
    return RawScan(ct, lungs, image, lung, time.monotonic() - start)


def predict_scan(
    segmenter: Segmenter,
    scan: RawScan,
    normalization: str,
    threshold: float = THRESHOLD,
    with_probabilities: bool = False,
) -> FullSize:
    """Run S on the crop of a scan, and put what it finds back onto the scan's grid.

    Args:
        segmenter: S, on its device.
        scan: ready for it.
        normalization: IMAGE.NORMALIZATION of the training.
        threshold: probabilities above it are lesion.
        with_probabilities: return them, too, which takes 4 bytes a voxel.
    """
    image, lung = (sitk.GetArrayViewFromImage(crop) for crop in (scan.image, scan.lung))
    crop = Grid.of(scan.image).image(segment(segmenter, image, lung, normalization))
    grid = Grid.of(scan.ct)
    mask = paste_back(crop, grid, threshold)
    lesion = sitk.GetArrayViewFromImage(mask) > 0
    return FullSize(
        mask,
        paste_probabilities_back(crop, grid) if with_probabilities else None,
        measure_burden(lesion, scan.lungs, scan.hu, grid.voxel_ml),
    )


def one_ahead(items: Sequence[T], prepare: Callable[[T], R]) -> Iterator[tuple[T, Future[R]]]:
    """Items one after the other, while the next one, and no other, is prepared in a thread of its own.

    Nothing that was prepared is held here once the next item is asked for.

    Args:
        items: in their order.
        prepare: makes something of an item. It must write nothing: a command that ends does not wait for it.

    Yields:
        An item, and what was made of it; its `result` raises what was raised in making it.
    """
    ahead = None
    for number, item in enumerate(items):
        ready = _start(prepare, item) if ahead is None else ahead
        wait([ready])
        ahead = _start(prepare, items[number + 1]) if number + 1 < len(items) else None
        yield item, ready


def _start(prepare: Callable[[T], R], item: T) -> Future[R]:
    """Start to prepare an item in a thread that Ctrl-C and errors do not wait for."""
    ready: Future[R] = Future()

    def work() -> None:
        try:
            ready.set_result(prepare(item))
        except BaseException as error:
            ready.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return ready
