"""The numbers of docs/differences.md."""

import json

import imgaug.augmenters as iaa
import numpy as np
import pytest
import torch
from scipy import ndimage

from datasets.augment import ROTATION, SCALE
from datasets.crop import CROP_SIZE, LINEAR, NEAREST, resize
from datasets.window import map_window
from tests.reference import DATA

IN_2020 = json.loads((DATA / "year_2020.json").read_text(encoding="utf-8"))


def test_the_last_plane_of_a_published_crop_is_0_for_some_lengths():
    black = {new: set(IN_2020["crop_last_plane"][str(new)]) for new in (40, 160)}
    assert (len(black[40]), len(black[160])) == (35, 74)
    assert {40, 160} == set(CROP_SIZE)
    for new, lengths in black.items():
        for n in range(3, 701):
            for order in (0, 1):
                assert (ndimage.zoom(np.ones(n), new / n, order=order)[-1] == 0) == (n in lengths)
    assert map_window(np.zeros(1))[0] == 212.5
    kept = [1 - len(black[new]) / 698 for new in CROP_SIZE]
    assert 1 - np.prod(kept) == pytest.approx(0.24, abs=0.005)


@pytest.mark.parametrize("order", [NEAREST, LINEAR])
def test_the_last_plane_of_our_crop_is_the_last_of_the_scan(order):
    for new in (40, 160):
        for n in IN_2020["crop_last_plane"][str(new)][:12]:
            ramp = np.arange(n, dtype=np.int16)[:, None, None].repeat(2, 1).repeat(2, 2)
            assert (resize(ramp, (new, 2, 2), order)[-1] == n - 1).all()


def test_the_first_step_of_adam():
    """That of 2020 is today's with eps = 1e-8 / sqrt(1 - 0.999), 3e-7: below 1e-6, gradients count for less."""
    steps = {}
    for eps in (1e-8, 3.16228e-7):
        weight = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        weight.grad = torch.tensor(IN_2020["adam_first_step"]["gradient"], dtype=torch.float64)
        torch.optim.Adam([weight], lr=1.0, eps=eps).step()
        steps[eps] = -weight.detach().numpy()
    expected = np.array(IN_2020["adam_first_step"]["step"])
    np.testing.assert_allclose(steps[3.16228e-7], expected, rtol=1e-5)
    assert (steps[1e-8] / expected > [28, 16, 3.7, 1.3, 1.03, 1]).all()


def test_unequal_scales_come_after_the_rotation():
    """imgaug 0.4.0 scales before it rotates: that moves voxels by 0.05 voxel in the mean, by up to 0.5."""
    size = 160
    middle = size / 2
    corner = np.array([0.0, 0.0])
    warp = iaa.Affine(scale={"x": 1.05, "y": 1.0}, rotate=5)
    keypoint = iaa.ia.KeypointsOnImage([iaa.ia.Keypoint(*corner)], shape=(size, size))
    found = warp(keypoints=keypoint).to_xy_array()[0]
    angle = np.deg2rad(5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(found, np.diag([1.05, 1]) @ turn @ (corner - middle) + middle, atol=1e-3)
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(size) + 0.5 - middle] * 2), -1).reshape(-1, 2)
    distances = []
    for _ in range(300):
        angle = np.deg2rad(rng.uniform(*ROTATION))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        scales = np.diag(rng.uniform(*SCALE, 2))
        distances.append(np.linalg.norm(places @ (scales @ turn - turn @ scales).T, axis=1))
    assert np.mean(distances) == pytest.approx(0.05, abs=0.01)
    assert 0.3 < np.max(distances) < 0.5


def test_spectral_norm_takes_its_vectors_in_the_other_order_and_converges_to_the_same():
    torch.manual_seed(0)
    weight, u, v = torch.randn(6, 8), torch.randn(6), torch.randn(8)
    u, v = u / u.norm(), v / v.norm()
    published = torch.nn.utils.spectral_norm(torch.nn.Linear(8, 6))
    ours = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(8, 6))
    for layer, name in ((published, "weight_orig"), (ours, "parametrizations.weight.original")):
        layer.get_parameter(name).data = weight.clone()
    published.weight_u.data, published.weight_v.data = u.clone(), v.clone()
    norm = ours.parametrizations.weight[0]
    norm._u.data, norm._v.data = u.clone(), v.clone()
    x = torch.randn(3, 8)
    with torch.no_grad():
        first = published(x) - published.bias, ours(x) - ours.bias
        v1 = torch.nn.functional.normalize(weight.T @ u, dim=0)
        torch.testing.assert_close(published.weight_v, v1)
        torch.testing.assert_close(norm._u, torch.nn.functional.normalize(weight @ v, dim=0))
        assert not torch.allclose(*first, rtol=0.01)
        for _ in range(200):
            last = published(x) - published.bias, ours(x) - ours.bias
    torch.testing.assert_close(*last, rtol=1e-4, atol=1e-5)
    exact = x @ weight.T / torch.linalg.matrix_norm(weight, 2)
    torch.testing.assert_close(last[1], exact, rtol=1e-4, atol=1e-5)
