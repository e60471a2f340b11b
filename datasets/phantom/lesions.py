"""Lesions: each patient is in one stage of COVID-19, with its own mixture of lesion kinds.

Lesions fill a share of the patient's own airspace, so their HU depend on inspiration and on what they cover.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.phantom.anatomy import Anatomy
from datasets.phantom.body import SOFT
from datasets.phantom.fields import HALF_LENGTH_TO_SIGMA, filtered_noise, smooth_field
from datasets.phantom.frame import Frame
from datasets.phantom.lungs import fissure_distances

Array = np.ndarray

REVERSED_HALO = 0.12
"""Share of large lesions with an aerated centre."""

LARGE = 18.0
"""Radius of large lesions in mm."""

LESION_DENSITY = 0.5
"""A voxel belongs to the lesion where its lesion density exceeds this."""

MIN_LESION_ML = 2.0
"""Minimum lesion volume of a diseased scan (60 voxels at 64 x 128 x 128)."""


@dataclass(frozen=True)
class Filling:
    """How a kind of lesion fills the airspace.

    Attributes:
        share: range of the share of the airspace that is filled, up to soft tissue.
        texture: relative SD of the share within a lesion.
        septa: additional share in thin sheets.
        flat: ratio of the lesion's shortest to its other axes.
    """

    share: tuple[float, float]
    texture: float
    septa: float = 0.0
    flat: float = 1.0


FILLINGS: Mapping[str, Filling] = {
    "faint": Filling((0.15, 0.27), texture=0.4),
    "ground glass": Filling((0.25, 0.5), texture=0.5),
    "crazy paving": Filling((0.35, 0.6), texture=0.4, septa=0.35),
    "consolidation": Filling((0.75, 1.0), texture=0.35),
    "bands": Filling((0.45, 0.85), texture=0.4, flat=0.22),
}
"""To add a kind of lesion, add a row, and its share in the stages that show it."""

STAGES: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "early": (0.3, {"faint": 0.65, "ground glass": 0.35}),
    "progressive": (0.3, {"ground glass": 0.5, "crazy paving": 0.35, "faint": 0.15}),
    "peak": (0.2, {"consolidation": 0.55, "crazy paving": 0.25, "ground glass": 0.2}),
    "absorption": (0.2, {"bands": 0.45, "faint": 0.35, "consolidation": 0.2}),
}
"""Share of the patients, and shares of the lesion kinds, by stage."""


@dataclass(frozen=True)
class Patient:
    """The lesions of one patient.

    Attributes:
        stage: key of `STAGES`, or None.
        kinds: share by lesion kind.
        level: where in the ranges of `FILLINGS` this patient's lesions lie, 0..1.
    """

    stage: str | None
    kinds: Mapping[str, float]
    level: float


def draw_patient(rng: np.random.Generator, stages: bool = True) -> Patient:
    """Draw the stage of a patient; without stages, every patient has all kinds except faint lesions and bands."""
    if not stages:
        return Patient(None, {"ground glass": 0.6, "crazy paving": 0.2, "consolidation": 0.2}, float(rng.random()))
    stage = str(rng.choice(list(STAGES), p=[share for share, _ in STAGES.values()]))
    return Patient(stage, STAGES[stage][1], float(rng.random()))


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


@dataclass(frozen=True)
class _Fields:
    lobulation: Array
    fray: Array
    texture: Array
    oblique: Array


def _add(
    rng: np.random.Generator, tissue: Array, density: Array, lesion: tuple[Array, float, str], level: float,
    g: Frame, fields: _Fields,
) -> None:  # fmt: skip
    """Paint one lesion, given as voxel, radius in mm and kind."""
    at, radius, kind = lesion
    filling = FILLINGS[kind]
    axes = radius * rng.uniform(0.7, 1.35, 3)
    axes[rng.integers(3)] *= filling.flat
    reach = 1.9 * axes.max()
    half = np.ceil(reach / np.array(g.spacing[::-1])).astype(int)
    where = tuple(slice(max(0, a - h), a + h + 1) for a, h in zip(at.tolist(), half.tolist(), strict=True))
    here = [axis[where] - axis[tuple(at)] for axis in (g.x, g.y, g.z)]
    turn = rng.uniform(0, np.pi)
    u, v = here[0] * np.cos(turn) - here[1] * np.sin(turn), here[0] * np.sin(turn) + here[1] * np.cos(turn)
    rho = np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (here[2] / axes[2]) ** 2)
    edge = rho + 0.26 * fields.lobulation[where] + min(0.2, 1.6 / radius) * fields.fray[where]
    blur = rng.uniform(1.5, 4.0) / radius
    new = falloff(edge, 1, blur)
    if rng.random() < 0.7:  # fissures stop most lesions
        oblique = fields.oblique
        new *= np.clip(0.5 + np.sign(oblique[tuple(at)]) * oblique[where] / 2, 0, 1)
    low, high = filling.share
    share = low + (high - low) * np.clip(level + rng.normal(0, 0.15), 0, 1)
    share = share * (1 + filling.texture * fields.texture[where])
    if filling.septa:
        share += filling.septa * (np.exp(-((fields.fray[where] / 0.3) ** 2)) - 0.3)
    if radius > LARGE and rng.random() < REVERSED_HALO:
        share *= 1 - 0.6 * falloff(edge, 0.6, blur)
    tissue[where] += new * np.clip(share, 0, 1) * np.maximum(SOFT - tissue[where], 0)
    density[where] = np.maximum(density[where], new)


def add_stage_lesions(
    rng: np.random.Generator, tissue: Array, mask: Array, body: Anatomy, g: Frame, patient: Patient
) -> tuple[Array, tuple[str, ...]]:
    """Paint the lesions of a patient.

    Args:
        rng: random generator.
        tissue: HU of the lungs, (z, y, x); changed in place.
        mask: lungs, non-zero inside.
        body: anatomy.
        g: voxel grid.
        patient: stage and kinds.

    Returns:
        Lesion density, 0..1, and the sorted kinds that were drawn. At least `MIN_LESION_ML` exceed one half.
    """
    shape, spacing = tissue.shape, np.array(g.spacing[::-1])
    fields = _Fields(
        smooth_field(rng, shape, g.spacing, 16),
        smooth_field(rng, shape, g.spacing, 5),
        filtered_noise(rng, shape, HALF_LENGTH_TO_SIGMA * rng.uniform(1.4, 2.4) / spacing),
        fissure_distances(body, g)[0],
    )
    count = int(np.clip(np.rint(np.exp(rng.normal(1.7, 0.8))), 1, 24))
    largest = np.exp(rng.uniform(np.log(12), np.log(52)))
    radii = np.maximum(largest * rng.uniform(0.1, 1, count) ** 1.3, 3.5)
    radii[0] = largest
    kinds = rng.choice(list(patient.kinds), count, p=list(patient.kinds.values()))
    lesions = list(zip(lesion_centres(rng, mask, g, count), radii.tolist(), kinds.tolist(), strict=True))
    density = np.zeros(shape, np.float32)
    needed = min(MIN_LESION_ML * 1000 / np.prod(spacing), (mask > 0).sum() / 4)
    shown = set()
    while lesions:
        for lesion in lesions:
            _add(rng, tissue, density, lesion, patient.level, g, fields)
            shown.add(lesion[2])
        lesions = []
        if ((density > LESION_DENSITY) & (mask > 0)).sum() < needed:
            lesions = [(lesion_centres(rng, mask, g, 1)[0], 30.0, str(kinds[0]))]
    return density, tuple(sorted(shown))
