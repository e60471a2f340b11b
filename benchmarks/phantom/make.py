"""Crops around the lungs of bodies with confounders, at four sites.

Everything but the lesions is independent of the disease.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.phantom.confounders import EFFUSION, MOTION, Lung, add_confounders, effusion_height, move
from benchmarks.phantom.diseases import draw_patient
from datasets.phantom.body import Anatomy, cavity_distance, draw_anatomy, height_above_diaphragm, mediastinum_distance
from datasets.phantom.geometry import WARP_KNOT, WARP_SD, Frame, distance_inside, paint, spline_field, spline_weights
from datasets.phantom.lesions import Patient, add_lesions
from datasets.phantom.lungs import aerated_lung
from datasets.phantom.make import Phantom, lungs_of, paint_lungs, paint_thorax, scan
from datasets.phantom.scanner import Site, draw_position

Array = np.ndarray

Disease = Callable[[np.random.Generator, Array, Array, Anatomy, Frame], tuple[Array, tuple[str, ...]]]
"""Paints lesions into lung tissue: called with the generator, the tissue, the lungs, the anatomy and the grid; returns
the lesion density and the names of what it painted."""

_COARSE = 4.0  # mm; grid on which the lungs' box is found

SITES: Mapping[str, Site] = {
    "A": Site((1.0, 1.5), (0.65, 0.9), (0.0, 0.0), (12.0, 22.0), 0.9, 0.01, 10.0),
    "B": Site((5.0, 5.0), (0.35, 0.5), (0.5, 1.0), (35.0, 70.0), 0.35, 0.01, 15.0),
    "C": Site((8.0, 10.0), (0.5, 0.8), (0.0, 0.3), (25.0, 50.0), 0.6, 0.015, 20.0, streaks=True),
    "D": Site((3.0, 7.0), (0.8, 1.3), (0.0, 0.3), (10.0, 25.0), 0.8, 0.08, 40.0, levels=256),
}

FLUID = 10.0
"""HU of a pleural effusion."""


@dataclass(frozen=True)
class Body:
    """A body on a voxel grid before a scanner sees it; arrays are (z, y, x) in LPS order."""

    hu: Array  # float32, ideal HU
    lung: Array  # uint8, 0 outside, 1 right lung (low x), 2 left lung; includes the vessels and lesions inside
    density: Array  # float32 lesion density, 0..1
    spacing: tuple[float, float, float]  # of the voxels in mm, (x, y, z) as in SimpleITK
    facts: dict[str, Any]  # what was drawn: lesion kinds (sorted names in `FILLINGS`), confounders, inspiration


def draw_crop_frame(rng: np.random.Generator, body: Anatomy, size: tuple[int, int, int]) -> Frame:
    """Draw the frame of a crop of ``size`` (z, y, x): its outer voxel centres lie on the box around the lungs."""
    extent, centre, rotation = draw_position(rng, body)
    knots = tuple(int(n) for n in np.ceil(extent[::-1] / WARP_KNOT) + 3)
    warp = rng.standard_normal((3, *knots), dtype=np.float32)

    def frame(start: Array, spacing: Array, size: tuple[int, int, int]) -> Frame:
        """The same body on a grid whose first voxel is at the scan position ``start``, (x, y, z) in mm."""
        places = [a + np.arange(n) * s for a, n, s in zip(start[::-1], size, spacing[::-1], strict=True)]
        weights = [
            spline_weights(np.clip(place / WARP_KNOT, 0, count - 3) + 1, count)
            for place, count in zip(places, knots, strict=True)
        ]
        axes = [(place - c).astype(np.float32) for place, c in zip(places, centre[::-1], strict=True)]
        z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
        turn = rotation.astype(np.float32)
        turned = (turn[0, 0] * x + turn[0, 1] * y, turn[1, 0] * x + turn[1, 1] * y, z)
        warped = [
            (axis + WARP_SD * spline_field(coefficients, weights)).astype(np.float32)
            for axis, coefficients in zip(turned, warp, strict=True)
        ]
        pitch = 0.8 * float(np.sqrt(spacing[0] * spacing[1]))  # voxels are long along z
        return Frame(tuple(spacing.tolist()), *warped, centre - start, rotation, pitch)

    g = frame(np.zeros(3), np.full(3, _COARSE), tuple(int(n) for n in np.ceil(extent[::-1] / _COARSE)))
    lung = np.maximum(cavity_distance(body, g) + 2.5, -0.75 * height_above_diaphragm(body, g))
    inside = np.maximum(lung, -mediastinum_distance(body, g)) < 0
    filled = [np.flatnonzero(inside.any(tuple({0, 1, 2} - {axis}))) for axis in (2, 1, 0)]
    start, stop = (np.array([indices[end] for indices in filled]) * _COARSE for end in (0, -1))
    return frame(start, (stop - start) / (np.array(size[::-1]) - 1), size)


def paint_body(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    disease: Disease | None,
    confounders: float = 1.0,
    grain: float = 60.0,
    most_crowded: float = 2.0,
) -> Body:
    """Paint one body on the grid of a crop around its lungs.

    Args:
        rng: random generator; the same state gives the same body, bit by bit.
        size: (z, y, x).
        disease: paints lesions; None for a healthy body.
        confounders: their strength, 0 to 1.
        grain: SD in HU of the texture of aerated lung.
        most_crowded: highest factor of the number of vessels.
    """
    anatomy, level = draw_anatomy(rng), rng.uniform()  # of inspiration, from 0 (deep) to 1
    gravity = rng.uniform(50, 110) + 60 * level
    anatomy = replace(anatomy, parenchyma=-860 + 150 * level, gravity=gravity)
    fissures = rng.uniform(0.5, 2.2)
    crowding = rng.uniform(1.4, most_crowded) if rng.random() < 0.5 else 1.0
    g = draw_crop_frame(rng, anatomy, size)
    thorax = paint_thorax(rng, anatomy, g)
    found = []
    if confounders and rng.random() < EFFUSION:
        fluid = effusion_height(rng, anatomy, g, confounders)
        paint(thorax.hu, np.maximum(fluid, thorax.lung - 1), FLUID, g.spacing[0])
        thorax.lung = np.maximum(thorax.lung, -fluid)
        found.append("effusion")
    mask = lungs_of(thorax, g)
    above = height_above_diaphragm(anatomy, g)
    tissue = aerated_lung(rng, anatomy, g, fissures, grain)
    if confounders:
        depth = distance_inside(mask > 0, g.spacing[::-1]).astype(np.float32)
        found += add_confounders(rng, Lung(g, anatomy, tissue, mask, depth, above), confounders)
    density, kinds = np.zeros(size, np.float32), ()
    if disease is not None:
        density, kinds = disease(rng, tissue, mask, anatomy, g)
    paint_lungs(rng, thorax, tissue, mask, anatomy, g, crowding, leaf=4)
    if confounders and rng.random() < MOTION:
        move(rng, thorax.hu, anatomy, g, above, confounders)
        found.append("motion")
    facts = {"kinds": list(kinds), "confounders": sorted(found), "inspiration": round(level, 3)}
    return Body(thorax.hu, mask, density, g.spacing, facts)


def make_crop(rng: np.random.Generator, size: tuple[int, int, int], patient: Patient | None, site: str) -> Phantom:
    """Make one crop around the lungs.

    Args:
        rng: random generator; the same state gives the same crop, bit by bit.
        size: (z, y, x).
        patient: lesions; None for a healthy scan.
        site: key of `SITES`.
    """
    body = paint_body(rng, size, patient and partial(add_lesions, patient=patient))
    cut = rng.uniform(0.35, 0.65)  # annotators differ
    facts = {"site": site, "stage": patient and patient.stage, **body.facts}
    return scan(rng, body.hu, body.lung, body.density, body.spacing, facts, SITES[site], cut)


def site_of(seed: Sequence[int], number: int) -> str:
    """Site of scan ``number`` of a list: each block of `len(SITES)` scans has every site once, in random order."""
    block, place = divmod(number, len(SITES))
    return str(np.random.default_rng([*seed, block]).permutation(list(SITES))[place])


def label_patient(rng: np.random.Generator) -> Patient:
    """The patient of the labelled scan: progressive, ground glass alone."""
    return replace(draw_patient(rng), stage="progressive", kinds={"ground glass": 1.0})
