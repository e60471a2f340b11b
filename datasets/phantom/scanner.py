"""The scanner: point spread and correlated noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from datasets.phantom.body import AIR
from datasets.phantom.fields import filtered_noise
from datasets.phantom.variety import Variety

Array = np.ndarray


def scan(rng: np.random.Generator, hu: Array, spacing: tuple[float, float, float], variety: Variety) -> Array:
    """Simulate the scanner: point spread, correlated noise and an error of the HU scale.

    Args:
        rng: random generator.
        hu: ideal HU, float32 (z, y, x); used as scratch memory.
        spacing: voxel size in mm, (x, y, z).
        variety: ranges of sharpness, noise and gain.

    Returns:
        int16 HU, -1024..3071.
    """
    step = np.array(spacing[::-1])
    sharp = rng.uniform(*variety.sharpness)
    sigma = np.maximum(np.array([0.4, 0.0, 0.0]), np.array([0.0, sharp, sharp]) / step)
    sigma[1:] = np.maximum(sigma[1:], 0.35)
    ndimage.gaussian_filter(hu, sigma, output=hu, truncate=3)
    sd = np.exp(rng.uniform(*np.log(variety.noise)))
    noise = sd * filtered_noise(rng, hu.shape, np.array([0.25, 0.55, 0.55]))
    noise *= 0.5 + 0.5 * np.clip((hu + 1000) / 300, 0, 1)  # few photons are lost outside the body
    if variety.gain:
        hu = AIR + (hu - AIR) * (1 + rng.uniform(-variety.gain, variety.gain))
    return np.clip(np.rint(hu + noise), -1024, 3071).astype(np.int16)
