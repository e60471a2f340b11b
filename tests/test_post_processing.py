import numpy as np
import pytest
import SimpleITK as sitk

import post_processing
from datasets.crop import NEAREST
from datasets.geometry import bounding_box
from datasets.scans import find_scans
from tests.outputs import written
from tests.volumes import crop_to_box, geometry, image_of, pixels, write, write_dicom
from utils.ledger import Ledger, Recipe


@pytest.fixture
def scans(tmp_path):
    """Raw scans in several file types with a lesion each, and their crops of the box's own size."""
    rng, shape, turned = np.random.default_rng(3), (12, 24, 26), {"direction": (0, 1, 0, -1, 0, 0, 0, 0, 1)}
    lesions = {}
    for name in ("one.nii.gz", "two.nii", "three.nrrd", "four.mhd"):
        lesion, case_id = np.zeros(shape, np.uint8), name.split(".")[0]
        lesion[2:10, 3:19, 4:22] = rng.random((8, 16, 18)) < 0.3
        write(tmp_path / "raw" / name, np.full(shape, -900, np.int16), **turned)
        oriented = sitk.DICOMOrient(image_of(lesion, **turned), "LPS")
        box = bounding_box(pixels(oriented))
        crop = crop_to_box(oriented, box, tuple(s.stop - s.start for s in box), NEAREST)
        write(tmp_path / "masks" / f"{case_id}.nii.gz", crop)
        write(tmp_path / "probabilities" / f"{case_id}.nii.gz", sitk.Cast(crop, sitk.sitkFloat32) * 0.9)
        lesions[case_id] = lesion
    return tmp_path, lesions


def pasted(folder, masks, *arguments, images=("raw",)):
    places = ["--images", *(str(folder / name) for name in images), "--masks", str(folder / masks)]
    return post_processing.main([*places, "--output", str(folder / "out"), "--quiet", *arguments])


@pytest.mark.parametrize("masks", ["masks", "probabilities"])
def test_masks_come_back_voxel_for_voxel_with_the_scans_geometry_and_file_type(scans, masks):
    folder, lesions = scans
    assert pasted(folder, masks) == 0
    assert written(folder / "out") == ["four.mha", "one.nii.gz", "three.nrrd", "two.nii.gz"]
    for scan in (path for path in (folder / "raw").iterdir() if path.suffix != ".raw"):
        case_id = scan.name.split(".")[0]
        result = next((folder / "out").glob(f"{case_id}.*"))
        assert geometry(result) == geometry(scan)
        assert sitk.ReadImage(str(result)).GetPixelID() == sitk.sitkUInt8
        np.testing.assert_array_equal(pixels(result), lesions[case_id])


def test_the_threshold_cuts_probabilities_and_floats_that_are_none_are_refused(scans, ends):
    folder, _ = scans
    assert pasted(folder, "probabilities", "--threshold", "0.95") == 0
    assert not any(pixels(folder / "out" / name).any() for name in written(folder / "out"))
    path = folder / "probabilities" / "one.nii.gz"
    write(path, sitk.ReadImage(str(path)) * 255)
    ends(1, lambda: pasted(folder, "probabilities"), "are not probabilities")
    with pytest.raises(SystemExit, match="2"):
        pasted(folder, "probabilities", "--threshold", "1")


@pytest.mark.fault("probabilities of a test at another threshold")
def test_the_threshold_is_that_of_the_test(scans):
    folder, lesions = scans
    ledger = Ledger(folder, "tested")
    path = folder / "probabilities" / "one.nii.gz"
    probabilities = sitk.ReadImage(str(path))
    path.unlink()
    with ledger.writing("one", [path], Recipe({}, {"threshold": 0.95})):
        write(path, probabilities)
    assert pasted(folder, "probabilities") == 0
    assert not pixels(folder / "out" / "one.nii.gz").any()  # 0.9 at most
    assert pixels(folder / "out" / "two.nii.gz").any()
    assert pasted(folder, "probabilities", "--threshold", "0.5") == 0
    np.testing.assert_array_equal(pixels(folder / "out" / "one.nii.gz"), lesions["one"])


@pytest.mark.fault("a scan that was replaced since it was cropped")
def test_a_scan_that_is_not_the_one_that_was_cropped_is_named(scans, capsys):
    folder, _ = scans
    raw, crop, mask = folder / "raw" / "one.nii.gz", folder / "cohort/images/one.nii.gz", folder / "masks/one.nii.gz"
    predicted = sitk.ReadImage(str(mask))
    mask.unlink()
    with Ledger(folder / "cohort", "crops").writing("one", [crop], Recipe({"scan": [raw]})):
        write(crop, predicted)
    with Ledger(folder, "tested").writing("one", [mask], Recipe({"crop": [crop]})):
        write(mask, predicted)
    assert pasted(folder, "masks") == 0
    assert capsys.readouterr().err == ""
    write(raw, sitk.ReadImage(str(raw)) - 1)
    assert pasted(folder, "masks") == 0
    assert f"{raw}: is not the file that {crop} was made from; if the CT was repl" in capsys.readouterr().err


def test_scans_and_masks_without_their_other_half_are_named(scans, capsys, ends):
    folder, _ = scans
    mask = (folder / "masks" / "two.nii.gz").rename(folder / "zwei.nii.gz")
    assert pasted(folder, "masks") == 1
    out = capsys.readouterr().out
    assert "3 of 4 scans have a full-size mask" in out
    assert f"not tested: two: no mask in {folder / 'masks'}\n" in out
    assert "failed" not in out
    (folder / "raw" / "two.nii").unlink()
    mask = mask.rename(folder / "masks" / "zwei.nii.gz")
    ends(1, lambda: pasted(folder, "masks"), f"no raw scan for: {mask}")


def test_masks_of_scans_that_are_not_in_the_input_any_more_are_named(scans, ends):
    folder, _ = scans
    assert "also holds" not in ends(0, lambda: pasted(folder, "masks"))
    raw = folder / "raw" / "three.nrrd"
    said = ends(1, lambda: pasted(folder, "masks", images=[raw]))
    assert "out: also holds results of 3 scan(s) that are not in this input" in said


@pytest.mark.fault("a mask that was cut")
def test_a_mask_of_another_scan_is_named_and_the_others_are_done(scans, capsys):
    folder, _ = scans
    write(folder / "raw" / "one.nii.gz", np.full((12, 24, 26), -900, np.int16), origin=(0.4, 0, 0))
    assert pasted(folder, "masks") == 1
    out = capsys.readouterr().out
    assert f"failed: one: {folder / 'masks' / 'one.nii.gz'}: does not lie on" in out
    assert len(written(folder / "out")) == 3


@pytest.mark.fault("several series in one study")
def test_a_mask_lies_on_the_series_that_it_was_cut_from(scans, tmp_path, ends):
    folder, _ = scans
    study = {"StudyInstanceUID": "1.2"}
    dicom = write_dicom(tmp_path / "case.mha", np.zeros((6, 10, 12), np.int16), SeriesDescription="Lung", **study)
    write_dicom(dicom, np.zeros((9, 10, 14), np.int16), origin=(0, 0, 0), name="b", SeriesDescription="Soft", **study)
    write(folder / "case_masks" / "case.mha.nii.gz", np.ones((6, 10, 12), np.uint8))
    ends(1, lambda: pasted(folder, "case_masks", images=[dicom]), "does not lie on")
    assert pasted(folder, "case_masks", "--series", "lung", images=[dicom]) == 0
    assert pixels(folder / "out" / "case.mha.nii.gz").sum() == 6 * 10 * 12


@pytest.mark.fault("masks on crops of the published code")
@pytest.mark.parametrize("without", [False, True])
def test_a_crop_without_geometry_is_not_pasted(tmp_path, without, ends):
    plain = {"spacing": (1, 1, 1), "origin": (0, 0, 0)}
    write(tmp_path / "raw" / "a.nii.gz", np.full((9, 20, 20), -900, np.int16), **(plain if without else {}))
    write(tmp_path / "crops" / "a.nii.gz", np.ones((4, 8, 8), np.uint8), **plain)
    ends(1, lambda: pasted(tmp_path, "crops"), "a.nii.gz: " + ("has no geometry" if without else "does not lie on"))
    # A mask of the whole scan needs none.
    write(tmp_path / "whole" / "a.nii.gz", np.ones((9, 20, 20), np.uint8), **plain)
    assert pasted(tmp_path, "whole") == (0 if without else 1)


@pytest.mark.fault("output that is input")
def test_a_scan_named_by_itself_is_never_written_over(scans, ends):
    folder, _ = scans
    scan = folder / "raw" / "three.nrrd"
    before = scan.read_bytes()
    arguments = ["--images", str(scan), "--masks", str(folder / "masks" / "three.nii.gz"), "--output", str(scan.parent)]
    ends(1, lambda: post_processing.main(arguments), "is the folder of the input")
    assert scan.read_bytes() == before


@pytest.mark.fault("own results below the scans")
def test_the_folder_of_the_masks_may_lie_among_the_scans(scans):
    folder, lesions = scans
    for _ in range(2):
        assert pasted(folder, "masks", "--output", str(folder / "raw" / "full")) == 0
    assert set(find_scans(folder / "raw")) == set(lesions)
