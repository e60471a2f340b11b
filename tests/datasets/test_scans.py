import pytest

from datasets.scans import find_scans, match_labels
from errors import VolumeError


def touched(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_files_and_dicom_folders_are_scans_and_nothing_else(tmp_path):
    touched(tmp_path, "b.nii.gz", "a.NRRD", "c d.mha", "notes.txt", ".hidden.nii", "series/1.dcm", "empty/deeper/x")
    (tmp_path / ".trash").mkdir()
    touched(tmp_path, ".trash/1.dcm", "crops/.lock", "crops/images/x")
    assert find_scans(tmp_path) == {
        "a": tmp_path / "a.NRRD",
        "b": tmp_path / "b.nii.gz",
        "c d": tmp_path / "c d.mha",
        "series": tmp_path / "series",
    }


def test_a_folder_of_slices_is_one_scan(tmp_path):
    touched(tmp_path / "patient", "IM0001", "IM0002")
    assert find_scans(tmp_path / "patient") == {"patient": tmp_path / "patient"}


def test_files_can_be_named_one_by_one(tmp_path):
    touched(tmp_path, "a.nii", "b.nii.gz", "more/c.nii.gz")
    assert set(find_scans(tmp_path / "a.nii", tmp_path / "more")) == {"a", "c"}


def test_two_scans_of_one_id(tmp_path):
    touched(tmp_path, "a.nii", "a.nii.gz")
    with pytest.raises(VolumeError, match="have the same id; rename one of them"):
        find_scans(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(VolumeError, match="no such file or folder"):
        find_scans(tmp_path / "nowhere")


def test_labels_are_matched_by_name_with_and_without_a_suffix(tmp_path):
    touched(tmp_path, "a.nii.gz", "b_label.nrrd", "c-label.nii", "d_seg.nii", "e_mask.mha", "f_lesion.nii", "x.nii")
    matched, unmatched = match_labels(tmp_path, ["a", "b", "c", "d", "e", "f", "g"])
    assert {case_id: path.name for case_id, path in matched.items()} == {
        "a": "a.nii.gz",
        "b": "b_label.nrrd",
        "c": "c-label.nii",
        "d": "d_seg.nii",
        "e": "e_mask.mha",
        "f": "f_lesion.nii",
    }
    assert unmatched == [tmp_path / "x.nii"]


def test_a_scan_whose_name_ends_like_a_label_keeps_its_own(tmp_path):
    touched(tmp_path, "a_mask.nii")
    assert match_labels(tmp_path, ["a", "a_mask"])[0] == {"a_mask": tmp_path / "a_mask.nii"}


def test_one_label_file_for_one_scan(tmp_path):
    touched(tmp_path, "anything.nii")
    assert match_labels(tmp_path / "anything.nii", ["scan"]) == ({"scan": tmp_path / "anything.nii"}, [])


def test_two_labels_of_one_scan(tmp_path):
    touched(tmp_path, "a.nii", "a_label.nii")
    with pytest.raises(VolumeError, match="both belong to a; keep one of them"):
        match_labels(tmp_path, ["a"])


def test_no_label_folder(tmp_path):
    with pytest.raises(VolumeError, match="no such folder; expected masks named as their scans"):
        match_labels(tmp_path / "nowhere", ["a", "b"])
