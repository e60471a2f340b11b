import numpy as np
import pytest
import SimpleITK as sitk

from datasets.geometry import check_geometry, check_same_geometry, lps_geometry, lps_view
from datasets.volumes import read_volume
from tests.volumes import SPACING, geometry, image_of, orientations, pixels, refused, rotation, write

SHAPE = (6, 7, 8)
GOOD = {"size": (8, 7, 6), "spacing": SPACING, "origin": (-12.3, 45.6, 789.1)}
GOOD["direction"] = tuple(rotation(0.1, 0.2, 0.3).ravel().tolist())


def test_axes_are_turned_to_lps_as_itk_turns_images():
    array, rng = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), np.random.default_rng(4)
    turned = [rotation(*rng.uniform(-0.7, 0.7, 3)) @ direction for direction in orientations()]
    for direction in (*orientations(), *turned):
        image = image_of(array, direction=direction)
        theirs, ours = sitk.DICOMOrient(image, "LPS"), lps_geometry(image)
        assert ours.GetSize() == theirs.GetSize()
        assert ours.GetSpacing() == theirs.GetSpacing()
        np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), rtol=0, atol=1e-9)
        np.testing.assert_allclose(ours.GetDirection(), theirs.GetDirection(), rtol=0, atol=1e-12)
        view = lps_view(array, image)
        np.testing.assert_array_equal(view, pixels(theirs))
        assert np.shares_memory(view, array)
        assert geometry(lps_geometry(ours)) == geometry(ours)


@pytest.mark.fault("spacing 0, negative", "sheared, zero or NaN", "origin NaN or kilometres")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": (8, 7)}, "expected one volume"),
        ({"size": (8, 7, 1)}, "expected one volume"),
        ({"size": (8, 7, 0)}, "expected one volume"),
        ({"size": (1024, 1024, 513)}, "1024x1024x513 voxels, more than 536870912; .* --max-voxels"),
        ({"spacing": (0.7, 0.0, 1.0)}, "cannot be in mm"),
        ({"spacing": (0.7, -1.0, 1.0)}, "cannot be in mm"),
        ({"spacing": (0.7, 1e30, 1.0)}, "cannot be in mm"),
        ({"spacing": (0.7, float("nan"), 1.0)}, "cannot be in mm"),
        *(({"origin": (0.0, 1.0, float(value))}, "cannot be in mm") for value in ("inf", "nan")),
        ({"origin": (0.0, 1e9, 1.0)}, "cannot be in mm"),
        ({"direction": (1.0, 0, 0, 0, 1, 0, 0, 0.1, 1)}, "not at right angles"),
        ({"direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 0)}, "not at right angles"),
        ({"direction": (2.0, 0, 0, 0, 1, 0, 0, 0, 1)}, "not at right angles"),
    ],
)
def test_headers_of_volumes_that_cannot_be(change, match):
    check_geometry("scan", **GOOD)
    check_geometry("scan", **(GOOD | {"size": (1024, 1024, 1024)}), max_voxels=2**30)
    refused("scan", lambda: check_geometry("scan", **(GOOD | change)), match)


@pytest.mark.fault("mask of another size")
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("size", {"shape": (6, 7, 9)}),
        ("spacing", {"spacing": (0.7, 0.8, 2.51)}),
        ("spacing", {"spacing": (0.702, 0.8, 2.5)}),
        ("origin", {"origin": (-12.3, 45.6, 789.1 + 0.02)}),
        ("origin", {"origin": (12.3, 45.6, 789.1)}),
        ("direction", {"direction": (1, 0, 0, 0, 1, 0, 0, 0, -1)}),
        ("direction", {"direction": rotation(0.01, 0, 0)}),
    ],
)
def test_grids_that_differ(tmp_path, what, change):
    shape = change.pop("shape", SHAPE)
    scan, mask = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    grid, reference = image_of(np.zeros(shape, np.uint8), **change), image_of(np.zeros(SHAPE, np.uint8))
    message = refused(mask, lambda: check_same_geometry(mask, grid, scan, reference), f"its {what} ")
    assert str(scan) in message


@pytest.mark.fault("mask of another size")
def test_grids_that_differ_by_single_precision_are_the_same(tmp_path):
    reference = image_of(np.zeros(SHAPE, np.uint8), direction=rotation(0.1, 0.2, 0.3))
    grid = read_volume(write(tmp_path / "mask.nii.gz", reference))
    assert geometry(grid) != geometry(reference)
    check_same_geometry(tmp_path / "mask.nii.gz", grid, tmp_path / "scan.nrrd", reference)
