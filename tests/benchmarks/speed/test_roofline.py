import pytest
import torch

from benchmarks.speed.roofline import BytesMode, count, of_phases, shares
from configs.settings import read_settings

CPU = torch.device("cpu")
SMALL = ["IMAGE.SIZE=[16, 64, 64]", "IMAGE.SLICES=16", "MODEL.WIDTH={UNET: 2, G: 2, D: 2}"]


def test_bytes_by_hand():
    a, b = torch.ones(10, 3), torch.ones(10, 3, dtype=torch.bfloat16)
    for work, expected in (
        (lambda: a + a, 3 * 120),
        (lambda: a + b, 120 + 60 + 120),
        (lambda: a.t()[1:], 0),
        (lambda: a.sum(), 120 + 4),
    ):
        with BytesMode() as moved:
            work()
        assert moved.total == expected


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
    for objective in ("joint", "segmenter", "discriminator"):
        assert two[objective][0] == pytest.approx(2 * one[objective][0], rel=0.01)
        assert half[objective][0] == one[objective][0]
    assert half["segmenter"][1] < 0.9 * one["segmenter"][1]


def test_the_segmenter_at_work_has_the_operations_of_its_convolutions():
    # One convolution counts 2 * kernel * inputs * outputs * voxels; its backward pass twice that, and the first one,
    # whose input needs no gradient, once.
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
