"""Synthetic scans for the pretrained segmenter: bodies painted once, and a scanner drawn for every sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from benchmarks.phantom.diseases import add_confluent_lesions, draw_patient
from benchmarks.phantom.make import Body, paint_body
from datasets.phantom.body import Anatomy
from datasets.phantom.geometry import Frame
from datasets.phantom.lesions import add_lesions
from datasets.phantom.scanner import Protocol, acquire
from datasets.window import map_window
from utils.files import atomic_write

Array = np.ndarray

CROP = (40, 160, 160)
"""Matrix of the crops, (z, y, x)."""

DENSITY_STEPS = 200
"""Lesion densities of 0..1 are stored as 0..this."""

MAX_SETS = 9
"""Maximum number of sets of lesions in a patient."""


def _several(
    rng: np.random.Generator, tissue: Array, mask: Array, body: Anatomy, g: Frame, sets: int, confluent: bool
) -> tuple[Array, tuple[str, ...]]:
    """Paint several sets of lesions of one patient, and confluent lesions among them."""
    tissue += rng.uniform(-50, 20)
    patient = draw_patient(rng)
    density, kinds = np.zeros(tissue.shape, np.float32), set()
    painters: list[Callable] = [partial(add_lesions, patient=patient)] * sets
    for painter in [*painters, *[add_confluent_lesions] * confluent]:
        new, found = painter(rng, tissue, mask, body, g)
        density, kinds = np.maximum(density, new), kinds | set(found)
    return density, tuple(sorted(kinds))


VARIETY = ("extended", "scanners", "lungs")
"""What a training can be run without: extended disease, many scanners, lungs as others draw them."""


def paint(seed: int, number: int, without: str | None = None) -> Body:
    """Paint the body ``number``: a quarter healthy, the others with one set of lesions to extended disease."""
    rng = np.random.default_rng([seed, number])
    shares = [0.24, 0.76, 0, 0, 0] if without == "extended" else [0.24, 0.22, 0.2, 0.26, 0.08]
    kind = rng.choice(["healthy", "one", "several", "confluent", "both"], p=shares)
    sets = {"healthy": 0, "one": 1, "several": int(rng.integers(2, MAX_SETS + 1)), "confluent": 0, "both": 2}[kind]
    disease = partial(_several, sets=sets, confluent=kind in ("confluent", "both"))
    confounders = float(rng.choice([0.0, 0.5, 0.75, 1.0], p=[0.15, 0.15, 0.2, 0.5]))
    return paint_body(rng, CROP, disease, confounders, grain=rng.uniform(5, 60), most_crowded=3.0)


def write_body(path: Path, seed: int, number: int, without: str | None = None) -> None:
    """Paint and write the body ``number``, unless it is there."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    body = paint(seed, number, without)
    hu = np.clip(np.rint(body.hu), -1024, 1500).astype(np.int16)
    density = np.rint(np.clip(body.density, 0, 1) * DENSITY_STEPS * (body.lung > 0)).astype(np.uint8)
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, hu=hu, lung=body.lung, density=density, spacing=np.array(body.spacing))


def _widen(rng: np.random.Generator, lung: Array) -> Array:
    """Lungs as others draw them: with the vessels of the hilum, and up to two pixels of what lies around."""
    square = np.ones((1, 3, 3))
    closed = ndimage.binary_closing(lung[:, ::2, ::2], square, iterations=int(rng.integers(1, 6)))
    closed = closed.repeat(2, 1).repeat(2, 2) | lung
    return ndimage.binary_dilation(closed, square, iterations=n) if (n := int(rng.integers(3))) else closed


class Sample(NamedTuple):
    """What S sees, in [-1, 1], the lesion (0 or 1) and the voxels that count (0 or 1); float32 (z, y, x)."""

    image: Array
    lesion: Array
    lung: Array


ONE_SCANNER = Protocol(slice_mm=1.5, blur=1.0, edges=0, noise=20, gain=0, offset=0, correlation=0.7)
"""About the middle of what `_draw_protocol` draws."""


def _draw_protocol(rng: np.random.Generator) -> Protocol:
    """Draw a protocol from wider ranges than those of `SITES`."""
    thickness = rng.choice([rng.uniform(1, 2), rng.uniform(2, 7), rng.uniform(7, 10)], p=[0.5, 0.3, 0.2])
    sharp = rng.random() < 0.35
    noise = float(np.exp(rng.uniform(np.log(3), np.log(70 if sharp else 35))))
    off = rng.random() < 0.5
    drawn = {
        "slice_mm": float(thickness),
        "blur": float(rng.uniform(0.3, 0.9) if sharp else rng.uniform(0.4, 2.0)),
        "edges": float(rng.uniform(0.2, 1.6) if sharp else 0),
        "noise": noise,
        "gain": float(rng.normal(0, 0.035) if off else 0),
        "offset": float(rng.normal(0, 22) if off else rng.uniform(-8, 8)),
    }
    levels = int(rng.choice([64, 128, 256])) if rng.random() < 0.35 else None
    correlation = float(rng.uniform(0.2, 1.3))
    return Protocol(**drawn, correlation=correlation, streaks=rng.random() < 0.15, levels=levels)


def _rescale_slices(rng: np.random.Generator, hu: Array) -> Array:
    """Another HU scale in each slice, as in sets whose slices were stored as separate 8-bit pictures."""
    count = len(hu)
    smooth = rng.uniform(0, 3)
    gain, offset = (ndimage.gaussian_filter1d(rng.standard_normal(count), smooth) for _ in range(2))
    gain, offset = (field / max(field.std(), 1e-6) for field in (gain, offset))
    gain, offset = 1 + rng.uniform(0, 0.04) * gain, rng.uniform(0, 30) * offset
    return -1000 + (hu + 1000) * gain[:, None, None] + offset[:, None, None]


def _annotate(rng: np.random.Generator, density: Array) -> Array:
    """A reader's mask of lesions: from tight to generous, half of them with smooth outlines."""
    density = density / np.float32(DENSITY_STEPS)
    if rng.random() < 0.5:
        width = rng.uniform(0.5, 2.5)
        density = ndimage.gaussian_filter(density, (width / 4, width, width), truncate=2)
    return density > rng.uniform(0.25, 0.65)


def _mask_by_threshold(hu: Array, lung: Array) -> Array:
    """The lungs as thresholds find them: without dense consolidation."""
    smooth = ndimage.gaussian_filter(hu, (0, 1, 1))
    return ndimage.binary_closing(lung & (smooth < -300), np.ones((1, 3, 3)), iterations=2) & lung


def draw_sample(rng: np.random.Generator, path: Path, size: tuple[int, int, int], without: str | None = None) -> Sample:
    """Scan a sub-volume of a body with a random scanner.

    Args:
        rng: random generator.
        path: file of the body.
        size: (z, y, x) of the sub-volume.
        without: of `VARIETY`; one scanner is `ONE_SCANNER`, and lungs are those painted.
    """
    with np.load(path) as stored:
        hu, lung, density, spacing = (stored[name] for name in ("hu", "lung", "density", "spacing"))
    lesion = density > DENSITY_STEPS / 2
    inside = lesion if lesion.any() and rng.random() < 0.7 else lung > 0
    spots = np.flatnonzero(inside)
    centre = np.unravel_index(spots[rng.integers(len(spots))], hu.shape)
    where = []
    for middle, n, whole in zip(centre, size, hu.shape, strict=True):
        start = int(np.clip(middle - rng.integers(n // 4, 3 * n // 4 + 1), 0, whole - n))
        where.append(slice(start, start + n))
    planes = where[1:]
    hu = hu[:, planes[0], planes[1]].astype(np.float32)  # all slices, as thick slices are means of several
    lung = lung[tuple(where)] > 0
    lesion = _annotate(rng, density[:, planes[0], planes[1]])[where[0]]
    many = without != "scanners"
    protocol = _draw_protocol(rng) if many else ONE_SCANNER
    scale = rng.uniform(0.85, 1.15)  # small and large patients
    hu = acquire(rng, hu, tuple(spacing * scale), protocol)[where[0]]
    if many and rng.random() < 0.3:
        hu = _rescale_slices(rng, hu)
    if many and rng.random() < 0.3:
        hu = np.clip(hu, rng.uniform(-1400, -950), rng.uniform(60, 250))
    as_others = _mask_by_threshold(hu, lung) if rng.random() < 0.12 else _widen(rng, lung)
    region = lung if without == "lungs" else as_others
    arrays = (map_window(hu) / 127.5 - 1, lesion & region, region)
    step = rng.choice([-1, 1])
    return Sample(*(np.ascontiguousarray(array[:, :, ::step], np.float32) for array in arrays))
