"""Crop, paste-back and lungs of one large CT, compared with SciPy in the published way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from datasets.crop import CROP_SIZE, LINEAR, NEAREST, Box, crop_to_lungs, paste_back
from datasets.geometry import image_like
from datasets.lungs import segment_by_threshold
from datasets.scans import read_ct
from datasets.volumes import read_labels, write_volume
from datasets.window import map_window

SHAPE, QUICK_SHAPE = (300, 512, 512), (75, 128, 128)
"""Matrix of the CT, (z, y, x); both cover 360x360x300 mm."""

EXTENT_MM = (300.0, 360.0, 360.0)


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
    """Label the lungs of a scan, convert it to float32, crop the box and zoom it."""
    ct, lung = sitk.DICOMOrient(ct, "LPS"), sitk.DICOMOrient(image_like(ct, lungs), "LPS")
    mask, box = scipys_box(lung)
    hu = sitk.GetArrayFromImage(sitk.Cast(ct, sitk.sitkFloat32))[box]
    image = map_window(scipys_resize(hu, CROP_SIZE, LINEAR))
    return image, scipys_resize(mask[box].astype(np.uint8), CROP_SIZE, NEAREST)


def published_paste_back(ct: sitk.Image, mask: np.ndarray) -> sitk.Image:
    """Segment the lungs of the scan again and zoom the mask into their bounding box."""
    _, box = scipys_box(sitk.GetImageFromArray(segment_by_threshold(ct)))
    pasted = np.zeros(ct.GetSize()[::-1], np.uint8)
    pasted[box] = scipys_resize(mask, pasted[box].shape, NEAREST)
    return image_like(ct, pasted)


def preparation(device: torch.device, quick: bool) -> Iterator[tuple[str, Mapping[str, Callable[[], Any]]]]:
    """Crop and paste-back, in memory and from file to file; `device` is not used."""
    ct, lungs = make_body(QUICK_SHAPE if quick else SHAPE)
    crop = crop_to_lungs(ct, lungs)[1]
    mask = sitk.GetArrayFromImage(crop)
    yield "crop and resize", {"SciPy": lambda: scipys_crop(ct, lungs), "ours": lambda: crop_to_lungs(ct, lungs)}
    yield "paste-back", {"published": lambda: published_paste_back(ct, mask), "ours": lambda: paste_back(crop, ct)}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_volume(ct, folder / "ct.nii")
        write_volume(image_like(ct, lungs), folder / "lungs.nii")

        def inputs() -> tuple[sitk.Image, np.ndarray]:
            return read_ct(folder / "ct.nii"), sitk.GetArrayFromImage(read_labels(folder / "lungs.nii"))

        def scipys_files() -> None:
            for number, array in enumerate(scipys_crop(*inputs())):
                sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"scipy_{number}.nii.gz"), True)

        def our_files() -> None:
            for number, image in enumerate(crop_to_lungs(*inputs())):
                write_volume(image, folder / f"ours_{number}.nii.gz")

        yield "crop and resize, .nii to .nii.gz", {"SciPy": scipys_files, "ours": our_files}
    yield "lungs by thresholding", {"ours": lambda: segment_by_threshold(ct)}
