"""Correlated random fields: texture, lesion borders, warp, noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Array = np.ndarray

HALF_LENGTH_TO_SIGMA = 1 / (2 * np.sqrt(np.log(2)))
"""Sigma of the Gaussian that gives white noise an autocorrelation of one half at distance 1."""

_TINY = 1e-6


def spline_weights(at: Array, knots: int) -> Array:
    """Cubic B-spline weights, (len(at), knots), at positions in units of the knot distance; float32."""
    u = np.abs(at[:, None] - np.arange(knots))
    near, far = 2 / 3 - u**2 + u**3 / 2, np.maximum(2 - u, 0) ** 3 / 6
    return np.where(u < 1, near, far).astype(np.float32)


def spline_field(coefficients: Array, weights: list[Array]) -> Array:
    """Evaluate a tensor-product spline, scaled to roughly unit SD for coefficients of unit SD.

    Args:
        coefficients: (knots z, knots y, knots x).
        weights: weights of the samples along z, y and x, see `spline_weights`.
    """
    field = coefficients
    for matrix in weights:  # contracts the first axis and appends the new one, so the order is restored
        field = np.tensordot(field, matrix, axes=(0, 1))
    return field / 0.33  # SD of the tensor product of cubic B-splines, averaged over positions


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
    weights = []
    for count, step in zip(shape, spacing[::-1], strict=True):
        at = np.arange(count) * step / knot + 1.5
        weights.append(spline_weights(at, int(at[-1]) + 3))
    return spline_field(rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32), weights)


def filtered_noise(rng: np.random.Generator, shape: tuple, sigma: Array) -> Array:
    """Draw white noise, filter it with a Gaussian of ``sigma`` voxels (z, y, x) and scale it to unit SD; float32."""
    field = rng.standard_normal(shape, dtype=np.float32)
    ndimage.gaussian_filter(field, sigma, output=field, truncate=3)
    return field / max(float(field.std()), _TINY)
