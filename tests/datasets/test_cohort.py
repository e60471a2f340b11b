import shutil
import unicodedata
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from datasets.cohort import Case, checksum_of_voxels, lesion_folder, read_cohort, read_id_list, read_volumes
from datasets.volumes import write_volume
from tests.volumes import image_of, pixels, refused, write
from utils.errors import CohortError
from utils.ledger import Ledger

SIZE = (20, 64, 64)
SPLITS = {"LABELED": "train_id_L", "WO_LABEL": "train_id_WL", "HEALTHY": "train_id_H", "VALID": "valid_id_L"}
SPACING, ORIGIN = (2.0, 1.5, 6.0), (-60.0, -40.0, 10.0)


@pytest.fixture
def root(cohort, tmp_path):
    return shutil.copytree(cohort, tmp_path / "cohort")


def rewrite(path, change, **geometry):
    array = change(pixels(path))
    write(path, array, **{"spacing": SPACING, "origin": ORIGIN, **geometry})


def problems(root, splits=SPLITS, size=SIZE, **window):
    with pytest.raises(CohortError) as caught:
        read_cohort(root, splits, size, **window)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{root}: {len(lines)} problem(s) in this cohort"
    return lines


def test_a_good_cohort(root):
    cohort = read_cohort(root, {**SPLITS, "VALIDH": "valid_id_H.txt", "TEST": None}, SIZE)
    assert {key: [case.id for case in cases] for key, cases in cohort.items()} == {
        "LABELED": ["sick_0"],
        "WO_LABEL": ["sick_1", "sick_2", "sick_3"],
        "HEALTHY": ["well_0", "well_1"],
        "VALID": ["sick_4", "sick_5"],
        "VALIDH": ["well_2"],
    }
    assert replace(cohort["LABELED"][0], content="") == Case(
        "sick_0", *(root / folder / "sick_0.nii.gz" for folder in ("images", "lung", "lesion"))
    )
    # Its lesion file exists, but what is not labelled has none to train with.
    assert cohort["WO_LABEL"][0].lesion is None


@pytest.mark.fault("an id twice, with folders")
def test_an_id_that_labeled_names_twice_is_drawn_twice_and_warned_of(root, caplog):
    (root / "id_txt" / "train_id_L.txt").write_text("sick_0\nsick_1\nsick_0\n")
    cases = read_cohort(root, SPLITS | {"WO_LABEL": None}, SIZE)["LABELED"]
    assert [case.id for case in cases] == ["sick_0", "sick_1", "sick_0"]
    assert "train_id_L.txt: the id sick_0 is listed more than once; it is drawn as often in each epoch" in caplog.text
    (root / "id_txt" / "train_id_WL.txt").write_text("sick_2\nsick_2")
    with pytest.raises(CohortError, match=r"train_id_WL.txt: the id sick_2 is listed twice; list it once"):
        read_cohort(root, SPLITS, SIZE)


@pytest.mark.fault("healthy scans with a lesion mask")
@pytest.mark.parametrize(("key", "name"), [("HEALTHY", "well_1"), ("VALIDH", "well_2")])
def test_healthy_scans_with_a_lesion_mask_are_refused(root, key, name):
    lesion = root / "lesion" / f"{name}.nii.gz"
    shutil.copy(root / "lesion" / "sick_0.nii.gz", lesion)
    voxels = np.count_nonzero(pixels(lesion))
    (line,) = problems(root, {**SPLITS, "VALIDH": "valid_id_H"})
    assert line.startswith(f"{key}: {name} has a lesion mask of {voxels} voxels, {lesion}; list it as diseased")
    rewrite(lesion, np.zeros_like)
    read_cohort(root, {**SPLITS, "VALIDH": "valid_id_H"}, SIZE)


@pytest.mark.fault("healthy scans with a lesion mask")
def test_empty_labels_are_refused_to_learn_from_and_named_to_test_with(root, caplog):
    rewrite(root / "lesion" / "sick_4.nii.gz", np.zeros_like)
    read_cohort(root, SPLITS, SIZE)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"VALID: {root / 'lesion' / 'sick_4.nii.gz'} is empty")
    rewrite(root / "lesion" / "sick_0.nii.gz", np.zeros_like)
    (line,) = problems(root)
    assert line.startswith(f"LABELED: {root / 'lesion' / 'sick_0.nii.gz'} is empty; list sick_0 as healthy")


@pytest.mark.fault("crops of the published code")
def test_crops_of_the_published_code_are_named(root, caplog):
    for path in sorted(root.rglob("*.nii.gz")):
        # No geometry is set at all, as in the published code.
        sitk.WriteImage(sitk.GetImageFromArray(pixels(path)), str(path))
    read_cohort(root, SPLITS, SIZE)
    assert f"{root}: 8 crop(s) of the published code" in caplog.text
    assert "whose id contains cor or mos lie upside down" in caplog.text


@pytest.mark.fault("crops with another window")
def test_crops_with_another_window_than_that_of_the_settings_are_named(root):
    path = root / "images" / "sick_2.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetMetaData("ITK_FileNotes", "GASNet crop, -1000.0 to 1e-05 HU as 0 to 255")
    write_volume(image, path)
    (line,) = problems(root)
    assert line.startswith(f"{path}: cropped with the window [-1000.0, 1e-05], IMAGE.WINDOW is [-1250.0, 250.0]; ")
    # What does not say it was cropped with the published one.
    lines = problems(root, window=(-1000.0, 1e-05))
    assert len(lines) == 7
    assert not any("sick_2" in line for line in lines)


@pytest.mark.fault("an empty split, a missing", "many problems in one")
def test_everything_that_is_wrong_is_reported_at_once(root):
    (root / "images" / "sick_1.nii.gz").unlink()
    (root / "lesion" / "sick_4.nii.gz").unlink()
    rewrite(root / "lesion" / "sick_0.nii.gz", lambda a: a * 255)
    rewrite(root / "lung" / "sick_2.nii.gz", lambda a: a, origin=(-60.0, -40.0, 11.0))
    rewrite(root / "lung" / "sick_3.nii.gz", lambda a: a * 0)
    rewrite(root / "images" / "well_0.nii.gz", lambda a: a * 4 - 1000)
    rewrite(root / "images" / "well_1.nii.gz", lambda a: a[:10])
    broken = root / "images" / "sick_5.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-100])
    (root / "id_txt" / "valid_id_L.txt").write_text("sick_4\nsick_5\nsick_1\n")
    (root / "id_txt" / "valid_id_H.txt").write_text("\n \n")
    lines = problems(root, {**SPLITS, "VALIDH": "valid_id_H", "TEST": "missing_list"})
    for finding in (
        "missing_list.txt: No such file",
        "valid_id_H.txt: empty; VALIDH needs at least one id",
        "sick_1 is listed in both WO_LABEL and VALID",
        "WO_LABEL: sick_1.nii.gz is missing in",
        "VALID: sick_4.nii.gz is missing in",
        "sick_0.nii.gz: holds the label 255, expected 0 or 1",
        "sick_2.nii.gz: its origin",
        "sick_3.nii.gz: empty; expected the lungs",
        "well_0.nii.gz: values of",
        "well_1.nii.gz: (10, 64, 64) voxels, IMAGE.SIZE is (20, 64, 64)",
        "sick_5.nii.gz: damaged, cut short",
    ):
        assert sum(finding in line for line in lines) == 1, finding
    assert len(lines) == 12  # VALID lacks the image of sick_1, too


@pytest.mark.fault("one id in training")
def test_a_scan_in_two_splits_that_contradict_each_other(root):
    (root / "id_txt" / "shared.txt").write_text("sick_0\n")
    for splits in (
        "LABELED VALID",
        "WO_LABEL HEALTHY",
        "HEALTHY VALIDH",
        "VALID VALIDH",
        "VALID TEST",
        "HEALTHY TESTH",
    ):
        (line,) = problems(root, dict.fromkeys(splits.split(), "shared"))
        assert line.startswith(f"sick_0 is listed in both {splits.replace(' ', ' and ')}; ")
    both = ("LABELED", "WO_LABEL")
    assert set(read_cohort(root, dict.fromkeys(both, "shared"), SIZE)) == set(both)


@pytest.mark.fault("no final newline, CRLF")
@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\n\n  b \n\n", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        ("a\u2028b\n".encode(), ["a\u2028b"]),
        (b"x" * 240, ["x" * 240]),
    ],
)
def test_lists_of_any_system(tmp_path, content, ids):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    assert read_id_list(path) == ids


@pytest.mark.fault("names in Unicode's decomposed form")
@pytest.mark.parametrize(("files", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_ids_match_in_either_unicode_form(root, files, listed):
    for folder in ("images", "lung", "lesion"):
        name = unicodedata.normalize(files, "Müller.nii.gz")
        (root / folder / "sick_0.nii.gz").rename(root / folder / name)
    path = root / "id_txt" / "train_id_L.txt"
    path.write_text(unicodedata.normalize(listed, "Müller"), encoding="utf-8")
    (case,) = read_cohort(root, SPLITS, SIZE)["LABELED"]
    assert (case.id, case.lesion) == ("M\u00fcller", root / "lesion" / name)


@pytest.mark.fault("an id twice, with folders")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", "the id a is listed twice"),
        (b"../secret\n", "is not a file name"),
        (b"..\n", "is not a file name"),
        (b"a\\b\n", "is not a file name"),
        (b"a\x00b\n", r"the id 'a\\x00b' is not a file name"),
        (b"a\x1b[2Jb\n", r"the id 'a\\x1b\[2Jb' is not a file name"),
        ("a\x85b\n".encode(), "is not a file name"),
        (b"x" * 241, "the id 'x{60}' is not a file name"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_lists_that_are_refused(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    refused(path, lambda: read_id_list(path), message, CohortError)


def test_the_published_spelling_of_the_lesion_folder_is_accepted_with_a_note(root, caplog):
    (root / "lesion").rename(root / "leision")
    cohort = read_cohort(root, SPLITS, SIZE)
    assert cohort["LABELED"][0].lesion == root / "leision" / "sick_0.nii.gz"
    assert "its usual name is lesion" in caplog.text
    assert lesion_folder(root) == root / "leision"


def test_what_is_read_and_lung_labels_1_and_2_are_both_lung(root):
    path = root / "lung" / "sick_0.nii.gz"
    lung = pixels(path)
    rewrite(path, lambda array: array * np.repeat([1, 2], 32).astype(np.uint8))
    assert pixels(path).max() == 2
    case = read_cohort(root, SPLITS, SIZE)["LABELED"][0]
    volumes = read_volumes(case)
    for found, expected in ((volumes.image, pixels(case.image)), (volumes.lesion, pixels(case.lesion))):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(volumes.lung, lung)
    assert (volumes.image.dtype, volumes.lung.dtype, volumes.lesion.dtype) == (np.float32, np.uint8, np.uint8)
    assert not read_volumes(replace(case, lesion=None)).lesion.any()


def test_no_cohort_at_all(tmp_path):
    path = tmp_path / "nowhere"
    refused(path, lambda: read_cohort(path, SPLITS, SIZE), "no cohort here .* python lungCrop", CohortError)


@pytest.mark.fault("one CT under two ids")
@pytest.mark.parametrize(("split", "name"), [("WO_LABEL", "train_id_WL"), ("TEST", "test_id_L")])
def test_a_copy_of_a_ct_on_another_side_is_named(root, split, name):
    for folder in ("images", "lung", "lesion"):
        shutil.copy(root / folder / "sick_4.nii.gz", root / folder / "sick_4 (1).nii.gz")
    (root / "id_txt" / f"{name}.txt").write_text("sick_4 (1)")
    (line,) = problems(root, {"VALID": "valid_id_L", split: name})
    assert line == (f"sick_4 (1) in {split} is the same CT as sick_4 in VALID; take one of them out")
    assert read_cohort(root, {split: name}, SIZE)[split][0].content.startswith("crop ")


@pytest.mark.fault("crops that were not written to the end")
def test_a_crop_that_was_not_written_to_the_end_is_refused(root):
    path = root / "lesion" / "sick_0.nii.gz"
    ledger, content = Ledger(root, "crops"), path.read_bytes()
    path.unlink()
    with suppress(KeyboardInterrupt), ledger.writing("sick_0", [path]):
        path.write_bytes(content)
        raise KeyboardInterrupt
    with pytest.raises(CohortError, match=r"sick_0 is not finished; run lungCrop\.py again"):
        read_cohort(root, SPLITS, SIZE)
    read_cohort(root, {"VALID": "valid_id_L"}, SIZE)


def test_the_checksum_of_a_ct_is_that_of_its_voxels_in_any_orientation_and_type(root):
    hu = np.random.default_rng(0).normal(-500, 300, (5, 6, 7)).round()
    ct = image_of(hu.astype(np.int16))
    checksum = checksum_of_voxels(ct)
    assert checksum_of_voxels(sitk.DICOMOrient(ct, "RAS")) == checksum
    assert checksum_of_voxels(sitk.DICOMOrient(sitk.Cast(ct, sitk.sitkFloat32), "PIR")) == checksum
    hu[2, 3, 4] += 1
    assert checksum_of_voxels(image_of(hu.astype(np.int16))) != checksum
