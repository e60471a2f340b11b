from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.speed.roofline import BytesMode, count, of_phases, shares
from configs.settings import read_settings
from models import Segmenter

CPU = torch.device("cpu")
SMALL = ["IMAGE.SIZE=[16, 64, 64]", "IMAGE.SLICES=16", "MODEL.WIDTH={UNET: 2, G: 2, D: 2}"]


def moved(work):
    with BytesMode() as mode:
        work()
    return mode.total


@pytest.mark.parametrize("fake", [False, True])
def test_bytes_of_single_operations_by_hand(fake):
    with FakeTensorMode() if fake else nullcontext():
        a, b = torch.ones(10, 3), torch.ones(10, 3, dtype=torch.bfloat16)
        one = torch.ones(1)
        x, weight = torch.ones(2, 3, 4, 6, 8), torch.ones(5, 3, 3, 3, 3)
        volume, kernels, outputs = 4 * 2 * 3 * 192, 4 * 5 * 3 * 27, 4 * 2 * 5 * 192
        for work, expected in (
            (lambda: a + a, 3 * 120),
            (lambda: a + b, 120 + 60 + 120),
            (lambda: a.sum(), 120 + 4),
            (lambda: a.bfloat16(), 120 + 60),
            (lambda: torch.cat([a, a], 1), 2 * 120 + 240),
            # Views, allocations and attributes move nothing.
            (lambda: a.t()[1:], 0),
            (lambda: a.detach().view(30), 0),
            (lambda: torch.empty(10, 3), 0),
            (lambda: torch.empty_like(a), 0),
            (lambda: (a.device, a.shape, a.is_contiguous(), a.dtype), 0),
            # Writes without reads.
            (lambda: torch.zeros_like(a), 120),
            (lambda: a.fill_(1), 120),
            (lambda: a.copy_(b), 60 + 120),
            # In place: read and written once each.
            (lambda: a.add_(a), 3 * 120),
            (lambda: torch.nn.functional.leaky_relu(a, 0.1, inplace=True), 2 * 120),
            (lambda: torch.add(a, a, out=a), 3 * 120),
            # An expanded scalar is one number.
            (lambda: a + one.expand(10, 3), 120 + 4 + 120),
            (lambda: torch.nn.functional.conv3d(x, weight, padding=1), volume + kernels + outputs),
            (lambda: torch.nn.functional.max_pool3d(x, 2), volume + (4 + 8) * 2 * 3 * 24),  # and int64 indices
            (
                lambda: torch.nn.functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False),
                9 * volume,
            ),
        ):
            assert moved(work) == expected


def test_bytes_of_a_backward_pass_by_hand():
    x, weight = torch.ones(2, 3, 4, 6, 8, requires_grad=True), torch.ones(5, 3, 3, 3, 3, requires_grad=True)
    y = torch.nn.functional.conv3d(x, weight, padding=1)
    g = torch.ones_like(y)
    # Reads the output's gradient, input and kernels; writes the gradients of both.
    assert moved(lambda: torch.autograd.grad(y, (x, weight), g)) == y.nbytes + 2 * x.nbytes + 2 * weight.nbytes


def test_bytes_of_the_segmenter_are_those_of_its_layer_table():
    width, full = 4, 8 * 16 * 24
    with FakeTensorMode(), torch.no_grad():
        segmenter, x = Segmenter(width), torch.rand(2, 1, 8, 16, 24)
        found = moved(lambda: segmenter(x))

    def convolution(inputs, outputs, kernel, level_in, level_out):
        voxels = 2 * (inputs * full // 8**level_in + outputs * full // 8**level_out)
        return voxels + kernel * inputs * outputs

    def norm_and_activation(outputs, level):
        # Norm reads and writes, and writes two statistics; LeakyReLU reads and writes.
        return 2 * outputs * (4 * full // 8**level + 2)

    def separable(inputs, outputs, level):
        plane = convolution(inputs, outputs, 9, level, level)
        return plane + convolution(outputs, outputs, 3, level, level) + norm_and_activation(outputs, level)

    def normalised(inputs, outputs, level_in, level_out):
        return convolution(inputs, outputs, 27, level_in, level_out) + norm_and_activation(outputs, level_out)

    def upsampled(channels, level):
        return 2 * channels * (full // 8**level + full // 8 ** (level - 1))

    def concatenated(channels, level):
        return 2 * 2 * channels * full // 8**level

    w = width
    elements = (
        normalised(1, w, 0, 0) + w + 2 * separable(w, w, 0)  # the stem has a bias
        + normalised(w, 2 * w, 0, 1) + 2 * separable(2 * w, 2 * w, 1)
        + normalised(2 * w, 4 * w, 1, 2) + 2 * separable(4 * w, 4 * w, 2)
        + upsampled(4 * w, 2) + normalised(4 * w, 2 * w, 1, 1) + concatenated(4 * w, 1)
        + separable(4 * w, 2 * w, 1) + separable(2 * w, 2 * w, 1)
        + upsampled(2 * w, 1) + normalised(2 * w, w, 0, 0) + concatenated(2 * w, 0)
        + separable(2 * w, w, 0) + separable(w, w, 0)
        + convolution(w, 1, 27, 0, 0) + 1
    )  # fmt: skip
    assert found == 4 * elements


def test_the_roofline_by_hand():
    counted = {"a": (200, 10), "b": (100, 80)}
    rows = shares(counted, {"a": 4.0, "b": 16.0}, {"flops": 100.0, "bytes": 10.0})
    assert [(row["what"], row["matrix_s"], row["copy_s"]) for row in rows] == [("a", 2, 1), ("b", 1, 8)]
    assert [row["share"] for row in rows] == [0.5, 0.5]
    assert [row["matrix_share"] for row in rows] == [0.5, 1 / 16]


def test_the_phases_by_hand():
    counted = {"joint": (1, 2), "segmenter": (10, 20), "discriminator": (100, 200)}
    assert of_phases(counted, 5) == {"generator+segmenter": (11, 22), "discriminator": (500, 1000)}


def test_operations_grow_with_the_batch_and_bytes_shrink_in_bf16(monkeypatch):
    def counted(*overrides):
        return count(read_settings(None, [*SMALL, "SOLVER.BATCH_SIZE=1", "SOLVER.PRECISION=fp32", *overrides]), CPU)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    one, two, half = counted(), counted("SOLVER.BATCH_SIZE=2"), counted("SOLVER.PRECISION=bf16_anywhere")
    # The labelled batch has one volume, whatever the batch size.
    for objective, factor in (("joint", 2), ("segmenter", 3 / 2), ("discriminator", 2)):
        assert two[objective][0] == pytest.approx(factor * one[objective][0], rel=0.01)
        assert half[objective][0] == one[objective][0]
    assert half["segmenter"][1] < 0.9 * one["segmenter"][1]


def test_operations_of_the_segmenter_are_those_of_its_convolutions():
    # A convolution counts 2 * kernel * inputs * outputs * voxels, its backward pass twice that; the first one, whose
    # input needs no gradient, once.
    width, voxels = 20, 32 * 160 * 160

    def separable(inputs, outputs, level):
        return (9 * inputs * outputs + 3 * outputs * outputs) * voxels // 8**level

    def convolution(inputs, outputs, level):
        return 27 * inputs * outputs * voxels // 8**level

    w = width
    forward = (
        2 * separable(w, w, 0) + convolution(w, 2 * w, 1) + 2 * separable(2 * w, 2 * w, 1)
        + convolution(2 * w, 4 * w, 2) + 2 * separable(4 * w, 4 * w, 2)
        + convolution(4 * w, 2 * w, 1) + separable(4 * w, 2 * w, 1) + separable(2 * w, 2 * w, 1)
        + convolution(2 * w, w, 0) + separable(2 * w, w, 0) + separable(w, w, 0) + convolution(w, 1, 0)
    )  # fmt: skip
    stem = convolution(1, w, 0)
    alone = 2 * 2 * (3 * forward + 2 * stem)  # healthy and labelled, two operations a product

    counted = count(read_settings(None, ["SOLVER.BATCH_SIZE=1", "SOLVER.PRECISION=fp32"]), CPU)
    assert counted["segmenter"][0] == alone
