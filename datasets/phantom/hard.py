"""Crops of the hard cohort: sites, inspiration, confounders and stages, made directly on the grid of the crop.

Everything but the lesions is drawn independently of the disease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import ndimage

from datasets.phantom.anatomy import Anatomy, draw_anatomy
from datasets.phantom.body import height_above_diaphragm
from datasets.phantom.confounders import EFFUSION, MOTION, Lung, add_confounders, effusion_height, move
from datasets.phantom.frame import Frame
from datasets.phantom.lesions import Patient, add_stage_lesions, draw_patient
from datasets.phantom.lungs import aerated_lung, lung_trees
from datasets.phantom.make import fill_lungs, paint_thorax
from datasets.phantom.pose import draw_pose
from datasets.phantom.shapes import paint
from datasets.phantom.sites import SITES, acquire, draw_protocol

Array = np.ndarray

Disease = Callable[[np.random.Generator, Array, Array, Anatomy, Frame], tuple[Array, tuple[str, ...]]]
"""Paints lesions into lung tissue: called with the generator, the tissue, the lungs, the anatomy and the grid; returns
the lesion density and the names of what it painted."""

FLUID = 10.0
"""HU of a pleural effusion."""

PLAIN_SITE = "A"
"""Site of all scans if sites are switched off."""


@dataclass(frozen=True)
class Hardness:
    """What makes the cohort hard; each can be switched off.

    Attributes:
        sites: different scanners; otherwise `PLAIN_SITE`.
        inspiration: lungs from deep inspiration to expiration; otherwise those of the default phantoms.
        confounders: strength of the confounders, 0 to 1; 0 is off.
        stages: different stages of the disease; otherwise one mixture.
    """

    sites: bool = True
    inspiration: bool = True
    confounders: float = 1.0
    stages: bool = True


HARD = Hardness()


@dataclass(frozen=True)
class Crop:
    """A crop of the hard cohort; arrays are (z, y, x).

    Attributes:
        hu: float32 HU.
        lung: uint8, 0 outside, 1 right, 2 left.
        lesion: uint8, 0 or 1.
        spacing: voxel size in mm, (x, y, z).
        facts: what was drawn: site, stage, lesion kinds, confounders, inspiration, slice thickness.
    """

    hu: Array
    lung: Array
    lesion: Array
    spacing: tuple[float, float, float]
    facts: dict[str, object]


def _breathe(rng: np.random.Generator, body: Anatomy) -> tuple[Anatomy, float]:
    """Lungs at some inspiration, from 0 (deep) to 1."""
    level = rng.uniform()
    return replace(body, parenchyma=-860 + 150 * level, gravity=rng.uniform(50, 110) + 60 * level), float(level)


@dataclass(frozen=True)
class Body:
    """A body on the grid of a crop before a scanner sees it; arrays are (z, y, x).

    Attributes:
        hu: float32 ideal HU.
        lung: uint8, 0 outside, 1 right, 2 left.
        density: float32 lesion density, 0..1.
        spacing: voxel size in mm, (x, y, z).
        facts: lesion kinds, confounders and inspiration.
    """

    hu: Array
    lung: Array
    density: Array
    spacing: tuple[float, float, float]
    facts: dict[str, object]


def paint_body(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    disease: Disease | None,
    hardness: Hardness = HARD,
    grain: float = 60.0,
    most_crowded: float = 2.0,
) -> Body:
    """Paint one body on the grid of a crop around its lungs.

    Args:
        rng: random generator; the same state gives the same body, bit by bit.
        size: (z, y, x).
        disease: paints lesions; None for a healthy body.
        hardness: what is switched on; sites and stages are not used.
        grain: SD in HU of the texture of aerated lung.
        most_crowded: highest factor of the number of vessels.
    """
    anatomy, level = draw_anatomy(rng), None
    if hardness.inspiration:
        anatomy, level = _breathe(rng, anatomy)
    fissures = rng.uniform(0.5, 2.2) if hardness.inspiration else 1.0
    crowding = rng.uniform(1.4, most_crowded) if hardness.inspiration and rng.random() < 0.5 else 1.0
    g = draw_pose(rng, anatomy).crop_frame(anatomy, size)
    thorax = paint_thorax(rng, anatomy, g)
    strength, found = hardness.confounders, []
    if strength and rng.random() < EFFUSION:
        fluid = effusion_height(rng, anatomy, g, strength)
        paint(thorax.hu, np.maximum(fluid, thorax.lung - 1), FLUID, g.spacing[0])
        thorax = replace(thorax, lung=np.maximum(thorax.lung, -fluid))
        found.append("effusion")
    mask, above = thorax.labels(g), height_above_diaphragm(anatomy, g)
    tissue = aerated_lung(rng, anatomy, g, fissures, grain)
    if strength:
        depth = ndimage.distance_transform_edt(np.pad(mask > 0, 1), sampling=g.spacing[::-1])[1:-1, 1:-1, 1:-1]
        found += add_confounders(rng, Lung(g, anatomy, tissue, mask, depth.astype(np.float32), above), strength)
    density, kinds = np.zeros(size, np.float32), ()
    if disease is not None:
        density, kinds = disease(rng, tissue, mask, anatomy, g)
    hu = fill_lungs(thorax, tissue, lung_trees(rng, mask, anatomy, g, crowding, leaf=4), anatomy.blood, g)
    if strength and rng.random() < MOTION:
        move(rng, hu, anatomy, g, above, strength)
        found.append("motion")
    facts = {"kinds": list(kinds), "confounders": sorted(found), "inspiration": level and round(level, 3)}
    return Body(hu, mask, density, g.spacing, facts)


def make_crop(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    patient: Patient | None,
    site: str,
    hardness: Hardness = HARD,
) -> Crop:
    """Make one crop around the lungs.

    Args:
        rng: random generator; the same state gives the same crop, bit by bit.
        size: (z, y, x).
        patient: lesions; None for a healthy scan.
        site: key of `SITES`.
        hardness: what is switched on.
    """
    body = paint_body(rng, size, patient and partial(add_stage_lesions, patient=patient), hardness)
    cut = rng.uniform(0.35, 0.65) if hardness.confounders else 0.5  # annotators differ
    protocol = draw_protocol(rng, SITES[site])
    scanner = {"slice_mm": round(protocol.slice_mm, 2), "noise_hu": round(protocol.noise, 1)}
    facts = {"site": site, "stage": patient and patient.stage} | body.facts | scanner
    lesion = ((body.density > cut) & (body.lung > 0)).astype(np.uint8)
    hu = acquire(rng, body.hu, body.spacing, SITES[site], protocol)
    return Crop(hu, body.lung, lesion, body.spacing, facts)


def site_of(seed: Sequence[int], number: int) -> str:
    """Site of scan ``number`` of a list: each block of `len(SITES)` scans has every site once, in random order."""
    block, place = divmod(number, len(SITES))
    return str(np.random.default_rng([*seed, block]).permutation(list(SITES))[place])


def label_patient(rng: np.random.Generator) -> Patient:
    """The patient of the labelled scan: progressive, ground glass alone."""
    return replace(draw_patient(rng), stage="progressive", kinds={"ground glass": 1.0})
