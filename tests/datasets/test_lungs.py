from functools import cache, partial

import numpy as np
import pytest
import SimpleITK as sitk

from datasets.geometry import image_like
from datasets.lungs import segment_by_threshold, split_left_right, with_sides
from datasets.phantom.make import make_phantom
from tests.volumes import dice, image_of, pixels, refused


@cache
def _phantom(seed, size=(40, 96, 96), diseased=False):
    case = make_phantom(np.random.default_rng(seed), size, diseased)
    return image_of(case.ct, case.spacing), case


@pytest.mark.parametrize("seed", range(2))
def test_threshold_finds_healthy_and_diseased_lungs(seed):
    ct, case = _phantom(seed)
    labels = segment_by_threshold(ct)
    assert labels.dtype == np.uint8
    for label in (1, 2):
        assert dice(labels == label, case.lung == label) > 0.97
    ct, case = _phantom(seed, diseased=True)
    labels = segment_by_threshold(ct)
    assert dice(labels > 0, case.lung > 0) > 0.936
    inside = case.lesion > 0
    assert (labels[inside] > 0).mean() > 0.4
    assert not (labels[case.lung == 1] == 2).any()
    assert not (labels[case.lung == 2] == 1).any()


def test_threshold_leaves_out_the_trachea():
    ct, case = _phantom(1, (64, 128, 128))
    labels = segment_by_threshold(ct)
    middle = np.nonzero(case.lung.any((0, 1)))[0].mean()
    columns = np.abs(np.arange(128) - middle) * case.spacing[0] < 12
    top = slice(int(np.nonzero(case.lung.any((1, 2)))[0].max() * 0.8), None)
    airway = (case.ct[top][:, :, columns] < -900) & (case.lung[top][:, :, columns] == 0)
    inside_body = airway & (np.arange(128) > 40)[None, :, None] & (np.arange(128) < 85)[None, :, None]
    assert inside_body.sum() > 50
    assert (labels[top][:, :, columns][inside_body] > 0).mean() < 0.05


def test_threshold_fills_gaps_at_the_chest_wall_but_not_at_the_hilum():
    ct, case = _phantom(1, (32, 96, 96))
    left = case.lung == 2
    z, y, x = np.nonzero(left)
    right = np.nonzero(case.lung == 1)[2]
    middle = (right.min() + x.max()) / 2
    rows = abs(np.arange(96) - y.mean())[:, None] * case.spacing[1] < 11
    slices = abs(np.arange(32) - z.mean())[:, None, None] < 5
    from_middle = (np.arange(96) - middle) * case.spacing[0]
    outermost = np.max(left * from_middle, axis=(1, 2), keepdims=True)
    hilum = left & slices & rows & (from_middle < 75)
    wall = left & slices & rows & (from_middle > outermost - 14)
    hu = pixels(ct)
    hu[hilum | wall] = 40
    labels = segment_by_threshold(image_of(hu, case.spacing))
    beyond = hilum & (from_middle > 54)
    assert beyond.sum() > 100
    assert (labels[beyond] == 2).mean() < 0.2
    assert (labels[wall] == 2).mean() > 0.7


def test_threshold_returns_labels_on_the_cts_own_grid():
    ct, case = _phantom(2, (32, 64, 72), True)
    upright = segment_by_threshold(ct)
    assert dice(upright == 1, case.lung == 1) > 0.9
    for orientation in ("RAS", "SAR", "PIR"):
        turned = sitk.DICOMOrient(ct, orientation)
        back = image_like(turned, segment_by_threshold(turned))
        np.testing.assert_array_equal(pixels(sitk.DICOMOrient(back, "LPS")), upright)


@pytest.mark.fault("padding of -2000 or")
def test_threshold_ignores_padding_outside_the_field_of_view():
    ct, case = _phantom(3, (32, 96, 96))
    array = pixels(ct)
    y, x = np.ogrid[-47.5:48, -47.5:48]
    array[:, np.hypot(y, x) > 50] = -3024
    labels = segment_by_threshold(image_of(array, case.spacing))
    assert dice(labels > 0, case.lung > 0) > 0.97


@pytest.mark.fault("one lung")
def test_threshold_with_one_airless_lung():
    ct, case = _phantom(4)
    array = pixels(ct)
    array[case.lung == 1] = 40
    labels = segment_by_threshold(image_of(array, case.spacing))
    assert not (labels == 1).any()
    assert dice(labels == 2, case.lung == 2) > 0.95


@pytest.mark.fault("no lung")
def test_threshold_without_a_lung():
    ct, case = _phantom(0, (24, 64, 64))
    solid = pixels(ct)
    solid[case.lung > 0] = 40
    for array in (solid, np.full_like(solid, -1000), np.full_like(solid, 30)):
        refused("", partial(segment_by_threshold, image_of(array, case.spacing)), "no lung found")


def test_split_parts_touching_lungs():
    _, case = _phantom(1)
    lung = case.lung > 0
    np.testing.assert_array_equal(split_left_right(lung, case.spacing), case.lung)
    k = int(np.nonzero(lung.any((1, 2)))[0].mean())
    row = int(np.nonzero(lung[k])[0].mean())
    right, left = np.nonzero(case.lung[k, row] == 1)[0].max(), np.nonzero(case.lung[k, row] == 2)[0].min()
    lung[k - 1 : k + 2, row - 1 : row + 2, right : left + 1] = True
    labels = split_left_right(lung, case.spacing)
    assert (labels > 0).sum() == lung.sum()
    agree = labels[case.lung > 0] == case.lung[case.lung > 0]
    assert agree.mean() > 0.995


def test_split_falls_back_to_the_middle_plane_and_to_the_side_of_a_single_lung():
    block = np.zeros((6, 20, 40), bool)
    block[1:5, 4:16, 4:36] = True
    labels = split_left_right(block, (8.0, 8.0, 8.0))
    assert (labels == 1).sum() == (labels == 2).sum() == block.sum() / 2
    assert np.nonzero(labels == 1)[2].max() < np.nonzero(labels == 2)[2].min()
    single = np.zeros((6, 20, 40), bool)
    single[1:5, 4:16, 24:36] = True
    assert set(np.unique(split_left_right(single))) == {0, 2}
    assert not split_left_right(np.zeros((3, 4, 5))).any()


def two_boxes():
    """Labels of two lungs: 1 on the patient's right (small x), 2 on the left."""
    labels = np.zeros((6, 12, 30), np.uint8)
    labels[1:5, 2:10, 3:11] = 1
    labels[1:5, 2:10, 18:27] = 2
    return labels


@pytest.mark.parametrize(
    "given",
    [
        lambda labels: labels,
        lambda labels: (labels > 0).astype(np.uint8),
        lambda labels: (labels > 0) * np.uint8(2),
        lambda labels: labels + 3 * (labels > 0).astype(np.uint8),  # 4 and 5, as of lobes
        lambda labels: np.where(labels == 1, 2, 4 * (labels == 2)).astype(np.uint8),
    ],
    ids=["right and left", "plain", "another plain", "other labels", "lobes"],
)
@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR"])
def test_given_labels_become_right_and_left_in_any_orientation(given, code):
    oriented = sitk.DICOMOrient(sitk.GetImageFromArray(two_boxes()), code)
    expected = pixels(oriented)
    np.testing.assert_array_equal(with_sides(given(expected), oriented), expected)
