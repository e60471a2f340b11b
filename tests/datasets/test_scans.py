from pathlib import Path

import pytest

from datasets.scans import find_scans, match_labels, result_name
from tests.volumes import touched
from utils.errors import VolumeError


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


def test_a_series_may_lie_deeper_and_has_its_path_for_an_id(tmp_path):
    touched(tmp_path, "p1/study/1.2.3/1.dcm", "p1/study/1.2.4/1.IMA", "p2/1.dcm", "p3/series/1.dcm", "p10.nii.gz")
    assert find_scans(tmp_path) == {
        "p1_study_1.2.3": tmp_path / "p1" / "study" / "1.2.3",
        "p1_study_1.2.4": tmp_path / "p1" / "study" / "1.2.4",
        "p10": tmp_path / "p10.nii.gz",
        "p2": tmp_path / "p2",
        "p3_series": tmp_path / "p3" / "series",
    }
    assert find_scans(tmp_path / "p1") == {
        "study_1.2.3": tmp_path / "p1" / "study" / "1.2.3",
        "study_1.2.4": tmp_path / "p1" / "study" / "1.2.4",
    }
    assert list(find_scans(tmp_path / "p1" / "study")) == ["1.2.3", "1.2.4"]


def test_of_a_tree_only_what_is_dicom_counts_and_nothing_hidden(tmp_path):
    touched(tmp_path, "a/b/c/slice.dcm", "a/b/report/scan.pdf", "a/.old/1.dcm", "a/b/.old/1.dcm", "a/e/.x.dcm")
    touched(tmp_path, ".old/b/1.dcm", "DICOMDIR", "a/DICOMDIR", "cohort/images/x.nii.gz")
    (tmp_path / "a" / "no extension").mkdir()
    (tmp_path / "a" / "no extension" / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert set(find_scans(tmp_path)) == {"a_b_c", "a_no extension"}


def test_a_folder_of_other_files_is_taken_for_a_series_where_none_lies_below(tmp_path):
    touched(tmp_path, "notes/a.txt", "notes/more/b.txt", "patient/report.pdf", "patient/series/1.dcm")
    assert find_scans(tmp_path) == {
        "notes": tmp_path / "notes",
        "patient_series": tmp_path / "patient" / "series",
    }


def test_below_a_series_there_is_no_other(tmp_path):
    touched(tmp_path, "a/1.dcm", "a/b/1.dcm", "a/b/c/1.dcm")
    assert find_scans(tmp_path) == {"a": tmp_path / "a"}
    touched(tmp_path, "b/c/d/1.dcm", "b/c/d/e/1.dcm", "b/c/d/e/f/1.dcm")
    assert find_scans(tmp_path / "b" / "c" / "d" / "e") == {"f": tmp_path / "b" / "c" / "d" / "e" / "f"}
    assert set(find_scans(tmp_path)) == {"a", "b_c_d"}


@pytest.mark.fault("folders of a DICOM")
def test_links_that_lead_in_circles_end_and_every_series_is_found_once(tmp_path):
    touched(tmp_path, "p/s/series/1.dcm", "q/deep/series/1.dcm")
    for link, target in (
        ("p/s/up", tmp_path),
        ("p/s/self", tmp_path / "p" / "s"),
        ("p/s/other", tmp_path / "q"),
        ("q/deep/again", tmp_path / "p" / "s" / "series"),
        ("q/deep/nowhere", tmp_path / "nothing"),
        ("q/loop", tmp_path / "q" / "loop"),
    ):
        (tmp_path / link).symlink_to(target)
    assert set(find_scans(tmp_path)) == {"p_s_series", "q_deep_series"}
    (tmp_path / "links" / "of one").mkdir(parents=True)
    (tmp_path / "links" / "of one" / "series").symlink_to(tmp_path / "q" / "deep" / "series")
    assert set(find_scans(tmp_path / "links")) == {"of one_series"}


def test_the_current_folder_and_the_one_above_have_names(tmp_path, monkeypatch):
    touched(tmp_path / "patient", "1.dcm")
    (tmp_path / "patient" / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "patient")
    assert list(find_scans(Path())) == ["patient"]
    monkeypatch.chdir("empty")
    assert list(find_scans(Path(".."))) == ["patient"]


@pytest.mark.fault("two scans, or two labels")
@pytest.mark.parametrize("names", [("a.nii", "a.nii.gz"), ("a/b_c/1.dcm", "a_b/c/1.dcm"), ("a/b/1.dcm", "a_b/1.dcm")])
def test_two_scans_of_one_id(names, tmp_path):
    touched(tmp_path, *names)
    with pytest.raises(VolumeError, match="have the same id; rename one of them"):
        find_scans(tmp_path)


def test_a_result_has_the_id_and_the_type_of_its_scan(tmp_path):
    touched(tmp_path, "a.1.NII", "b.mhd", "c.nrrd", "p/1.2.mha/1.dcm")
    names = [result_name("id.1", tmp_path / scan) for scan in ("a.1.NII", "b.mhd", "c.nrrd", "p/1.2.mha")]
    assert names == ["id.1.nii.gz", "id.1.mha", "id.1.nrrd", "id.1.nii.gz"]


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


def test_labels_of_a_series_that_lies_deeper_have_its_whole_id(tmp_path):
    touched(tmp_path, "p_study_1.2.nii.gz", "p_study_1.3_seg.nii.gz", "1.2.nii.gz")
    matched, unmatched = match_labels(tmp_path, ["p_study_1.2", "p_study_1.3"])
    assert {case_id: path.name for case_id, path in matched.items()} == {
        "p_study_1.2": "p_study_1.2.nii.gz",
        "p_study_1.3": "p_study_1.3_seg.nii.gz",
    }
    assert unmatched == [tmp_path / "1.2.nii.gz"]


def test_a_scan_whose_name_ends_like_a_label_keeps_its_own(tmp_path):
    touched(tmp_path, "a_mask.nii")
    assert match_labels(tmp_path, ["a", "a_mask"])[0] == {"a_mask": tmp_path / "a_mask.nii"}


def test_one_label_file_for_one_scan(tmp_path):
    touched(tmp_path, "anything.nii")
    assert match_labels(tmp_path / "anything.nii", ["scan"]) == ({"scan": tmp_path / "anything.nii"}, [])


@pytest.mark.fault("two scans, or two labels")
def test_two_labels_of_one_scan(tmp_path):
    touched(tmp_path, "a.nii", "a_label.nii")
    with pytest.raises(VolumeError, match="both belong to a; keep one of them"):
        match_labels(tmp_path, ["a"])


def test_no_label_folder(tmp_path):
    with pytest.raises(VolumeError, match="no such folder; expected masks named as their scans"):
        match_labels(tmp_path / "nowhere", ["a", "b"])
