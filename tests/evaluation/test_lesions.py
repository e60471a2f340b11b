import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.lesions import count_lesions


def masks(*voxels):
    found = np.zeros((6, 10, 10), bool)
    for voxel in voxels:
        found[voxel] = True
    return found


def counted(prediction, truth):
    """Lesions, those that were found, and false positives."""
    row = count_lesions(prediction, truth)
    return row["lesions"], row["lesions_found"], row["false_positive_lesions"]


def test_a_row_of_lesions_by_hand():
    truth = masks((1, 1, 1), (1, 1, 2), (1, 5, 5), (4, 8, 8))  # three lesions, the first of two voxels
    prediction = masks((1, 1, 2), (1, 1, 3), (3, 3, 8), (5, 8, 1))  # overlaps with the first; two false positives
    counts = count_lesions(prediction, truth)
    assert counted(prediction, truth) == (3, 1, 2)
    assert counts["lesion_sensitivity"] == pytest.approx(1 / 3)
    assert counts["lesion_f1"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))


def test_corners_connect():
    assert counted(masks(), masks((1, 1, 1), (2, 2, 2))) == (1, 0, 0)
    assert counted(masks((1, 1, 1), (2, 2, 2)), masks()) == (0, 0, 1)


def test_touching_is_not_overlapping():
    assert counted(masks((1, 1, 2)), masks((1, 1, 1))) == (1, 0, 1)


def test_one_prediction_may_find_several_lesions_and_several_may_lie_on_one():
    bar, ends = masks((1, 1, slice(2, 8))), masks((1, 1, 2), (1, 1, 7))
    assert counted(bar, ends) == (2, 2, 0)
    assert counted(ends, bar) == (1, 1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_components_are_those_of_simpleitk(seed):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, 10, 20, 20)) < 0.04
    labels = []
    for mask in (prediction, truth):
        image = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
        labels.append(sitk.GetArrayFromImage(image))
    found = {label for label in np.unique(labels[1]) if label and prediction[labels[1] == label].any()}
    false = {label for label in np.unique(labels[0]) if label and not truth[labels[0] == label].any()}
    assert counted(prediction, truth) == (int(labels[1].max()), len(found), len(false))


def test_without_lesion_sensitivity_and_f1_are_undefined():
    counts = count_lesions(masks((1, 1, 1)), masks())
    assert (counts["lesion_sensitivity"], counts["lesion_f1"], counts["false_positive_lesions"]) == (None, None, 1)
