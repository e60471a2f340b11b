import gc
import threading
import weakref

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from datasets.crop import LungMaskCrop
from datasets.phantom import write_phantoms
from evaluation.raw_scans import one_ahead, predict_scan, prepare_scan
from models import Segmenter
from tests.volumes import geometry, pixels, write
from utils.errors import VolumeError


class Prepared:
    """Something that can be watched."""


def test_one_item_is_prepared_ahead_and_no_more_than_two_are_held():
    alive = weakref.WeakSet()
    started, most = [], []

    def prepare(item):
        started.append(item)
        made = Prepared()
        alive.add(made)
        return made

    for number, (item, ready) in enumerate(one_ahead(list("abcdef"), prepare)):
        ready.result()
        assert item == "abcdef"[number]
        # Nothing after the next one may be started, however long this one takes.
        threading.Event().wait(0.05)
        assert started == list("abcdef"[: number + 2])
        gc.collect()
        most.append(len(alive))
    assert max(most) == 2


def test_what_goes_wrong_with_an_item_is_raised_where_it_is_taken_and_the_others_go_on():
    def prepare(item):
        if item == 1:
            raise VolumeError("one is bad")
        return item * 10

    found = []
    for item, ready in one_ahead([0, 1, 2], prepare):
        if item == 1:
            with pytest.raises(VolumeError, match="one is bad"):
                ready.result()
        else:
            found.append(ready.result())
    assert found == [0, 20]


def test_no_items():
    assert list(one_ahead([], lambda item: item)) == []


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantoms(folder, healthy=0, diseased=1, size=(24, 48, 48), seed=5)
    return folder


def test_probabilities_and_mask_agree_and_the_numbers_are_those_of_the_files(phantom):
    path, lungpath = (phantom / kind / "diseased_000.nii.gz" for kind in ("ct", "lung"))
    torch.manual_seed(1)
    scan = prepare_scan(path, LungMaskCrop(lambda ct: pytest.fail("given"), (16, 32, 32)), lungpath)
    found = predict_scan(Segmenter(2), scan, "minmax", threshold=0.45, with_probabilities=True)
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
    plain = sitk.GetArrayFromImage(sides > 0)
    plain[0, 0, 0] = 1
    image = sitk.GetImageFromArray(plain)
    image.CopyInformation(sides)
    scan = prepare_scan(path, LungMaskCrop(lambda ct: None, (16, 32, 32)), write(tmp_path / "lung.nii.gz", image))
    expected = sitk.GetArrayFromImage(sides)
    assert scan.lungs[0, 0, 0] == 0
    assert (scan.lungs == expected).mean() > 0.999
    assert set(np.unique(scan.lungs)) == {0, 1, 2}


def test_a_scan_that_shows_one_value_is_refused(tmp_path):
    hu = np.full((8, 20, 20), -900, np.int16)
    hu[:, :, 0] = 0
    lung = np.zeros(hu.shape, np.uint8)
    lung[2:6, 4:16, 4:16] = 1
    path = write(tmp_path / "flat.nii.gz", hu)
    cropper = LungMaskCrop(lambda ct: None, (8, 8, 8))
    with pytest.raises(VolumeError, match=r"flat.nii.gz: all in the box around its lungs is the same"):
        prepare_scan(path, cropper, write(tmp_path / "lung.nii.gz", lung))


def test_the_window_of_the_model_is_that_of_the_crop(phantom):
    path, lungpath = (phantom / kind / "diseased_000.nii.gz" for kind in ("ct", "lung"))
    crops = [
        pixels(prepare_scan(path, LungMaskCrop(lambda ct: None, (8, 16, 16), window=window), lungpath).image)
        for window in ((-1250, 250), (-1000, 0))
    ]
    hu = crops[0] * (1500 / 255) - 1250
    np.testing.assert_allclose(crops[1], (np.clip(hu, -1000, 0) + 1000) * 0.255, atol=0.01)
