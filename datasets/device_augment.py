"""The published augmentation in PyTorch, for machines with few cores per GPU.

It draws from the same distribution as `datasets.augment`, with other random numbers. The published elastic
transformation is left out: it moves voxels by less than half a voxel and takes the nearest, which changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.augment import BLUR_SD, BLUR_WIDTH, INSET, NOISE, PROBABILITY, ROTATION, SCALE

Border = Callable[[Tensor, int], Tensor]
"""Maps voxel indices beyond the border of an axis of some length to indices inside."""

BORDERS: dict[str, Border | None] = {
    "black": None,
    "edge": lambda i, n: i.clamp(0, n - 1),
    "mirror": lambda i, n: (n - 1) - ((n - 1) - i % (2 * n - 2)).abs(),
    "mirror with edge": lambda i, n: torch.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n)),
    "other side": lambda i, n: i % n,
}
"""What continues an image beyond its border."""


@dataclass(frozen=True)
class Warp:
    """A transform of the axial plane; masks take the nearest voxel and are continued by 0.

    Attributes:
        inverse: homogeneous matrix from (x, y, 1) in the result to the source, in voxels.
        linear: interpolate the image linearly; otherwise take the nearest voxel.
        border: key of `BORDERS`, for the image.
    """

    inverse: np.ndarray
    linear: bool = True
    border: str = "black"

    def __call__(self, volumes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Transform an image and its masks, (z, y, x) each."""
        image, *masks = volumes
        height, width = image.shape[-2:]
        # Not blocking: the GPU may still be busy with the last step.
        inverse = torch.from_numpy(self.inverse).to(image.device, non_blocking=True)
        ends = (torch.arange(n, device=image.device, dtype=torch.float64) for n in (height, width))
        y, x = torch.meshgrid(*ends, indexing="ij")
        source = torch.einsum("ij,jyx->iyx", inverse, torch.stack([x, y, torch.ones_like(x)]))
        places = (source[:2] / source[2]).float()
        warped = resample(image, places, self.linear, BORDERS[self.border])
        return warped, *(resample(mask, places, False, None) for mask in masks)


@dataclass(frozen=True)
class Blur:
    """A separable blur of the image in the axial plane.

    Attributes:
        weights: of the voxels at distances -2 to 2.
    """

    weights: tuple[float, ...]

    def __call__(self, volumes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Blur an image, (z, y, x); its masks stay as they are."""
        image, *masks = volumes
        # Sums of shifted images, as convolutions may round to TF32.
        for axis in (-2, -1):
            padded = F.pad(image[None], (0, 0, 2, 2) if axis == -2 else (2, 2, 0, 0), mode="reflect")[0]
            shifted = (padded.narrow(axis, place, image.shape[axis]) for place in range(len(self.weights)))
            image = sum(weight * part for weight, part in zip(self.weights, shifted, strict=True))
        return image, *masks


def mirrored(volumes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Volume and masks, left and right exchanged."""
    return tuple(volume.flip(-1) for volume in volumes)


Transform = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


def resample(volume: Tensor, places: Tensor, linear: bool, border: Border | None) -> Tensor:
    """Values of all slices of a volume at the same places of the axial plane.

    Args:
        volume: (z, y, x).
        places: (2, y', x'), x and y in voxels.
        linear: interpolate linearly; otherwise take the nearest voxel.
        border: a value of `BORDERS`.

    Returns:
        (z, y', x').
    """
    low = (places if linear else places + 0.5).floor()
    share = places - low if linear else torch.zeros_like(places)
    height, width = volume.shape[-2:]
    result = torch.zeros((len(volume), *places.shape[1:]), dtype=volume.dtype, device=volume.device)
    for right, down in product((0, 1) if linear else (0,), repeat=2):
        weight = (share[0] if right else 1 - share[0]) * (share[1] if down else 1 - share[1])
        x, y = low[0].long() + right, low[1].long() + down
        if border is None:
            weight = weight * ((x >= 0) & (x < width) & (y >= 0) & (y < height))
        continued = border or BORDERS["edge"]
        result += weight.to(volume.dtype) * volume[:, continued(y, height), continued(x, width)]
    return result


def affine(scale: Sequence[float], degrees: float, shape: tuple[int, int], linear: bool, border: str) -> Warp:
    """Scale along x and y and rotate around the centre of a slice.

    Args:
        scale: along x and y, after the rotation.
        degrees: of the rotation, clockwise as displayed.
        shape: height and width of the slice.
        linear: as for `Warp`.
        border: as for `Warp`.
    """
    angle, (height, width) = math.radians(degrees), shape
    centre = _translation((width - 1) / 2, (height - 1) / 2)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    matrix = centre @ np.diag([*scale, 1]) @ turn @ np.linalg.inv(centre)
    return Warp(np.linalg.inv(matrix), linear, border)


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def perspective(insets: np.ndarray, shape: tuple[int, int]) -> Warp:
    """Stretch a quadrilateral inside a slice over the whole slice.

    Args:
        insets: (4, 2), distance of its corners from those of the slice along x and y, as shares of width and height;
            in the order top left, top right, bottom right, bottom left.
        shape: height and width of the slice.
    """
    height, width = shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    source = corners + inwards * insets * [width, height]
    # u = (a x + b y + c) / (g x + h y + 1), likewise v: two equations per corner.
    rows, sides = [], []
    for (x, y), (u, v) in zip(corners, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        sides += [u, v]
    matrix = np.append(np.linalg.solve(rows, sides), 1).reshape(3, 3)
    # Corners lie at the edges of voxels; indices count from their centres.
    return Warp(_translation(-0.5, -0.5) @ matrix @ _translation(0.5, 0.5))


def gaussian(sigma: float) -> Blur:
    """Gaussian blur with an SD of `sigma` voxels, over five voxels."""
    weights = np.exp(-0.5 * (np.arange(-2, 3) / max(sigma, 1e-3)) ** 2)
    return Blur(tuple((weights / weights.sum()).tolist()))


def average(width: int) -> Blur:
    """Mean of up to 3 voxels; of two, the one before and the voxel itself; 0 and 1 change nothing."""
    width = max(width, 1)
    inside = range(-(width // 2), -(width // 2) + width)
    return Blur(tuple(float(place in inside) / width for place in range(-2, 3)))


def draw(rng: np.random.Generator, shape: tuple[int, int]) -> list[Transform]:
    """Draw the transforms of a sample, in their order.

    Args:
        rng: source of all randomness.
        shape: height and width of the slices.
    """
    chosen: list[Transform] = []
    for kind in rng.permutation(["flip", "affine", "blur", "perspective"]):
        if rng.random() >= (0.5 if kind == "flip" else PROBABILITY):
            continue
        if kind == "flip":
            chosen.append(mirrored)
        elif kind == "affine":
            linear, border = bool(rng.integers(2)), list(BORDERS)[rng.integers(len(BORDERS))]
            chosen.append(affine(rng.uniform(*SCALE, 2), rng.uniform(*ROTATION), shape, linear, border))
        elif kind == "perspective":
            chosen.append(perspective(np.abs(rng.normal(0, rng.uniform(*INSET), (4, 2))), shape))
        elif rng.integers(2):
            chosen.append(gaussian(rng.uniform(*BLUR_SD)))
        else:
            chosen.append(average(int(rng.integers(BLUR_WIDTH[0], BLUR_WIDTH[1] + 1))))
    return chosen


def augment_on_device(rng: np.random.Generator, image: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
    """Augment a volume together with its masks, on their device.

    Args:
        rng: source of all randomness. The noise comes from the device's generator, seeded from it.
        image: (z, y, x), float32 in [0, 1].
        masks: (z, y, x), 0 or 1.

    Returns:
        The image, in [0, 1], and the masks.
    """
    generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**63)))
    noise = torch.empty_like(image).uniform_(-NOISE, NOISE, generator=generator)
    volumes = image + noise, *masks
    for transform in draw(rng, tuple(image.shape[-2:])):
        volumes = transform(volumes)
    return volumes[0].clamp(0, 1), *volumes[1:]
