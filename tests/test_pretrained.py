"""The GASNet that comes with the project, on a phantom that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from configs.settings import read_settings
from datasets.crop import crop_to_lungs
from datasets.phantom import make_phantom
from datasets.samples import as_input, normalise
from evaluation.inference import segment
from models import Discriminator
from models.checkpoint import load_generator, load_weights, read_segmenter
from models.generator import generate_scan

FOLDER = Path(__file__).parents[1] / "pretrained" / "phantoms"


@pytest.fixture(scope="module")
def settings():
    return read_settings(FOLDER / "settings.yaml")


@pytest.fixture(scope="module")
def crops(settings):
    """CT in 0..255, lung and lesion of a diseased phantom: (z, y, x) each."""
    phantom = make_phantom(np.random.default_rng(4), (64, 192, 192))
    ct = sitk.GetImageFromArray(phantom.ct)
    ct.SetSpacing(phantom.spacing)
    cropped = crop_to_lungs(ct, phantom.lung, phantom.lesion, settings.image.size)
    return [sitk.GetArrayFromImage(crop) for crop in cropped]


def test_the_files_are_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25e6


def test_s_finds_lesions_of_a_phantom(crops, settings):
    segmenter, facts = read_segmenter(FOLDER)
    assert facts.trained_on.size == settings.image.size
    assert facts.trained_on.normalization == settings.image.normalization
    image, lung, lesion = crops
    found = segment(segmenter.eval(), image, (lung > 0).astype(np.uint8), settings.image.normalization) > 0.5
    dice = 2 * (found & (lesion > 0)).sum() / (found.sum() + (lesion > 0).sum())
    assert dice > 0.5


def test_g_paints_healthy_lung_over_lesions_and_leaves_the_rest(crops, settings):
    image, lung, lesion = crops
    generator = load_generator(FOLDER / "networks.pth")
    scan = as_input(normalise(image, settings.image.normalization))[None]
    painted = generate_scan(generator.eval(), scan, settings.image.slices)[0, 0].numpy()
    given = scan[0, 0].numpy()
    healthy = (lung > 0) & (lesion == 0)
    above = given[lesion > 0].mean() - given[healthy].mean()
    assert painted[lesion > 0].mean() - painted[healthy].mean() < 0.3 * above
    assert abs(painted - given)[healthy].mean() < 0.3 * above


def test_d_can_be_trained_on_from(settings):
    discriminator = Discriminator(settings.model.width.d, (settings.image.slices, *settings.image.size[1:]))
    load_weights(discriminator, FOLDER / "networks.pth")
    assert all(torch.isfinite(weights).all() for weights in discriminator.parameters())
