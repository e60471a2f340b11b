"""Extended disease: confluent lesions that fill a given share of the lungs, mostly peripheral, posterior and basal."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from datasets.phantom.anatomy import Anatomy
from datasets.phantom.body import SOFT
from datasets.phantom.fields import HALF_LENGTH_TO_SIGMA, filtered_noise, smooth_field
from datasets.phantom.frame import Frame

Array = np.ndarray

LOADS = (0.01, 0.7)
"""Range of the share of the lungs; uniform in half of the patients, log-uniform in the others."""


def _above(field: Array, inside: Array, share: float, blur: float) -> Array:
    """Sigmoid of a field, one half where the field is exceeded in ``share`` of the voxels ``inside``."""
    level = np.quantile(field[inside], 1 - share)
    return 1 / (1 + np.exp(np.clip((level - field) / blur, -20, 20)))


def add_confluent_lesions(
    rng: np.random.Generator, tissue: Array, mask: Array, body: Anatomy, g: Frame
) -> tuple[Array, tuple[str, ...]]:
    """Paint confluent ground glass, with thick septa and consolidated parts in some patients.

    Args:
        rng: random generator.
        tissue: HU of the lungs, (z, y, x); changed in place.
        mask: lungs, non-zero inside.
        body: anatomy.
        g: voxel grid.

    Returns:
        Lesion density, 0..1, and the kinds that were painted.
    """
    shape, spacing, inside = tissue.shape, np.array(g.spacing[::-1]), mask > 0
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1].astype(np.float32)
    lumps = smooth_field(rng, shape, g.spacing, rng.uniform(12, 45))
    fray = smooth_field(rng, shape, g.spacing, rng.uniform(5, 8))
    place = (
        rng.uniform(0, 2.5) * np.exp(-depth / rng.uniform(6, 30))
        + rng.uniform(-0.2, 1.5) * g.y / body.half_depth
        - rng.uniform(-0.4, 1.5) * g.z / body.height
        + rng.uniform(-0.5, 0.5) * np.sign(g.x)
        + rng.uniform(0.5, 1.5) * lumps
        + rng.uniform(0.05, 0.25) * fray
    )
    load = rng.uniform(*LOADS) if rng.random() < 0.5 else float(np.exp(rng.uniform(*np.log(LOADS))))
    density = _above(place, inside, load, rng.uniform(0.03, 0.3))
    if rng.random() < 0.15:  # the subpleural lung may be spared
        density *= np.clip(depth / rng.uniform(3, 7) - 0.5, 0, 1)
    texture = filtered_noise(rng, shape, HALF_LENGTH_TO_SIGMA * np.exp(rng.uniform(np.log(1.2), np.log(9))) / spacing)
    clouds = smooth_field(rng, shape, g.spacing, rng.uniform(12, 30))
    share = np.exp(rng.uniform(np.log(0.08), np.log(0.6))) * (
        1 + rng.uniform(0.08, 0.5) * texture + rng.uniform(0.1, 0.35) * clouds
    )
    kinds = ["ground glass"]
    if rng.random() < 0.35:
        share += rng.uniform(0.15, 0.4) * (np.exp(-((fray / 0.3) ** 2)) - 0.3)
        kinds = ["crazy paving"]
    if rng.random() < 0.5:
        core = place + rng.uniform(0.4, 1.2) * smooth_field(rng, shape, g.spacing, rng.uniform(10, 25))
        solid = _above(core, inside & (density > 0.5), rng.uniform(0.05, 0.7), rng.uniform(0.05, 0.25))
        share += solid * np.maximum(rng.uniform(0.7, 1.0) * (1 + rng.uniform(0.05, 0.35) * texture) - share, 0)
        kinds.append("consolidation")
    tissue += density * np.clip(share, 0.03, 1) * np.maximum(SOFT - tissue, 0)
    return density.astype(np.float32), tuple(sorted(kinds))
