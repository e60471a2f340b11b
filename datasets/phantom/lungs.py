"""The lungs: shape, aerated tissue, vessels and bronchi, and findings that resemble COVID-19 lesions and are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.phantom.body import HEART, HEART_REACH, SOFT, Anatomy, heart_distance, mediastinum_distance
from datasets.phantom.geometry import (
    Box,
    Frame,
    ellipse,
    ellipsoid,
    fill_tubes,
    filtered_noise,
    grow_tree,
    intersect,
    smooth_field,
    smooth_step,
)

Array = np.ndarray

FISSURE_RISE = 110.0
"""HU that a fissure adds."""

MURRAY_EXPONENT = 2.6
"""A parent vessel's radius grows with (number of end branches) ** (1 / this)."""


def lung_distance(cavity: Array, above: Array, body: Anatomy, g: Frame, tubes: Array) -> Array:
    """Distance to the lungs in mm: the cavity above the diaphragm without mediastinum, heart, spine and great tubes."""
    lung = intersect(cavity + 2.5, -0.75 * above, 3)
    lung = intersect(lung, -mediastinum_distance(body, g), 8)
    heart = g.box(HEART, HEART_REACH)
    lung[heart] = intersect(lung[heart], 3 - heart_distance(body, g, heart), 6)
    back = g.y - body.spine_y(g.z)
    lung = intersect(lung, 4 - ellipse(g.x, back - 6, 23, 23), 6)
    for side in (-1, 1):
        at = (side * 38, 18, 0.5 * body.height)
        hilum = g.box(at, 30)
        root = ellipsoid(g.x[hilum] - at[0], g.y[hilum] - at[1], g.z[hilum] - at[2], (15, 17, 22))
        lung[hilum] = intersect(lung[hilum], -root, 6)
    return np.maximum(lung, (tubes - 0.4) * 4)


def fissure_distances(body: Anatomy, g: Frame) -> tuple[Array, Array]:
    """Signed distances in mm to the oblique fissures and to the horizontal fissure of the right lung."""
    bulge = 6 * np.sin(g.x / 30)
    oblique = (g.z - 0.36 * body.height - 0.78 * (g.y - 4) - bulge) * 0.78
    horizontal = g.z - 0.46 * body.height - 0.06 * g.y + bulge
    return oblique, np.where((g.x < 0) & (oblique > 0), horizontal, np.float32(99))


def aerated_lung(
    rng: np.random.Generator, body: Anatomy, g: Frame, fissures: float = 1.0, grain: float = 60.0
) -> Array:
    """HU of aerated lung without vessels: denser towards the back, patchy, with fissures scaled by ``fissures``.

    ``grain`` is the SD in HU of what is too small to be painted, such as the smallest vessels.
    """
    shape, spacing = g.x.shape, np.array(g.spacing)
    hu = body.parenchyma + body.gravity * np.clip(g.y / (2 * body.half_depth), -0.6, 0.6)
    hu += 14 * smooth_field(rng, shape, g.spacing, 22)
    hu += grain * filtered_noise(rng, shape, 1.3 / spacing[::-1])
    for fissure in fissure_distances(body, g):
        plate = np.exp(-((fissure / max(0.9, 0.5 * spacing[0])) ** 2))
        hu += FISSURE_RISE * fissures * plate * min(1, 1.5 / spacing[0])
    return hu


def lung_trees(
    rng: np.random.Generator, mask: Array, body: Anatomy, g: Frame, crowding: float = 1.0, leaf: int = 1
) -> tuple[Array, Array, Array]:
    """Voxel fractions of vessels, bronchial walls and bronchial lumens in the lungs.

    Arteries and veins grow from each hilum to points throughout the lung; bronchi run along the arteries.
    ``crowding`` scales the number of branches; ``leaf`` see `grow_tree`.
    """
    vessels, walls, lumens = [], [], []
    for label, side in ((1, -1), (2, 1)):
        spots = np.argwhere(mask == label)[:, ::-1].astype(float)
        for kind, depth in (("artery", 22), ("vein", 8)):
            targets = spots[rng.integers(0, len(spots), int(crowding * rng.integers(600, 850)))]
            targets = (targets + rng.uniform(-0.5, 0.5, targets.shape)) * g.spacing
            low = 0.5 if kind == "artery" else 0.42
            root = g.to_scan(np.array([(side * 40.0, depth, low * body.height)]))[0]
            start, end, count = grow_tree(rng, root, targets, leaf)
            thick = rng.uniform(0.48, 0.62) * count ** (1 / MURRAY_EXPONENT)
            vessels.append((start, end, thick, 0.82 * thick))
            if kind == "artery":
                beside = rng.standard_normal(3)
                offset = 2 * thick[:, None] * beside / np.linalg.norm(beside)
                big = count >= 6
                hollow = 0.85 * thick
                tube = (start + offset, end + offset)
                lumens.append(tuple(a[big] for a in (*tube, hollow, 0.85 * hollow)))
                walls.append(tuple(a[big] for a in (*tube, 1.25 * hollow + 0.25, 1.1 * hollow + 0.2)))
    return tuple(
        fill_tubes(g, *(np.concatenate(column) for column in zip(*tubes, strict=True)))
        for tubes in (vessels, walls, lumens)
    )


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
