"""Checks of the Triton kernels against PyTorch in float64.

They run on CUDA, or with TRITON_INTERPRET=1 on the CPU. Triton reads that variable when it is imported, so
test_kernels.py runs this file in a process of its own.
"""

import os

import pytest
import torch
from torch.nn.functional import instance_norm, interpolate, leaky_relu

from models.fast import kernels
from models.fast.networks import _kernels_differ_by

LAST = torch.channels_last_3d
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.fixture(autouse=True)
def _several_tiles_and_parts_in_small_maps(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(kernels, "_TILE", 512)
    monkeypatch.setattr(kernels, "_PROGRAMS", 6)


def error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def random_map(shape, dtype, mean=0.0):
    return (3 * torch.randn(shape, device=DEVICE) + mean).to(dtype).contiguous(memory_format=LAST)


def compare(ours, reference, x, g):
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = ours(a), reference(b)
    y.backward(g)
    expected.backward(g.double())
    return error(y, expected), error(a.grad, b.grad), y


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slope", [0.01, 0.0])
@pytest.mark.parametrize(
    "shape", [(2, 20, 4, 6, 10), (1, 24, 3, 5, 7), (3, 5, 2, 4, 4), (1, 80, 1, 4, 4), (2, 3, 5, 12, 12)]
)
def test_norm_and_activation(dtype, slope, shape):
    # Far from 0, where E[x^2] - E[x]^2 would lose all digits.
    x = random_map(shape, dtype, mean=50 if dtype is torch.float32 else 2)
    forward, backward, y = compare(
        lambda x: kernels.NormActivation.apply(x, slope, 1e-5),
        lambda x: leaky_relu(instance_norm(x), slope),
        x,
        random_map(shape, dtype),
    )
    assert y.is_contiguous(memory_format=LAST)
    assert y.dtype == dtype
    assert forward < TOLERANCE[dtype]
    assert backward < 5 * TOLERANCE[dtype]


def test_a_range_of_channels_is_read_in_place():
    both, x = random_map((2, 40, 4, 6, 6), torch.float32), random_map((2, 20, 4, 6, 6), torch.float32)
    for part in (both[:, :20], both[:, 20:]):
        assert kernels.voxel_stride(part) == 40
        _, backward, _ = compare(
            lambda x: kernels.NormActivation.apply(x, 0.01, 1e-5), lambda x: leaky_relu(instance_norm(x), 0.01), x, part
        )
        assert backward < 1e-5
        forward, _, _ = compare(
            lambda x: kernels.NormActivation.apply(x, 0.01, 1e-5), lambda x: leaky_relu(instance_norm(x), 0.01), part, x
        )
        assert forward < 1e-5
    assert kernels.voxel_stride(torch.empty(2, 20, 4, 6, 6)) is None
    assert kernels.voxel_stride(both.transpose(3, 4)) is None
    assert kernels.voxel_stride(x) == kernels.voxel_stride(x[:1]) == 20


def test_constant_channels_stay_zero():
    # Padded channels: 0 before and after, with a gradient of 0.
    x = random_map((1, 8, 2, 4, 4), torch.float32)
    x[:, 5:] = 0
    x.requires_grad_()
    y = kernels.NormActivation.apply(x, 0.01, 1e-5)
    assert (y[:, 5:] == 0).all()
    g = torch.zeros_like(y)
    g[:, :5] = 1 + torch.arange(32.0, device=DEVICE).view(1, 1, 2, 4, 4)
    y.backward(g)
    assert (x.grad[:, 5:] == 0).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize("shape", [(2, 12, 2, 3, 4), (1, 5, 1, 2, 3), (1, 64, 1, 2, 1)])
def test_upsampling(dtype, scale, shape):
    size = [n * s for n, s in zip(shape[2:], scale, strict=True)]
    forward, backward, y = compare(
        lambda x: kernels.Upsample.apply(x, scale),
        lambda x: interpolate(x, scale_factor=scale, mode="trilinear", align_corners=False),
        random_map(shape, dtype),
        random_map((*shape[:2], *size), dtype),
    )
    assert y.is_contiguous(memory_format=LAST)
    assert forward < TOLERANCE[dtype]
    assert backward < TOLERANCE[dtype]


def test_the_check_before_use_finds_kernels_that_agree_and_one_that_does_not(monkeypatch):
    device = torch.device(DEVICE)
    assert _kernels_differ_by(device, (2, 3, 4)) < 1e-5
    monkeypatch.setattr(kernels.Upsample, "forward", staticmethod(lambda ctx, x, scale: x.repeat(1, 1, *scale)))
    monkeypatch.setattr(kernels.Upsample, "backward", staticmethod(lambda ctx, g: (g[:, :, ::2, ::2, ::2], None)))
    assert _kernels_differ_by(device, (2, 3, 4)) > 0.1
