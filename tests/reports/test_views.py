import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from reports import views
from reports.views import ReportCase, encode_case, read_view
from tests.volumes import image_of
from tests.volumes import pixels as values


def geometry_of(shape, spacing=(1.5, 2.0, 5.0), **geometry):
    return image_of(np.zeros(shape, np.uint8), spacing, (-10.0, 20.0, 30.0), **geometry)


def case_of(shape=(20, 48, 64), **changes):
    empty = np.zeros(shape, bool)
    case = ReportCase(
        "a", geometry_of(shape), np.full(shape, -600.0, np.float32), empty, None, np.ones(shape, bool), {}
    )
    return replace(case, **changes)


def pixels(webp):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(webp))).convert("L"))


def test_the_box_is_that_of_lungs_and_lesions_with_a_margin_in_the_plane():
    lung, predicted = (np.zeros((20, 48, 64), bool) for _ in range(2))
    lung[5:12, 10:20, 20:40] = True
    predicted[14, 15, 45] = True
    view = encode_case(case_of(lung=lung, predicted=predicted))
    axial, coronal = view["planes"]
    # 8 mm are 5 voxels along x and 4 along y: x from 15 to 51, y from 6 to 24, z from 5 to 15.
    assert (axial["size"], axial["spacing"], axial["total"], axial["count"]) == ((36, 18), (1.5, 2.0), 20, 10)
    assert (coronal["size"], coronal["spacing"], coronal["total"], coronal["count"]) == ((36, 10), (1.5, 5.0), 48, 18)
    assert [s["index"] for s in axial["slices"]] == list(range(5, 15))
    assert (axial["slices"][axial["start"]]["index"], axial["slices"][0]["position"]) == (14, 30 + 5 * 5.0)
    assert coronal["slices"][0]["position"] == 20 + coronal["slices"][0]["index"] * 2.0
    # The first row of an axial slice is y = 6, that of a coronal one the highest, z = 14.
    assert (axial["first"], axial["step"], coronal["first"], coronal["step"]) == (6, 1, 14, -1)
    assert np.argwhere(pixels(axial["slices"][-1]["mask"])).tolist() == [[15 - 6, 45 - 15]]
    assert np.argwhere(pixels(coronal["slices"][coronal["start"]]["mask"])).tolist() == [[0, 45 - 15]]


def test_without_lungs_the_box_is_that_of_the_body():
    hu = np.full((20, 48, 64), -1000.0)
    hu[2:18, 20:30, 20:40] = 0
    axial = encode_case(case_of(hu=hu, lung=None))["planes"][0]
    assert (axial["size"], axial["count"]) == ((20 + 2 * 5, 10 + 2 * 4), 16)


def test_pictures_hold_the_hu_and_masks_tell_predicted_from_true():
    hu = np.full((20, 48, 64), -600.0)
    hu[:, :, 32:] = 40
    predicted, true = (np.zeros(hu.shape, bool) for _ in range(2))
    predicted[3, 10:20, 10:20] = true[3, 15:25, 15:25] = True
    view = encode_case(case_of(hu=hu, predicted=predicted, true=true))
    assert view["truth"]
    slice_3 = view["planes"][0]["slices"][3]
    grey = pixels(slice_3["image"]).astype(int)
    # -600 HU: 112 * 750 / 1190 = 70.6; 40 HU: 112 + 143 / 2 = 183.5.
    assert abs(grey[10:40, 5:25] - 71).max() <= 3
    assert abs(grey[10:40, 40:60] - 184).max() <= 3
    np.testing.assert_array_equal(pixels(slice_3["mask"]), 85 * (predicted[3] + 2 * true[3]))
    assert view["planes"][0]["slices"][4]["mask"] is None


def test_a_large_scan_keeps_few_slices_of_bounded_size(monkeypatch):
    monkeypatch.setattr(views, "LARGEST_SIDE", 72)
    monkeypatch.setattr(views, "MOST_PIXELS", {"axial": 93_750, "coronal": 37_500})
    shape = (120, 64, 80)
    noise = np.random.default_rng(0).normal(-600, 150, shape).astype(np.float32)
    predicted = np.zeros(shape, bool)
    predicted[61, 25:30, 25:30] = True
    view = encode_case(case_of(shape, geometry=geometry_of(shape, (0.7, 0.7, 1.0)), hu=noise, predicted=predicted))
    axial, coronal = view["planes"]
    assert axial["size"] == (80, 64)
    assert pixels(axial["slices"][0]["image"]).shape == (58, 72)  # 64 * 72 / 80 = 57.6
    assert len(axial["slices"]) == -(-120 // axial["every"]) == 20  # 93,750 pixels are 22 slices: every 6th
    assert axial["slices"][axial["start"]]["index"] == 61
    assert len(coronal["slices"]) <= 12
    assert pixels(axial["slices"][axial["start"]]["mask"]).shape == (64, 80)


def test_a_view_can_be_stored():
    predicted = np.zeros((20, 48, 64), bool)
    predicted[5, 20, 20] = True
    values = {"dice": np.float64(0.5), "n": np.int64(3), "kind": "lesion", "hd95_mm": float("nan"), "none": None}
    view = encode_case(case_of(predicted=predicted, id='\u00e4 "<', values=values))
    assert view["values"] == {"dice": 0.5, "n": 3, "kind": "lesion", "hd95_mm": None, "none": None}
    stored = json.dumps(view)
    assert json.dumps(read_view(stored)) == stored
    for damaged in ("", "{}", "[]", stored[:-9], stored.replace('"format": 1', '"format": 0')):
        with pytest.raises(ValueError, match=r"not a view of a case|Expecting|Unterminated"):
            read_view(damaged)


@pytest.mark.parametrize("code", ["LPS", "RAI", "PIR", "SAL"])
def test_a_scan_looks_the_same_in_any_orientation(code):
    rng = np.random.default_rng(2)
    case = case_of(hu=rng.normal(-600, 100, (20, 48, 64)).astype(np.float32), predicted=rng.random((20, 48, 64)) < 0.1)

    def turned(array):
        image = image_of(np.asarray(array, np.float32), (1.5, 2.0, 5.0), (-10.0, 20.0, 30.0))
        return sitk.DICOMOrient(image, code)

    arrays = {name: values(turned(getattr(case, name))) for name in ("hu", "predicted", "lung")}
    arrays["predicted"] = arrays["predicted"] > 0
    assert encode_case(replace(case, geometry=turned(case.hu), **arrays)) == encode_case(case)
