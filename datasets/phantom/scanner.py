"""The scanner: where its voxels lie in the body, its slices, sharpness, noise and HU scale."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.phantom.body import AIR, Anatomy
from datasets.phantom.geometry import WARP_KNOT, WARP_SD, Frame, filtered_noise, smooth_field

Array = np.ndarray
Range = tuple[float, float]

EDGE_SIGMA = 1.3
"""Sigma in mm of the unsharp mask that enhances edges."""

_STEPS = 9  # samples of the mean over a slice


def draw_position(rng: np.random.Generator, body: Anatomy) -> tuple[Array, Array, Array]:
    """Draw field of view and position of the anatomical origin, (x, y, z) in mm, and the rotation, see `Frame`."""
    view = float(np.clip(2 * (body.half_width + body.wall) + rng.uniform(-10, 30), 300, 380))
    cover = float(np.clip((body.height + 70) * rng.uniform(1.0, 1.18), 240, 320))
    # The lungs extend from about -70 mm to the apex; the couch lies at the lower edge of the field of view.
    middle = 0.5 * (body.height - 68) + rng.uniform(-6, 6)
    centre = np.array([view / 2 + rng.uniform(-8, 8), view / 2 + rng.uniform(-22, -2), cover / 2 - middle])
    angle = np.deg2rad(rng.normal(0, 2.5))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.array([view, view, cover]), centre, rotation


def draw_frame(rng: np.random.Generator, body: Anatomy, size: tuple[int, int, int]) -> Frame:
    """Draw the frame of a whole scan of ``size`` (z, y, x)."""
    extent, centre, rotation = draw_position(rng, body)
    spacing = tuple((extent / size[::-1]).tolist())
    axes = [np.arange(n, dtype=np.float32) * s for n, s in zip(size, spacing[::-1], strict=True)]
    z, y, x = np.meshgrid(*(a - c for a, c in zip(axes, centre[::-1], strict=True)), indexing="ij", sparse=True)
    turned = (rotation[0, 0] * x + rotation[0, 1] * y, rotation[1, 0] * x + rotation[1, 1] * y, z)
    warped = [(axis + WARP_SD * smooth_field(rng, size, spacing, WARP_KNOT)).astype(np.float32) for axis in turned]
    return Frame(spacing, *warped, centre, rotation)


@dataclass(frozen=True)
class Site:
    """A scanner; ranges are uniform over scans."""

    slices: Range  # slice thickness and distance, in mm
    blur: Range  # sigma of the in-plane point spread, in mm
    edges: Range  # strength of the edge enhancement
    noise: Range  # SD in tissue, in HU; half of it in air
    correlation: float  # sigma of the noise's in-plane correlation, in pixels
    gain: float  # maximum relative error of the HU scale, relative to air
    offset: float  # maximum HU offset
    streaks: bool = False  # whether part of the noise forms streaks along x
    levels: int | None = None  # grey levels of the window of 1500 HU, for scans stored with 8 bits


SCANNER = Site((1.0, 1.0), (0.5, 0.8), (0.0, 0.0), (14.0, 40.0), 0.55, 0.0, 0.0)
"""Thin slices, and HU as they should be."""


@dataclass(frozen=True)
class Protocol:
    """What one scan is made with; see `Site`."""

    slice_mm: float
    blur: float
    edges: float
    noise: float
    gain: float
    offset: float
    correlation: float
    streaks: bool = False
    levels: int | None = None


def draw_protocol(rng: np.random.Generator, site: Site) -> Protocol:
    """Draw the protocol of one scan."""
    gain, offset = rng.uniform(-site.gain, site.gain), rng.uniform(-site.offset, site.offset)
    drawn = (float(rng.uniform(*values)) for values in (site.slices, site.blur, site.edges, site.noise))
    return Protocol(*drawn, gain, offset, site.correlation, site.streaks, site.levels)


def slice_matrices(count: int, step: float, thickness: float, start: float) -> tuple[Array, Array]:
    """Matrices of acquiring slices along z, and of interpolating between them.

    The planes are ``step`` mm apart, the slices ``thickness`` mm, from ``start``, at most 0. Returns the mean over each
    slice, (slices, count), and the linear interpolation of the slices at the planes, (count, slices).
    """

    def mean_over_slices(places: Array) -> Array:
        """Mean of the linear interpolant of the planes."""
        offsets = ((np.arange(_STEPS) + 0.5) / _STEPS - 0.5) * thickness
        at = np.clip((places[:, None] + offsets) / step, 0, count - 1)
        return np.maximum(0, 1 - np.abs(at[..., None] - np.arange(count))).mean(1)

    if thickness <= step:  # every plane is interpolated between thin slices close to it
        return mean_over_slices(np.arange(count) * step), np.eye(count)
    places = np.arange(start, (count - 1) * step + thickness, thickness)
    at = np.clip((np.arange(count) * step - start) / thickness, 0, len(places) - 1)
    return mean_over_slices(places), np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(places))))


def acquire(rng: np.random.Generator, hu: Array, spacing: tuple[float, float, float], protocol: Protocol) -> Array:
    """Simulate a scan of ideal HU, float32 (z, y, x), which are scratch memory; spacing (x, y, z) in mm.

    Returns float32 HU, -1024..3071.
    """
    pixel = np.array(spacing[1::-1])
    blur = np.maximum(protocol.blur / pixel, 0.35)
    ndimage.gaussian_filter(hu, (0.0, *blur), output=hu, truncate=3)
    if protocol.edges:
        hu += protocol.edges * (hu - ndimage.gaussian_filter(hu, (0.0, *(EDGE_SIGMA / pixel)), truncate=3))
    start = -rng.uniform(0, protocol.slice_mm)
    mean, back = slice_matrices(len(hu), spacing[2], protocol.slice_mm, start)
    slices = np.tensordot(mean.astype(np.float32), hu, 1)
    noise = filtered_noise(rng, slices.shape, np.array([0.0, protocol.correlation, protocol.correlation]))
    if protocol.streaks:
        noise = 0.8 * noise + 0.6 * filtered_noise(rng, slices.shape, np.array([0.0, 0.4, 6.0]))
    slices += protocol.noise * noise * (0.5 + 0.5 * np.clip((slices + 1000) / 300, 0, 1))
    slices = AIR + (slices - AIR) * (1 + protocol.gain) + protocol.offset
    if protocol.levels:
        step = 1500 / (protocol.levels - 1)
        slices = np.rint(slices / step) * step
    return np.clip(np.tensordot(back.astype(np.float32), np.rint(slices), 1), -1024, 3071)
