import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from datasets.crop import (
    LINEAR,
    NEAREST,
    LungMaskCrop,
    crop_image,
    paste_back,
    remove_small_components,
    resize,
)
from tests import reference
from tests.volumes import crop_to_box, geometry, image_of, orientations, pixels, refused, rotation, write
from utils.errors import VolumeError

SIZE = (6, 9, 8)
ORIENTATION = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines


@pytest.fixture
def case(tmp_path):
    """A CT, its lungs and a lesion with two labels, in LPS orientation."""
    rng = np.random.default_rng(0)
    ct = rng.integers(-1000, 400, (14, 20, 18)).astype(np.int16)
    lungs = np.zeros(ct.shape, np.uint8)
    lungs[3:12, 4:16, 2:8] = 1
    lungs[4:11, 5:17, 9:16] = 2
    lesion = ((rng.random(ct.shape) < 0.2) & (lungs > 0)).astype(np.uint8)
    lesion[lesion > 0] += rng.integers(0, 2, (lesion > 0).sum()).astype(np.uint8)
    return tmp_path, ct, lungs, lesion


def test_agreement_with_the_reference_crop(tmp_path):
    arrays = reference.load("crop")
    scan = write(tmp_path / "scan.nii.gz", arrays["ct_hu"])
    label = write(tmp_path / "label.nii.gz", arrays["lesion"])
    cropper = LungMaskCrop(lambda _: arrays["lung_labels"], size=tuple(int(n) for n in arrays["crop_size"]))
    image, lung, lesion = cropper.crop(scan, label)
    np.testing.assert_allclose(pixels(image), arrays["cropped_image"], atol=1e-3)
    np.testing.assert_array_equal(pixels(lung), arrays["cropped_lung"])
    np.testing.assert_array_equal(pixels(lesion), arrays["cropped_lesion"])
    back = paste_back(lesion, sitk.ReadImage(str(scan)))
    np.testing.assert_array_equal(pixels(back), arrays["pasted_back_lesion"])
    assert geometry(back) == geometry(scan)


def test_nearest_voxels_are_scipys_for_every_length():
    for old in (*range(2, 40), *range(40, 130, 7)):
        column = np.arange(old, dtype=np.int16)[:, None, None].repeat(2, 1).repeat(2, 2)
        for new in (*range(2, 50), 64, 96, 128, 160, 255, 256):
            expected = ndimage.zoom(column[:, 0, 0], new / old, order=0, mode="nearest")
            np.testing.assert_array_equal(resize(column, (new, 2, 2), NEAREST)[:, 0, 0], expected)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("order", [NEAREST, LINEAR])
def test_resizing_is_scipys_zoom(dtype, order):
    rng = np.random.default_rng(3)
    for _ in range(25):
        shape, size = rng.integers(2, 40, (2, 3))
        array = rng.integers(0, 250, shape).astype(dtype)
        # Also what no memory holds in this order: a turned scan.
        for view in (array, array[::-1, :, ::-1], array.transpose(2, 0, 1)[:, ::-1]):
            found = resize(view, tuple(size.tolist()), order)
            factors = [new / old for new, old in zip(size, view.shape, strict=True)]
            expected = ndimage.zoom(view.astype(np.float64), factors, order=order, mode="nearest")
            np.testing.assert_allclose(found, expected, rtol=0, atol=250e-6 if order == LINEAR else 0)
            if order == NEAREST:
                assert found.dtype == dtype


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.3, 1.0])
def test_components_are_those_of_every_voxel_labelled(density):
    """Around 0.1, where voxels percolate in 26 directions, components have any size and shape."""
    rng = np.random.default_rng(5)
    for shape in ((20, 30, 40), (3, 50, 2), (1, 9, 9), (31, 17, 23)):
        labels = (rng.random(shape) < density) * rng.integers(1, 3, shape).astype(np.uint8)
        labels[0, 0, 0] = 2
        components = np.zeros(shape, int)
        for side in (1, 2):
            of_side = ndimage.label(labels == side, np.ones((3, 3, 3)))[0]
            components += np.where(of_side > 0, of_side + components.max(), 0)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        for share in (0, 1e-4, 1e-3, 1e-2, 0.5):
            kept = (sizes >= share * labels.size) | (len(sizes) - 1 <= 2)
            before = labels.copy()
            np.testing.assert_array_equal(remove_small_components(labels, share), labels * kept[components])
            np.testing.assert_array_equal(labels, before)


def test_pasting_back_probabilities_is_scipys_zoom():
    rng = np.random.default_rng(6)
    image = image_of(np.zeros((40, 50, 60), np.uint8))
    box = (slice(3, 37), slice(4, 47), slice(2, 59))
    probability = crop_image(rng.random(SIZE).astype(np.float32), image, box)
    values = ndimage.zoom(pixels(probability).astype(float), np.divide((34, 43, 57), SIZE), order=1, mode="nearest")
    found = pixels(paste_back(probability, image, 0.5))[box]
    sure = np.abs(values - 0.5) > 1e-6
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(found[sure], values[sure] > 0.5)


def test_lobes_are_no_components_of_their_own():
    labels = np.zeros((10, 10, 20), np.uint8)
    labels[1:5, 1:5, 1:5], labels[1:5, 1:5, 10:15], labels[2, 2, 12], labels[6, 6, 6] = 1, 2, 1, 3
    kept = remove_small_components(labels)
    assert (kept[2, 2, 12], kept[6, 6, 6]) == (1, 0)


@pytest.mark.fault("a given lung mask with small")
def test_given_lungs_are_taken_as_they_are_with_a_warning(tmp_path, caplog):
    ct = np.random.default_rng(0).integers(-1000, -300, (12, 30, 30)).astype(np.int16)
    lungs = np.zeros(ct.shape, np.uint8)
    lungs[1:5, 1:6, 1:6], lungs[1:5, 1:6, 10:15], lungs[10, 20, 20] = 1, 2, 2
    ct[lungs == 0] += 1000  # tissue, not of one value
    scan, given = write(tmp_path / "scan.nii.gz", ct), write(tmp_path / "lungs.nii.gz", lungs)
    found = LungMaskCrop(lambda _: lungs, SIZE).crop(scan)
    taken = LungMaskCrop(lambda _: lungs, SIZE).crop(scan, lungpath=given)
    extents = [
        np.multiply(np.subtract(crop.GetSize(), 1), crop.GetSpacing()) / (0.7, 0.8, 2.5) for crop, _ in (found, taken)
    ]
    np.testing.assert_allclose(extents, [[13, 4, 3], [19, 19, 9]])
    assert [record.message for record in caplog.records] == [
        f"{scan}: small components of its lung mask enlarge the box; remove what is not lung"
    ]


def test_a_crop_lies_over_its_scan():
    rng = np.random.default_rng(1)
    image = image_of(rng.normal(size=(14, 20, 18)), direction=rotation(0.2, -0.1, 0.3))
    box = (slice(3, 12), slice(4, 17), slice(2, 16))
    crop = crop_to_box(image, box, SIZE, LINEAR)
    first = image.TransformIndexToPhysicalPoint((2, 4, 3))
    last = image.TransformIndexToPhysicalPoint((15, 16, 11))
    np.testing.assert_allclose(crop.TransformIndexToPhysicalPoint((0, 0, 0)), first, atol=1e-9)
    np.testing.assert_allclose(crop.TransformIndexToPhysicalPoint((7, 8, 5)), last, atol=1e-9)
    # old * (n_old - 1) / (n_new - 1)
    np.testing.assert_allclose(crop.GetSpacing(), [0.7 * 13 / 7, 0.8 * 12 / 8, 2.5 * 8 / 5])
    # An independent resampler finds the same values at the same places.
    resampled = sitk.Resample(image, crop, sitk.Transform(), sitk.sitkLinear)
    np.testing.assert_allclose(pixels(crop), pixels(resampled), atol=1e-6)


@pytest.mark.fault("the 48 orientations", "lesion labels above")
@pytest.mark.parametrize("direction", [*orientations(), rotation(0.3, 0.2, -0.25)], ids=range(49))
def test_any_orientation_gives_the_same_crop_and_masks_come_back_voxel_for_voxel(case, direction):
    folder, ct, lungs, lesion = case
    oblique = not np.isin(direction, (-1, 0, 1)).all()
    turned, straight = [], []
    for name, array in (("ct", ct), ("lesion", lesion), ("lungs", lungs)):
        image = image_of(array, spacing=(2.0, 3.0, 4.0), direction=direction if oblique else np.eye(3))
        if not oblique:
            image = sitk.DICOMOrient(image, ORIENTATION(direction.ravel().astype(float).tolist()))
            np.testing.assert_allclose(image.GetDirection(), direction.ravel(), atol=1e-12)
        turned.append(write(folder / f"{name}.nrrd", image))
        straight.append(write(folder / f"straight_{name}.nrrd", array, spacing=(2.0, 3.0, 4.0)))

    # The box's own size: nothing is interpolated.
    cropper = LungMaskCrop(lambda _: pytest.fail("lungs are given"), size=(9, 13, 14))
    crops = cropper.crop(*turned)
    for crop, other in zip(crops, cropper.crop(*straight), strict=True):
        np.testing.assert_array_equal(pixels(crop), pixels(other))
        assert ORIENTATION(crop.GetDirection()) == "LPS"
    for crop, threshold in ((crops[2], None), (sitk.Cast(crops[2], sitk.sitkFloat32), 0.5)):
        back = paste_back(crop, sitk.ReadImage(str(turned[0])), threshold)
        assert geometry(back) == geometry(turned[0])
        np.testing.assert_array_equal(pixels(back), pixels(turned[1]) > 0)


@pytest.mark.fault("a mask that was cut")
@pytest.mark.parametrize(
    "change",
    [
        {"origin": (-12.3, 45.6, 790.0)},
        {"spacing": (0.7, 0.8, 2.6)},
        {"direction": rotation(0, 0, 0.05)},
        {"shape": (10, 20, 18)},
    ],
)
def test_a_crop_of_another_scan_is_refused(change):
    shape = (14, 20, 18)
    crop = crop_to_box(image_of(np.zeros(shape, np.uint8)), (slice(3, 12), slice(4, 17), slice(2, 16)), SIZE, NEAREST)
    other = image_of(np.zeros(change.pop("shape", shape), np.uint8), **change)
    with pytest.raises(VolumeError, match="expected a crop that"):
        paste_back(crop, other)


@pytest.mark.fault("no lung")
@pytest.mark.parametrize("slices", [0, 1])
def test_a_ct_without_lungs_is_named(case, slices):
    folder, ct, lungs, _ = case
    path = write(folder / "scan.nii.gz", ct)
    lungs[slices:] = 0
    lungs[:slices] = 1
    refused(path, lambda: LungMaskCrop(lambda _: lungs).crop(path), "no lung found")


@pytest.mark.fault("mask of another size")
@pytest.mark.parametrize("what", ["label", "lungs"])
def test_masks_on_another_grid_are_refused(case, what):
    folder, ct, lungs, _ = case
    scan = write(folder / "scan.nii.gz", ct)
    moved = write(folder / "moved.nii.gz", lungs, origin=(-12.3, 45.6, 800.0))
    arguments = {"labelpath" if what == "label" else "lungpath": moved}
    refused(moved, lambda: LungMaskCrop(lambda _: lungs).crop(scan, **arguments), "its origin .* differs from")


@pytest.mark.fault("a CT of 1 mm voxels at the origin")
@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, -1, 1])], ids=["LPS", "RAS"])
@pytest.mark.parametrize(
    ("spacing", "origin", "warned"), [((1, 1, 1), 0, True), ((1, 1, 1.5), 0, False), ((1, 1, 1), 7, False)]
)
def test_a_ct_whose_header_was_lost_is_named(case, caplog, direction, spacing, origin, warned):
    folder, ct, lungs, _ = case
    place = {"spacing": spacing, "origin": (origin,) * 3, "direction": direction}
    scan = write(folder / "ct.nii", np.where(lungs, -800, ct), **place)
    LungMaskCrop(lambda _: lungs, SIZE).crop(scan)
    assert (f"{scan}: spacing 1, origin 0" in caplog.text) == warned
