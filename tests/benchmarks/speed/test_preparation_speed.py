import numpy as np
import pytest

from benchmarks.speed.preparation_speed import (
    COMPARISONS,
    WAYS,
    make_body,
    published_paste_back,
    scipys_crop,
    serve,
    write_inputs,
)
from benchmarks.speed.worker_process import process
from datasets.crop import crop_to_lungs, paste_back
from tests.volumes import dice, pixels

SHAPE = (40, 64, 64)
INPUTS = ("ct.nii", "lungs.nii", "mask.nii.gz", "probability.nii.gz")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, SHAPE)
    return folder


def test_compared_implementations_agree():
    ct, lungs = make_body(SHAPE)
    for theirs, ours in zip(scipys_crop(ct, lungs), crop_to_lungs(ct, lungs), strict=True):
        # To 1e-6 of 0..255.
        np.testing.assert_allclose(pixels(ours), theirs, rtol=0, atol=255e-6)
    mask = crop_to_lungs(ct, lungs)[1]
    # The published way segments the lungs again, so its box differs slightly.
    published, ours = published_paste_back(ct, pixels(mask)), paste_back(mask, ct)
    assert dice(pixels(ours), lungs) > 0.97
    assert dice(pixels(published), pixels(ours)) > 0.95


@pytest.mark.parametrize("way", WAYS)
def test_every_implementation_runs_and_keeps_its_inputs(inputs, way):
    before = {name: (inputs / name).read_bytes() for name in INPUTS}
    WAYS[way](inputs)
    assert {name: (inputs / name).read_bytes() for name in INPUTS} == before


def test_compared_implementations_exist():
    assert {way for _, *ways in COMPARISONS for way in ways} | {"lungs"} == set(WAYS)


def test_peak_memory_is_measured_in_a_separate_process(inputs):
    with process(serve, "our_crop_files", inputs, cores=1) as ask:
        peak = ask("run")
        assert 0 < peak < 500
        assert ask("run") >= peak
    assert (inputs / "cohort" / "images" / "ct.nii.gz").is_file()
