import numpy as np
import pytest
import SimpleITK as sitk
import torch

from datasets.crop import LungMaskCrop
from datasets.phantom.make import write_phantoms
from evaluation.lesion_segmenter import LesionSegmenter, prepare_scan
from models import Segmenter
from models.checkpoint import SegmenterFacts, SegmenterInput, save_segmenter
from tests.volumes import geometry, pixels, write
from utils.errors import VolumeError


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantoms(folder, healthy=0, diseased=1, size=(24, 48, 48), seed=5)
    return folder


def test_probabilities_and_mask_agree_and_the_numbers_are_those_of_the_files(phantom, model):
    path, lungpath = (phantom / kind / "diseased_000.nii.gz" for kind in ("ct", "lung"))
    segmenter = LesionSegmenter(model, lungs="threshold", device="cpu", threshold=0.45)
    found = segmenter.predict(segmenter.prepare(path, lungpath), with_probabilities=True)
    assert geometry(found.mask) == geometry(found.probabilities) == geometry(path)
    mask, probabilities, lung, hu = pixels(found.mask), pixels(found.probabilities), pixels(lungpath), pixels(path)
    np.testing.assert_array_equal(mask, probabilities > np.float32(0.45))
    assert 0 < mask.sum() < (lung > 0).sum()
    x, y, z = sitk.ReadImage(str(path)).GetSpacing()
    burden = found.burden
    assert burden.lesion_ml == pytest.approx(mask.sum() * x * y * z / 1000)
    assert burden.lung_ml == pytest.approx((lung > 0).sum() * x * y * z / 1000)
    for label, value in ((1, burden.right_lung_percent), (2, burden.left_lung_percent)):
        assert value == pytest.approx(100 * (mask[lung == label] > 0).mean())
    assert burden.lesion_mean_hu == pytest.approx(hu[mask > 0].mean())


def test_small_components_are_no_lung_and_a_plain_mask_is_split(phantom, tmp_path):
    path = phantom / "ct" / "diseased_000.nii.gz"
    sides = sitk.ReadImage(str(phantom / "lung" / "diseased_000.nii.gz"))
    expected = sitk.GetArrayFromImage(sides)
    stray = expected.copy()
    stray[0, 0, 0] = 1
    found = prepare_scan(path, LungMaskCrop(lambda ct: stray, (16, 32, 32)))
    np.testing.assert_array_equal(found.lungs, expected)
    plain = write(tmp_path / "lung.nii.gz", sides > 0)
    scan = prepare_scan(path, LungMaskCrop(lambda ct: None, (16, 32, 32)), plain)
    assert (scan.lungs == expected).mean() > 0.999
    assert set(np.unique(scan.lungs)) == {0, 1, 2}


def test_a_scan_that_shows_one_value_is_refused(tmp_path):
    hu = np.full((8, 20, 20), -900, np.int16)
    hu[:, :, 0] = 0
    lung = np.zeros(hu.shape, np.uint8)
    lung[2:6, 4:16, 4:16] = 1
    path = write(tmp_path / "flat.nii.gz", hu)
    cropper = LungMaskCrop(lambda ct: None, (8, 8, 8))
    with pytest.raises(VolumeError, match=r"flat.nii.gz: all voxels in the box around its lungs have one value"):
        prepare_scan(path, cropper, write(tmp_path / "lung.nii.gz", lung))


def test_the_window_of_the_model_is_that_of_the_crop(phantom):
    path, lungpath = (phantom / kind / "diseased_000.nii.gz" for kind in ("ct", "lung"))
    crops = [
        pixels(prepare_scan(path, LungMaskCrop(lambda ct: None, (8, 16, 16), window=window), lungpath).image)
        for window in ((-1250, 250), (-1000, 0))
    ]
    hu = crops[0] * (1500 / 255) - 1250
    np.testing.assert_allclose(crops[1], (np.clip(hu, -1000, 0) + 1000) * 0.255, atol=0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("model") / "segmenter.pth"
    save_segmenter(
        path,
        Segmenter(2),
        SegmenterFacts(
            trained_on=SegmenterInput(size=(16, 32, 32), window=(-1250.0, 250.0), normalization="minmax"), iteration=1
        ),
    )
    return path


def test_three_lines_segment_a_path_and_an_image_alike(phantom, model):
    path, lungs = (phantom / kind / "diseased_000.nii.gz" for kind in ("ct", "lung"))
    segmenter = LesionSegmenter(model, lungs="threshold", device="cpu", threshold=0.45)
    mask = segmenter.apply(path)
    assert geometry(mask) == geometry(path)
    assert 0 < pixels(mask).sum() < mask.GetNumberOfPixels()
    for scan in (str(path), sitk.ReadImage(str(path))):
        np.testing.assert_array_equal(pixels(segmenter.apply(scan)), pixels(mask))
    given = [pixels(segmenter.apply(path, mask)) for mask in (lungs, str(lungs), sitk.ReadImage(str(lungs)))]
    np.testing.assert_array_equal(given[0], given[1])
    np.testing.assert_array_equal(given[0], given[2])
    outside = pixels(lungs) == 0
    assert (given[0][~outside] > 0).any()


def test_images_are_checked_like_files(phantom, model):
    segmenter = LesionSegmenter(model, lungs="threshold", device="cpu")
    ct = sitk.ReadImage(str(phantom / "ct" / "diseased_000.nii.gz"))
    with pytest.raises(VolumeError, match=r"the image: values of .* are not HU"):
        segmenter.apply(ct + 1024)
    smaller = sitk.ReadImage(str(phantom / "lung" / "diseased_000.nii.gz"))[:, :, 1:]
    with pytest.raises(VolumeError, match="the mask: "):
        segmenter.apply(ct, smaller)
