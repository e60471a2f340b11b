import math

import numpy as np
import pytest
import torch

from models.losses import (
    IGNORED,
    focal_loss,
    lung_cross_entropy,
    lung_dice_loss,
    multiple_instance_loss,
    reconstruction_loss,
    weighted_focal_loss,
)
from tests import reference


@pytest.mark.parametrize(
    ("name", "loss", "target"),
    [("focal", focal_loss, "target_with_ignore"), ("weighted_focal", weighted_focal_loss, "target")],
)
def test_voxel_losses_agree_with_the_published_formulas(name, loss, target):
    arrays = reference.load("losses")
    p = torch.from_numpy(arrays["prob"]).double()
    logits = torch.logit(p).float().requires_grad_()
    value = loss(logits, torch.from_numpy(arrays[target]))
    value.backward()
    assert value.item() == pytest.approx(float(arrays[name]), abs=1e-4)
    # The reference gradient is that of the probability; dp/dx = p (1 - p).
    expected = arrays[f"{name}_grad"] * (p * (1 - p)).numpy()
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-4)


def test_focal_loss_by_hand():
    # y = 1 at p = 1/4 and y = 0 at p = 1/2; the third voxel is ignored.
    logits = torch.logit(torch.tensor([0.25, 0.5, 0.9]))
    expected = (1.75**2 * math.log(4) + 1.5**2 * math.log(2)) / 2
    assert focal_loss(logits, torch.tensor([1.0, 0.0, -1.0])).item() == pytest.approx(expected, rel=1e-6)
    assert focal_loss(logits, torch.full((3,), -1.0)).item() == 0


def test_weighted_focal_loss_by_hand():
    logits = torch.logit(torch.tensor([0.25, 0.5, 0.5, 0.5]))
    weight = 3 / 2
    expected = 2 * (weight * 0.75**2 * math.log(4) + 3 * 0.25 * math.log(2)) / 4
    target = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert weighted_focal_loss(logits, target).item() == pytest.approx(expected, rel=1e-6)
    ignored = torch.full((4,), IGNORED)
    padded = weighted_focal_loss(torch.cat([logits, logits]), torch.cat([target, ignored]))
    assert padded.item() == pytest.approx(expected, rel=1e-6)
    assert weighted_focal_loss(logits, ignored).item() == 0


def test_losses_stay_finite_where_the_probability_rounds_to_0_or_1():
    logits = torch.tensor([200.0, -200.0], requires_grad=True)
    total = focal_loss(logits, torch.tensor([0.0, 1.0])) + weighted_focal_loss(logits, torch.tensor([0.0, 1.0]))
    total.backward()
    # 4 * 200 for each voxel of F; for FL the weights are w = 1/2 and 1.
    assert total.item() == pytest.approx(800 + (0.5 + 1) * 200)
    assert torch.isfinite(logits.grad).all()


def test_multiple_instance_loss_is_the_cross_entropy_of_the_highest_probability_in_the_lung():
    logits = reference.wave((2, 1, 4, 8, 8), 0.4) * 3
    lung = (reference.wave((2, 1, 4, 8, 8), 1.4) > 0).float()
    highest = (logits.sigmoid() * lung).flatten(1).amax(1)
    expected = torch.nn.functional.binary_cross_entropy(highest, torch.ones(2))
    torch.testing.assert_close(multiple_instance_loss(logits, lung), expected)


def test_multiple_instance_loss_without_lung_is_large_but_finite():
    logits = torch.zeros((1, 1, 4, 4, 4), requires_grad=True)
    value = multiple_instance_loss(logits, torch.zeros_like(logits))
    value.backward()
    assert value.item() == pytest.approx(100)
    assert torch.isfinite(logits.grad).all()


def test_reconstruction_loss_is_the_mean_absolute_difference():
    assert reconstruction_loss(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 1.0])).item() == pytest.approx(1.25)


@pytest.mark.parametrize("loss", [focal_loss, weighted_focal_loss])
def test_half_precision_logits_are_computed_in_float32(loss):
    logits = reference.wave((64,), 0.1).bfloat16()
    target = (reference.wave((64,), 0.9) > 0).float()
    value = loss(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), target))


def _volumes(*voxels):
    return torch.tensor(voxels).reshape(len(voxels), 1, 1, 1, -1)


def test_cross_entropy_and_dice_loss_inside_the_lungs_by_hand():
    # One lesion voxel at p = 1/4, one background voxel at p = 1/2; one ignored, one outside the lungs.
    logits = torch.logit(_volumes([0.25, 0.5, 0.9, 0.9]))
    target, lung = _volumes([1.0, 0.0, IGNORED, 1.0]), _volumes([1.0, 1.0, 1.0, 0.0])
    value = lung_cross_entropy(logits, target, lung).item()
    assert value == pytest.approx((math.log(4) + math.log(2)) / 2, rel=1e-6)
    assert lung_dice_loss(logits, target, lung).item() == pytest.approx(1 - (2 * 0.25 + 1) / (0.75 + 1 + 1), rel=1e-6)


def test_the_dice_loss_is_a_mean_over_volumes_in_which_voxels_count():
    logits = torch.logit(_volumes([0.5, 0.5], [0.25, 0.75], [0.5, 0.5]))
    target = _volumes([1.0, 0.0], [0.0, 1.0], [IGNORED, IGNORED])
    expected = ((1 - 2 / 3) + (1 - 2.5 / 3)) / 2
    assert lung_dice_loss(logits, target, torch.ones_like(target)).item() == pytest.approx(expected, rel=1e-6)


def test_losses_inside_the_lungs_are_0_where_nothing_counts():
    logits = torch.zeros(1, 1, 1, 1, 2, requires_grad=True)
    for loss in (lung_cross_entropy, lung_dice_loss):
        for target, lung in ((torch.full_like(logits, IGNORED), torch.ones_like(logits)), (torch.zeros(()), None)):
            target = target.expand_as(logits)
            value = loss(logits, target, torch.zeros_like(logits) if lung is None else lung)
            assert value.item() == 0
            value.backward()
            assert not logits.grad.any()
