"""The segmenter that comes with the project, on phantoms that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import predict
from datasets.crop import CROP_SIZE, crop_to_lungs
from datasets.phantom import make_phantom
from datasets.window import WINDOW
from evaluation.inference import segment
from models.checkpoint import load_segmenter

FOLDER = Path(__file__).parents[1] / "pretrained"


@pytest.fixture(scope="module")
def pretrained():
    return load_segmenter(FOLDER)


def crops_of(diseased):
    """Image in 0..255, lung and lesion of a phantom: (z, y, x) each."""
    phantom = make_phantom(np.random.default_rng(4), (40, 128, 128), diseased)
    ct = sitk.GetImageFromArray(phantom.ct)
    ct.SetSpacing(phantom.spacing)
    return [sitk.GetArrayFromImage(crop) for crop in crop_to_lungs(ct, phantom.lung, phantom.lesion, CROP_SIZE)]


def test_there_is_one_model_small_enough_for_a_repository_with_its_card():
    assert {path.name for path in FOLDER.iterdir()} == {"README.md", "segmenter.pth"}
    assert (FOLDER / "segmenter.pth").stat().st_size < 5e6


def test_it_is_the_default_of_predict():
    assert predict.parse(["scans", "--output", "found"]).model_path == FOLDER


def test_its_file_says_what_it_was_trained_on(pretrained):
    segmenter, facts = pretrained
    assert segmenter.width <= 20
    assert (facts.trained_on.size, facts.trained_on.window) == (CROP_SIZE, WINDOW)
    assert facts.trained_on.normalization == "window"


def test_it_finds_the_lesions_of_a_phantom_and_hardly_any_in_a_healthy_one(pretrained):
    segmenter, facts = pretrained
    found, lungs, lesions = [], [], []
    for diseased in (True, False):
        image, lung, lesion = crops_of(diseased)
        found.append(segment(segmenter.eval(), image, lung, facts.trained_on.normalization) > 0.5)
        lungs.append(lung > 0)
        lesions.append(lesion > 0)
    dice = 2 * (found[0] & lesions[0]).sum() / (found[0].sum() + lesions[0].sum())
    assert dice > 0.7
    assert found[1].sum() < 0.01 * lungs[1].sum()
