import numpy as np
import pytest

from benchmarks.speed.preparation import (
    COMPARISONS,
    WAYS,
    fresh_process,
    make_body,
    published_paste_back,
    scipys_crop,
    write_inputs,
)
from datasets.crop import crop_to_lungs, paste_back
from datasets.io.grid import Grid
from tests.volumes import dice, pixels

SHAPE = (40, 64, 64)
INPUTS = ("ct.nii", "lungs.nii", "mask.nii.gz", "probability.nii.gz")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, SHAPE)
    return folder


def test_what_is_compared_does_the_same():
    ct, lungs = make_body(SHAPE)
    for theirs, ours in zip(scipys_crop(ct, lungs), crop_to_lungs(ct, lungs), strict=True):
        # To 1e-6 of 0..255.
        np.testing.assert_allclose(pixels(ours), theirs, rtol=0, atol=255e-6)
    mask = crop_to_lungs(ct, lungs)[1]
    # The published way finds the lungs a second time, and so a box that is nearly the same.
    published, ours = published_paste_back(ct, pixels(mask)), paste_back(mask, Grid.of(ct))
    assert dice(pixels(ours), lungs) > 0.97
    assert dice(pixels(published), pixels(ours)) > 0.95


@pytest.mark.parametrize("way", WAYS)
def test_every_way_runs_and_leaves_its_inputs_as_they_are(inputs, way):
    before = {name: (inputs / name).read_bytes() for name in INPUTS}
    WAYS[way](inputs)
    assert {name: (inputs / name).read_bytes() for name in INPUTS} == before


def test_ways_that_are_compared_exist():
    assert {way for _, *ways in COMPARISONS for way in ways} | {"lungs"} == set(WAYS)


def test_a_way_runs_in_a_process_of_its_own(inputs):
    with fresh_process("our_crop_files", inputs, 1) as turn:
        peak = turn()
        assert 0 < peak < 500
        assert turn() >= peak
    assert (inputs / "cohort" / "images" / "ct.nii.gz").is_file()
