from dataclasses import asdict

import numpy as np
import pytest
import SimpleITK as sitk

from datasets.crop import LungMaskCrop
from evaluation.burden import measure_burden
from evaluation.lesion_segmenter import LesionSegmenter, prepare_scan
from tests.outputs import save_model
from tests.volumes import geometry, pixels, write
from utils.errors import VolumeError


def test_probabilities_and_mask_agree_and_the_numbers_are_those_of_the_files(phantoms, model):
    path, lungpath = (phantoms / kind / "diseased_000.nii.gz" for kind in ("ct", "lung"))
    segmenter = LesionSegmenter(model, lungs="threshold", device="cpu", threshold=0.45)
    found = segmenter.predict(segmenter.prepare(path, lungpath), with_probabilities=True)
    assert geometry(found.mask) == geometry(found.probabilities) == geometry(path)
    mask, probabilities, lung, hu = pixels(found.mask), pixels(found.probabilities), pixels(lungpath), pixels(path)
    np.testing.assert_array_equal(mask, probabilities > np.float32(0.45))
    assert 0 < mask.sum() < (lung > 0).sum()
    voxel_ml = np.prod(sitk.ReadImage(str(path)).GetSpacing()) / 1000
    burden = asdict(measure_burden(mask > 0, lung, hu, voxel_ml))
    assert asdict(found.burden) == pytest.approx(burden)


def test_small_components_are_no_lung_and_a_plain_mask_is_split(phantoms, tmp_path):
    path = phantoms / "ct" / "diseased_000.nii.gz"
    sides = sitk.ReadImage(str(phantoms / "lung" / "diseased_000.nii.gz"))
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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "segmenter.pth", (16, 32, 32))


def test_three_lines_segment_a_path_and_an_image_alike(phantoms, model):
    path, lungs = (phantoms / kind / "diseased_000.nii.gz" for kind in ("ct", "lung"))
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


def test_images_are_checked_like_files(phantoms, model):
    segmenter = LesionSegmenter(model, lungs="threshold", device="cpu")
    ct = sitk.ReadImage(str(phantoms / "ct" / "diseased_000.nii.gz"))
    with pytest.raises(VolumeError, match=r"the image: values of .* are not HU"):
        segmenter.apply(ct + 1024)
    nan, sheared = sitk.Cast(ct, sitk.sitkFloat32), sitk.Image(ct)
    nan[0, 0, 0] = float("nan")
    sheared.SetDirection((1, 0.3, 0, 0, 1, 0, 0, 0, 1))
    bad = (ct[:, :, 1], sitk.JoinSeries([ct, ct]), sitk.Compose(ct, ct), sitk.Cast(ct, sitk.sitkComplexFloat32))
    for image, match in (*((image, "no three-dim") for image in bad), (nan, "NaN"), (sheared, "right angles")):
        with pytest.raises(VolumeError, match=f"the image: .*{match}"):
            segmenter.apply(image)
    lung = sitk.ReadImage(str(phantoms / "lung" / "diseased_000.nii.gz"))
    for mask in (lung[:, :, 1:], lung[:, :, 1], sitk.Compose(lung, lung)):
        with pytest.raises(VolumeError, match="the mask: "):
            segmenter.apply(ct, mask)
