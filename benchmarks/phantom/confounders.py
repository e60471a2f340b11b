"""Findings that resemble COVID-19 lesions and are none, alike in healthy and diseased scans; and motion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.phantom.body import SOFT, Anatomy, heart_distance
from datasets.phantom.geometry import Box, Frame, smooth_field, smooth_step

Array = np.ndarray


@dataclass(frozen=True)
class Lung:
    """What confounders change and need; arrays are (z, y, x)."""

    frame: Frame
    body: Anatomy
    tissue: Array  # HU of the lungs; changed in place
    mask: Array  # non-zero inside
    depth: Array  # distance to the pleura in mm, 0 outside
    above: Array  # height above the diaphragm in mm


def _dependent(rng: np.random.Generator, lung: Lung, strength: float) -> None:
    """Density at the posterior pleura; strong in a quarter of the scans."""
    strong = rng.random() < 0.25
    share, reach = (rng.uniform(0.2, 0.45), rng.uniform(8, 20)) if strong else (rng.uniform(0, 0.2), rng.uniform(4, 10))
    patches = np.clip(1 + 0.5 * smooth_field(rng, lung.mask.shape, lung.frame.spacing, 25), 0, 1.6)
    weight = share * strength * patches * np.exp(-lung.depth / reach) * smooth_step(lung.frame.y, 10, 65)
    lung.tissue[:] += np.clip(weight, 0, 0.8) * (SOFT - lung.tissue)


def _mosaic(rng: np.random.Generator, lung: Lung, strength: float) -> None:
    """Mosaic attenuation: denser patches with sharp borders."""
    field = smooth_field(rng, lung.mask.shape, lung.frame.spacing, rng.uniform(12, 25))
    lung.tissue[:] += strength * rng.uniform(30, 80) * np.clip(0.5 + 6 * (field - 0.2), 0, 1)


def _emphysema(rng: np.random.Generator, lung: Lung, strength: float) -> None:
    """Holes that are nearly air, more at the top."""
    field = smooth_field(rng, lung.mask.shape, lung.frame.spacing, rng.uniform(5, 11))
    field += 0.8 * smooth_step(lung.frame.z, 0.3 * lung.body.height, 0.9 * lung.body.height)
    holes = np.clip(3 * (field - rng.uniform(0.9, 1.6)), 0, 1) * strength
    lung.tissue[:] += holes * np.minimum(-960 - lung.tissue, 0)


def _points(rng: np.random.Generator, lung: Lung, count: int) -> Array:
    """Draw voxel indices (count, 3) in the lungs."""
    spots = np.argwhere(lung.mask > 0)
    return spots[rng.integers(0, len(spots), count)]


def _around(lung: Lung, at: Array, reach: float) -> tuple[Box, Array]:
    """Slices around a voxel, and the offsets (3, z, y, x) in mm along x, y and z from it."""
    g = lung.frame
    half = [int(np.ceil(reach / s)) + 1 for s in g.spacing[::-1]]
    where = tuple(slice(max(0, int(a) - h), int(a) + h + 1) for a, h in zip(at, half, strict=True))
    return where, np.stack([axis[where] - axis[tuple(at)] for axis in (g.x, g.y, g.z)])


def _bands(rng: np.random.Generator, lung: Lung, strength: float) -> None:
    """Bands and scars: thin plates."""
    for at in _points(rng, lung, rng.poisson(0.8)):
        thick, wide = rng.uniform(1, 2.5), rng.uniform(12, 35)
        normal = rng.standard_normal(3)
        normal /= np.linalg.norm(normal)
        where, offset = _around(lung, at, wide / 2)
        off_plane = np.tensordot(normal, offset, 1)
        out = np.sqrt(np.maximum((offset**2).sum(0) - off_plane**2, 0))
        voxel = np.abs(normal) @ lung.frame.spacing  # extent of a voxel across the plate
        plate = np.clip((thick / 2 + voxel / 2 - np.abs(off_plane)) / voxel, 0, min(1, thick / voxel))
        weight = strength * plate * np.clip((wide / 2 - out) / 3, 0, 1)
        lung.tissue[where] += weight * np.maximum(SOFT - lung.tissue[where], 0)


def _nodules(rng: np.random.Generator, lung: Lung, strength: float) -> None:
    for at in _points(rng, lung, rng.poisson(0.5)):
        radius = rng.uniform(2, 5)
        where, offset = _around(lung, at, radius)
        voxel = np.prod(lung.frame.spacing)
        inside = np.clip((radius - np.sqrt((offset**2).sum(0))) / lung.frame.spacing[0] + 0.5, 0, 1)
        weight = strength * inside * min(1, 4 / 3 * np.pi * radius**3 / voxel)
        lung.tissue[where] += weight * np.maximum(SOFT - lung.tissue[where], 0)


def _hypoventilation(rng: np.random.Generator, lung: Lung, strength: float) -> None:
    """Denser lung above the diaphragm."""
    lung.tissue[:] += strength * rng.uniform(40, 100) * np.exp(-np.maximum(lung.above, 0) / rng.uniform(12, 30))


CONFOUNDERS: Mapping[str, tuple[float, Callable[[np.random.Generator, Lung, float], None]]] = {
    "dependent density": (1.0, _dependent),
    "mosaic attenuation": (0.2, _mosaic),
    "emphysema": (0.3, _emphysema),
    "bands": (1.0, _bands),
    "nodules": (1.0, _nodules),
    "hypoventilation": (0.2, _hypoventilation),
}
"""Share of the scans that have a confounder, and the function that adds it to the lungs at a strength of up to 1. Bands
and nodules have a random number, which may be 0."""

MOTION, EFFUSION = 0.3, 0.1
"""Shares of scans with motion and with a pleural effusion."""


def add_confounders(rng: np.random.Generator, lung: Lung, strength: float) -> tuple[str, ...]:
    """Draw confounders and add them to the lungs, at a strength of 0.5 to 1; returns their names."""
    drawn = tuple(name for name, (share, _) in CONFOUNDERS.items() if rng.random() < share)
    for name in drawn:
        CONFOUNDERS[name][1](rng, lung, strength)
    return drawn


def effusion_height(rng: np.random.Generator, body: Anatomy, g: Frame, strength: float) -> Array:
    """A pleural effusion on one side, in a supine patient: negative in the fluid, distance in mm to its surface."""
    side = rng.choice([-1, 1])
    _, depth, centre = body.profile(g.z)
    level = rng.uniform(10, 10 + 35 * strength)  # mm of fluid at the back of the base
    surface = (centre + depth - level) - g.y + 0.12 * np.maximum(g.z, 0)
    return np.where(np.sign(g.x - 3) == side, surface, np.float32(99))


def move(rng: np.random.Generator, hu: Array, body: Anatomy, g: Frame, above: Array, strength: float) -> None:
    """Blur the lung base and the surroundings of the heart by motion of 2 to 6 mm, in place."""
    distance = strength * rng.uniform(2, 6)
    heart = heart_distance(body, g, np.s_[:])
    weight = np.clip(np.exp(-np.abs(above) / 30) + np.exp(-np.maximum(heart, 0) / 15), 0, 1)
    shift = np.array([0.8, 0.5, 0.3]) * distance / g.spacing[::-1]
    blurred = 0.5 * sum(ndimage.shift(hu, sign * shift / 2, order=1, mode="nearest") for sign in (-1, 1))
    hu += weight * (blurred - hu)
