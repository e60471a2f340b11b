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


def test_weighted_focal_loss_by_hand():
    logits = torch.logit(torch.tensor([0.25, 0.5, 0.5, 0.5]))
    weight = 3 / 2
    expected = 2 * (weight * 0.75**2 * math.log(4) + 3 * 0.25 * math.log(2)) / 4
    target = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert weighted_focal_loss(logits, target).item() == pytest.approx(expected, rel=1e-6)
    ignored = torch.full((4,), IGNORED)
    padded = weighted_focal_loss(torch.cat([logits, logits]), torch.cat([target, ignored]))
    assert padded.item() == pytest.approx(expected, rel=1e-6)
    assert weighted_focal_loss(logits, ignored).item() == focal_loss(logits, ignored).item() == 0


def test_losses_stay_finite_where_the_probability_rounds_to_0_or_1():
    logits = torch.tensor([200.0, -200.0], requires_grad=True)
    total = focal_loss(logits, torch.tensor([0.0, 1.0])) + weighted_focal_loss(logits, torch.tensor([0.0, 1.0]))
    total.backward()
    # 4 * 200 for each voxel of F; for FL the weights are w = 1/2 and 1.
    assert total.item() == pytest.approx(800 + (0.5 + 1) * 200)
    assert torch.isfinite(logits.grad).all()


def test_multiple_instance_loss_without_lung_is_large_but_finite():
    logits = torch.zeros((1, 1, 4, 4, 4), requires_grad=True)
    value = multiple_instance_loss(logits, torch.zeros_like(logits))
    value.backward()
    assert value.item() == pytest.approx(100)
    assert torch.isfinite(logits.grad).all()


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
