"""Phantoms with gas that is hard to tell from lung: in stomach and colon, in bullae, in a pneumothorax."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from datasets.lungs import segment_by_threshold
from datasets.phantom.make import make_phantom
from tests.volumes import dice

SOFT_HU = 40.0
FINE = 3  # shapes are drawn on a finer grid and averaged, so that walls thinner than a voxel are blurred


@dataclass(frozen=True)
class Scan:
    """A CT (z, y, x) in HU, its lungs (1 right, 2 left), the share of each voxel that is drawn gas, and its spacing."""

    hu: np.ndarray
    lung: np.ndarray
    gas: np.ndarray
    spacing: np.ndarray

    def image(self) -> sitk.Image:
        image = sitk.GetImageFromArray(np.clip(np.rint(self.hu), -1024, 3071).astype(np.int16))
        image.SetSpacing(self.spacing[::-1].tolist())
        return image

    def ml(self, mask: np.ndarray) -> float:
        return float(mask.sum() * np.prod(self.spacing) / 1e3)

    def cut(self, *box: slice) -> "Scan":
        return replace(self, hu=self.hu[box], lung=self.lung[box], gas=self.gas[box])


def check(scan: Scan, least: float = 0.98) -> np.ndarray:
    """Segment a scan; both lungs, as far as they are in the image, reach a Dice of ``least``. Returns the labels."""
    labels = segment_by_threshold(scan.image())
    for side in (1, 2):
        assert dice(labels == side, scan.lung == side) > least
    return labels


@cache
def healthy(seed: int, size: tuple[int, int, int] = (64, 112, 112)) -> Scan:
    case = make_phantom(np.random.default_rng(seed), size, diseased=False)
    return Scan(case.ct.astype(np.float32), case.lung, np.zeros(size, np.float32), np.array(case.spacing[::-1]))


def with_gas(
    scan: Scan,
    side: int,
    radii: tuple[float, float, float],
    offset: tuple[float, float] = (0.0, 0.0),
    wall: float = 2.5,
    hu: float = -1000.0,
) -> Scan:
    """Draw gas below a dome of the diaphragm: an ellipsoid, cut to the shape of the dome; all lengths are in mm.

    Its centre is shifted by `offset` to the back and to the patient's left; `wall` is the thickness of the dome.
    """
    lung = scan.lung == side
    # The dome is the lowest lung voxel of each column; around its top that voxel lies higher than elsewhere.
    lowest = lung.argmax(0)
    inner = ndimage.binary_erosion(lung.any(0), iterations=4)
    bottom, middle, top = np.percentile(lowest[inner], [60, 75, 90])
    rows, columns = np.nonzero(inner & (lowest > bottom) & (lowest < top))
    centre = np.array([middle, rows.mean(), columns.mean()]) * scan.spacing + (-0.6 * radii[0], *offset)
    box, ball = _ellipsoid(scan, centre, radii)
    # Seen from above, the hull of both lungs is the inside of the chest; the gas lies in it, below the lung.
    hull = ndimage.binary_closing(np.pad((scan.lung > 0).any(0), 20), iterations=18)[20:-20, 20:-20]
    chest = np.broadcast_to(ndimage.binary_erosion(hull, iterations=2), lung.shape)[box]
    above = np.flip(np.maximum.accumulate(np.flip(scan.lung > 0, 0), 0), 0)[box]
    below = np.where(ndimage.binary_dilation(above, np.ones((1, 9, 9))), -1.0, 1.0)
    to_lung = _signed_distance(scan.lung[box] > 0, scan.spacing)
    share = _share(wall - to_lung, ball, _signed_distance(chest, scan.spacing), below)
    return _drawn(scan, box, ndimage.gaussian_filter(share, (0, 0.5, 0.5)), hu)


def _drawn(scan: Scan, box: tuple[slice, ...], share: np.ndarray, value: float) -> Scan:
    hu, gas = scan.hu.copy(), scan.gas.copy()
    soft = np.where((share > 0) & (scan.lung[box] == 0), np.maximum(hu[box], SOFT_HU - 60), hu[box])
    hu[box] = soft + share * (value - SOFT_HU)
    gas[box] = share
    return replace(scan, hu=hu, gas=gas)


def with_bulla(scan: Scan, side: int, place: tuple[float, float, float], radius: float, septum: float = 0.5) -> Scan:
    """Draw a bulla: free air inside the lung, cut to its shape, behind a septum; `place` is in the box of the lung."""
    lung = scan.lung == side
    extent = ndimage.find_objects(lung.astype(np.uint8))[0]
    centre = [(e.start + p * (e.stop - 1 - e.start)) * s for e, p, s in zip(extent, place, scan.spacing, strict=True)]
    box, ball = _ellipsoid(scan, np.array(centre), (radius,) * 3)
    outline = _signed_distance(lung[box], scan.spacing)
    bulla = _share(ball, outline)
    wall = _share(ball - septum, outline) - bulla
    hu, gas = scan.hu.copy(), scan.gas.copy()
    hu[box] = hu[box] * (1 - bulla - wall) - 995 * bulla + SOFT_HU * wall
    gas[box] = bulla
    return replace(scan, hu=hu, gas=gas)


def with_pneumothorax(scan: Scan, side: int, depth: float, lung_rise: float = 120.0) -> Scan:
    """Draw free air in front of the lung, ``depth`` mm deep; the lung behind it becomes denser by ``lung_rise`` HU."""
    lung = scan.lung == side
    front = np.where(lung.any(1), lung.argmax(1), 0)[:, None] * scan.spacing[1]
    gas = lung & (np.arange(lung.shape[1])[:, None] * scan.spacing[1] - front < depth)
    hu = np.where(gas, -995.0, np.where(lung, np.minimum(scan.hu + lung_rise, SOFT_HU), scan.hu))
    return replace(scan, hu=hu.astype(np.float32), gas=gas.astype(np.float32))


def with_consolidated_base(scan: Scan, side: int, thickness: float) -> Scan:
    lung = scan.lung == side
    z = np.arange(len(lung))[:, None, None]
    layer = lung & ((z - lung.argmax(0)) * scan.spacing[0] < thickness)
    return replace(scan, hu=np.where(layer, np.minimum(scan.hu + 850, 20), scan.hu).astype(np.float32))


def with_noise(scan: Scan, sd: float) -> Scan:
    noise = np.random.default_rng(0).normal(0, sd, scan.hu.shape)
    return replace(scan, hu=(scan.hu + noise).astype(np.float32))


def in_round_field(scan: Scan, radius: float, padding: float) -> Scan:
    y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(scan.hu.shape[1:], scan.spacing[1:], strict=True))
    outside = np.hypot(y[:, None], x) > radius
    return replace(scan, hu=np.where(outside, padding, scan.hu), lung=np.where(outside, 0, scan.lung))


def _ellipsoid(
    scan: Scan, centre: np.ndarray, radii: tuple[float, float, float]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """A box around an ellipsoid and the approximate distance in mm to its surface; all in (z, y, x), mm."""
    margin = 12.0
    box, parts = [], []
    for axis, (n, step, middle, radius) in enumerate(zip(scan.hu.shape, scan.spacing, centre, radii, strict=True)):
        start, stop = np.clip(np.rint([(middle - radius - margin) / step, (middle + radius + margin) / step]), 0, n)
        box.append(slice(int(start), int(stop)))
        parts.append(
            np.expand_dims((np.arange(start, stop) * step - middle) / radius, [a for a in range(3) if a != axis])
        )
    return tuple(box), (np.sqrt(sum(p**2 for p in parts)) - 1) * min(radii)


def _signed_distance(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm to the surface of a mask, negative inside."""
    outside, inside = (ndimage.distance_transform_edt(m, sampling=spacing) for m in (~mask, mask))
    return outside - inside + 0.5 * spacing.mean() * np.where(mask, 1, -1)


def _share(*distances: np.ndarray) -> np.ndarray:
    shape = distances[0].shape
    fine = [ndimage.zoom(d, FINE, order=1, mode="nearest", grid_mode=True) < 0 for d in distances]
    inside = np.logical_and.reduce(fine)
    return inside.reshape([n for size in shape for n in (size, FINE)]).mean((1, 3, 5))
