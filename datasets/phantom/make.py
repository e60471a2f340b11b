"""Synthetic scans with their masks, and folders of them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from datasets.dicom import write_series
from datasets.phantom import body as outside
from datasets.phantom import lungs as inside
from datasets.phantom.body import AIR, FAT, SOFT, Anatomy, draw_anatomy
from datasets.phantom.geometry import Frame, fill_paths, paint
from datasets.phantom.lesions import LESION_DENSITY, Patient, add_lesions
from datasets.phantom.scanner import SCANNER, Site, acquire, draw_frame, draw_protocol
from datasets.volumes import write_volume
from utils.progress import progress_bar

Array = np.ndarray

SMALLEST_SIDE = 16
"""Minimum number of voxels along each axis."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT and its masks, (z, y, x) in LPS order."""

    hu: Array  # float32, -1024..3071
    lung: Array  # uint8, 0 outside, 1 right lung (low x), 2 left lung; includes the vessels and lesions inside
    lesion: Array  # uint8, 1 where the lesion density exceeds a threshold, always inside the lung
    spacing: tuple[float, float, float]  # of the voxels in mm, (x, y, z) as in SimpleITK
    facts: dict[str, Any]  # what was drawn: ``kinds``, the sorted names of lesion kinds, slice thickness, noise, ...

    @cached_property
    def ct(self) -> Array:
        """The CT in HU, int16."""
        return np.rint(self.hu).astype(np.int16)


@dataclass
class Thorax:
    """A body without its lungs; arrays are float32 (z, y, x)."""

    hu: Array  # ideal HU
    lung: Array  # distance to the lungs in mm, negative inside
    walls: Array  # voxel fractions of the large airways with their walls
    lumens: Array  # without


def paint_thorax(rng: np.random.Generator, body: Anatomy, g: Frame) -> Thorax:
    """Paint a body but for its lungs."""
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
    return Thorax(hu, lung, walls, lumens)


def lungs_of(thorax: Thorax, g: Frame) -> Array:
    """The lungs of a body: uint8, 1 right, 2 left."""
    return np.where(thorax.lung < 0, np.where(g.x < 3, 1, 2), 0).astype(np.uint8)


def paint_lungs(
    rng: np.random.Generator,
    thorax: Thorax,
    tissue: Array,
    mask: Array,
    body: Anatomy,
    g: Frame,
    crowding: float = 1.0,
    leaf: int = 1,
) -> None:
    """Paint lungs, their tissue with vessels and bronchi (see `lung_trees`), and the airways into a body."""
    vessels, walls, lumens = inside.lung_trees(rng, mask, body, g, crowding, leaf)
    tissue += vessels * (body.blood - tissue)
    tissue += walls * np.maximum(SOFT - 200 - tissue, 0)
    tissue += lumens * (AIR + 30 - tissue)
    paint(thorax.hu, thorax.lung, tissue, g.spacing[0])
    thorax.hu += thorax.walls * (SOFT - thorax.hu)
    thorax.hu += thorax.lumens * (AIR + 10 - thorax.hu)


def make_phantom(
    rng: np.random.Generator,
    size: tuple[int, int, int] = (64, 128, 128),
    diseased: bool = True,
    patient: Patient | None = None,
    scanner: Site = SCANNER,
) -> Phantom:
    """Make one synthetic chest CT.

    Args:
        rng: the same state gives the same phantom, bit by bit.
        size: matrix (z, y, x), each at least 16. The field of view is 300..380 mm in plane and 240..320 mm along z
            for every matrix, so the size determines the voxel size.
        diseased: with lesions (at least 2 ml, one to about two dozen) or without.
        patient: lesion kinds of a diseased phantom; None draws one.
        scanner: of the scan.

    Returns:
        The CT in HU and its masks; the lungs have 2.5..6.5 l together.

    Raises:
        ValueError: a side of ``size`` is below 16.
    """
    size = tuple(int(n) for n in size)
    if len(size) != 3 or min(size) < SMALLEST_SIDE:
        raise ValueError(f"size is {size}; expected three numbers (z, y, x) of at least {SMALLEST_SIDE}")
    body = draw_anatomy(rng)
    g = draw_frame(rng, body, size)
    thorax = paint_thorax(rng, body, g)
    mask, tissue = lungs_of(thorax, g), inside.aerated_lung(rng, body, g)
    density, kinds = np.zeros(size, np.float32), ()
    if diseased:
        density, kinds = add_lesions(rng, tissue, mask, body, g, patient)
    paint_lungs(rng, thorax, tissue, mask, body, g)
    return scan(rng, thorax.hu, mask, density, g.spacing, {"kinds": list(kinds)}, scanner)


def scan(
    rng: np.random.Generator,
    hu: Array,
    lung: Array,
    density: Array,
    spacing: tuple[float, float, float],
    facts: dict[str, Any],
    scanner: Site,
    cut: float = LESION_DENSITY,
) -> Phantom:
    """Scan a body, which changes ``hu``; its lesion is where the density exceeds ``cut``."""
    protocol = draw_protocol(rng, scanner)
    facts = facts | {"slice_mm": round(protocol.slice_mm, 2), "noise_hu": round(protocol.noise, 1)}
    lesion = ((density > cut) & (lung > 0)).astype(np.uint8)
    return Phantom(acquire(rng, hu, spacing, protocol), lung, lesion, spacing, facts)


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

    The cases are healthy_000, .. without lesions (their lesion mask is empty), and diseased_000, ..; case k of a kind
    depends only on ``seed`` and k. Those whose three files exist are kept. With ``dicom``, each CT is a DICOM series in
    the folder OUTPUT/ct/<id>. Returns the ids, healthy cases first.
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
