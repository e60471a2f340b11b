"""The lungs: shape, aerated tissue, vessels and bronchi."""

import numpy as np

from datasets.phantom.body import HEART, HEART_REACH, Anatomy, heart_distance, mediastinum_distance
from datasets.phantom.geometry import (
    Frame,
    ellipse,
    ellipsoid,
    fill_tubes,
    filtered_noise,
    grow_tree,
    intersect,
    smooth_field,
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
