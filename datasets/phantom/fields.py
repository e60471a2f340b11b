"""Correlated random fields: texture, lesion borders, warp, noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Array = np.ndarray

HALF_LENGTH_TO_SIGMA = 1 / (2 * np.sqrt(np.log(2)))
"""Sigma of the Gaussian that gives white noise an autocorrelation of one half at distance 1."""

_TINY = 1e-6


def _spline_weights(count: int, step: float, knot: float) -> Array:
    """Cubic B-spline weights, (count, knots), for samples every ``step`` mm and knots every ``knot`` mm."""
    at = np.arange(count) * step / knot + 1.5
    u = np.abs(at[:, None] - np.arange(int(at[-1]) + 3))
    near, far = 2 / 3 - u**2 + u**3 / 2, np.maximum(2 - u, 0) ** 3 / 6
    return np.where(u < 1, near, far).astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: tuple, spacing: tuple, knot: float) -> Array:
    """Draw a smooth random field of roughly unit SD: cubic B-splines with random coefficients.

    Args:
        rng: random generator.
        shape: (z, y, x).
        spacing: voxel size in mm, (x, y, z).
        knot: distance of the spline's knots in mm.

    Returns:
        float32.
    """
    weights = [_spline_weights(n, s, knot) for n, s in zip(shape, spacing[::-1], strict=True)]
    field = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    for matrix in weights:  # contracts the first axis and appends the new one, so the order is restored
        field = np.tensordot(field, matrix, axes=(0, 1))
    return field / 0.33  # SD of the tensor product of cubic B-splines, averaged over positions


def filtered_noise(rng: np.random.Generator, shape: tuple, sigma: Array) -> Array:
    """Draw white noise, filter it with a Gaussian of ``sigma`` voxels (z, y, x) and scale it to unit SD; float32."""
    field = rng.standard_normal(shape, dtype=np.float32)
    ndimage.gaussian_filter(field, sigma, output=field, truncate=3)
    return field / max(float(field.std()), _TINY)
