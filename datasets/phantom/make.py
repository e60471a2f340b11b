"""Synthetic bodies, scans of them with their masks, and folders of scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from datasets.dicom import write_series
from datasets.phantom import body as outside
from datasets.phantom import lungs as inside
from datasets.phantom.body import AIR, FAT, SOFT, Anatomy, draw_anatomy
from datasets.phantom.geometry import Frame, distance_inside, fill_paths, paint
from datasets.phantom.lesions import LESION_DENSITY, Patient, add_stage_lesions, draw_patient
from datasets.phantom.scanner import SCANNER, SITES, Site, acquire, draw_crop_frame, draw_frame, draw_protocol
from datasets.volumes import write_volume
from utils.progress import progress_bar

Array = np.ndarray

Disease = Callable[[np.random.Generator, Array, Array, Anatomy, Frame], tuple[Array, tuple[str, ...]]]
"""Paints lesions into lung tissue: called with the generator, the tissue, the lungs, the anatomy and the grid; returns
the lesion density and the names of what it painted."""

SMALLEST_SIDE = 16
"""Minimum number of voxels along each axis."""

FLUID = 10.0
"""HU of a pleural effusion."""

PLAIN_SITE = "A"
"""Site of all scans if sites are switched off."""


@dataclass(frozen=True)
class Hardness:
    """What makes scans hard; each can be switched off. Everything but the lesions is independent of the disease."""

    sites: bool = True  # different scanners; otherwise `PLAIN_SITE`
    inspiration: bool = True  # lungs from deep inspiration to expiration
    confounders: float = 1.0  # their strength; 0 is off
    stages: bool = True  # different stages of the disease; otherwise one mixture


HARD, EASY = Hardness(), Hardness(sites=False, inspiration=False, confounders=0.0, stages=False)


@dataclass(frozen=True)
class Body:
    """A body on a voxel grid before a scanner sees it; arrays are (z, y, x) in LPS order.

    Attributes:
        hu: float32 ideal HU.
        lung: uint8, 0 outside, 1 right lung (low x), 2 left lung; includes the vessels and lesions inside.
        density: float32 lesion density, 0..1.
        spacing: voxel size in mm, (x, y, z) as in SimpleITK.
        facts: what was drawn: lesion kinds (sorted names in `FILLINGS`), confounders, inspiration.
    """

    hu: Array
    lung: Array
    density: Array
    spacing: tuple[float, float, float]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT and its masks; `lung`, `spacing` and `facts` are those of its `Body`.

    Attributes:
        hu: float32 HU, -1024..3071.
        lesion: uint8, 1 where the lesion density exceeds a threshold, always inside the lung.
        facts: also site, stage, slice thickness and noise.
    """

    hu: Array
    lung: Array
    lesion: Array
    spacing: tuple[float, float, float]
    facts: dict[str, Any]

    @cached_property
    def ct(self) -> Array:
        """The CT in HU, int16."""
        return np.rint(self.hu).astype(np.int16)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the lesions; empty for a healthy phantom."""
        return tuple(self.facts["kinds"])


def _paint_thorax(rng: np.random.Generator, body: Anatomy, g: Frame) -> tuple[Array, Array, Array, Array]:
    """HU outside the lungs, distance to the lungs, and voxel fractions of the airways with their walls and without."""
    cavity, above = outside.cavity_distance(body, g), outside.height_above_diaphragm(body, g)
    hu = np.full(g.x.shape, AIR, np.float32)
    outside.paint_outside(rng, hu, body, g)
    paint(hu, cavity + 1, FAT, g.spacing[0])
    outside.paint_abdomen(hu, cavity, above, body, g)
    heart = g.box(outside.HEART, outside.HEART_REACH)
    distance = np.maximum(outside.heart_distance(body, g, heart), 3 - above[heart])
    paint(hu[heart], distance, SOFT, g.spacing[0])
    paint(hu[heart], distance + 9, body.blood, 4.0)
    vessels = fill_paths(g, outside.great_vessels(body))
    hu += vessels * (body.blood - hu)
    airways = outside.airway_paths(body)
    walls, lumens = fill_paths(g, airways, grow=2.0), fill_paths(g, airways)
    lung = inside.lung_distance(cavity, above, body, g, np.maximum(vessels, walls))
    outside.paint_spine(hu, body, g)
    outside.paint_sternum(hu, body, g)
    outside.paint_ribs(hu, cavity, body, g)
    outside.paint_shoulders(hu, cavity, body, g)
    return hu, lung, walls, lumens


def paint_body(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    disease: Disease | None,
    hardness: Hardness = HARD,
    grain: float = 60.0,
    most_crowded: float = 2.0,
    whole: bool = False,
) -> Body:
    """Paint one body.

    Args:
        rng: random generator; the same state gives the same body, bit by bit.
        size: (z, y, x).
        disease: paints lesions; None for a healthy body.
        hardness: what is switched on; sites and stages are not used.
        grain: SD in HU of the texture of aerated lung.
        most_crowded: highest factor of the number of vessels.
        whole: on the grid of a whole scan, with finer vessels; otherwise on that of a crop around the lungs.
    """
    anatomy, level, fissures, crowding = draw_anatomy(rng), None, 1.0, 1.0
    if hardness.inspiration:
        level = rng.uniform()  # from 0 (deep) to 1
        gravity = rng.uniform(50, 110) + 60 * level
        anatomy = replace(anatomy, parenchyma=-860 + 150 * level, gravity=gravity)
        fissures = rng.uniform(0.5, 2.2)
        crowding = rng.uniform(1.4, most_crowded) if rng.random() < 0.5 else 1.0
    g = (draw_frame if whole else draw_crop_frame)(rng, anatomy, size)
    hu, lung, walls, lumens = _paint_thorax(rng, anatomy, g)
    strength, found = hardness.confounders, []
    if strength and rng.random() < inside.EFFUSION:
        fluid = inside.effusion_height(rng, anatomy, g, strength)
        paint(hu, np.maximum(fluid, lung - 1), FLUID, g.spacing[0])
        lung = np.maximum(lung, -fluid)
        found.append("effusion")
    mask = np.where(lung < 0, np.where(g.x < 3, 1, 2), 0).astype(np.uint8)
    above = outside.height_above_diaphragm(anatomy, g)
    tissue = inside.aerated_lung(rng, anatomy, g, fissures, grain)
    if strength:
        depth = distance_inside(mask > 0, g.spacing[::-1]).astype(np.float32)
        found += inside.add_confounders(rng, inside.Lung(g, anatomy, tissue, mask, depth, above), strength)
    density, kinds = np.zeros(size, np.float32), ()
    if disease is not None:
        density, kinds = disease(rng, tissue, mask, anatomy, g)
    branches, rims, hollows = inside.lung_trees(rng, mask, anatomy, g, crowding, leaf=1 if whole else 4)
    tissue += branches * (anatomy.blood - tissue)
    tissue += rims * np.maximum(SOFT - 200 - tissue, 0)
    tissue += hollows * (AIR + 30 - tissue)
    paint(hu, lung, tissue, g.spacing[0])
    hu += walls * (SOFT - hu)
    hu += lumens * (AIR + 10 - hu)
    if strength and rng.random() < inside.MOTION:
        inside.move(rng, hu, anatomy, g, above, strength)
        found.append("motion")
    facts = {"kinds": list(kinds), "confounders": sorted(found), "inspiration": level and round(level, 3)}
    return Body(hu, mask, density, g.spacing, facts)


def make_phantom(
    rng: np.random.Generator,
    size: tuple[int, int, int] = (64, 128, 128),
    diseased: bool = True,
    patient: Patient | None = None,
    scanner: Site = SCANNER,
) -> Phantom:
    """Make one synthetic chest CT.

    Args:
        rng: random generator; the same state gives the same phantom, bit by bit.
        size: matrix (z, y, x), each at least 16. The field of view is 300..380 mm in plane and 240..320 mm along z
            for every matrix, so the size determines the voxel size.
        diseased: with lesions (at least 2 ml, one to about two dozen) or without.
        patient: lesion kinds of a diseased phantom; None draws one in no particular stage.
        scanner: scanner.

    Returns:
        The CT in HU and its masks; the lungs have 2.5..6.5 l together.

    Raises:
        ValueError: a side of ``size`` is below 16.
    """
    size = tuple(int(n) for n in size)
    if len(size) != 3 or min(size) < SMALLEST_SIDE:
        raise ValueError(f"size is {size}; expected three numbers (z, y, x) of at least {SMALLEST_SIDE}")
    disease = partial(add_stage_lesions, patient=patient) if diseased else None
    return _scan(rng, paint_body(rng, size, disease, EASY, whole=True), scanner)


def _scan(rng: np.random.Generator, body: Body, scanner: Site, cut: float = LESION_DENSITY, **facts: object) -> Phantom:
    """Scan a body; its lesion is where the density exceeds ``cut``."""
    protocol = draw_protocol(rng, scanner)
    facts |= body.facts | {"slice_mm": round(protocol.slice_mm, 2), "noise_hu": round(protocol.noise, 1)}
    lesion = ((body.density > cut) & (body.lung > 0)).astype(np.uint8)
    return Phantom(acquire(rng, body.hu, body.spacing, protocol), body.lung, lesion, body.spacing, facts)


def make_crop(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    patient: Patient | None,
    site: str,
    hardness: Hardness = HARD,
) -> Phantom:
    """Make one crop around the lungs.

    Args:
        rng: random generator; the same state gives the same crop, bit by bit.
        size: (z, y, x).
        patient: lesions; None for a healthy scan.
        site: key of `SITES`.
        hardness: what is switched on.
    """
    body = paint_body(rng, size, patient and partial(add_stage_lesions, patient=patient), hardness)
    cut = rng.uniform(0.35, 0.65) if hardness.confounders else LESION_DENSITY  # annotators differ
    return _scan(rng, body, SITES[site], cut, site=site, stage=patient and patient.stage)


def site_of(seed: Sequence[int], number: int) -> str:
    """Site of scan ``number`` of a list: each block of `len(SITES)` scans has every site once, in random order."""
    block, place = divmod(number, len(SITES))
    return str(np.random.default_rng([*seed, block]).permutation(list(SITES))[place])


def label_patient(rng: np.random.Generator) -> Patient:
    """The patient of the labelled scan: progressive, ground glass alone."""
    return replace(draw_patient(rng), stage="progressive", kinds={"ground glass": 1.0})


def write_phantoms(
    output: Path,
    healthy: int,
    diseased: int,
    size: tuple[int, int, int] = (64, 128, 128),
    seed: int = 0,
    progress: bool = False,
    dicom: bool = False,
) -> list[str]:
    """Write phantoms to OUTPUT/ct, OUTPUT/lung and OUTPUT/lesion, each as <id>.nii.gz.

    Case k of a kind depends only on ``seed`` and k. Cases whose three files exist are kept.

    Args:
        output: folder; created if missing.
        healthy: number of cases healthy_000, healthy_001, .. without lesions (their lesion mask is empty).
        diseased: number of cases diseased_000, ..
        size: matrix (z, y, x).
        seed: random seed of the set, at least 0.
        progress: show a progress bar.
        dicom: write each CT as a DICOM series in the folder OUTPUT/ct/<id>.

    Returns:
        The ids, healthy cases first.

    Raises:
        VolumeError: a file cannot be written.
        ValueError: see :func:`make_phantom`.
    """
    cases = {f"healthy_{k:03d}": (seed, 0, k) for k in range(healthy)}
    cases |= {f"diseased_{k:03d}": (seed, 1, k) for k in range(diseased)}
    for name, entropy in progress_bar(cases.items(), "making phantoms", unit="case", shown=progress):
        paths = [Path(output) / part / f"{name}.nii.gz" for part in ("ct", "lung", "lesion")]
        if dicom:
            paths[0] = paths[0].with_name(name)
        if all(path.exists() for path in paths):
            continue
        phantom = make_phantom(np.random.default_rng(entropy), size, diseased=entropy[1] == 1)
        for path, array in zip(paths, (phantom.ct, phantom.lung, phantom.lesion), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(phantom.spacing)
            image.SetOrigin([-0.5 * (n - 1) * s for n, s in zip(image.GetSize(), phantom.spacing, strict=True)])
            if dicom and path is paths[0]:
                write_series(image, path, name, f"{seed} {name} {size}")
            else:
                write_volume(image, path)
    return list(cases)
