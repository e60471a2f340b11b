"""Time and peak memory of crop, paste-back and lung segmentation on one large CT, compared with SciPy.

Each implementation runs in its own process on one or two cores, interleaved with the others. Its memory is the peak of
that process minus its memory after the imports.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from benchmarks.speed.timing import alternate, compared
from benchmarks.speed.worker_process import process, requests
from datasets.cohort import CROPS
from datasets.crop import CROP_SIZE, LINEAR, NEAREST, Box, LungMaskCrop, crop_to_lungs
from datasets.crop_scans import Masks, crop_scan
from datasets.geometry import image_like
from datasets.lungs import segment_by_threshold
from datasets.scan import Scan
from datasets.scans import read_ct
from datasets.volumes import read_geometry, read_labels, read_volume, write_volume
from datasets.window import map_window
from evaluation.paste_back import restore_mask
from utils.ledger import Ledger, Recipe
from utils.memory import peak_memory_mib

SHAPE, QUICK_SHAPE = (300, 512, 512), (75, 128, 128)
"""Matrix of the CT, (z, y, x); both cover 360x360x300 mm."""

EXTENT_MM = (300.0, 360.0, 360.0)

THRESHOLD = 0.5


def make_body(shape: tuple[int, int, int], seed: int = 0) -> tuple[sitk.Image, np.ndarray]:
    """Generate a schematic chest: two lungs and a trachea in a body, with noise.

    Args:
        shape: matrix, (z, y, x).
        seed: seed of the noise.

    Returns:
        CT in HU (int16), and lung labels.
    """
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    hu = np.random.default_rng(seed).integers(-30, 31, shape, np.int16)
    hu += np.where((y / 0.7) ** 2 + (x / 0.9) ** 2 < 1, 40, -1000).astype(np.int16)
    lungs = np.zeros(shape, np.uint8)
    for label, middle in ((1, -0.42), (2, 0.42)):
        lungs[(z / 0.85) ** 2 + (y / 0.5) ** 2 + ((x - middle) / 0.32) ** 2 < 1] = label
    hu[lungs > 0] -= 890
    hu[(z > 0.1) & (y**2 + x**2 < 0.05**2)] = -990
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing([mm / n for mm, n in zip(reversed(EXTENT_MM), reversed(shape), strict=True)])
    return image, lungs


def scipys_box(lungs: sitk.Image) -> tuple[np.ndarray, Box]:
    """Mask of the large components and its bounding box, by labelling every voxel of the scan."""
    components, _ = ndimage.label(sitk.GetArrayViewFromImage(lungs) > 0)
    kept = np.bincount(components.ravel()) >= 1e-3 * components.size
    kept[0] = False
    mask = kept[components]
    return mask, ndimage.find_objects(mask.astype(np.uint8))[0]


def scipys_resize(array: np.ndarray, size: tuple[int, int, int], order: int) -> np.ndarray:
    """Resize with `ndimage.zoom`."""
    return ndimage.zoom(array, np.divide(size, array.shape), order=order, mode="nearest")


def scipys_crop(ct: sitk.Image, lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorient the scan, label its lungs, convert it to float32, crop the box and zoom it."""
    lung = sitk.GetImageFromArray(lungs)
    lung.CopyInformation(ct)
    ct, lung = sitk.DICOMOrient(ct, "LPS"), sitk.DICOMOrient(lung, "LPS")
    mask, box = scipys_box(lung)
    hu = sitk.GetArrayFromImage(sitk.Cast(ct, sitk.sitkFloat32))[box]
    image = map_window(scipys_resize(hu, CROP_SIZE, LINEAR))
    return image, scipys_resize(mask[box].astype(np.uint8), CROP_SIZE, NEAREST)


def published_paste_back(ct: sitk.Image, mask: np.ndarray) -> sitk.Image:
    """Segment the lungs of the scan again and zoom the mask into their bounding box."""
    lungs = sitk.GetImageFromArray(segment_by_threshold(ct))
    _, box = scipys_box(lungs)
    pasted = np.zeros(ct.GetSize()[::-1], np.uint8)
    pasted[box] = scipys_resize(mask, pasted[box].shape, NEAREST)
    return image_like(ct, pasted)


@cache
def _inputs(folder: Path) -> tuple[sitk.Image, np.ndarray]:
    return read_ct(folder / "ct.nii"), sitk.GetArrayFromImage(read_labels(folder / "lungs.nii"))


def _scipy_crop_files(folder: Path) -> None:
    ct, lungs = read_ct(folder / "ct.nii"), sitk.GetArrayFromImage(read_labels(folder / "lungs.nii"))
    for name, crop in zip(("image", "lung"), scipys_crop(ct, lungs), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(crop), str(folder / f"scipy_{name}.nii.gz"), useCompression=True)


def _our_crop_files(folder: Path) -> None:
    scan, masks = Scan("ct", folder / "ct.nii"), Masks(lungs={"ct": folder / "lungs.nii"})
    cropper = LungMaskCrop(segment_by_threshold)
    recipe = Recipe(masks.sources("ct", scan))
    crop_scan("ct", scan, Ledger(folder / "cohort", CROPS), recipe, cropper, masks)


def _published_paste_back_files(folder: Path, extension: str = ".nii") -> None:
    mask = sitk.GetArrayFromImage(read_volume(folder / "mask.nii.gz"))
    pasted = published_paste_back(read_ct(folder / "ct.nii"), mask)
    sitk.WriteImage(pasted, str(folder / f"published{extension}"), useCompression=extension != ".nii")


def _our_paste_back_files(folder: Path, extension: str = ".nii", crop: str = "mask") -> None:
    restored = restore_mask(folder / "ct.nii", folder / f"{crop}.nii.gz", THRESHOLD)
    write_volume(restored, folder / "pasted" / f"{crop}{extension}")


WAYS: dict[str, Callable[[Path], Any]] = {
    "scipy_crop": lambda folder: scipys_crop(*_inputs(folder)),
    "our_crop": lambda folder: crop_to_lungs(*_inputs(folder)),
    "scipy_crop_files": _scipy_crop_files,
    "our_crop_files": _our_crop_files,
    "published_paste_back": _published_paste_back_files,
    "our_paste_back": _our_paste_back_files,
    "our_paste_back_of_probabilities": lambda folder: _our_paste_back_files(folder, crop="probability"),
    "published_paste_back_gz": lambda folder: _published_paste_back_files(folder, ".nii.gz"),
    "our_paste_back_gz": lambda folder: _our_paste_back_files(folder, ".nii.gz"),
    "lungs": lambda folder: segment_by_threshold(read_ct(folder / "ct.nii")),
}

COMPARISONS = (
    ("crop and resize, in memory", "scipy_crop", "our_crop"),
    ("lungCrop, lungs given, .nii to .nii.gz", "scipy_crop_files", "our_crop_files"),
    ("paste-back of a mask, to .nii", "published_paste_back", "our_paste_back"),
    ("paste-back of a probability, to .nii", "published_paste_back", "our_paste_back_of_probabilities"),
    ("paste-back of a mask, to .nii.gz", "published_paste_back_gz", "our_paste_back_gz"),
)
"""Description, baseline and our implementation, by name in `WAYS`."""


def serve(connection: Connection, way: str, folder: Path) -> None:
    """Run one of `WAYS` per request and answer with the peak memory in MiB above that after the imports."""
    at_first = _resident_mib()
    for _ in requests(connection):
        WAYS[way](folder)
        connection.send(peak_memory_mib() - at_first)


def write_inputs(folder: Path, shape: tuple[int, int, int]) -> None:
    """Write a CT, its lungs, and masks at crop resolution."""
    ct, lungs = make_body(shape)
    write_volume(ct, folder / "ct.nii")
    write_volume(image_like(ct, lungs), folder / "lungs.nii")
    image, _ = crop_to_lungs(ct, lungs)
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=CROP_SIZE), 4)
    write_volume(image_like(image, (smooth > smooth.std()).astype(np.uint8)), folder / "mask.nii.gz")
    probability = 1 / (1 + np.exp(-4 * (smooth / smooth.std() - 1)))
    write_volume(image_like(image, probability.astype(np.float32)), folder / "probability.nii.gz")


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Seconds and peak memory of crop, paste-back and lung segmentation, on one core and on two.

    Args:
        device: unused.
        quick: use a CT of 128x128x75 instead of 512x512x300, and two repetitions instead of five.

    Returns:
        Rows of `timing.compared`, with peak memory in MiB and in float32 volumes.
    """
    repetitions = 2 if quick else 5
    most = min(2, len(os.sched_getaffinity(0)))
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, QUICK_SHAPE if quick else SHAPE)
        found = [
            _compare(folder, repetitions, f"{what}, {cores} core(s)", (baseline, cores), (ours, cores))
            for what, baseline, ours in COMPARISONS
            for cores in range(1, most + 1)
        ]
        lungs = f"lungs by thresholding, 1 core and {most}"
        return [*found, _compare(folder, repetitions, lungs, ("lungs", 1), ("lungs", most))]


def _compare(
    folder: Path, repetitions: int, what: str, baseline: tuple[str, int], ours: tuple[str, int]
) -> dict[str, Any]:
    """Table row for two implementations, each given as (name, cores)."""
    peaks = {}
    with ExitStack() as workers:
        ways = {}
        for way, cores in (baseline, ours):
            name = f"{way}, {cores} core(s)"
            ask = workers.enter_context(process(serve, way, folder, cores=cores))
            ways[name] = lambda name=name, ask=ask: peaks.update({name: ask("run")})
        row = compared(what, alternate(ways, repetitions), *ways)
    volume_mib = np.prod(read_geometry(folder / "ct.nii").GetSize()) * 4 / 2**20
    for who, name in zip(("baseline", "ours"), ways, strict=True):
        row |= {f"{who}_peak_mib": round(peaks[name]), f"{who}_peak_volumes": round(peaks[name] / volume_mib, 2)}
    return row


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
