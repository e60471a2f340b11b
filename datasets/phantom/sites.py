"""Scanners: sites that differ in slice thickness, sharpness, noise and HU scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.phantom.body import AIR
from datasets.phantom.fields import filtered_noise

Array = np.ndarray
Range = tuple[float, float]

EDGE_SIGMA = 1.3
"""Sigma in mm of the unsharp mask that enhances edges."""

_STEPS = 9  # samples of the mean over a slice


@dataclass(frozen=True)
class Site:
    """A scanner and its protocol; ranges are uniform over scans.

    Attributes:
        slices: slice thickness and distance, in mm.
        blur: sigma of the in-plane point spread, in mm.
        edges: strength of the edge enhancement.
        noise: SD of the noise in tissue, in HU; half of it in air.
        correlation: sigma of the noise's in-plane correlation, in pixels.
        gain: maximum relative error of the HU scale, relative to air.
        offset: maximum HU offset.
        streaks: whether part of the noise forms streaks along x.
        levels: grey levels of the window of 1500 HU, for scans stored with 8 bits; None for HU.
    """

    slices: Range
    blur: Range
    edges: Range
    noise: Range
    correlation: float
    gain: float
    offset: float
    streaks: bool = False
    levels: int | None = None


SITES: Mapping[str, Site] = {
    "A": Site((1.0, 1.5), (0.65, 0.9), (0.0, 0.0), (12.0, 22.0), 0.9, 0.01, 10.0),
    "B": Site((5.0, 5.0), (0.35, 0.5), (0.5, 1.0), (35.0, 70.0), 0.35, 0.01, 15.0),
    "C": Site((8.0, 10.0), (0.5, 0.8), (0.0, 0.3), (25.0, 50.0), 0.6, 0.015, 20.0, streaks=True),
    "D": Site((3.0, 7.0), (0.8, 1.3), (0.0, 0.3), (10.0, 25.0), 0.8, 0.08, 40.0, levels=256),
}
"""To add a site, add a row."""


@dataclass(frozen=True)
class Protocol:
    """The protocol of one scan: values drawn from the ranges of a `Site`."""

    slice_mm: float
    blur: float
    edges: float
    noise: float
    gain: float
    offset: float


def draw_protocol(rng: np.random.Generator, site: Site) -> Protocol:
    """Draw the protocol of one scan."""
    gain, offset = rng.uniform(-site.gain, site.gain), rng.uniform(-site.offset, site.offset)
    ranges = (site.slices, site.blur, site.edges, site.noise)
    return Protocol(*(float(rng.uniform(*values)) for values in ranges), float(gain), float(offset))


def slice_matrices(count: int, step: float, thickness: float, start: float) -> tuple[Array, Array]:
    """Matrices of acquiring slices along z, and of interpolating between them.

    Args:
        count: number of planes.
        step: distance of the planes in mm.
        thickness: slice thickness and distance in mm.
        start: position of the first slice in mm, at most 0.

    Returns:
        Mean over each slice, (slices, count), and linear interpolation of the slices at the planes, (count, slices).
    """
    if thickness <= step:  # every plane is interpolated between thin slices close to it
        return _interpolation(np.arange(count) * step, count, step, thickness), np.eye(count)
    places = np.arange(start, (count - 1) * step + thickness, thickness)
    mean = _interpolation(places, count, step, thickness)
    at = np.clip((np.arange(count) * step - start) / thickness, 0, len(places) - 1)
    return mean, np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(places))))


def _interpolation(places: Array, count: int, step: float, thickness: float) -> Array:
    """Mean of the linear interpolant of planes over slices at ``places``."""
    offsets = ((np.arange(_STEPS) + 0.5) / _STEPS - 0.5) * thickness
    at = np.clip((places[:, None] + offsets) / step, 0, count - 1)
    return np.maximum(0, 1 - np.abs(at[..., None] - np.arange(count))).mean(1)


def acquire(
    rng: np.random.Generator, hu: Array, spacing: tuple[float, float, float], site: Site, protocol: Protocol
) -> Array:
    """Simulate a scan.

    Args:
        rng: random generator.
        hu: ideal HU on the planes of the crop, float32 (z, y, x); used as scratch memory.
        spacing: voxel size in mm, (x, y, z).
        site: the scanner.
        protocol: drawn for this scan.

    Returns:
        float32 HU, -1024..3071.
    """
    pixel = np.array(spacing[1::-1])
    blur = np.maximum(protocol.blur / pixel, 0.35)
    ndimage.gaussian_filter(hu, (0.0, *blur), output=hu, truncate=3)
    if protocol.edges:
        hu += protocol.edges * (hu - ndimage.gaussian_filter(hu, (0.0, *(EDGE_SIGMA / pixel)), truncate=3))
    start = -rng.uniform(0, protocol.slice_mm)
    mean, back = slice_matrices(len(hu), spacing[2], protocol.slice_mm, start)
    slices = np.tensordot(mean.astype(np.float32), hu, 1)
    noise = filtered_noise(rng, slices.shape, np.array([0.0, site.correlation, site.correlation]))
    if site.streaks:
        noise = 0.8 * noise + 0.6 * filtered_noise(rng, slices.shape, np.array([0.0, 0.4, 6.0]))
    slices += protocol.noise * noise * (0.5 + 0.5 * np.clip((slices + 1000) / 300, 0, 1))
    slices = AIR + (slices - AIR) * (1 + protocol.gain) + protocol.offset
    if site.levels:
        step = 1500 / (site.levels - 1)
        slices = np.rint(slices / step) * step
    return np.clip(np.tensordot(back.astype(np.float32), np.rint(slices), 1), -1024, 3071)
