"""The same work by other programs, as they are installed: lungmask, SimpleITK, dcm2niix and MONAI."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from benchmarks.speed.networks import Ways
from datasets import CROP_SIZE, WINDOW
from datasets.crop import crop_to_lungs
from datasets.dicom import write_series
from datasets.lungmask_model import ARCHITECTURE, load_lungmask
from datasets.lungmask_steps import HIGHEST_HU, LOWEST_HU
from datasets.scans import read_ct

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
    np.maximum(hu, -1024, out=hu)  # the lowest of 12 bits
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing([mm / n for mm, n in zip(reversed(EXTENT_MM), reversed(shape), strict=True)])
    return image, lungs


class ByValue(nn.Module):
    """Takes the place of lungmask's network and no time: lung where its input is dark, right lung in the left half."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, 3, y, x) of a batch of slices."""
        lung = x[:, 0] < (-700 - LOWEST_HU) / (HIGHEST_HU - LOWEST_HU)
        left = torch.arange(x.shape[-1], device=x.device) > x.shape[-1] // 2
        return torch.stack([~lung, lung & ~left, lung & left], dim=1).float()


def lungs(device: torch.device, quick: bool) -> Iterator[tuple[str, Ways]]:
    """The network of lungmask with random weights, and the steps around it."""
    from lungmask import LMInferer
    from lungmask.resunet import UNet

    shape = (4, *QUICK_SHAPE[1:]) if quick else (60, *SHAPE[1:])
    size, ct = "x".join(map(str, reversed(shape))), make_body(shape)[0]
    program = f"lungmask {version('lungmask')}"
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        torch.manual_seed(0)
        network = UNet(**ARCHITECTURE)
        network.last.bias.data[1] += 1  # random weights alone may find no lung
        torch.save(network.state_dict(), weights)
        theirs = LMInferer(modelpath=str(weights), force_cpu=device.type == "cpu", tqdm_disable=True)
        ours = {kind: load_lungmask("R231", weights, device, kind) for kind in ("fp32", "bf16")}
    ways = {f"ours, {kind}": lambda find=find: find(ct) for kind, find in ours.items()}
    yield f"lungs by lungmask, {size}", {program: lambda: theirs.apply(ct), **ways}
    theirs.model = ours["fp32"].engine = ByValue()
    yield (
        f"preparation, postprocessing and full size, {size}",
        {program: lambda: theirs.apply(ct), "ours": lambda: ours["fp32"](ct)},
    )


def reading(device: torch.device, quick: bool) -> Iterator[tuple[str, Ways]]:
    """A DICOM series to an array."""
    with TemporaryDirectory() as name:
        folder, shape = Path(name) / "series", QUICK_SHAPE if quick else SHAPE
        write_series(make_body(shape)[0], folder, "phantom", "speed")

        def by_simpleitk() -> None:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
            sitk.GetArrayViewFromImage(reader.Execute())

        command = ["dcm2niix", "-z", "n", "-w", "1", "-o", name, str(folder)]
        ways = {f"SimpleITK {version('SimpleITK')}": by_simpleitk, "ours": lambda: read_ct(folder)}
        if shutil.which(command[0]) is None:
            print("dcm2niix is not installed and left out")
        else:
            ways["dcm2niix, with its file"] = lambda: subprocess.run(command, check=True, capture_output=True)
        yield f"{shape[0]} DICOM slices to an array", ways


def preparation(device: torch.device, quick: bool) -> Iterator[tuple[str, Ways]]:
    """Crop and resize in memory."""
    from monai import transforms

    ct, labels = make_body(QUICK_SHAPE if quick else SHAPE)
    hu, lung = (torch.from_numpy(array)[None] for array in (sitk.GetArrayFromImage(ct), labels))
    steps = transforms.Compose(
        [
            transforms.CropForegroundd(("image", "lung"), source_key="lung"),
            transforms.ScaleIntensityRanged("image", *WINDOW, 0, 255, clip=True),
            transforms.Resized(("image", "lung"), CROP_SIZE, mode=("trilinear", "nearest"), align_corners=(True, None)),
        ]
    )
    yield (
        "crop and resize",
        {
            f"MONAI {version('monai')}": lambda: steps({"image": hu, "lung": lung}),
            "ours": lambda: crop_to_lungs(ct, labels),
        },
    )
