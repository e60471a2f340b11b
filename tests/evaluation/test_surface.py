import numpy as np
import pytest
import torch

from evaluation.metrics import hd95, surface_dice, surface_distances

SPACING = (5.0, 0.7, 0.8)  # z, y, x


def test_two_voxels_are_as_far_apart_as_their_centres():
    prediction, truth = np.zeros((2, 9, 9, 9), bool)
    prediction[1, 2, 3] = truth[3, 2, 4] = True
    distances = surface_distances(prediction, truth, SPACING)
    expected = (10.0**2 + 0.8**2) ** 0.5  # two slices of 5 mm, and a voxel of 0.8 mm along x
    assert hd95(distances) == pytest.approx(expected, abs=1e-4)
    assert surface_dice(distances, expected - 0.01) == 0
    assert surface_dice(distances, expected) == 1


def test_the_larger_of_the_two_directed_percentiles_counts():
    truth = np.zeros((3, 3, 30), bool)
    truth[1, 1, :10] = True  # ten voxels in a row
    prediction = truth.copy()
    prediction[1, 1, 10:20] = True  # and ten more behind them: 0.8, 1.6, ..., 8 mm away
    distances = surface_distances(prediction, truth, SPACING)
    assert not distances[1].any()
    # Of 0 (ten times), 0.8, 1.6, ..., 8: position 0.95 * 19 = 18.05 lies between 7.2 and 8.
    assert hd95(distances) == pytest.approx(7.2 + 0.05 * 0.8, abs=1e-5)
    # Within 2.4 mm: all 10 true voxels, and 13 of the 20 predicted ones.
    assert surface_dice(distances, 2.4) == pytest.approx(23 / 30)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (1, 6, 5), (2, 2, 2), (7, 1, 3), (12, 40, 36)])
def test_agreement_with_monais_scores_also_of_masks_that_fill_thin_or_all_of_their_arrays(shape):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.9, 1.0):
        prediction, truth = rng.random((2, *shape)) < share
        prediction.flat[0] = truth.flat[-1] = True
        distances = surface_distances(prediction, truth, SPACING)
        tensors = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
        expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=SPACING)
        assert hd95(distances) == pytest.approx(expected.item(), abs=1e-4)
        nsd = compute_surface_dice(*tensors, [2.0], include_background=True, spacing=SPACING)
        assert surface_dice(distances, 2.0) == pytest.approx(nsd.item(), abs=1e-6)


def test_a_distance_of_the_tolerance_in_single_precision_is_within():
    prediction, truth = np.zeros((2, 3, 3, 9), bool)
    prediction[1, 1, 1] = truth[1, 1, 6] = True
    spacing = (1.0, 1.0, float(np.float32(0.6)))
    assert 5 * spacing[2] > 3
    assert surface_dice(surface_distances(prediction, truth, spacing), 3.0) == 1
