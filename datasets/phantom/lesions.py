"""Lesions of COVID-19: each patient has its own mixture of lesion kinds.

Lesions fill a share of the patient's own airspace, so their HU depend on inspiration and on what they cover.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datasets.phantom.body import SOFT, Anatomy
from datasets.phantom.geometry import HALF_LENGTH_TO_SIGMA, Frame, distance_inside, filtered_noise, smooth_field
from datasets.phantom.lungs import fissure_distances

Array = np.ndarray

LARGE, REVERSED_HALO = 18.0, 0.12
"""Radius of large lesions in mm, and the share of them with an aerated centre."""

LESION_DENSITY = 0.5
"""A voxel belongs to the lesion where its lesion density exceeds this."""

MIN_LESION_ML = 2.0
"""Minimum lesion volume of a diseased scan (60 voxels at 64 x 128 x 128)."""


@dataclass(frozen=True)
class Filling:
    """How a kind of lesion fills the airspace."""

    share: tuple[float, float]  # range of the share that is filled, up to soft tissue
    texture: float  # relative SD of the share within a lesion
    septa: float = 0.0  # additional share in thin sheets
    flat: float = 1.0  # ratio of the lesion's shortest to its other axes


FILLINGS: Mapping[str, Filling] = {
    "faint": Filling((0.15, 0.27), texture=0.4),
    "ground glass": Filling((0.25, 0.5), texture=0.5),
    "crazy paving": Filling((0.35, 0.6), texture=0.4, septa=0.35),
    "consolidation": Filling((0.75, 1.0), texture=0.35),
    "bands": Filling((0.45, 0.85), texture=0.4, flat=0.22),
}
"""To add a kind of lesion, add a row."""

MIXTURE: Mapping[str, float] = {"ground glass": 0.6, "crazy paving": 0.2, "consolidation": 0.2}
"""Shares of the lesion kinds in a patient in no particular stage."""


@dataclass(frozen=True)
class Patient:
    """The lesions of one patient."""

    kinds: Mapping[str, float]  # share by lesion kind
    level: float  # where in the ranges of `FILLINGS` the lesions lie, 0..1
    stage: str | None = None  # of the disease


def falling(x: Array) -> Array:
    """Sigmoid from 1 to 0, one half at 0."""
    return 1 / (1 + np.exp(np.clip(x, -20, 20)))


def _lesion_centres(rng: np.random.Generator, mask: Array, g: Frame, count: int) -> Array:
    """Draw voxel indices (count, 3) of lesion centres: mostly subpleural, posterior and basal."""
    stride = tuple(max(1, int(2.5 / s)) for s in g.spacing[::-1])
    coarse = mask[:: stride[0], :: stride[1], :: stride[2]] > 0
    depth = distance_inside(coarse, np.array(stride) * g.spacing[::-1])
    spots = np.argwhere(depth > 0) * stride
    z, y = g.z[tuple(spots.T)], g.y[tuple(spots.T)]
    weight = np.exp(-depth[depth > 0] / 9 + y / 45 - z / 130)
    return spots[rng.choice(len(spots), count, p=weight / weight.sum())]


def add_lesions(
    rng: np.random.Generator, tissue: Array, mask: Array, body: Anatomy, g: Frame, patient: Patient | None = None
) -> tuple[Array, tuple[str, ...]]:
    """Paint the lesions of a patient, or of one with the `MIXTURE`, into HU of the lungs, (z, y, x), in place.

    Returns the lesion density, 0..1, and the sorted kinds that were drawn. At least `MIN_LESION_ML` exceed one half.
    """
    patient = patient or Patient(MIXTURE, float(rng.random()))
    shape, spacing = tissue.shape, np.array(g.spacing[::-1])
    lobulation, fray = (smooth_field(rng, shape, g.spacing, knot) for knot in (16, 5))
    texture = filtered_noise(rng, shape, HALF_LENGTH_TO_SIGMA * rng.uniform(1.4, 2.4) / spacing)
    oblique = fissure_distances(body, g)[0]
    density = np.zeros(shape, np.float32)

    def add(at: Array, radius: float, kind: str) -> None:
        """Paint one lesion at a voxel, with a radius in mm."""
        filling = FILLINGS[kind]
        axes = radius * rng.uniform(0.7, 1.35, 3)
        axes[rng.integers(3)] *= filling.flat
        half = np.ceil(1.9 * axes.max() / spacing).astype(int)
        where = tuple(slice(max(0, a - h), a + h + 1) for a, h in zip(at.tolist(), half.tolist(), strict=True))
        here = [axis[where] - axis[tuple(at)] for axis in (g.x, g.y, g.z)]
        turn = rng.uniform(0, np.pi)
        u, v = here[0] * np.cos(turn) - here[1] * np.sin(turn), here[0] * np.sin(turn) + here[1] * np.cos(turn)
        rho = np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (here[2] / axes[2]) ** 2)
        edge = rho + 0.26 * lobulation[where] + min(0.2, 1.6 / radius) * fray[where]
        blur = rng.uniform(1.5, 4.0) / radius
        new = falling((edge - 1) / blur)
        if rng.random() < 0.7:  # fissures stop most lesions
            new *= np.clip(0.5 + np.sign(oblique[tuple(at)]) * oblique[where] / 2, 0, 1)
        low, high = filling.share
        share = low + (high - low) * np.clip(patient.level + rng.normal(0, 0.15), 0, 1)
        share = share * (1 + filling.texture * texture[where])
        if filling.septa:
            share += filling.septa * (np.exp(-((fray[where] / 0.3) ** 2)) - 0.3)
        if radius > LARGE and rng.random() < REVERSED_HALO:
            share *= 1 - 0.6 * falling((edge - 0.6) / blur)
        tissue[where] += new * np.clip(share, 0, 1) * np.maximum(SOFT - tissue[where], 0)
        density[where] = np.maximum(density[where], new)

    count = int(np.clip(np.rint(np.exp(rng.normal(1.7, 0.8))), 1, 24))
    largest = np.exp(rng.uniform(np.log(12), np.log(52)))
    radii = np.maximum(largest * rng.uniform(0.1, 1, count) ** 1.3, 3.5)
    radii[0] = largest
    kinds = rng.choice(list(patient.kinds), count, p=list(patient.kinds.values())).tolist()
    for lesion in zip(_lesion_centres(rng, mask, g, count), radii.tolist(), kinds, strict=True):
        add(*lesion)
    needed = min(MIN_LESION_ML * 1000 / np.prod(spacing), (mask > 0).sum() / 4)
    while ((density > LESION_DENSITY) & (mask > 0)).sum() < needed:
        add(_lesion_centres(rng, mask, g, 1)[0], 30.0, kinds[0])
    return density, tuple(sorted(set(kinds)))
