"""One synthetic chest CT with its masks, and folders of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from datasets.dicom_export import write_series
from datasets.phantom import body as parts
from datasets.phantom.anatomy import Anatomy, draw_anatomy
from datasets.phantom.frame import Frame, draw_frame
from datasets.phantom.lesions import LESION_DENSITY, Patient, add_stage_lesions, draw_patient
from datasets.phantom.lungs import aerated_lung, lung_distance, lung_trees
from datasets.phantom.shapes import fill_path, paint
from datasets.phantom.sites import Site, acquire, draw_protocol
from datasets.volumes import write_volume
from utils.progress import progress_bar

Array = np.ndarray

SMALLEST_SIDE = 16
"""Minimum number of voxels along each axis."""

SCANNER = Site((1.0, 1.0), (0.5, 0.8), (0.0, 0.0), (14.0, 40.0), 0.55, 0.0, 0.0)
"""Thin slices, and HU as they should be."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT and its masks; arrays are (z, y, x) in LPS order.

    Attributes:
        ct: int16 CT in HU, -1024..3071.
        lung: uint8, 0 outside, 1 right lung (low x), 2 left lung; includes the vessels and lesions inside.
        lesion: uint8, 1 where the lesion density exceeds one half, always inside the lung.
        spacing: voxel size in mm, (x, y, z) as in SimpleITK.
        kinds: sorted names in `FILLINGS` of the lesions; empty for a healthy phantom.
    """

    ct: Array
    lung: Array
    lesion: Array
    spacing: tuple[float, float, float]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Thorax:
    """A body without lung tissue; arrays are (z, y, x) on the frame's grid.

    Attributes:
        hu: HU of everything outside the lungs.
        lung: distance to the lungs in mm, negative inside.
        walls: voxel fractions of trachea and main bronchi with their walls.
        lumens: voxel fractions of the air in them.
    """

    hu: Array
    lung: Array
    walls: Array
    lumens: Array

    def labels(self, g: Frame) -> Array:
        """The lung mask: uint8, 0 outside, 1 right, 2 left."""
        return np.where(self.lung < 0, np.where(g.x < 3, 1, 2), 0).astype(np.uint8)


def paint_thorax(rng: np.random.Generator, body: Anatomy, g: Frame) -> Thorax:
    """Paint everything outside the lungs, and find the lungs.

    Args:
        rng: random generator.
        body: anatomy.
        g: voxel grid.
    """
    size = g.x.shape
    cavity, above = parts.cavity_distance(body, g), parts.height_above_diaphragm(body, g)
    hu = np.full(size, parts.AIR, np.float32)
    parts.paint_outside(rng, hu, body, g)
    paint(hu, cavity + 1, parts.FAT, g.spacing[0])
    parts.paint_abdomen(hu, cavity, above, body, g)
    heart = g.box(parts.HEART, parts.HEART_REACH)
    distance = np.maximum(parts.heart_distance(body, g, heart), 3 - above[heart])
    paint(hu[heart], distance, parts.SOFT, g.spacing[0])
    paint(hu[heart], distance + 9, body.blood, 4.0)
    vessels = np.zeros(size, np.float32)
    for points, radii in parts.great_vessels(body):
        np.maximum(vessels, fill_path(g, points, radii), out=vessels)
    hu += vessels * (body.blood - hu)
    walls, lumens = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for points, radii in parts.airway_paths(body):
        np.maximum(walls, fill_path(g, points, radii, grow=2.0), out=walls)
        np.maximum(lumens, fill_path(g, points, radii), out=lumens)

    lung = lung_distance(cavity, above, body, g, np.maximum(vessels, walls))
    parts.paint_spine(hu, body, g)
    parts.paint_sternum(hu, body, g)
    parts.paint_ribs(hu, cavity, body, g)
    parts.paint_shoulders(hu, cavity, body, g)
    return Thorax(hu, lung, walls, lumens)


def fill_lungs(thorax: Thorax, tissue: Array, trees: tuple[Array, Array, Array], blood: float, g: Frame) -> Array:
    """Put lung tissue with vessels and bronchi into a thorax.

    Args:
        thorax: body without lung tissue; its HU change.
        tissue: HU of the lungs with lesions; changes.
        trees: voxel fractions, see `lung_trees`.
        blood: HU of blood.
        g: voxel grid.

    Returns:
        The ideal HU of the whole body.
    """
    branches, rims, hollows = trees
    tissue += branches * (blood - tissue)
    tissue += rims * np.maximum(parts.SOFT - 200 - tissue, 0)
    tissue += hollows * (parts.AIR + 30 - tissue)
    hu = thorax.hu
    paint(hu, thorax.lung, tissue, g.spacing[0])
    hu += thorax.walls * (parts.SOFT - hu)
    hu += thorax.lumens * (parts.AIR + 10 - hu)
    return hu


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
    body = draw_anatomy(rng)
    g = draw_frame(rng, size, body)
    thorax = paint_thorax(rng, body, g)
    mask = thorax.labels(g)
    tissue = aerated_lung(rng, body, g)
    density, kinds = np.zeros(size, np.float32), ()
    if diseased:
        density, kinds = add_stage_lesions(rng, tissue, mask, body, g, patient or draw_patient(rng, stages=False))
    hu = fill_lungs(thorax, tissue, lung_trees(rng, mask, body, g), body.blood, g)
    ct = np.rint(acquire(rng, hu, g.spacing, scanner, draw_protocol(rng, scanner))).astype(np.int16)
    lesion = ((density > LESION_DENSITY) & (mask > 0)).astype(np.uint8)
    return Phantom(ct, mask, lesion, g.spacing, kinds)


def _to_image(array: Array, spacing: tuple[float, float, float]) -> sitk.Image:
    """Make an image with identity direction, centred at the world's origin."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin([-0.5 * (n - 1) * s for n, s in zip(array.shape[::-1], spacing, strict=True)])
    return image


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
    kinds = [("healthy", 0, k) for k in range(healthy)] + [("diseased", 1, k) for k in range(diseased)]
    names = []
    for kind, number, index in progress_bar(kinds, "making phantoms", unit="case", shown=progress):
        name = f"{kind}_{index:03d}"
        names.append(name)
        paths = [Path(output) / part / f"{name}.nii.gz" for part in ("ct", "lung", "lesion")]
        if dicom:
            paths[0] = paths[0].with_name(name)
        if all(path.exists() for path in paths):
            continue
        rng = np.random.default_rng(np.random.SeedSequence([seed, number, index]))
        phantom = make_phantom(rng, size, diseased=bool(number))
        for path, array in zip(paths, (phantom.ct, phantom.lung, phantom.lesion), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            image = _to_image(array, phantom.spacing)
            if dicom and path is paths[0]:
                write_series(image, path, name, f"{seed} {name} {size}")
            else:
                write_volume(image, path)
    return names
