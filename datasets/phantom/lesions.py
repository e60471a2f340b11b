"""COVID-19-like lesions of the synthetic CTs.

To add a kind of lesion, add a row to `LESION_KINDS`: how often it occurs, its HU and texture, and optionally a function
that shapes its HU further. Lesions of all kinds lie where `lesion_centres` puts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.phantom.anatomy import Anatomy
from datasets.phantom.fields import HALF_LENGTH_TO_SIGMA, filtered_noise, smooth_field
from datasets.phantom.frame import Frame
from datasets.phantom.lungs import fissure_distances

Array = np.ndarray

CONSOLIDATION_LIMIT = 70.0
"""HU; airless lung is not denser than soft tissue."""

LESION_FRACTION = 0.5
"""A voxel belongs to the lesion where its lesion density exceeds this."""

MIN_LESION_ML = 2.0
"""Minimum lesion volume of a diseased phantom (60 voxels at 64 x 128 x 128)."""


@dataclass(frozen=True)
class Spot:
    """One lesion while it is filled; arrays cover the lesion's neighbourhood, (z, y, x).

    Attributes:
        edge: relative distance from the lesion's centre; 1 at the border.
        blur: width of the border in units of `edge`.
        textures: unit-SD random fields by name: the kinds that have a texture, and ``fray`` (scale 5 mm).
    """

    edge: Array
    blur: float
    textures: Mapping[str, Array]


def _plain(rng: np.random.Generator, value: Array, spot: Spot) -> Array:
    return value


def _solid(rng: np.random.Generator, value: Array, spot: Spot) -> Array:
    return np.minimum(value, CONSOLIDATION_LIMIT)


def _solid_core(rng: np.random.Generator, value: Array, spot: Spot) -> Array:
    solid = np.minimum(-80 + 190 * spot.textures["consolidation"], CONSOLIDATION_LIMIT)
    return value + falloff(spot.edge, rng.uniform(0.45, 0.7), spot.blur) * (solid - value)


def _thick_septa(rng: np.random.Generator, value: Array, spot: Spot) -> Array:
    """Thin dense sheets where a smooth field changes sign."""
    return value + 170 * np.exp(-((spot.textures["fray"] / 0.3) ** 2)) - 60


@dataclass(frozen=True)
class LesionKind:
    """How a kind of lesion fills the lung, and how often it occurs.

    Attributes:
        share: default share of all lesions; the shares add up to 1.
        hu: range over lesions of the mean HU.
        sd: SD of the texture, in HU.
        half_length: distance in mm at which the texture's autocorrelation falls to one half; None if the kind borrows
            the texture of another.
        texture: name of the kind whose texture it borrows; None for its own.
        fill: final HU of a lesion from its textured HU.
    """

    share: float
    hu: tuple[float, float]
    sd: float
    half_length: float | None
    texture: str | None = None
    fill: Callable[[np.random.Generator, Array, Spot], Array] = _plain


# Chosen so that what the scanner shows (borders, vessels and point spread included) agrees with slices of COVID-19
# patients: ground glass -520..-300 HU, SD 120-170; crazy paving -240, SD 155; consolidation -280..-100, SD 190-230;
# half-lengths of 2-4 mm. The order is part of the seed.
LESION_KINDS: Mapping[str, LesionKind] = {
    "ground glass": LesionKind(0.45, (-510.0, -320.0), 150.0, 2.1),
    "mixed": LesionKind(0.25, (-490.0, -330.0), 150.0, None, "ground glass", _solid_core),
    "crazy paving": LesionKind(0.12, (-250.0, -130.0), 150.0, 2.8, fill=_thick_septa),
    "consolidation": LesionKind(0.18, (-120.0, 10.0), 310.0, 2.7, fill=_solid),
}

LESION_SHARES = tuple(kind.share for kind in LESION_KINDS.values())


@dataclass(frozen=True)
class Canvas:
    """What lesions are painted on; arrays are (z, y, x) on the frame's grid.

    Attributes:
        frame: coordinates.
        tissue: HU of the lung; changed in place.
        density: lesion density, 0..1; changed in place.
        textures: unit-SD random fields, see `Spot`.
        lobulation: random field that deforms the borders, scale 16 mm.
        oblique: signed distance to the oblique fissures in mm.
        shares: share of each kind, in the order of `LESION_KINDS`.
    """

    frame: Frame
    tissue: Array
    density: Array
    textures: Mapping[str, Array]
    lobulation: Array
    oblique: Array
    shares: Sequence[float]


def falloff(edge: Array, at: float, blur: float) -> Array:
    """Sigmoid from 1 inside to 0 outside, one half where ``edge`` equals ``at``."""
    return 1 / (1 + np.exp(np.clip((edge - at) / blur, -20, 20)))


def lesion_centres(rng: np.random.Generator, mask: Array, g: Frame, count: int) -> Array:
    """Draw voxel indices (count, 3) of lesion centres: mostly subpleural, posterior and basal."""
    stride = tuple(max(1, int(2.5 / s)) for s in g.spacing[::-1])
    coarse = np.pad(mask[:: stride[0], :: stride[1], :: stride[2]] > 0, 1)
    step = np.array(stride) * g.spacing[::-1]
    depth = ndimage.distance_transform_edt(coarse, sampling=step)[1:-1, 1:-1, 1:-1]
    spots = np.argwhere(depth > 0) * stride
    z, y = g.z[tuple(spots.T)], g.y[tuple(spots.T)]
    weight = np.exp(-depth[depth > 0] / 9 + y / 45 - z / 130)
    return spots[rng.choice(len(spots), count, p=weight / weight.sum())]


def _add_lesion(rng: np.random.Generator, canvas: Canvas, at: Array, radius: float) -> str:
    """Paint one lesion of about ``radius`` mm around the voxel ``at``; return its kind."""
    g = canvas.frame
    name = str(rng.choice(list(LESION_KINDS), p=canvas.shares))
    kind = LESION_KINDS[name]
    axes = radius * rng.uniform(0.7, 1.35, 3)
    reach = 1.9 * axes.max()
    spacing = np.array(g.spacing[::-1])
    start = np.maximum(0, at - np.ceil(reach / spacing).astype(int))
    where = tuple(slice(a, int(b)) for a, b in zip(start, at + np.ceil(reach / spacing) + 1, strict=True))
    here = [axis[where] - axis[tuple(at)] for axis in (g.x, g.y, g.z)]
    turn = rng.uniform(0, np.pi)
    u, v = here[0] * np.cos(turn) - here[1] * np.sin(turn), here[0] * np.sin(turn) + here[1] * np.cos(turn)
    rho = np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (here[2] / axes[2]) ** 2)
    textures = {key: field[where] for key, field in canvas.textures.items()}
    edge = rho + 0.26 * canvas.lobulation[where] + min(0.2, 1.6 / radius) * textures["fray"]
    blur = rng.uniform(1.5, 4.0) / radius
    new = falloff(edge, 1, blur)
    if rng.random() < 0.7:  # fissures stop most lesions
        new *= np.clip(0.5 + np.sign(canvas.oblique[tuple(at)]) * canvas.oblique[where] / 2, 0, 1)
    mean = rng.uniform(*kind.hu)
    value = kind.fill(rng, mean + kind.sd * textures[kind.texture or name], Spot(edge, blur, textures))
    # Lesions never make the lung much less dense.
    canvas.tissue[where] += new * np.maximum(value - canvas.tissue[where], -60)
    canvas.density[where] = np.maximum(canvas.density[where], new)
    return name


def _draw_canvas(rng: np.random.Generator, tissue: Array, body: Anatomy, g: Frame, shares: Sequence[float]) -> Canvas:
    shape, spacing = tissue.shape, np.array(g.spacing[::-1])
    textures = {
        name: filtered_noise(rng, shape, HALF_LENGTH_TO_SIGMA * kind.half_length / spacing)
        for name, kind in LESION_KINDS.items()
        if kind.texture is None
    }
    lobulation = smooth_field(rng, shape, g.spacing, 16)
    textures["fray"] = smooth_field(rng, shape, g.spacing, 5)
    oblique = fissure_distances(body, g)[0]
    return Canvas(g, tissue, np.zeros(shape, np.float32), textures, lobulation, oblique, shares)


def add_lesions(
    rng: np.random.Generator, tissue: Array, mask: Array, body: Anatomy, g: Frame, shares: Sequence[float]
) -> tuple[Array, tuple[str, ...]]:
    """Paint one to two dozen lesions, at least `MIN_LESION_ML` in total.

    Args:
        rng: random generator.
        tissue: HU of the lungs, (z, y, x); changed in place.
        mask: lungs, non-zero inside.
        body: anatomy.
        g: voxel grid.
        shares: share of each kind, in the order of `LESION_KINDS`.

    Returns:
        The lesion mask (uint8, 0 or 1) and the sorted names of the kinds in it.
    """
    canvas = _draw_canvas(rng, tissue, body, g, shares)
    count = int(np.clip(np.rint(np.exp(rng.normal(1.7, 0.8))), 1, 24))
    largest = np.exp(rng.uniform(np.log(12), np.log(52)))
    radii = largest * rng.uniform(0.1, 1, count) ** 1.3
    radii[0] = largest
    needed = max(1, int(np.ceil(MIN_LESION_ML * 1000 / np.prod(g.spacing[::-1]))))
    kinds = {
        _add_lesion(rng, canvas, at, radius)
        for at, radius in zip(lesion_centres(rng, mask, g, count), np.maximum(radii, 3.5), strict=True)
    }
    while True:
        lesion = (canvas.density > LESION_FRACTION) & (mask > 0)
        if lesion.sum() >= min(needed, (mask > 0).sum() // 4):
            return lesion.astype(np.uint8), tuple(sorted(kinds))
        kinds.add(_add_lesion(rng, canvas, lesion_centres(rng, mask, g, 1)[0], 30.0))
