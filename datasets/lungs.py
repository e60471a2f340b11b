"""Lung labels (1 right, 2 left) for a chest CT, in one of three ways.

1. ``load_lungmask``: the trained network of the package lungmask (model R231). Use it whenever its weights
   can be had: it was trained on diseased lungs and keeps consolidation. The weights are fetched once from
   the network, or given as a file.
2. ``segment_by_threshold``: thresholds, connected components and closing; needs nothing but the CT. For
   machines without the weights, for tests and for lungs without large dense lesions. Consolidation that
   touches the chest wall or the mediastinum and is wider than the closing is lost in part.
3. Labels made elsewhere: any file with 1 right / 2 left on the CT's grid; ``split_left_right`` turns a plain
   lung mask without sides into such labels.
"""

import contextlib
import logging
import socket
import warnings
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from datasets.io.grid import Grid
from utils.errors import VolumeError, one_line
from utils.torch_files import TorchFileError, read_torch_file

LUNG_MODELS = ("R231", "R231CovidWeb")
LUNG_CLASSES = 3  # background, right, left
NETWORK_TIMEOUT_S = 20.0

AIR_BELOW_HU = -400
LOWEST_HU = -1024  # scanners write -2000 or -3024 outside their field of view
GAS_BELOW_HU = -960  # stomach or bowel gas; even emphysema is denser
COARSE_MM = 2.0  # grid of connected components and closings
LESION_BELOW_HU = -220  # after smoothing; fat is about -100
LESION_SIGMA_MM = 2.0
LESION_MARGIN_MM = 3.0  # kept free around trachea and bowel gas
COUCH_GAP_MM = 4.0  # what is joined to the body by less than this is not body
MIN_LUNG_ML = 300.0
AIRWAY_MM2 = (30.0, 1200.0)  # cross-section of the trachea and of both main bronchi at the carina
AIRWAY_OFF_CENTRE_MM = 30.0
AIRWAY_GAP_MM = 20.0
AIRWAY_LENGTH_MM = 40.0
CLOSING_MM = 7.0  # anywhere: vessels, small lesions
WALL_CLOSING_MM = 25.0  # away from the mediastinum: lesions at the chest wall
MEDIASTINUM_MM = 50.0  # half-width of the strip where only the small closing is used
HOLE_MM2 = 400.0  # larger holes in a slice may be the top of the diaphragm
SMALLER_SIDE = 0.2  # a component with this share of its volume across the middle is both lungs

Array = np.ndarray


# ---------------------------------------------------------------------------------------------- lungmask


@contextlib.contextmanager
def _short_timeout() -> Iterator[None]:
    """Let network connections fail after ``NETWORK_TIMEOUT_S`` instead of hanging."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fetch_weights(model: str, url: str) -> Path:
    """The model's weight file in torch's cache, which lungmask shares; downloaded if it is not there."""
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if cached.is_file():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with _short_timeout():
            torch.hub.download_url_to_file(url, str(cached), progress=False)
    except (OSError, RuntimeError, HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = one_line(error)
        raise VolumeError(
            f"lungmask's weights for {model} cannot be fetched ({reason}): name a local file with "
            "--weights FILE, or segment without a network by --lungs threshold"
        ) from error
    return cached


def _read_weights(path: Path) -> dict[str, Any]:
    """The weights in a file for lungmask's network; raises VolumeError where they are damaged, unsafe or another's."""
    import torch
    from lungmask.resunet import UNet

    if not path.is_file():
        raise VolumeError(f"{path}: no such file; --weights needs a weight file of lungmask's model R231")
    try:
        state = read_torch_file(path)
    except TorchFileError as error:
        raise VolumeError(f"{path}: {error}; get lungmask's weights for R231 anew") from None
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(v) for v in state.values()):
        raise VolumeError(f"{path}: holds no network weights (a state dict of tensors was expected)")
    last = list(state.values())[-1]
    classes = len(last) if last.ndim else 0
    if classes != LUNG_CLASSES:
        raise VolumeError(
            f"{path}: its network has {classes} classes, not {LUNG_CLASSES} (background, right, left); "
            "models of the lobes do not fit, use R231"
        )
    with torch.device("meta"):
        expected = UNet(
            n_classes=LUNG_CLASSES, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False
        ).state_dict()
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in state.items()}:
        raise VolumeError(f"{path}: the weights are of another network than lungmask's U-net")
    return state


def load_lungmask(
    model: str = "R231", weights: Path | None = None, force_cpu: bool = False, batch_size: int = 20
) -> Callable[[sitk.Image], Array]:
    """Load lungmask's network.

    Args:
        model: ``R231`` or ``R231CovidWeb``. ``LTRCLobes`` is rejected: it labels lobes, not lungs.
        weights: local weight file (a state dict saved by torch). Without it the file is taken from torch's
            cache, or fetched into it. A weight file decides what is run; ``model`` then only has to be
            one of the two names.
        force_cpu: do not use a GPU even if there is one.
        batch_size: slices a step; lower it if the GPU's memory does not suffice.

    Returns:
        A function from a CT in HU (any orientation) to its labels: uint8 (z, y, x) on the CT's own grid, 0
        background, 1 right, 2 left lung. It raises VolumeError if no lung is found.

    Raises:
        VolumeError: unknown model or one of lobes, weights that cannot be fetched, damaged or unsafe
            weight file, weights of another network.
    """
    import torch

    if model not in LUNG_MODELS:
        raise VolumeError(
            f"lungmask model {model!r} does not label right and left lung; use {' or '.join(LUNG_MODELS)}"
        )
    with warnings.catch_warnings():  # lungmask silences warnings for the whole process when it is imported
        from lungmask import mask as lungmask
    logging.getLogger("lungmask").setLevel(logging.WARNING)

    path = Path(weights) if weights is not None else _fetch_weights(model, lungmask.MODEL_URLS[model][0])
    with TemporaryDirectory() as folder:
        checked = Path(folder) / path.name  # lungmask reads the file itself: what was checked, and nothing else
        torch.save(_read_weights(path), checked)
        inferer = lungmask.LMInferer(
            modelname=model, modelpath=str(checked), force_cpu=force_cpu, batch_size=batch_size, tqdm_disable=True
        )

    def segment(ct: sitk.Image) -> Array:
        labels = np.asarray(inferer.apply(ct), dtype=np.uint8)
        if not labels.any():
            raise VolumeError("no lung found in the CT by lungmask; is it a chest CT in HU?")
        return labels

    return segment


# --------------------------------------------------------------------------------------------- threshold


def _shrink(hu: Array, steps: tuple[int, int, int]) -> Array:
    """Means over blocks of ``steps`` (z, y, x) voxels, -1024 HU at least; the last ones are filled with the edge."""
    small = np.empty([-(-n // s) for n, s in zip(hu.shape, steps, strict=True)])
    pad = [(0, -n % s) for n, s in zip(hu.shape[1:], steps[1:], strict=True)]
    for k, mean in enumerate(small):
        # The planes of a block alone, so that no copy is made of the whole CT.
        total = np.zeros(mean.shape, np.float32)
        for z in range(k * steps[0], (k + 1) * steps[0]):
            plane = np.pad(np.maximum(hu[min(z, len(hu) - 1)], LOWEST_HU).astype(np.float32), pad, mode="edge")
            for y, x in np.ndindex(*steps[1:]):
                total += plane[y :: steps[1], x :: steps[2]]
        mean[:] = total / np.prod(steps)
    return small


def _grow_back(coarse: Array, steps: tuple[int, int, int], shape: tuple[int, int, int]) -> Array:
    """Repeat the voxels of a coarse mask so that it covers the fine grid of ``shape`` again."""
    for axis, step in enumerate(steps):
        if step > 1:
            coarse = np.repeat(coarse, step, axis)
    return coarse[tuple(slice(n) for n in shape)]


def _disc(radius: float, spacing: Array) -> Array:
    """A disc of ``radius`` mm in the (y, x) plane, one slice thick."""
    reach = np.maximum(1, np.floor(radius / spacing[1:])).astype(int)
    y, x = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    return ((y * spacing[1]) ** 2 + (x * spacing[2]) ** 2 <= radius**2 + 1e-6)[None]


def _largest(mask: Array) -> Array:
    """The largest connected component of a mask."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _body(hu: Array, spacing: Array) -> Array:
    """The largest component, couch and cables cut off, with its holes filled in every slice."""
    tissue = hu > AIR_BELOW_HU
    core = _largest(ndimage.binary_opening(tissue, _disc(COUCH_GAP_MM, spacing)))
    body = tissue & ndimage.binary_dilation(core, _disc(COUCH_GAP_MM, spacing))
    for part in body:
        ndimage.binary_fill_holes(part, output=part)
    return body


def _airway(air: Array, middle: float, spacing: Array) -> Array:
    """Trachea and main bronchi: a small component in a high slice near the middle, followed downwards.

    It is followed through the components of each slice that overlap it. Where it touches a lung or vanishes
    for a few slices its last outline stands in; a trace that ends soon (larynx, gullet) is given up for a new one.
    """
    airway = np.zeros_like(air)
    last, seen, first = None, 0, 0
    for k in range(len(air) - 1, -1, -1):
        labels, count = ndimage.label(air[k])
        sizes = np.bincount(labels.ravel(), minlength=count + 1) * spacing[1] * spacing[2]
        fits = (sizes >= AIRWAY_MM2[0]) & (sizes <= AIRWAY_MM2[1])
        fits[0] = False
        if last is not None and (seen - k) * spacing[0] > AIRWAY_GAP_MM:
            if (first - seen) * spacing[0] > AIRWAY_LENGTH_MM:
                break
            airway[:], last = False, None
        if last is None:
            if k < len(air) // 2:
                break
            chosen = _central_component(labels, fits, middle, spacing)
            first = k
        else:
            near = ndimage.binary_dilation(last, _disc(2.5, spacing)[0])
            chosen = [c for c in np.unique(labels[near]) if fits[c]]
        if not chosen:
            continue
        if last is not None:
            airway[k + 1 : seen] = air[k + 1 : seen] & last
        last, seen = np.isin(labels, chosen), k
        airway[k] = last
    return airway


def _central_component(labels: Array, fits: Array, middle: float, spacing: Array) -> list[int]:
    """The component of a slice that fits and lies nearest to the middle x, if one lies near at all."""
    chosen = np.flatnonzero(fits)
    if len(chosen) == 0:
        return []
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, chosen))
    offset = np.abs(centres[:, 1] - middle) * spacing[2]
    return [int(chosen[np.argmin(offset)])] if offset.min() <= AIRWAY_OFF_CENTRE_MM else []


def split_left_right(lung: Array, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Array:
    """Tell the right from the left lung.

    Components on one side of the middle of the mask belong to that side. One that reaches across (touching
    lungs) is eroded step by step until it falls apart into two large parts, from which a watershed grows
    back; if it never does, it is cut along the sagittal plane in the middle of the mask. A single lung is
    told by its place relative to the middle of the image.

    Args:
        lung: mask (z, y, x) in LPS order (x grows to the patient's left), non-zero inside.
        spacing: voxel size in mm, (x, y, z).

    Returns:
        uint8 labels (z, y, x): 0 outside, 1 right, 2 left.
    """
    lung = np.asarray(lung) > 0
    return _split(lung, np.array(spacing[::-1], float), (lung.shape[2] - 1) / 2)


def with_sides(labels: Array, grid: Grid) -> Array:
    """Given lung labels as right and left lung, whatever they were.

    Labels among which are 1 and 2, and none above 3, are taken at their word: right, left, and lung of no known side.
    All others (a plain mask, lobes) are lung as a whole, which :func:`split_left_right` splits by its shape.

    Args:
        labels: uint8 (z, y, x), in any orientation; every label above 0 is lung.
        grid: theirs.

    Returns:
        uint8: 0 outside, 1 right, 2 left, 3 lung of no known side.
    """
    if labels.max(initial=0) <= 3 and (labels == 1).any() and (labels == 2).any():
        return labels
    sides = np.zeros(labels.shape, np.uint8)
    grid.uprighted(sides)[:] = split_left_right(grid.uprighted(labels), grid.upright().spacing)
    return sides


def _split(lung: Array, spacing: Array, middle: float) -> Array:
    """``split_left_right`` with spacing (z, y, x) and the middle x (voxels) of the body."""
    labels, count = ndimage.label(lung, np.ones((3, 3, 3)))
    sides = np.zeros(lung.shape, np.uint8)
    if count == 0:
        return sides
    columns = np.zeros((count + 1, lung.shape[2]))  # voxels of each component in each sagittal plane
    for x in range(lung.shape[2]):
        columns[:, x] = np.bincount(labels[:, :, x].ravel(), minlength=count + 1)
    columns[0] = 0
    total = columns.sum(1)
    span = np.flatnonzero(columns.sum(0))
    sized = total[1:].max() > 0.6 * total.sum() and (span[-1] - span[0]) * spacing[2] > 200
    plane = 0.5 * (span[0] + span[-1]) if sized else middle
    right = columns[:, np.arange(lung.shape[2]) < plane].sum(1)
    side = np.where(right > total / 2, 1, 2).astype(np.uint8)
    side[0] = 0
    sides = side[labels]
    for part in np.flatnonzero(np.minimum(right, total - right) > SMALLER_SIDE * total):
        box = ndimage.find_objects((labels == part).astype(np.uint8))[0]
        inside = labels[box] == part
        sides[box][inside] = _part_touching(inside, spacing, plane - box[2].start)[inside]
    return sides


def _part_touching(lung: Array, spacing: Array, plane: float) -> Array:
    """Labels 1 and 2 for two lungs that touch; ``plane`` is the middle x in voxels."""
    from skimage.segmentation import watershed

    depth = ndimage.distance_transform_edt(np.pad(lung, 1), sampling=spacing)[1:-1, 1:-1, 1:-1].astype(np.float32)
    for radius in np.arange(1.0, 16.0, 1.5):
        cores, count = ndimage.label(depth > radius)
        if count < 2:
            continue
        sizes = np.bincount(cores.ravel())
        sizes[0] = 0
        first, second = np.argsort(sizes)[:-3:-1]
        if sizes[second] < SMALLER_SIDE * sizes[first]:
            continue
        x = [np.nonzero(cores == core)[2].mean() for core in (first, second)]
        seeds = np.where(cores == first, 1 if x[0] < x[1] else 2, np.where(cores == second, 2 if x[0] < x[1] else 1, 0))
        return watershed(-depth, seeds, mask=lung).astype(np.uint8)
    return np.where(np.arange(lung.shape[2]) < plane, 1, 2).astype(np.uint8) * lung


def _distance_in_slice(mask: Array, spacing: Array) -> Array:
    """Distance in mm from every voxel to the nearest one of the mask in the same slice; inf where that has none."""
    distance = np.full(mask.shape, np.inf, np.float32)
    for k in np.flatnonzero(mask.any((1, 2))):
        distance[k] = ndimage.distance_transform_edt(~mask[k], sampling=spacing[1:])
    return distance


def _close(lung: Array, middle: float, spacing: Array) -> Array:
    """Fill what lies inside one lung: closings a slice, small holes a slice, holes in 3D."""
    rim = [int(np.ceil(WALL_CLOSING_MM / s)) + 2 for s in spacing[1:]]
    box = ndimage.find_objects(lung.astype(np.uint8))[0]
    part = np.pad(lung[box], [(0, 0), (rim[0],) * 2, (rim[1],) * 2])
    x = np.arange(part.shape[2]) - rim[1] + box[2].start
    distance = _distance_in_slice(part, spacing)
    wide = _distance_in_slice(distance > WALL_CLOSING_MM, spacing) > WALL_CLOSING_MM
    closed = part | (_distance_in_slice(distance > CLOSING_MM, spacing) > CLOSING_MM)
    closed |= wide & (np.abs(x - middle) * spacing[2] > MEDIASTINUM_MM)
    for plane in closed:
        holes, count = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
        if count:
            plane |= (np.bincount(holes.ravel()) * spacing[1] * spacing[2] < HOLE_MM2)[holes] & (holes > 0)
    closed = ndimage.binary_fill_holes(closed)
    out = np.zeros_like(lung)
    inner = closed[:, rim[0] : closed.shape[1] - rim[0], rim[1] : closed.shape[2] - rim[1]]
    out[box] = inner
    return out


def segment_by_threshold(ct: sitk.Image) -> Array:
    """Find the lungs by thresholds, connected components and closing.

    Air (below -400 HU) inside the body, without trachea, main bronchi and bowel gas, in components of at
    least 0.3 l; touching lungs are parted (see :func:`split_left_right`). The lungs then grow into ground
    glass (below -220 HU after smoothing), and each is closed in every axial slice: 7 mm near the mediastinum,
    25 mm elsewhere, so that vessels and most lesions count as lung. One lung alone (the other removed or
    airless) gives one label. Components are sought on a grid of about 2 mm; the border comes from the CT's
    own voxels.

    Args:
        ct: chest CT in HU, in any orientation; the chest wall must be in the field of view.

    Returns:
        uint8 labels (z, y, x) on the CT's grid: 0 outside, 1 right, 2 left lung.

    Raises:
        VolumeError: the CT is not three-dimensional, or nothing in it looks like a lung.
    """
    if ct.GetDimension() != 3:
        raise VolumeError(f"the CT has {ct.GetDimension()} dimensions; a volume is needed")
    grid = Grid.of(ct)
    upright = np.ascontiguousarray(grid.uprighted(sitk.GetArrayViewFromImage(ct)))
    labels = np.zeros(grid.shape, np.uint8)
    _segment_upright(upright, np.array(grid.upright().spacing[::-1]), grid.uprighted(labels))
    return labels


def _segment_upright(hu: Array, spacing: Array, out: Array) -> None:
    """``segment_by_threshold`` for an array (z, y, x) in LPS order with spacing (z, y, x); labels ``out``, all 0."""
    steps = tuple(int(s) for s in np.maximum(1, np.rint(COARSE_MM / spacing)))
    small = _shrink(hu, steps)
    coarse = spacing * steps
    body = _body(small, coarse)
    if not body.any():
        raise VolumeError("no lung found in the CT: it shows no body; is it in HU?")
    filled = np.flatnonzero(body.any((0, 1)))
    middle = 0.5 * (filled[0] + filled[-1])
    air = body & (small < AIR_BELOW_HU)
    airway = _airway(air, middle, coarse)
    lung = air & ~airway
    labels, count = ndimage.label(lung)
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(coarse) / 1000
    keep = volumes >= MIN_LUNG_ML
    keep[0] = False
    for part in np.flatnonzero(keep):
        keep[part] = np.median(small[labels == part]) > GAS_BELOW_HU
    if not keep.any():
        raise VolumeError(
            f"no lung found in the CT: no air of {MIN_LUNG_ML / 1000:g} l inside the body; is it a chest CT in HU?"
        )
    sides = _split(keep[labels], coarse, middle)
    sides = _add_lesions(sides, small, body, airway | (air & (sides == 0)), coarse)
    _refine(hu, sides, airway, middle, steps, coarse, out)


def _add_lesions(sides: Array, small: Array, body: Array, gas: Array, spacing: Array) -> Array:
    """Let the labels grow into ground glass: what is darker than fat even after some smoothing."""
    smooth = ndimage.gaussian_filter(small, (0, *(LESION_SIGMA_MM / spacing[1:])), truncate=2.5)
    gas = ndimage.binary_dilation(gas, _disc(LESION_MARGIN_MM, spacing))
    wide = (sides > 0) | ((smooth < LESION_BELOW_HU) & body & ~gas)
    parts, _ = ndimage.label(wide)
    touching = np.zeros(parts.max() + 1, bool)
    touching[np.unique(parts[sides > 0])] = True
    touching[0] = False
    nearest = ndimage.distance_transform_edt(sides == 0, sampling=spacing, return_distances=False, return_indices=True)
    return np.where(touching[parts], sides[tuple(nearest)], 0).astype(np.uint8)


def _refine(
    hu: Array, sides: Array, airway: Array, middle: float, steps: tuple[int, int, int], coarse: Array, out: Array
) -> None:
    """Label the fine grid ``out``: its own air near the coarse lungs, and what the closing adds to them."""
    blocked = ndimage.binary_dilation(airway, _disc(1.01 * coarse[1:].max(), coarse))
    for label in (1, 2):
        lung = sides == label
        if not lung.any():
            continue
        other = sides == 3 - label
        near = ndimage.binary_dilation(lung, np.ones((1, 3, 3))) & ~other & ~(blocked & ~lung)
        # Inside the closed lung everything counts; in the rim of one coarse voxel only the CT's own air does.
        closed = _close(lung, middle, coarse) & ~other & ~airway
        inside = closed & (ndimage.binary_erosion(closed, np.ones((1, 3, 3))) | ~near)
        around = near | closed
        box = ndimage.find_objects(around.astype(np.uint8))[0]
        fine = tuple(slice(b.start * s, b.stop * s) for b, s in zip(box, steps, strict=True))
        part = out[fine]
        found = _grow_back(around[box], steps, part.shape) & (hu[fine] < AIR_BELOW_HU)
        found |= _grow_back(inside[box], steps, part.shape)
        part[found & (part == 0)] = label
