"""The segmenter that comes with the project, on phantoms that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import predict
from datasets.crop import CROP_SIZE, crop_to_lungs
from datasets.phantom.make import make_phantom
from datasets.window import WINDOW
from evaluation.inference import segment
from models.checkpoint import load_segmenter
from tests.volumes import dice

FOLDER = Path(__file__).parents[1] / "pretrained"


@pytest.fixture(scope="module")
def pretrained():
    return load_segmenter(FOLDER)


def test_it_is_small_enough_for_a_repository_and_says_what_it_was_trained_on(pretrained):
    assert {path.name for path in FOLDER.iterdir()} == {"README.md", "segmenter.pth"}
    assert (FOLDER / "segmenter.pth").stat().st_size < 5e6
    assert predict.parse(["scans", "--output", "found"]).model_path == FOLDER
    _, facts = pretrained
    trained_on = facts.trained_on
    assert (trained_on.size, trained_on.window, trained_on.normalization) == (CROP_SIZE, WINDOW, "window")


@pytest.mark.parametrize("diseased", [True, False])
def test_it_finds_the_lesions_of_a_phantom_and_hardly_any_in_a_healthy_one(pretrained, diseased):
    segmenter, facts = pretrained
    phantom = make_phantom(np.random.default_rng(4), (40, 128, 128), diseased)
    ct = sitk.GetImageFromArray(phantom.ct)
    ct.SetSpacing(phantom.spacing)
    crops = crop_to_lungs(ct, phantom.lung, phantom.lesion, CROP_SIZE)
    image, lung, lesion = map(sitk.GetArrayFromImage, crops)
    found = segment(segmenter.eval(), image, lung, facts.trained_on.normalization) > 0.5
    if diseased:
        assert dice(found, lesion) > 0.7
    else:
        assert found.sum() < 0.01 * (lung > 0).sum()
