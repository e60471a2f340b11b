"""Synthetic raw chest CTs in HU, healthy or with COVID-19-like lesions, with exact lung and lesion masks.

No public COVID-19 CT can be shipped with the code, so tests, examples and timing use these phantoms. They are
schematic: good for proving that the path from a raw scan to a mask works and that training learns
something, not for stating an accuracy on patients.

Everything is built from distance-like implicit functions (mm, negative inside) on coordinates that are
rotated and gently warped, from trees of tapering tubes (vessels, bronchi), and from correlated random
fields (texture, lesion borders, noise). The "anatomical" frame has x to the patient's left, y to the back,
z to the head, and z = 0 at the top of the right diaphragm dome.

The command writes OUTPUT/ct, OUTPUT/lung and OUTPUT/lesion, each with <id>.nii.gz; the ids are healthy_000,
healthy_001, .. and diseased_000, .. Cases that are there already are kept. The same seed gives the same case k
however many are made.

Examples:
  python -m datasets.phantom phantoms --healthy 4 --diseased 8
  python -m datasets.phantom phantoms --healthy 0 --diseased 1 --size 200 512 512 --seed 7
  python -m datasets.phantom phantoms --healthy 1 --diseased 1 --dicom
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from datasets.io.dicom_export import write_series
from datasets.io.volume import write_volume
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import SettingsError
from utils.manifest import recording
from utils.progress import progress_bar

# CT numbers in HU of what the phantom is made of.
AIR, FOAM, COUCH_SHELL = -1000.0, -880.0, -350.0
SKIN, FAT, MUSCLE, SOFT = 10.0, -100.0, 50.0, 40.0
LIVER, SPLEEN, STOMACH = 60.0, 50.0, 15.0
CORTEX, MARROW, CARTILAGE, DISC = 650.0, 180.0, 95.0, 80.0
BLOOD_PLAIN, BLOOD_CONTRAST = 42.0, 230.0
FISSURE_RISE = 110.0

# Per kind of lesion: mean HU (a range over lesions), SD of its texture, and the distance in mm at which its
# autocorrelation falls to one half. Chosen so that what comes out of the scan (borders, vessels and point spread
# included) agrees with slices of COVID-19 patients: ground glass -520..-300 HU, SD 120-170; crazy
# paving -240, SD 155; consolidation -280..-100, SD 190-230; half-lengths of 2-4 mm.
LESION_KINDS = {
    "ground glass": ((-510.0, -320.0), 150.0, 2.1),
    "mixed": ((-490.0, -330.0), 150.0, 2.1),
    "crazy paving": ((-250.0, -130.0), 150.0, 2.8),
    "consolidation": ((-120.0, 10.0), 310.0, 2.7),
}
LESION_SHARES = (0.45, 0.25, 0.12, 0.18)
CONSOLIDATION_LIMIT = 70.0  # HU; airless lung is not denser than soft tissue
LESION_FRACTION = 0.5  # a voxel belongs to the lesion where its lesion density exceeds this
MIN_LESION_ML = 2.0  # a diseased phantom has at least this much lesion (60 voxels at 64 x 128 x 128)
WARP_KNOT, WARP_SD = 70.0, 4.0  # mm
HALF_LENGTH_TO_SIGMA = 1 / (2 * np.sqrt(np.log(2)))  # of white noise filtered with a Gaussian
MURRAY_EXPONENT = 2.6  # a parent vessel's radius grows with (number of end branches)^(1 / this)
TINY = 1e-6
SMALLEST_SIDE = 16  # voxels

Array = np.ndarray


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT and its masks; arrays are (z, y, x) in LPS order.

    Attributes:
        ct: int16 CT in HU, -1024..3071.
        lung: uint8, 0 outside, 1 right lung (low x), 2 left lung; vessels and lesions inside count as lung.
        lesion: uint8, 1 where the lesion density exceeds one half, always inside the lung.
        spacing: voxel size in mm, (x, y, z) as in SimpleITK.
        kinds: names in `LESION_KINDS` of the lesions that were put in, sorted; empty for a healthy one.
    """

    ct: Array
    lung: Array
    lesion: Array
    spacing: tuple[float, float, float]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variety:
    """What differs between scanners and patients beside the anatomy.

    Attributes:
        shares: of the kinds of lesion, in the order of `LESION_KINDS`; they add up to 1.
        sharpness: range of the point spread's sigma in plane, in mm.
        noise: range of the noise's SD in HU.
        dependent: most HU by which healthy lung at the pleura of the back is denser, as in a patient who lies and
            breathes shallowly; it falls off within a centimetre and can be taken for ground glass.
        gain: most relative error of the scanner's HU scale around that of air.
    """

    shares: tuple[float, ...] = LESION_SHARES
    sharpness: tuple[float, float] = (0.5, 0.8)
    noise: tuple[float, float] = (14.0, 40.0)
    dependent: float = 0.0
    gain: float = 0.0


PLAIN = Variety()


@dataclass(frozen=True)
class Anatomy:
    """The measures of one body, in mm and HU."""

    height: float  # of the lungs from the right diaphragm dome to the apex
    half_width: float  # of the chest cavity
    half_depth: float
    wall: float  # skin to cavity at the side
    fat: float  # subcutaneous
    heart: float  # scale
    left_drop: float  # of the left dome below the right one
    breast: float  # thickness; 0 for a flat chest
    pitch: float  # of ribs and vertebrae
    blood: float  # HU
    parenchyma: float  # HU of aerated lung at mid-height without vessels
    gravity: float  # HU from the front to the back of the lung

    def profile(self, z: Array) -> tuple[Array, Array, Array]:
        """Half-width, half-depth and centre y (mm) of the chest cavity at height z."""
        t = np.clip(z / self.height, -0.6, 1.0)
        up = np.maximum(t, 0)
        width = self.half_width * (1 - 0.08 * up - 0.26 * up**4 - 0.10 * np.minimum(t, 0) ** 2)
        depth = self.half_depth * (1 - 0.06 * up - 0.36 * up**3)
        return width, depth, 26 * up**2 - 4

    def spine_y(self, z: Array) -> Array:
        """Height y (mm, to the back) of the vertebral bodies' centre at height z."""
        _, depth, centre = self.profile(z)
        return centre + depth - 20


@dataclass(frozen=True)
class Grid:
    """The voxel grid: anatomical coordinates of every voxel centre (float32, (z, y, x)) and the way back."""

    spacing: tuple[float, float, float]  # x, y, z
    x: Array
    y: Array
    z: Array
    centre: Array  # scan position (x, y, z) in mm from the first voxel of the anatomical origin
    rotation: Array  # (2, 2), scan to anatomy in the axial plane

    def box(self, centre: tuple[float, float, float], reach: float) -> tuple[slice, slice, slice]:
        """Slices of the voxels within ``reach`` mm (plus a margin for the warp) of an anatomical point."""
        middle, reach = self.to_scan(np.asarray([centre], float))[0], reach + 2 * WARP_SD
        return tuple(
            slice(max(0, int((m - reach) / s)), max(0, int((m + reach) / s) + 2))
            for m, s in zip(middle[::-1], self.spacing[::-1], strict=True)
        )

    def strip(self, half_width: float) -> tuple[slice, slice, slice]:
        """Slices of the sagittal planes that come within ``half_width`` mm of the body's middle."""
        planes = np.flatnonzero((np.abs(self.x[::4, ::4]) < half_width).any((0, 1)))
        return slice(None), slice(None), slice(planes[0], planes[-1] + 1)

    def to_scan(self, points: Array) -> Array:
        """Scan positions (mm from the first voxel) of anatomical points; both (n, 3) as x, y, z."""
        scan = np.array(points, float)
        scan[:, :2] = scan[:, :2] @ self.rotation
        scan += self.centre
        # One step of fixed-point iteration undoes the slowly varying warp to well under a millimetre.
        last = np.array(self.x.shape) - 1
        k, j, i = np.clip(np.rint(scan / self.spacing)[:, ::-1].astype(int), 0, last).T
        inside = ((scan >= 0) & (scan / self.spacing <= last[::-1])).all(1)
        error = points - np.stack([self.x[k, j, i], self.y[k, j, i], self.z[k, j, i]], 1)
        error -= self._offset(scan, (k, j, i))
        error[:, :2] = error[:, :2] @ self.rotation
        return scan + error * inside[:, None]

    def _offset(self, scan: Array, index: tuple[Array, Array, Array]) -> Array:
        """Anatomical vector from the centres of the voxels ``index`` (z, y, x) to the scan positions."""
        offset = scan - np.stack(index[::-1], 1) * self.spacing
        offset[:, :2] = offset[:, :2] @ self.rotation.T
        return offset


# ---------------------------------------------------------------------------------------- random fields


def _spline_weights(count: int, step: float, knot: float) -> Array:
    """Cubic B-spline weights (count, knots) for samples every ``step`` mm and knots every ``knot`` mm."""
    at = np.arange(count) * step / knot + 1.5
    u = np.abs(at[:, None] - np.arange(int(at[-1]) + 3))
    near, far = 2 / 3 - u**2 + u**3 / 2, np.maximum(2 - u, 0) ** 3 / 6
    return np.where(u < 1, near, far).astype(np.float32)


def _smooth_field(rng: np.random.Generator, shape: tuple, spacing: tuple, knot: float) -> Array:
    """A random field of roughly unit SD that varies over ``knot`` mm: B-splines on random coefficients."""
    weights = [_spline_weights(n, s, knot) for n, s in zip(shape, spacing[::-1], strict=True)]
    field = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    for matrix in weights:  # contracts the first axis and appends the new one: the order comes out right
        field = np.tensordot(field, matrix, axes=(0, 1))
    return field / 0.33  # SD of the tensor product of cubic B-splines, averaged over positions


def _noise(rng: np.random.Generator, shape: tuple, sigma: Array) -> Array:
    """White noise filtered with a Gaussian of ``sigma`` voxels (z, y, x), with unit SD."""
    field = rng.standard_normal(shape, dtype=np.float32)
    ndimage.gaussian_filter(field, sigma, output=field, truncate=3)
    return field / max(float(field.std()), TINY)


# ------------------------------------------------------------------------------------ implicit functions


def _ellipse(x: Array, y: Array, a: Array, b: Array, power: float = 2.0) -> Array:
    """Distance (mm, along the ray to the centre) to a superellipse with half-axes a and b."""
    if power == 2:
        rho = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    else:
        rho = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / (rho + TINY))


def _ellipsoid(x: Array, y: Array, z: Array, axes: tuple[float, float, float]) -> Array:
    """Approximate distance (mm) to an ellipsoid at the origin."""
    rho = np.sqrt((x / axes[0]) ** 2 + (y / axes[1]) ** 2 + (z / axes[2]) ** 2)
    return np.sqrt(x * x + y * y + z * z) * (1 - 1 / (rho + TINY))


def _join(a: Array, b: Array, round_mm: float = 5.0) -> Array:
    """Intersection of two shapes with a rounded edge."""
    return 0.5 * (a + b + np.sqrt((a - b) ** 2 + round_mm**2))


def _step(x: Array, low: float, high: float) -> Array:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _paint(hu: Array, distance: Array, value: Array | float, width: float) -> None:
    """Blend ``value`` into ``hu`` inside a shape; ``width`` mm of its border are partial volume."""
    hu += np.clip(0.5 - distance / width, 0, 1) * (value - hu)


# ------------------------------------------------------------------------------------------------ tubes


def _fill_tubes(grid: Grid, start: Array, end: Array, r_start: Array, r_end: Array) -> Array:
    """Fraction of every voxel (z, y, x; 0..1) taken up by straight tapering tubes.

    Points are spread evenly through the tubes and each adds its share of the tube's volume to the voxel it
    falls into, so that tubes far thinner than a voxel get the right partial volume.

    Args:
        grid: the voxel grid.
        start: (n, 3) scan positions x, y, z in mm.
        end: (n, 3).
        r_start: (n,) radii in mm.
        r_end: (n,).
    """
    pitch = 0.6 * min(grid.spacing)
    axis = end - start
    length = np.linalg.norm(axis, axis=1) + TINY
    axis /= length[:, None]
    side = np.cross(axis, np.where(np.abs(axis[:, :1]) < 0.7, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    side /= np.linalg.norm(side, axis=1)[:, None]
    rings = np.maximum(1, np.ceil(length / pitch)).astype(int)
    tube = np.repeat(np.arange(len(length)), rings)
    along = (np.arange(len(tube)) - np.repeat(np.cumsum(rings) - rings, rings) + 0.5) / rings[tube]
    radius = r_start[tube] + along * (r_end - r_start)[tube]
    dots = np.maximum(1, np.ceil(np.pi * radius**2 / pitch**2)).astype(int)
    ring = np.repeat(np.arange(len(tube)), dots)
    number = np.arange(len(ring)) - np.repeat(np.cumsum(dots) - dots, dots)
    # A sunflower pattern covers a disc evenly; turning it from ring to ring avoids columns of dots.
    out = radius[ring] * np.sqrt((number + 0.5) / dots[ring])
    angle = number * 2.39996 + ring
    up = np.cross(axis, side)
    tube_of = tube[ring]
    points = start[tube_of] + (along * length[tube])[ring][:, None] * axis[tube_of]
    points += (out * np.cos(angle))[:, None] * side[tube_of] + (out * np.sin(angle))[:, None] * up[tube_of]
    weight = (length / rings)[tube_of] * (np.pi * radius**2 / dots)[ring] / np.prod(grid.spacing)
    index = np.rint(points / grid.spacing)[:, ::-1].astype(int)
    shape = grid.x.shape
    keep = ((index >= 0) & (index < shape)).all(1)
    filled = np.zeros(shape, np.float32)
    np.add.at(filled.reshape(-1), np.ravel_multi_index(index[keep].T, shape), weight[keep].astype(np.float32))
    return np.minimum(filled, 1)


def _path(grid: Grid, points: list, radii: list | float, grow: float = 0.0) -> Array:
    """Voxel fractions of a tube through anatomical ``points`` (x, y, z in mm) with the given radii."""
    scan = grid.to_scan(np.asarray(points, float))
    radii = np.broadcast_to(np.asarray(radii, float), len(scan)) + grow
    return _fill_tubes(grid, scan[:-1], scan[1:], radii[:-1], radii[1:])


def _grow_tree(rng: np.random.Generator, root: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Branch from ``root`` to every target point by halving the targets again and again.

    Returns:
        start and end points (n, 3) of the branches and how many targets lie beyond each (n,).
    """
    starts, ends, counts = [], [], []
    todo = [(root, targets)]
    while todo:
        at, goals = todo.pop()
        heading = goals.mean(0) - at
        share = 1.0 if len(goals) == 1 else rng.uniform(0.25, 0.5)
        stop = at + share * heading
        if len(goals) > 1:
            stop = stop + rng.normal(0, 0.07 * np.linalg.norm(heading), 3)
            spread = goals - goals.mean(0)
            along = spread @ np.linalg.eigh(spread.T @ spread)[1][:, -1]
            order, cut = np.argsort(along), int(np.ceil(len(goals) * rng.uniform(0.25, 0.75)))
            cut = min(max(cut, 1), len(goals) - 1)
            todo += [(stop, goals[order[:cut]]), (stop, goals[order[cut:]])]
        starts.append(at)
        ends.append(stop)
        counts.append(len(goals))
    return np.array(starts), np.array(ends), np.array(counts, float)


# ------------------------------------------------------------------------------------- body and skeleton


def _cavity(body: Anatomy, g: Grid) -> Array:
    """Distance to the inside of the rib cage: a tapering tube closed by a dome over each lung's apex."""
    width, depth, centre = body.profile(g.z)
    tube = _ellipse(g.x, g.y - centre, width, depth, 2.4)
    reach = ((np.abs(g.x) - 50) / 48) ** 2 + ((g.y - centre - 4) / 52) ** 2
    dome = (g.z - body.height + 52 * reach) * 0.6
    return _join(tube, dome, 12)


def _paint_outside(rng: np.random.Generator, hu: Array, body: Anatomy, g: Grid) -> None:
    """Couch, skin, subcutaneous fat, muscle layers."""
    back = body.half_depth + 0.75 * body.wall + 22
    scan_y, scan_x = np.meshgrid(
        np.arange(hu.shape[1]) * g.spacing[1] - g.centre[1],
        np.arange(hu.shape[2]) * g.spacing[0] - g.centre[0],
        indexing="ij",
    )
    couch = np.abs(scan_y - back - 16 + scan_x**2 / 2200) - 9
    flat = np.full(couch.shape, AIR, np.float32)
    _paint(flat, couch, COUCH_SHELL, g.spacing[0])
    _paint(flat, couch + 3, FOAM, g.spacing[0])
    hu += flat - AIR

    taper = 1 - 0.45 * _step(g.z, body.height - 20, body.height + 60)
    width, depth = (body.half_width + body.wall) * taper, (body.half_depth + 0.75 * body.wall + 12) * taper
    skin = _ellipse(g.x, g.y - 3 - 0.7 * body.profile(g.z)[2], width, depth, 2.5)
    shoulder = _ellipsoid(g.x, g.y - 22, g.z - body.height - 8, (220, 62 + 0.3 * body.wall, 85))
    neck = _ellipse(g.x, g.y - 18, 62, 64)
    skin = -_join(-skin, -np.minimum(shoulder, neck + np.maximum(body.height - g.z, 0)), 25)
    muscle = skin + body.fat * (1 + 0.5 * np.clip(-g.y / 100, -0.6, 1))
    if body.breast:
        bulge = (np.abs(g.x) - 0.6 * body.half_width, g.y + body.half_depth + 8, g.z - 30)
        skin = -_join(-skin, -_ellipsoid(*bulge, (62, body.breast, 60)), 20)
    _paint(hu, skin, SKIN, g.spacing[0])
    _paint(hu, skin + 2, FAT, g.spacing[0])
    _paint(hu, muscle, MUSCLE, 2 * g.spacing[0])
    # Thin fat planes part the muscles: sheets where a smooth field changes sign.
    sheet = 3 * np.abs(_smooth_field(rng, hu.shape, g.spacing, 28)) / 0.3 - 1.2
    _paint(hu, np.maximum(muscle + 4, sheet), 0.7 * FAT, 2 * g.spacing[0])


def _paint_ribs(hu: Array, cavity: Array, body: Anatomy, g: Grid) -> None:
    """Ribs in a shell around the cavity, falling from the spine to the front where they turn to cartilage."""
    near = (cavity > -4) & (cavity < 15)
    x, y, z, out = g.x[near], g.y[near], g.z[near], cavity[near]
    values = hu[near]
    _, depth, centre = body.profile(z)
    front = np.clip((centre + depth + 6 - y) / (2 * depth), 0, 1)
    along = z + 95 * front - 40 * _step(front, 0.8, 1.05) - body.height
    rib = (along % body.pitch) - body.pitch / 2
    distance = _ellipse(rib, out - 6, 7.5, 4.5)
    distance = np.where((along < -2) & (np.abs(x) > 14), distance, 9.0)
    bone = np.where(front > 0.8, CARTILAGE, CORTEX)
    _paint(values, distance, bone, g.spacing[0])
    _paint(values, distance + 2.2, np.where(front > 0.8, CARTILAGE, MARROW), g.spacing[0])
    hu[near] = values
    # Fat between the layers of muscle outside the ribs.
    near = (cavity > 12) & (cavity < 20) & (hu > 0) & (g.z < 0.75 * body.height)
    values = hu[near]
    _paint(values, np.abs(cavity[near] - 15.5) - 1.2, FAT, g.spacing[0])
    hu[near] = values


def _paint_shoulder_blades(hu: Array, cavity: Array, body: Anatomy, g: Grid) -> None:
    """Scapulae: thin plates behind the ribs, narrowing downwards; clavicles; heads of the humeri."""
    near = (cavity > 12) & (cavity < 40) & (np.abs(g.z - body.height + 45) < 75)
    x, y, z = np.abs(g.x[near]), g.y[near], g.z[near]
    down = np.clip((body.height + 5 - z) / 115, 0, 1)
    edge = np.maximum(np.abs(x - 105 + 10 * down) - 42 * (1 - down), np.abs(z - body.height + 52) - 60)
    plate = np.maximum(np.abs(cavity[near] - 23) - 2.5 - 3 * _step(x, 105, 140), np.maximum(edge, 10 - y))
    values = hu[near]
    _paint(values, plate, 0.6 * CORTEX, g.spacing[0])
    hu[near] = values
    top, front = body.height, -0.5 * body.half_depth + 22
    for side in (-1, 1):
        clavicle = [(side * 18, front, top - 22), (side * 70, front - 4, top - 2), (side * 145, 12, top + 14)]
        hu += _path(g, clavicle, 6.5) * (0.7 * CORTEX - hu)
        where = g.box((side * 168, 24, top - 2), 26)
        head = _ellipsoid(g.x[where] - side * 168, g.y[where] - 24, g.z[where] - top + 2, (24, 24, 24))
        _paint(hu[where], head, CORTEX, g.spacing[0])
        _paint(hu[where], head + 3, MARROW, g.spacing[0])


def _paint_spine(hu: Array, body: Anatomy, g: Grid) -> None:
    """Vertebral bodies and discs, arch, canal, spinous and transverse processes, muscles beside them."""
    where = g.strip(75)
    x, y, z, part = g.x[where], g.y[where], g.z[where], hu[where]
    back = y - body.spine_y(z)
    phase = np.abs((z % body.pitch) - body.pitch / 2)  # 0 in the middle of a vertebra
    wide = g.spacing[0]
    _paint(part, _ellipse(np.abs(x) - 30, back - 34, 26, 17), MUSCLE, wide)
    vertebra = _ellipse(x, back, 17.5, 14.5, 2.5)
    _paint(part, vertebra, np.where(phase < body.pitch / 2 - 3, 0.7 * CORTEX, DISC), wide)
    _paint(part, vertebra + 2, np.where(phase < body.pitch / 2 - 3, MARROW, DISC), wide)
    arch = _ellipse(x, back - 23, 16, 13)
    spinous = np.maximum(np.abs(x) - 3.5, np.abs(back - 39) - 10)
    transverse = np.maximum(np.abs(back - 24 - 0.15 * np.abs(x)) - 5, np.abs(x) - 36)
    process = np.minimum(spinous, transverse) + np.maximum(phase - 7, 0)
    _paint(part, np.minimum(arch, process), 0.6 * CORTEX, wide)
    _paint(part, _ellipse(x, back - 23, 9.5, 8), 25.0, wide)


def _paint_sternum(hu: Array, body: Anatomy, g: Grid) -> None:
    """The sternum in front of the cavity."""
    where = g.strip(40)
    x, z, part = g.x[where], g.z[where], hu[where]
    _, depth, centre = body.profile(z)
    top, low = body.height - 25, 0.18 * body.height
    bone = _ellipse(x, g.y[where] - centre + depth + 6, 17 + 9 * _step(z, top - 50, top), 6.5, 3)
    bone = np.maximum(bone, np.maximum(z - top, low - z))
    _paint(part, bone, CORTEX * 0.7, g.spacing[0])
    _paint(part, bone + 2.2, MARROW, g.spacing[0])


# -------------------------------------------------------------------------------- mediastinum and abdomen


def _heart_distance(body: Anatomy, g: Grid, where: tuple) -> Array:
    """Distance to the heart: two merged ellipsoids, the long axis to the left, front and below."""
    x, y, z = g.x[where] - 8, g.y[where] + 0.32 * body.half_depth, g.z[where] - 32
    turn = np.deg2rad(32)
    u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    k = body.heart
    ventricles = _ellipsoid(u - 20, v + 4, z + 8 + 0.25 * u, (56 * k, 37 * k, 40 * k))
    atria = _ellipsoid(x + 6, y - 18, z - 8, (46 * k, 32 * k, 42 * k))
    return -_join(-ventricles, -atria, 14)


def _diaphragm(body: Anatomy, g: Grid) -> Array:
    """Height (mm) above the diaphragm; it falls to the side and deeply to the back."""
    left = _step(g.x, -15, 15)
    reach = ((np.abs(g.x) - 62) / 80) ** 2 + ((g.y + 22) / 86) ** 2
    dome = -left * body.left_drop - 92 * (np.sqrt(1 + 1.7 * reach) - 1)
    return g.z - dome


def _paint_abdomen(hu: Array, cavity: Array, above: Array, body: Anatomy, g: Grid) -> None:
    """Liver, spleen, stomach with a gas bubble, all in fat below the diaphragm."""
    wide = g.spacing[0]
    where = np.s_[: int(np.clip((g.centre[2] + 25) / g.spacing[2], 1, hu.shape[0]))]
    x, y, z = g.x[where], g.y[where], g.z[where]
    below = np.maximum(cavity[where] + 3, above[where] + 3)
    part = hu[where]
    _paint(part, below, FAT, wide)
    liver = np.maximum(below + 1, 0.55 * (x - 30 + 0.8 * (y + 20)))
    _paint(part, liver, LIVER, wide)
    stomach = _ellipsoid(x - 58, y + 12, z + body.left_drop + 48, (42, 46, 44))
    stomach = np.maximum(stomach, below + 3)
    _paint(part, stomach, SOFT, wide)
    gas = y + 30 + np.zeros_like(x)
    _paint(part, stomach + 4, np.where(gas < 0, AIR + 20, STOMACH), wide)
    spleen = _ellipsoid(x - 92, y - 38, z + body.left_drop + 58, (28, 40, 52))
    _paint(part, np.maximum(spleen, below + 2), SPLEEN, wide)


def _airway_paths(body: Anatomy) -> list[tuple[list, list]]:
    """Trachea and the two main bronchi as (points, radii) in the anatomical frame, mm."""
    top, carina, hilum = body.height, 0.60 * body.height, 0.50 * body.height
    trachea = [(0, 2, top + 60), (1, 10, top), (2, 20, 0.8 * top), (2, 25, carina)]
    right = [(2, 25, carina), (-20, 24, carina - 18), (-36, 22, hilum)]
    left = [(2, 25, carina), (24, 24, carina - 14), (44, 23, hilum)]
    return [(trachea, [9, 9, 9, 9.5]), (right, [8, 7, 6]), (left, [7.5, 6.5, 5.5])]


def _great_vessels(body: Anatomy) -> list[tuple[list, list]]:
    """Aorta, pulmonary arteries, vena cava and neck vessels as (points, radii) in the anatomical frame."""
    top, arch, hilum = body.height, 0.74 * body.height, 0.52 * body.height
    back = [float(body.spine_y(np.float64(z))) - 18 for z in (0.66 * top, 0.3 * top, -140)]
    aorta = [
        (-4, -22, 0.4 * top),
        (-14, -18, 0.62 * top),
        (-6, -6, arch - 4),
        (10, 12, arch),
        (24, 30, arch - 6),
    ]
    aorta += [(27, back[0], 0.66 * top), (24, back[1], 0.3 * top), (8, back[2] + 10, -140)]
    trunk = [(14, -30, 0.4 * top), (18, -20, 0.52 * top), (22, 4, 0.57 * top)]
    right = [(20, -2, 0.55 * top), (-8, 4, 0.54 * top), (-38, 14, hilum)]
    left = [(22, 4, 0.57 * top), (34, 14, 0.56 * top), (46, 20, hilum + 4)]
    cava = [(-20, -12, 0.35 * top), (-23, -10, 0.65 * top), (-20, -10, 0.85 * top), (-30, 0, top + 40)]
    carotid = [(8, -4, arch), (22, 0, top), (30, 10, top + 50)]
    subclavian = [(18, 4, arch), (32, 10, top - 20), (60, 8, top + 10), (150, 15, top + 5)]
    brachial = [(-4, -8, arch), (-18, 0, top - 15), (-30, 8, top + 50)]
    veins = [(side * 26, 14, 0.4 * top) for side in (-1, 1)]
    return [
        (aorta, [16, 16, 14, 13, 13, 12.5, 12, 11]),
        (trunk, [14, 13, 12]),
        (right, [11, 10, 8]),
        (left, [11, 10, 8]),
        (cava, [10, 9, 9, 7]),
        (carotid, [5, 4, 4]),
        (subclavian, [6, 5, 5, 4]),
        (brachial, [7, 5, 4]),
        ([veins[0], (0, 6, 0.36 * top), veins[1]], [7, 16, 7]),
        ([(4, 32, top + 50), (4, 34, 0.5 * top), (10, 40, -120)], [6, 6, 7]),  # oesophagus
    ]


def _mediastinum(body: Anatomy, g: Grid) -> Array:
    """Distance to the space between the lungs: wide at the great vessels, narrow before and behind them."""
    _, depth, centre = body.profile(g.z)
    v = (g.y - centre) / depth
    t = g.z / body.height
    half = 7 + 20 * np.exp(-(((v - 0.1) / 0.42) ** 2)) + 12 * _step(t, 0.68, 0.95) + 6 * _step(-t, 0, 0.3)
    half = half * (1 - 0.5 * _step(v, 0.45, 0.8) * _step(0.8 - t, 0, 0.2))
    return (np.abs(g.x - 3) - half) * 0.85


# ------------------------------------------------------------------------------------------------- lungs


def _lungs(cavity: Array, above: Array, body: Anatomy, g: Grid, tubes: Array) -> Array:
    """Distance to the lungs: the cavity above the diaphragm without mediastinum, heart and spine.

    ``tubes`` are the voxel fractions of great vessels and central airways with their walls.
    """
    lung = _join(cavity + 2.5, -0.75 * above, 3)
    lung = _join(lung, -_mediastinum(body, g), 8)
    heart = g.box((15, -25, 30), 90)
    lung[heart] = _join(lung[heart], 3 - _heart_distance(body, g, heart), 6)
    back = g.y - body.spine_y(g.z)
    lung = _join(lung, 4 - _ellipse(g.x, back - 6, 23, 23), 6)
    for side in (-1, 1):
        at = (side * 38, 18, 0.5 * body.height)
        hilum = g.box(at, 30)
        root = _ellipsoid(g.x[hilum] - at[0], g.y[hilum] - at[1], g.z[hilum] - at[2], (15, 17, 22))
        lung[hilum] = _join(lung[hilum], -root, 6)
    return np.maximum(lung, (tubes - 0.4) * 4)


def _fissures(body: Anatomy, g: Grid) -> tuple[Array, Array]:
    """Distances (mm, signed) to the oblique fissures and to the right lung's horizontal one."""
    bulge = 6 * np.sin(g.x / 30)
    oblique = (g.z - 0.36 * body.height - 0.78 * (g.y - 4) - bulge) * 0.78
    horizontal = g.z - 0.46 * body.height - 0.06 * g.y + bulge
    return oblique, np.where((g.x < 0) & (oblique > 0), horizontal, np.float32(99))


def _parenchyma(rng: np.random.Generator, body: Anatomy, g: Grid) -> Array:
    """Aerated lung without vessels in HU: denser towards the back, patchy, with faint fissures."""
    shape, spacing = g.x.shape, np.array(g.spacing)
    hu = body.parenchyma + body.gravity * np.clip(g.y / (2 * body.half_depth), -0.6, 0.6)
    hu += 14 * _smooth_field(rng, shape, g.spacing, 22)
    hu += 60 * _noise(rng, shape, 1.3 / spacing[::-1])
    for fissure in _fissures(body, g):
        hu += FISSURE_RISE * np.exp(-((fissure / max(0.9, 0.5 * spacing[0])) ** 2)) * min(1, 1.5 / spacing[0])
    return hu


def _lung_trees(rng: np.random.Generator, mask: Array, body: Anatomy, g: Grid) -> tuple[Array, Array, Array]:
    """Voxel fractions of vessels, bronchial walls and bronchial lumens in the lungs.

    Arteries and veins grow from each hilum to points all over the lung; bronchi run beside the arteries.
    """
    vessels, walls, lumens = [], [], []
    for label, side in ((1, -1), (2, 1)):
        spots = np.argwhere(mask == label)[:, ::-1].astype(float)
        if len(spots) == 0:
            continue
        for kind, depth in (("artery", 22), ("vein", 8)):
            targets = spots[rng.integers(0, len(spots), rng.integers(600, 850))]
            targets = (targets + rng.uniform(-0.5, 0.5, targets.shape)) * g.spacing
            low = 0.5 if kind == "artery" else 0.42
            root = g.to_scan(np.array([(side * 40.0, depth, low * body.height)]))[0]
            start, end, count = _grow_tree(rng, root, targets)
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
    fill = partial(_fill_tubes, g)
    return tuple(
        fill(*(np.concatenate(column) for column in zip(*tubes, strict=True)))
        if tubes
        else np.zeros(mask.shape, np.float32)
        for tubes in (vessels, walls, lumens)
    )


# ----------------------------------------------------------------------------------------------- lesions


def _lesion_centres(rng: np.random.Generator, mask: Array, g: Grid, count: int) -> Array:
    """Voxel indices (count, 3) of lesion centres, mostly near the pleura, at the back and low down."""
    stride = tuple(max(1, int(2.5 / s)) for s in g.spacing[::-1])
    coarse = np.pad(mask[:: stride[0], :: stride[1], :: stride[2]] > 0, 1)
    step = np.array(stride) * g.spacing[::-1]
    depth = ndimage.distance_transform_edt(coarse, sampling=step)[1:-1, 1:-1, 1:-1]
    spots = np.argwhere(depth > 0) * stride
    z, y = g.z[tuple(spots.T)], g.y[tuple(spots.T)]
    weight = np.exp(-depth[depth > 0] / 9 + y / 45 - z / 130)
    return spots[rng.choice(len(spots), count, p=weight / weight.sum())]


def _add_lesion(
    rng: np.random.Generator,
    tissue: Array,
    density: Array,
    at: Array,
    radius: float,
    fields: dict,
    g: Grid,
    shares: Sequence[float],
) -> str:
    """Blend one lesion of about ``radius`` mm into ``tissue`` (HU) and its ``density`` (0..1), in place.

    Returns:
        Its kind.
    """
    kind = str(rng.choice(list(LESION_KINDS), p=shares))
    (low, high), sd, _ = LESION_KINDS[kind]
    axes = radius * rng.uniform(0.7, 1.35, 3)
    reach = 1.9 * axes.max()
    spacing = np.array(g.spacing[::-1])
    start = np.maximum(0, at - np.ceil(reach / spacing).astype(int))
    where = tuple(slice(a, int(b)) for a, b in zip(start, at + np.ceil(reach / spacing) + 1, strict=True))
    here = [axis[where] - axis[tuple(at)] for axis in (g.x, g.y, g.z)]
    turn = rng.uniform(0, np.pi)
    u, v = here[0] * np.cos(turn) - here[1] * np.sin(turn), here[0] * np.sin(turn) + here[1] * np.cos(turn)
    rho = np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (here[2] / axes[2]) ** 2)
    edge = rho + 0.26 * fields["lobulation"][where] + min(0.2, 1.6 / radius) * fields["fray"][where]
    blur = rng.uniform(1.5, 4.0) / radius
    new = 1 / (1 + np.exp(np.clip((edge - 1) / blur, -20, 20)))
    if rng.random() < 0.7:  # fissures stop most lesions
        oblique = fields["oblique"]
        new *= np.clip(0.5 + np.sign(oblique[tuple(at)]) * oblique[where] / 2, 0, 1)
    mean = rng.uniform(low, high)
    value = mean + sd * fields[kind][where]
    if kind == "consolidation":
        value = np.minimum(value, CONSOLIDATION_LIMIT)
    if kind == "mixed":
        solid = np.minimum(-80 + 190 * fields["consolidation"][where], CONSOLIDATION_LIMIT)
        core = 1 / (1 + np.exp(np.clip((edge - rng.uniform(0.45, 0.7)) / blur, -20, 20)))
        value = value + core * (solid - value)
    if kind == "crazy paving":  # thickened septa: thin sheets where a smooth field changes sign
        value = value + 170 * np.exp(-((fields["fray"][where] / 0.3) ** 2)) - 60
    # Lesions only ever add density to what is there.
    tissue[where] += new * np.maximum(value - tissue[where], -60)
    density[where] = np.maximum(density[where], new)
    return kind


def _add_lesions(
    rng: np.random.Generator, tissue: Array, mask: Array, body: Anatomy, g: Grid, shares: Sequence[float]
) -> tuple[Array, tuple[str, ...]]:
    """Blend one to two dozen lesions into ``tissue`` in place; returns the lesion mask (uint8) and their kinds."""
    shape, spacing = tissue.shape, np.array(g.spacing[::-1])
    fields = {
        kind: _noise(rng, shape, HALF_LENGTH_TO_SIGMA * half / spacing)
        for kind, (_, _, half) in LESION_KINDS.items()
        if kind != "mixed"
    }
    fields["mixed"] = fields["ground glass"]
    fields["lobulation"] = _smooth_field(rng, shape, g.spacing, 16)
    fields["fray"] = _smooth_field(rng, shape, g.spacing, 5)
    fields["oblique"] = _fissures(body, g)[0]
    count = int(np.clip(np.rint(np.exp(rng.normal(1.7, 0.8))), 1, 24))
    largest = np.exp(rng.uniform(np.log(12), np.log(52)))
    radii = largest * rng.uniform(0.1, 1, count) ** 1.3
    radii[0] = largest
    density = np.zeros(shape, np.float32)
    needed = max(1, int(np.ceil(MIN_LESION_ML * 1000 / np.prod(spacing))))
    lesion = np.zeros(shape, bool)
    kinds = {
        _add_lesion(rng, tissue, density, at, radius, fields, g, shares)
        for at, radius in zip(_lesion_centres(rng, mask, g, count), np.maximum(radii, 3.5), strict=True)
    }
    while True:
        lesion = (density > LESION_FRACTION) & (mask > 0)
        if lesion.sum() >= min(needed, (mask > 0).sum() // 4):
            return lesion.astype(np.uint8), tuple(sorted(kinds))
        kinds.add(_add_lesion(rng, tissue, density, _lesion_centres(rng, mask, g, 1)[0], 30.0, fields, g, shares))


# ----------------------------------------------------------------------------------------------- phantom


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    half_width = rng.uniform(122, 144)
    return Anatomy(
        height=rng.uniform(168, 218),
        half_width=half_width,
        half_depth=half_width * rng.uniform(0.64, 0.76),
        wall=rng.uniform(22, 40),
        fat=rng.uniform(6, 20),
        heart=rng.uniform(0.9, 1.1),
        left_drop=rng.uniform(4, 18),
        breast=rng.uniform(30, 48) if rng.random() < 0.4 else 0.0,
        pitch=rng.uniform(24, 29),
        blood=BLOOD_CONTRAST * rng.uniform(0.7, 1.3) if rng.random() < 0.25 else BLOOD_PLAIN,
        parenchyma=rng.uniform(-815, -745),
        gravity=rng.uniform(70, 130),
    )


def _draw_grid(rng: np.random.Generator, size: tuple[int, int, int], body: Anatomy) -> Grid:
    """Field of view, position, rotation and warp of the scan."""
    view = float(np.clip(2 * (body.half_width + body.wall) + rng.uniform(-10, 30), 300, 380))
    cover = float(np.clip((body.height + 70) * rng.uniform(1.0, 1.18), 240, 320))
    nz, ny, nx = size
    spacing = (view / nx, view / ny, cover / nz)
    # The lungs reach from about -70 mm to the apex; the field of view holds the couch at its lower edge.
    middle = 0.5 * (body.height - 68) + rng.uniform(-6, 6)
    centre = np.array([view / 2 + rng.uniform(-8, 8), view / 2 + rng.uniform(-22, -2), cover / 2 - middle])
    angle = np.deg2rad(rng.normal(0, 2.5))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    axes = [np.arange(n, dtype=np.float32) * s for n, s in zip(size, spacing[::-1], strict=True)]
    z, y, x = np.meshgrid(*(a - c for a, c in zip(axes, centre[::-1], strict=True)), indexing="ij", sparse=True)
    turned = (rotation[0, 0] * x + rotation[0, 1] * y, rotation[1, 0] * x + rotation[1, 1] * y, z)
    warped = [(axis + WARP_SD * _smooth_field(rng, size, spacing, WARP_KNOT)).astype(np.float32) for axis in turned]
    return Grid(spacing, *warped, centre, rotation)


def _dependent(rng: np.random.Generator, mask: Array, g: Grid, most: float) -> Array:
    """HU that lung at the pleura of the back is denser by: patchy, and gone within a centimetre or two."""
    depth = ndimage.distance_transform_edt(np.pad(mask > 0, 1), sampling=g.spacing[::-1])[1:-1, 1:-1, 1:-1]
    patches = np.clip(0.6 + 0.6 * _smooth_field(rng, mask.shape, g.spacing, 25), 0, 1.4)
    fall_off = rng.uniform(5, 11)
    return rng.uniform(0, most) * patches * np.exp(-depth / fall_off) * _step(g.y, 15, 70)


def _scan(rng: np.random.Generator, hu: Array, spacing: tuple[float, float, float], variety: Variety) -> Array:
    """What a scanner makes of the ideal densities: point spread and correlated noise; int16 HU."""
    step = np.array(spacing[::-1])
    sharp = rng.uniform(*variety.sharpness)
    sigma = np.maximum(np.array([0.4, 0.0, 0.0]), np.array([0.0, sharp, sharp]) / step)
    sigma[1:] = np.maximum(sigma[1:], 0.35)
    ndimage.gaussian_filter(hu, sigma, output=hu, truncate=3)
    sd = np.exp(rng.uniform(*np.log(variety.noise)))
    noise = sd * _noise(rng, hu.shape, np.array([0.25, 0.55, 0.55]))
    noise *= 0.5 + 0.5 * np.clip((hu + 1000) / 300, 0, 1)  # few photons are lost outside the body
    if variety.gain:
        hu = AIR + (hu - AIR) * (1 + rng.uniform(-variety.gain, variety.gain))
    return np.clip(np.rint(hu + noise), -1024, 3071).astype(np.int16)


def make_phantom(
    rng: np.random.Generator,
    size: tuple[int, int, int] = (64, 128, 128),
    diseased: bool = True,
    variety: Variety = PLAIN,
) -> Phantom:
    """Make one synthetic chest CT.

    Args:
        rng: source of everything random; the same state gives the same phantom bit by bit.
        size: matrix (z, y, x), each at least 16. The field of view is 300..380 mm in plane and 240..320 mm
            along z whatever the matrix, so the size sets the voxel.
        diseased: with lesions (at least 2 ml, one to about two dozen) or with none.
        variety: of lesions and scanners.

    Returns:
        The CT in HU and its masks; the lungs hold 2.5..6.5 l together.

    Raises:
        ValueError: a side of ``size`` is below 16.
    """
    size = tuple(int(n) for n in size)
    if len(size) != 3 or min(size) < SMALLEST_SIDE:
        raise ValueError(f"size is {size}; expected three numbers (z, y, x) of at least {SMALLEST_SIDE}")
    body = _draw_anatomy(rng)
    g = _draw_grid(rng, size, body)
    cavity, above = _cavity(body, g), _diaphragm(body, g)
    hu = np.full(size, AIR, np.float32)
    _paint_outside(rng, hu, body, g)
    _paint(hu, cavity + 1, FAT, g.spacing[0])
    _paint_abdomen(hu, cavity, above, body, g)
    heart = g.box((15, -25, 30), 90)
    distance = np.maximum(_heart_distance(body, g, heart), 3 - above[heart])
    _paint(hu[heart], distance, SOFT, g.spacing[0])
    _paint(hu[heart], distance + 9, body.blood, 4.0)
    vessels = np.zeros(size, np.float32)
    for points, radii in _great_vessels(body):
        vessels = np.maximum(vessels, _path(g, points, radii))
    hu += vessels * (body.blood - hu)
    walls, lumens = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for points, radii in _airway_paths(body):
        walls = np.maximum(walls, _path(g, points, radii, grow=2.0))
        lumens = np.maximum(lumens, _path(g, points, radii))

    distance = _lungs(cavity, above, body, g, np.maximum(vessels, walls))
    _paint_spine(hu, body, g)
    _paint_sternum(hu, body, g)
    _paint_ribs(hu, cavity, body, g)
    _paint_shoulder_blades(hu, cavity, body, g)
    mask = np.where(distance < 0, np.where(g.x < 3, 1, 2), 0).astype(np.uint8)

    tissue = _parenchyma(rng, body, g)
    if variety.dependent:
        tissue += _dependent(rng, mask, g, variety.dependent)
    lesion, kinds = np.zeros(size, np.uint8), ()
    if diseased:
        lesion, kinds = _add_lesions(rng, tissue, mask, body, g, variety.shares)
    branches, rims, hollows = _lung_trees(rng, mask, body, g)
    tissue += branches * (body.blood - tissue)
    tissue += rims * np.maximum(SOFT - 200 - tissue, 0)
    tissue += hollows * (AIR + 30 - tissue)
    _paint(hu, distance, tissue, g.spacing[0])
    hu += walls * (SOFT - hu)
    hu += lumens * (AIR + 10 - hu)
    return Phantom(_scan(rng, hu, g.spacing, variety), mask, lesion, g.spacing, kinds)


def _to_image(array: Array, spacing: tuple[float, float, float]) -> sitk.Image:
    """A SimpleITK image with identity direction whose middle lies at the origin of the world."""
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

    Case k of a kind depends on ``seed`` and ``k`` alone, not on how many are made. Cases whose three files
    exist already are left as they are.

    Args:
        output: folder; made if need be.
        healthy: how many cases healthy_000, healthy_001, .. without lesions (their lesion mask is empty).
        diseased: how many cases diseased_000, ..
        size: matrix (z, y, x).
        seed: of the whole set, >= 0.
        progress: whether to show a progress bar.
        dicom: write the CTs as folders with a DICOM series each, OUTPUT/ct/<id>.

    Returns:
        The ids, healthy ones first.

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.phantom``.

    Raises:
        GasnetError: a number is out of range or a file cannot be written.
    """
    parser = new_parser(__doc__, "python -m datasets.phantom")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for ct/, lung/ and lesion/")
    parser.add_argument("--healthy", type=int, required=True, metavar="N", help="how many without lesions")
    parser.add_argument("--diseased", type=int, required=True, metavar="N", help="how many with lesions")
    parser.add_argument(
        "--size", type=int, nargs=3, default=(64, 128, 128), metavar=("Z", "Y", "X"), help="default 64 128 128"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the whole set (default 0)")
    parser.add_argument("--dicom", action="store_true", help="write the CTs as DICOM series, a folder each")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    start_logging(options.quiet)
    for name in ("healthy", "diseased", "seed"):
        if getattr(options, name) < 0:
            raise SettingsError(f"--{name} {getattr(options, name)}: must not be negative")
    if min(options.size) < SMALLEST_SIDE:
        raise SettingsError(f"--size {options.size}: needs at least {SMALLEST_SIDE} voxels a side")
    size = tuple(options.size)
    numbers = options.healthy, options.diseased
    with recording(options.output, seed=options.seed):
        write_phantoms(options.output, *numbers, size, options.seed, not options.quiet, options.dicom)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
