"""Lung labels (1 right, 2 left) for a chest CT, found by thresholds or made from any lung mask.

``segment_by_threshold`` needs nothing but the CT: for machines without the weights of lungmask
(`datasets/lungmask_model.py`), for tests, and for lungs without large dense lesions. It loses part of a consolidation
that touches the chest wall or the mediastinum and is wider than the closing. lungmask was trained on diseased lungs and
keeps consolidation: it is preferred. ``with_sides`` and ``split_left_right`` find right and left lung in any lung mask.
"""

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from datasets.field_of_view import find_cut_lung
from datasets.geometry import lps_geometry, lps_view, shape_of
from datasets.gut_gas import find_gut_gas
from datasets.plausibility import label_sides
from utils.errors import VolumeError

AIR_BELOW_HU = -400
LOWEST_HU = -1024  # scanners write -2000 or -3024 outside their field of view
GAS_BELOW_HU = -960
GAS_SHARE = 0.75  # a component with this share of its volume below GAS_BELOW_HU is not lung
COARSE_MM = 2.0  # grid of connected components and closings
LESION_BELOW_HU = -220  # after smoothing; fat is about -100
LESION_SIGMA_MM = 2.0
LESION_MARGIN_MM = 3.0  # distance of lesions from trachea and bowel gas
BONE_ABOVE_HU = 150
SPINE_MM = 40.0  # width
COUCH_GAP_MM = 4.0  # parts connected to the body by a narrower bridge are not body
FILLING_MM = 4.0  # half-width of the narrowest filling of one value, and width of its rim
MIN_LUNG_ML = 300.0
MIN_CUT_LUNG_ML = 50.0  # of a lung that the edge of the image cuts
AIRWAY_MM2 = (30.0, 1200.0)  # cross-section of the trachea and of both main bronchi at the carina
AIRWAY_OFF_CENTRE_MM = 30.0
AIRWAY_GAP_MM = 36.0  # in which a lung touches the trachea
AIRWAY_LENGTH_MM = 40.0
CLOSING_MM = 7.0  # anywhere: vessels, small lesions
WALL_CLOSING_MM = 25.0  # away from the mediastinum: lesions at the chest wall
MEDIASTINUM_MM = 50.0  # half-width of the strip where only the small closing is used
HOLE_MM2 = 400.0  # larger holes in a slice may be the top of the diaphragm
SMALLER_SIDE = 0.2  # a component with this share of its volume across the middle is both lungs

Array = np.ndarray


def segment_by_threshold(ct: sitk.Image) -> Array:
    """Find the lungs by thresholds, connected components and closing.

    The lungs are components of at least 0.3 l of air (below -400 HU) inside the body, without trachea and main
    bronchi, and without gas in stomach and bowel (`datasets/gut_gas.py`). Touching lungs are separated, see
    :func:`split_left_right`. The lungs then grow into ground glass (below -220 HU after smoothing), and each is
    closed in every axial slice, by 25 mm where the gap lies at the chest wall and 7 mm elsewhere, so that vessels and
    most lesions count as lung, hilum and heart not. If one lung is missing or airless, the result has one label. A
    lung that the edge of the image cuts at the front or at a side is kept, one that it cuts at the back is refused
    (`datasets/field_of_view.py`).
    Components are found on a grid of about 2 mm; the border follows the CT's own voxels.

    The CT is in HU, in any orientation. Returns uint8 labels (z, y, x) on its grid: 0 outside, 1 right, 2 left lung.

    Raises:
        VolumeError: nothing in the CT looks like a lung, or a lung is open to the back.
    """
    upright = np.ascontiguousarray(lps_view(sitk.GetArrayViewFromImage(ct), ct))
    labels = np.zeros(shape_of(ct), np.uint8)
    _segment_upright(upright, np.array(lps_geometry(ct).GetSpacing()[::-1]), lps_view(labels, ct))
    return labels


def split_left_right(lung: Array, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Array:
    """Label right and left lung in a lung mask.

    A component on one side of the middle of the mask belongs to that side. A component that reaches across (touching
    lungs) is eroded until it separates into two large parts, which are grown back by a watershed; if it never
    separates, it is split at the sagittal plane in the middle of the mask. The side of a single lung is determined
    by its position relative to the middle of the image.

    The mask is (z, y, x) in LPS order (x grows to the patient's left), non-zero inside, the spacing (x, y, z) in mm.
    Returns uint8 labels: 0 outside, 1 right, 2 left.
    """
    lung = np.asarray(lung) > 0
    return _split(lung, np.array(spacing[::-1], float), (lung.shape[2] - 1) / 2)


def with_sides(labels: Array, ct: sitk.Image, name: object = "the lung mask") -> Array:
    """Convert any lung labels to right and left lung.

    Labels that include 1 and 2, side by side, and none above 3 are two sides, which follow the geometry (see
    `label_sides`). Any other labels (a binary mask, lobes) are merged, and :func:`split_left_right` separates the
    sides.

    Labels are uint8 (z, y, x) on the voxels of the CT, or of its geometry, in any orientation; each above 0 is lung.
    Returns uint8: 0 outside, 1 right, 2 left, 3 lung of unknown side.
    """
    sides, upright, labelled = np.zeros(labels.shape, np.uint8), lps_view(labels, ct), None
    if labels.max(initial=0) <= 3 and (labels == 1).any() and (labels == 2).any():
        labelled = label_sides(name, upright)
    if labelled is None:
        labelled = split_left_right(upright, lps_geometry(ct).GetSpacing())
    lps_view(sides, ct)[:] = labelled
    return sides


def _segment_upright(hu: Array, spacing: Array, out: Array) -> None:
    """Write the labels of a CT (z, y, x) in LPS order into ``out``, which is all 0; spacing (z, y, x) in mm."""
    steps = tuple(int(s) for s in np.maximum(1, np.rint(COARSE_MM / spacing)))
    small = _shrink(hu, steps)
    coarse = spacing * steps
    _continue_into_filling(small, coarse)
    body = _body(small, coarse)
    if not body.any():
        raise VolumeError("no lung found in the CT: it shows no body; is it in HU?")
    cut, behind = find_cut_lung(small, body, coarse)
    columns = np.flatnonzero(body.any((0, 1)))
    middle = _spine(small, body, coarse) if cut.any() else 0.5 * (columns[0] + columns[-1])
    body |= cut
    air = body & (small < AIR_BELOW_HU)
    airway = _airway(air, middle, coarse)
    excluded = ~body | airway | find_gut_gas(small, air, airway, coarse)
    lung = _lung_components(small, air & ~excluded, cut, coarse)
    sides = _split(lung, coarse, middle)
    _refuse_lung_open_behind(behind, sides, coarse)
    if not lung.any():
        raise VolumeError(
            f"no lung found in the CT: no air of {MIN_LUNG_ML / 1000:g} l inside the body; is it a chest CT in HU?"
        )
    sides = _add_lesions(sides, small, excluded | (air & (sides == 0)), coarse)
    _refine(hu, sides, excluded, middle, steps, coarse, out)


def _lung_components(small: Array, lung: Array, cut: Array, spacing: Array) -> Array:
    """Keep the components of air that are large enough for a lung, cut by the image or not, and not just gas."""
    labels, count = ndimage.label(lung)
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing) / 1000
    smallest = np.full(count + 1, MIN_LUNG_ML)
    smallest[np.unique(labels[cut])] = MIN_CUT_LUNG_ML
    keep = volumes >= smallest
    keep[0] = False
    for part in np.flatnonzero(keep):
        keep[part] = np.percentile(small[labels == part], 100 * GAS_SHARE) > GAS_BELOW_HU
    return keep[labels]


def _refuse_lung_open_behind(behind: Array, sides: Array, spacing: Array) -> None:
    """Refuse a CT if a part ``behind`` that looks like lung, open to the back edge, continues lung or is one of two."""
    labels, count = ndimage.label(behind)
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing) / 1000
    large = volumes >= MIN_CUT_LUNG_ML
    large[0] = False
    touching = np.unique(labels[ndimage.binary_dilation(sides > 0)])
    both = (sides == 1).any() and (sides == 2).any()
    if large[touching].any() or (large.any() and not both):
        raise VolumeError(
            "a lung is open to the back edge of the image, where it cannot be told from the air behind the body; find "
            "the lungs with --lungs lungmask, or give lung masks"
        )


def _shrink(hu: Array, steps: tuple[int, int, int]) -> Array:
    """Average blocks of ``steps`` (z, y, x) voxels, clipped at -1024 HU; incomplete blocks repeat the last voxels."""
    small = np.empty([-(-n // s) for n, s in zip(hu.shape, steps, strict=True)])
    pad = [(0, -n % s) for n, s in zip(hu.shape[1:], steps[1:], strict=True)]
    for k, mean in enumerate(small):
        # Plane by plane, to avoid a copy of the whole CT.
        total = np.zeros(mean.shape, np.float32)
        for z in range(k * steps[0], (k + 1) * steps[0]):
            plane = np.pad(np.maximum(hu[min(z, len(hu) - 1)], LOWEST_HU).astype(np.float32), pad, mode="edge")
            for y, x in np.ndindex(*steps[1:]):
                total += plane[y :: steps[1], x :: steps[2]]
        mean[:] = total / np.prod(steps)
    return small


def _continue_into_filling(hu: Array, spacing: Array) -> None:
    """Replace what fills the image around a cut-out or rotated CT, and its rim, by the air or tissue beside it.

    The filling is the value of most corners of slices, if it is above that of air; its rim is often dark.
    """
    values, counts = np.unique(hu[:, [0, 0, -1, -1], [0, -1, 0, -1]], return_counts=True)
    value = values[counts.argmax()]
    if value <= AIR_BELOW_HU:
        return
    disc = _disc(FILLING_MM, spacing)
    filled = np.pad(hu == value, [(n, n) for n in disc.shape], mode="edge")
    inner = tuple(slice(n, -n) for n in disc.shape)
    covered = ndimage.binary_dilation(ndimage.binary_opening(filled, disc), disc)
    border = (ndimage.binary_dilation(covered, disc) & ~covered)[inner]
    if border.any():
        hu[covered[inner]] = np.median(hu[border])


def _grow_back(coarse: Array, steps: tuple[int, int, int], shape: tuple[int, int, int]) -> Array:
    """Repeat the voxels of a coarse mask so that it covers the fine grid of ``shape``."""
    for axis, step in enumerate(steps):
        coarse = np.repeat(coarse, step, axis)
    return coarse[tuple(slice(n) for n in shape)]


def _disc(radius: float, spacing: Array) -> Array:
    """A disc of ``radius`` mm in the (y, x) plane, one slice thick."""
    reach = np.maximum(1, np.floor(radius / spacing[1:])).astype(int)
    y, x = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    return ((y * spacing[1]) ** 2 + (x * spacing[2]) ** 2 <= radius**2 + 1e-6)[None]


def _body(hu: Array, spacing: Array) -> Array:
    """The largest component of tissue without couch and cables, with holes filled in every axial slice."""
    tissue = hu > AIR_BELOW_HU
    parts, _ = ndimage.label(ndimage.binary_opening(tissue, _disc(COUCH_GAP_MM, spacing)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    core = (parts == sizes.argmax()) & (parts > 0)
    body = tissue & ndimage.binary_dilation(core, _disc(COUCH_GAP_MM, spacing))
    for part in body:
        ndimage.binary_fill_holes(part, output=part)
    return body


def _spine(hu: Array, body: Array, spacing: Array) -> float:
    """The x of the spine: most bone, in a strip of its width, in the back half of the body."""
    rows = np.flatnonzero(body.any((0, 2)))
    bone = (hu > BONE_ABOVE_HU)[:, rows.mean().astype(int) :].sum((0, 1))
    return float(np.argmax(ndimage.gaussian_filter1d(bone.astype(float), SPINE_MM / 4 / spacing[2])))


def _airway(air: Array, middle: float, spacing: Array) -> Array:
    """Trachea and main bronchi: a small component near the middle of a high slice, tracked downwards.

    The track continues with the components of the next slice that overlap it. Where it touches a lung or vanishes
    for a few slices, its last outline is repeated. A track that ends early (larynx, oesophagus) is discarded and
    the search starts again.
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
            found = _central_component(labels, fits, middle, spacing)
            first = k
        else:
            near = ndimage.binary_dilation(last, _disc(2.5, spacing)[0])
            found = np.isin(labels, [c for c in np.unique(labels[near]) if fits[c]])
        if not found.any():
            continue
        if last is not None:
            airway[k + 1 : seen] = air[k + 1 : seen] & last
        last, seen = found, k
        airway[k] = last
    return airway


def _central_component(labels: Array, fits: Array, middle: float, spacing: Array) -> Array:
    """The largest component of a fitting size near the middle x: the oesophagus may be nearer, but is smaller."""
    sizes = np.bincount(labels.ravel())
    x = np.bincount(labels.ravel(), np.tile(np.arange(labels.shape[1]), len(labels))) / sizes
    central = fits & (np.abs(x - middle) * spacing[2] <= AIRWAY_OFF_CENTRE_MM)
    return labels == np.argmax(sizes * central) if central.any() else np.zeros(labels.shape, bool)


def _split(lung: Array, spacing: Array, middle: float) -> Array:
    """Label the sides of a mask; ``spacing`` is (z, y, x), ``middle`` the middle x of the body in voxels."""
    labels, count = ndimage.label(lung, np.ones((3, 3, 3)))
    sides = np.zeros(lung.shape, np.uint8)
    if count == 0:
        return sides
    columns = np.zeros((count + 1, lung.shape[2]))  # voxels per component and sagittal plane
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
    """Labels 1 and 2 of two touching lungs; ``plane`` is the middle x in voxels."""
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


def _add_lesions(sides: Array, small: Array, excluded: Array, spacing: Array) -> Array:
    """Grow the labels into ground glass: connected voxels that are darker than fat after smoothing."""
    smooth = ndimage.gaussian_filter(small, (0, *(LESION_SIGMA_MM / spacing[1:])), truncate=2.5)
    excluded = ndimage.binary_dilation(excluded, _disc(LESION_MARGIN_MM, spacing))
    wide = (sides > 0) | ((smooth < LESION_BELOW_HU) & ~excluded)
    parts, _ = ndimage.label(wide)
    touching = np.zeros(parts.max() + 1, bool)
    touching[np.unique(parts[sides > 0])] = True
    touching[0] = False
    nearest = ndimage.distance_transform_edt(sides == 0, sampling=spacing, return_distances=False, return_indices=True)
    return np.where(touching[parts], sides[tuple(nearest)], 0).astype(np.uint8)


def _refine(
    hu: Array, sides: Array, excluded: Array, middle: float, steps: tuple[int, int, int], coarse: Array, out: Array
) -> None:
    """Label the fine grid ``out``: its air near the coarse lungs, and all that their closing fills."""
    blocked = ndimage.binary_dilation(excluded, _disc(1.01 * coarse[1:].max(), coarse))
    for label in (1, 2):
        lung = sides == label
        if not lung.any():
            continue
        other = sides == 3 - label
        near = ndimage.binary_dilation(lung, np.ones((1, 3, 3))) & ~other & ~(blocked & ~lung)
        # Everything inside the closed lung counts; in the rim, one coarse voxel wide, only air does.
        closed = _close(lung, middle, coarse) & ~other & ~excluded
        inside = closed & (ndimage.binary_erosion(closed, np.ones((1, 3, 3))) | ~near)
        around = near | closed
        box = ndimage.find_objects(around.astype(np.uint8))[0]
        fine = tuple(slice(b.start * s, b.stop * s) for b, s in zip(box, steps, strict=True))
        part = out[fine]
        found = _grow_back(around[box], steps, part.shape) & (hu[fine] < AIR_BELOW_HU)
        found |= _grow_back(inside[box], steps, part.shape)
        part[found & (part == 0)] = label


def _close(lung: Array, middle: float, spacing: Array) -> Array:
    """Fill one lung: closings and small holes in every slice, then holes in 3D."""
    rim = [int(np.ceil(WALL_CLOSING_MM / s)) + 2 for s in spacing[1:]]
    box = ndimage.find_objects(lung.astype(np.uint8))[0]
    part = np.pad(lung[box], [(0, 0), (rim[0],) * 2, (rim[1],) * 2])
    x = np.arange(part.shape[2]) - rim[1] + box[2].start
    distance = _distance_in_slice(part, spacing)
    wide = _distance_in_slice(distance > WALL_CLOSING_MM, spacing) > WALL_CLOSING_MM
    closed = part | (_distance_in_slice(distance > CLOSING_MM, spacing) > CLOSING_MM)
    closed |= wide & (np.abs(x - middle) * spacing[2] > MEDIASTINUM_MM) & ~_faces_mediastinum(part, x > middle)
    for plane in closed:
        holes, count = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
        if count:
            plane |= (np.bincount(holes.ravel()) * spacing[1] * spacing[2] < HOLE_MM2)[holes] & (holes > 0)
    closed = ndimage.binary_fill_holes(closed)
    out = np.zeros_like(lung)
    out[box] = closed[:, rim[0] : closed.shape[1] - rim[0], rim[1] : closed.shape[2] - rim[1]]
    return out


def _faces_mediastinum(lung: Array, left: Array) -> Array:
    """Where lung lies lateral and behind, but none medial: hilum, heart, and what the dome of the diaphragm covers.

    ``lung`` is one lung in LPS order; ``left`` says for each x whether it is in the left half of the body.
    """
    smaller_x = np.logical_or.accumulate(lung, 2)
    larger_x = np.logical_or.accumulate(lung[:, :, ::-1], 2)[:, :, ::-1]
    behind = np.logical_or.accumulate(lung[:, ::-1], 1)[:, ::-1]
    return np.where(left, larger_x & ~smaller_x, smaller_x & ~larger_x) & behind


def _distance_in_slice(mask: Array, spacing: Array) -> Array:
    """In-plane distance in mm from every voxel to the mask; inf in slices without mask."""
    distance = np.full(mask.shape, np.inf, np.float32)
    for k in np.flatnonzero(mask.any((1, 2))):
        distance[k] = ndimage.distance_transform_edt(~mask[k], sampling=spacing[1:])
    return distance
