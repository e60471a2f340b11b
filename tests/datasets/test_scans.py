import os
import re
import shutil
from contextlib import suppress

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from datasets import scans as module
from datasets.scan_options import main
from datasets.scans import find_scans, index_scans, open_scan
from datasets.volumes import Reading
from tests.volumes import changed_slice, edited, geometry, pixels, touched, write_dicom, write_enhanced
from utils.cli import run
from utils.errors import VolumeError
from utils.ledger import Ledger, recording

STORED = np.random.default_rng(3).integers(0, 700, (6, 7, 8)).astype(np.int16)


def series(folder, slices=6, **tags):
    """Write a small DICOM series; studies of different calls differ unless their tags say otherwise."""
    return write_dicom(folder, STORED[:slices], **tags)


def paths(*roots, **options):
    """Where the scans lie, by their ids."""
    return {case_id: scan.path for case_id, scan in find_scans(*roots, **options).items()}


def taken(root, **options):
    """The voxels of the only scan, as they were stored."""
    (scan,) = find_scans(root, **options).values()
    return pixels(scan.read()) + 1024


@pytest.mark.fault("a folder per patient with files of one name", "masks beside the slices")
@pytest.mark.fault("what dcm2niix straightened")
@pytest.mark.parametrize(
    ("names", "ids", "passed"),
    [
        (["b.nii.gz", "a.NRRD", "c d.mha", "notes.txt", ".hidden.nii"], ["a", "b", "c d"], "other file (1)"),
        (["x/y", ".trash/1.dcm", "p1/visit 2/a.pdf", "p1/visit 2/thin.nii"], ["p1_visit 2_thin"], "other file (2)"),
        (["s1/ct.nii.gz", "s1/segmentations/lobe.nii.gz", "s2/ct.nii.gz"], ["s1", "s2"], "mask (1)"),
        (["studies/CT-1/s_0255.nii", "masks/s_0255_mask.nii"], ["studies_CT-1_s_0255"], "mask (1)"),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], ["imagesTr_a_0000"], "mask (1)"),
        (["p/Lung 1.0/a.nii", "p/lung_ct/b.nii"], ["p_Lung 1.0_a", "p_lung_ct_b"], None),
        (["a/x.nii", "p/lung_mask/c.nii", "lungs/x.nii", "rp_msk/a.nii", "p/d.nii"], ["a_x", "p_d"], "mask (3)"),
        (["x_ct.nii", "x_seg.nii", "y.nii", "y-label.nii", "z_mask.nii"], ["x_ct", "y", "z_mask"], "mask (2)"),
        (["w.nrrd", "w.seg.nrrd"], ["w"], "mask (1)"),
        *((["p1/", name], ["p1"], "mask (1)") for name in ("p1/p1_seg.nii", "p1/lesion.nii", "p1_mask.nii")),
        (["x.nii", "x_Eq.nii"], {"x": "x_Eq.nii"}, "volume that dcm2niix straightened (1)"),
        (["x.nii", "x_Tilt.nii"], {"x": "x_Tilt.nii"}, "volume that dcm2niix straightened (1)"),
        ([f"x{end}.nii" for end in ("", "_Eq", "_Tilt", "_Tilt_Eq")], {"x": "x_Tilt_Eq.nii"}, None),
        (["x_Eq.nii"], ["x_Eq"], None),
        (["x.nii", "y_Eq.nii"], ["x", "y_Eq"], None),
    ],
)
def test_what_is_a_scan_by_its_name_and_place(tmp_path, names, ids, passed):
    touched(tmp_path, *(name for name in names if not name.endswith("/")))
    for name in names:
        if name.endswith("/"):
            series(tmp_path / name)
    index = index_scans(tmp_path)
    assert list(index.scans) == list(ids)
    if isinstance(ids, dict):
        assert {case_id: scan.path.name for case_id, scan in index.scans.items()} == ids
    assert passed is None or f"passed over: {passed}" in index.passed_over_lines()


@pytest.mark.fault("volumes in a folder that is named as of masks")
def test_volumes_in_a_folder_named_as_of_masks_that_are_of_no_ct_are_named(tmp_path, caplog):
    touched(tmp_path, "infection/a.nii", "normal/b.nii", "masks/b_mask.nii", "normal/masks/any.nii")
    series(tmp_path / "1.2" / "dicom")
    touched(tmp_path, "lesion/1.2_seg.nii", "lesion/dicom.nii")
    assert list(find_scans(tmp_path)) == ["1.2_dicom", "normal_b"]
    (warning,) = caplog.messages
    assert warning.startswith(f"not read: {tmp_path / 'infection' / 'a.nii'} (in a folder named as of masks")
    assert "rename the folder" in warning


def test_a_series_has_the_path_of_its_folder_for_an_id(tmp_path):
    folders = [series(tmp_path / name) for name in ("p1/study/1.2.3", "p1/study/1.2.4", "p2", "p3/series")]
    ids = ["p1_study_1.2.3", "p1_study_1.2.4", "p2", "p3_series"]
    assert paths(tmp_path) == dict(zip(ids, folders, strict=True))
    assert list(paths(tmp_path / "p1")) == ["study_1.2.3", "study_1.2.4"]
    assert list(paths(tmp_path / "p1" / "study")) == ["1.2.3", "1.2.4"]
    assert list(paths(tmp_path / "p2")) == ["p2"]


@pytest.mark.fault("one series over several folders")
@pytest.mark.parametrize("rest", ["case/more", "case_b", "elsewhere/deep"])
def test_a_series_is_one_scan_wherever_its_files_lie(tmp_path, rest):
    folder = series(tmp_path / "cd" / "case")
    (tmp_path / "cd" / rest).mkdir(parents=True)
    for path in sorted(folder.glob("*.dcm"))[::2]:
        path.rename(tmp_path / "cd" / rest / path.name)
    np.testing.assert_array_equal(taken(tmp_path), STORED)
    (case_id,) = find_scans(tmp_path)
    assert case_id == ("cd_case" if rest == "case/more" else "cd")


@pytest.mark.fault("several patients or studies in one folder")
def test_patients_in_one_flat_folder_are_scans_of_their_own_without_their_names(tmp_path):
    flat = tmp_path / "flat"
    for number, (name, slices) in enumerate((("Doe^John", 6), ("Roe^Jane", 5), ("Doe^John", 4))):
        series(flat, slices, name=f"n{number}_", PatientName=name, PatientID=name[:3])
    index = index_scans(flat)
    assert sorted(len(scan.series.slices) for scan in index.scans.values()) == [4, 5, 6]
    assert all(case_id.startswith("flat_") and "Doe" not in case_id for case_id in index.scans)
    # More of the same tree changes no id, and neither does another root's order.
    series(tmp_path / "other")
    assert {f"flat_{case_id[5:]}" for case_id in index.scans} < set(find_scans(tmp_path))


@pytest.mark.fault("two scans, or two labels")
@pytest.mark.parametrize("names", [("a.nii", "a.nii.gz"), ("a/b_c/x.nii", "a_b/c/x.nii"), ("a/b/ct.nii", "a_b/ct.nii")])
def test_scans_that_would_share_an_id_are_told_apart(names, tmp_path, monkeypatch):
    touched(tmp_path, *names)
    first, second = find_scans(tmp_path)
    assert first[:-9] == second[:-9]
    # The ids do not depend on where the archive lies, or on how it is named.
    moved = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name} moved")
    monkeypatch.chdir(moved.parent)
    assert [*find_scans(moved)] == [*find_scans(module.Path(moved.name))] == [first, second]


def test_scans_that_nothing_tells_apart_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="no such file or folder"):
        find_scans(tmp_path / "nowhere")
    touched(tmp_path, "a/x.nii", "b/x.nii")
    with pytest.raises(VolumeError, match=r"x.nii and \S*x.nii have the same id; rename one of them"):
        find_scans(tmp_path / "a" / "x.nii", tmp_path / "b" / "x.nii")
    assert list(find_scans(tmp_path / "a" / "x.nii", tmp_path / "a" / "x.nii")) == ["x"]


@pytest.mark.fault("folders of a DICOM")
def test_links_that_lead_in_circles_end_and_every_series_is_found_once(tmp_path):
    first = series(tmp_path / "p" / "s" / "series")
    series(tmp_path / "q" / "deep" / "series")
    for link, target in (("p/s/up", tmp_path), ("p/s/self", first.parent), ("q/deep/again", first)):
        (tmp_path / link).symlink_to(target)
    assert len(find_scans(tmp_path)) == 2


@pytest.mark.fault("links to what is not there")
def test_what_links_have_lost_is_named(tmp_path):
    series(tmp_path / "whole")
    cut = series(tmp_path / "cut")
    for path in ("scan.nii.gz", "patient", "itself", "notes.txt", ".hidden"):
        (tmp_path / path).symlink_to(tmp_path / ("itself" if path == "itself" else "nothing"))
    last = max(cut.iterdir())
    last.unlink()
    last.symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    index = index_scans(tmp_path)
    lost = "a link to a file that is not there"
    assert index.unreadable == {str(tmp_path / name): lost for name in ("patient", "itself")}
    assert index.passed_over_lines() == ["passed over: other file (1)", "passed over: pipe or device (1)"]
    assert index.scans["cut"].problem == f"{last}: {lost}; copy it again, or move it out of the folder"
    with pytest.raises(VolumeError, match=rf"scan.nii.gz: {lost}"):
        index.scans["scan"].read()
    np.testing.assert_array_equal(pixels(index.scans["whole"].read()), STORED - 1024)
    with pytest.raises(VolumeError, match=rf"{last.name}: {lost}"):
        open_scan(cut).read()


def test_the_current_folder_and_the_one_above_have_names(tmp_path, monkeypatch):
    series(tmp_path / "patient")
    (tmp_path / "patient" / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "patient")
    assert list(find_scans(module.Path())) == ["patient"]
    monkeypatch.chdir("empty")
    assert list(find_scans(module.Path(".."))) == ["patient"]


@pytest.mark.fault("names that are no UTF-8")
def test_ids_fit_a_file_name_and_a_line_of_a_list_and_are_text(tmp_path):
    names = ("two\nlines.nii", "tab\there.nii", " spaces around .nii", "two_lines.nii", "x" * 240 + ".nii", "肺部.nii")
    touched(tmp_path, *names, b"M\xfcller.nii".decode("utf-8", "surrogateescape"))
    ids = list(find_scans(tmp_path))
    assert all(len(case_id.encode()) <= 160 for case_id in ids)
    assert {"肺部", "tab_here", "spaces around"} < set(ids)
    assert any(case_id.startswith("M_xfcller") for case_id in ids)
    assert sum(case_id.startswith("two_lines_") for case_id in ids) == 2


@pytest.mark.fault("own results below the scans")
def test_results_of_the_project_are_no_scans(tmp_path):
    results = ["out/probabilities/a.nii.gz", "out/images/a.nii.gz", "out/a.nii.gz", "out/half.nii.gz"]
    touched(tmp_path, "a.nii.gz", "out/images/mine.nii.gz", "out/ct/b.nii.gz")
    with recording(tmp_path / "out"):
        for kind, name in zip(("tested", "crops", "pasted"), results[:3], strict=True):
            with Ledger(tmp_path / "out", kind).writing("a", [tmp_path / name]):
                touched(tmp_path, name)
        with suppress(KeyboardInterrupt), Ledger(tmp_path / "out", "pasted").writing("half", [tmp_path / results[3]]):
            touched(tmp_path, results[3])
            raise KeyboardInterrupt
    index = index_scans(tmp_path)
    assert list(index.scans) == ["a", "out_ct_b", "out_images_mine"]
    assert [str(item.path.relative_to(tmp_path)) for item in index.passed_over] == sorted(results)


@pytest.mark.fault("one unreadable entry")
def test_an_entry_that_cannot_be_read_is_named_and_the_rest_is_found(tmp_path, monkeypatch):
    series(tmp_path / "good")
    (tmp_path / "lost+found").mkdir()
    listed = module.Path.iterdir

    def iterdir(folder):
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(module.Path, "iterdir", iterdir)
    index = index_scans(tmp_path)
    assert list(index.scans) == ["good"]
    assert index.unreadable == {str(tmp_path / "lost+found"): "Permission denied"}
    assert main([str(tmp_path), "--quiet"]) == 1
    # In the commands it is a scan that fails, so that their exit code is 1, too.
    bad = next(scan for case_id, scan in find_scans(tmp_path).items() if case_id != "good")
    with pytest.raises(VolumeError, match=r"lost\+found: Permission denied"):
        bad.read()


@pytest.mark.fault("text, reports, scout", "dose page, report, scout")
def test_other_objects_are_passed_over_by_what_they_are_even_with_the_series_own_uid(tmp_path):
    folder = series(tmp_path / "export" / "p" / "series")
    first = min(folder.iterdir())
    report, capture, mr = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("88.67", "7", "4"))
    no_place = {"ImagePositionPatient": None}
    changed_slice(first, folder / "sr.dcm", SOPClassUID=report, Modality="SR", PixelData=None, Rows=None, **no_place)
    changed_slice(first, folder / "odd", SOPClassUID=capture, InstanceNumber="12", **no_place)
    (folder / "odd").write_bytes((folder / "odd").read_bytes().replace(b"IS\x02\x0012", b"IS\x02\x00x2"))
    changed_slice(first, folder / "dose.dcm", ImageType=["DERIVED", "SECONDARY"], **no_place)
    changed_slice(first, folder / "screen", SOPClassUID=capture, **no_place)
    changed_slice(first, folder / "scout.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    far = {"SeriesInstanceUID": generate_uid(), "ImagePositionPatient": [0, 0, 9999]}
    changed_slice(first, folder.parent / "mr.dcm", SOPClassUID=mr, Modality="MR", **far)
    touched(tmp_path, "export/dicomdir", "export/readme.txt", "export/p/series/notes.txt")
    (folder / ".hidden.dcm").write_text("not a slice")
    (folder / "preview").mkdir()
    np.testing.assert_array_equal(taken(tmp_path), STORED)
    summary = index_scans(tmp_path).summary()
    for kind in ("X-Ray Radiation Dose SR", "scout view", "MR Image", "DICOM directory"):
        assert f"passed over: {kind} (1)" in summary
    assert "passed over: Secondary Capture Image (2)" in summary


@pytest.mark.fault("invalid or zero-padded UIDs")
def test_uids_are_opaque(tmp_path):
    series(tmp_path / "case", SeriesInstanceUID="1.2.03.anonymous", StudyInstanceUID="none", SOPInstanceUID="1.02")
    np.testing.assert_array_equal(taken(tmp_path), STORED)


@pytest.mark.fault("no file meta header")
def test_files_without_meta_header_modality_or_series_uid_are_read(tmp_path):
    folder = series(tmp_path / "case")
    for path in folder.iterdir():
        bare = pydicom.Dataset()
        bare.update(pydicom.dcmread(path))
        del bare.Modality, bare.SeriesInstanceUID
        path.unlink()
        pydicom.dcmwrite(path.with_suffix(""), bare, implicit_vr=False, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(taken(tmp_path), STORED)


@pytest.mark.fault("positions rounded")
def test_rounded_positions_and_cosines_are_even(tmp_path):
    stored = np.random.default_rng(3).integers(0, 700, (40, 7, 8)).astype(np.int16)
    folder = write_dicom(tmp_path / "case", stored, spacing=(0.7, 0.8, 0.625))
    for number, path in enumerate(sorted(folder.iterdir())):
        place = [round(float(v), 1) for v in pydicom.dcmread(path).ImagePositionPatient]
        cosines, spacing = [1, 0.001 * (number % 2), 0, 0, 1, 0], [0.8, 0.7 + 1e-5 * (number % 3)]
        changed_slice(path, ImagePositionPatient=place, ImageOrientationPatient=cosines, PixelSpacing=spacing)
    np.testing.assert_array_equal(taken(tmp_path), stored)
    min(folder.glob("*2?.dcm")).unlink()
    with pytest.raises(VolumeError, match="not evenly spaced"):
        taken(tmp_path)


@pytest.mark.fault("two acquisitions or reconstructions under one UID")
@pytest.mark.parametrize(
    "tag", ["AcquisitionNumber", "ConvolutionKernel", "TemporalPositionIdentifier", "SeriesDescription"]
)
def test_volumes_under_one_uid_are_told_apart_and_selectable(tmp_path, tag):
    folder, other = tmp_path / "case", tmp_path / "other"
    uids = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"}
    values = {"ConvolutionKernel": ("B31f", "B70f"), "SeriesDescription": ("T=0%", "T=50%")}.get(tag, (1, 2))
    series(folder, **uids, **{tag: values[0]})
    write_dicom(other, STORED[:5] + 1, **uids, **{tag: values[1]})
    for path in other.iterdir():
        shutil.move(path, folder / f"b{path.name}")
    np.testing.assert_array_equal(taken(tmp_path), STORED)
    if tag != "TemporalPositionIdentifier":
        np.testing.assert_array_equal(taken(tmp_path, series=str(values[1])), STORED[:5] + 1)
    # An acquisition per slice is one volume.
    for number, path in enumerate(folder.glob("s*")):
        changed_slice(path, AcquisitionNumber=number)
    for path in folder.glob("b*"):
        path.unlink()
    np.testing.assert_array_equal(taken(tmp_path), STORED)


ONE_STUDY = {"StudyInstanceUID": "1.2"}


@pytest.mark.fault("the slices of a series that are named one by one")
def test_slices_that_are_named_one_by_one_are_a_series(tmp_path):
    slices = sorted(series(tmp_path / "a").iterdir())
    other = series(tmp_path / "b")
    assert paths(*slices, *slices, other) == {"a": tmp_path / "a", "b": other}
    (other / "rest").mkdir()
    for file in sorted(other.glob("*.dcm"))[2:]:
        file.rename(other / "rest" / file.name)
    spread = sorted(other.rglob("*.dcm"))
    assert paths(*slices, *spread) == {"a": tmp_path / "a", "b": other}
    assert {scan.id: len(scan.series.files) for scan in index_scans(*spread).scans.values()} == {"b": len(spread)}


@pytest.mark.fault("folders of one series that are named apart")
def test_parts_of_a_series_in_folders_named_apart_are_refused_and_copies_are_not(tmp_path):
    first = series(tmp_path / "a")
    shutil.copytree(first, tmp_path / "copy")
    assert len(index_scans(first, tmp_path / "copy").scans) == 2
    rest = tmp_path / "rest"
    rest.mkdir()
    for file in sorted(first.iterdir())[2:]:
        file.rename(rest / file.name)
    with pytest.raises(VolumeError, match=r"hold parts of one series .*; name a folder that holds both"):
        index_scans(first, rest)


@pytest.mark.fault("a scan that lies below two of the paths")
def test_a_scan_below_two_of_the_paths_is_one_scan(tmp_path):
    folder = series(tmp_path / "site" / "a")
    file = touched(tmp_path / "site", "b.nii.gz") / "b.nii.gz"
    assert paths(tmp_path, tmp_path / "site", folder, tmp_path / "site" / ".." / "site" / "b.nii.gz") == {
        "site_a": folder,
        "site_b": file,
    }


@pytest.mark.fault("a derived series with more slices", "several series in one study")
@pytest.mark.fault("chest and abdomen in one study", "inspiration and expiration", "a projection (MIP")
@pytest.mark.fault("bolus tracking")
@pytest.mark.parametrize(
    ("better", "worse", "rule"),
    [
        ({"slices": 4, "RescaleType": "HU"}, {"RescaleType": "Z_EFF"}, "in HU"),
        ({"slices": 4, "ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": ["DERIVED", "SECONDARY"]}, "original"),
        ({"slices": 4}, {"direction": [[1, 0, 0], [0, 0, 1], [0, -1, 0]]}, "axial"),
        ({"slices": 4, "spacing": (0.7, 0.8, 60)}, {"spacing": (0.7, 0.8, 12)}, "length of lungs"),
        ({"slices": 4, "ConvolutionKernel": "B70f"}, {"SeriesDescription": "Thorax_MIP 10 mm"}, "no projection"),
        ({"slices": 4}, {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MIN_IP"]}, "no projection"),
        ({"slices": 5, "spacing": (1, 1, 11)}, {"ImageType": ["ORIGINAL", "PRIMARY"]}, "longer than 50 mm"),
        ({"slices": 4, "spacing": (0.7, 0.8, 3)}, {"spacing": (0.7, 0.8, 8)}, "less than 5 mm"),
        ({"slices": 4, "ConvolutionKernel": "B31f"}, {"ConvolutionKernel": "B70f"}, "soft kernel"),
        ({"slices": 4, "ConvolutionKernel": "STANDARD"}, {"ConvolutionKernel": "LUNG"}, "soft kernel"),
        ({"slices": 4, "BodyPartExamined": "CHEST"}, {"BodyPartExamined": "ABDOMEN"}, "not another part of the body"),
        ({"slices": 4, "SeriesDescription": "Thorax"}, {"SeriesDescription": "Abd"}, "not another part of the body"),
        ({"slices": 4, "SeriesDescription": "Thorax Insp"}, {"SeriesDescription": "Thorax Exp"}, "inspiration"),
        ({}, {"slices": 5}, "most slices"),
    ],
)
def test_the_series_of_a_study_is_chosen_by_the_first_rule_that_tells_two_apart(tmp_path, better, worse, rule):
    wanted = series(tmp_path / "study" / "1", **ONE_STUDY, **better, SeriesNumber=1)
    other = series(tmp_path / "study" / "2", **ONE_STUDY, **worse, SeriesNumber=2)
    index = index_scans(tmp_path)
    (scan,) = index.scans.values()
    assert scan.path == wanted
    assert rule in scan.reason
    (passed,) = (item for item in index.passed_over if item.series is not None)
    assert passed.path == other
    assert rule in passed.reason
    assert [scan.path for scan in find_scans(tmp_path, series="2").values()] == [other]


@pytest.mark.fault("a spectral CT's maps")
def test_quantities_that_are_no_hu_are_refused(tmp_path):
    folder = series(tmp_path / "plain", RescaleType="EDW")
    enhanced = tmp_path / "enhanced" / "all"
    write_enhanced(folder, enhanced, STORED, range(6))
    changed = pydicom.dcmread(enhanced)
    changed.StudyInstanceUID, changed.SeriesInstanceUID = "1.8", "1.9"
    changed.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = "MGML"
    changed.save_as(enhanced)
    problems = {case_id: scan.problem for case_id, scan in find_scans(tmp_path).items()}
    assert "its values are EDW (RescaleType), not HU" in problems["plain"]
    assert "its values are MGML (RescaleType), not HU" in problems["enhanced"]


@pytest.mark.fault("several series of as")
def test_series_picks_by_uid_number_or_text_and_an_unclear_choice_is_refused(tmp_path, caplog):
    tags = {"SeriesNumber": 2, "SeriesDescription": "Bone", "SeriesInstanceUID": "1.9"}
    bone = series(tmp_path / "s" / "a", intercept=-1000, **ONE_STUDY, **tags)
    lung = series(tmp_path / "s" / "b", **ONE_STUDY, SeriesNumber=5, SeriesDescription="Lung 2.0")
    for choice, folder in (("2", bone), ("lung 2", lung), ("5", lung), ("1.9", bone), ("Bone", bone)):
        caplog.clear()
        assert list(paths(tmp_path, series=choice).values()) == [folder]
        assert open_scan(tmp_path, Reading(series=choice)).path == folder
        assert caplog.text == ""
    for choice, problem in (
        ("angio", "no series 'angio'; it holds"),
        (None, "several series of 6 slices that no rule"),
    ):
        (scan,) = find_scans(tmp_path, series=choice).values()
        assert problem in scan.problem
        assert "Lung 2.0" in scan.problem
    min(lung.iterdir()).unlink()
    find_scans(tmp_path)
    assert "number 2, Bone, 6 slices" in caplog.text
    assert "--series picks another of" in caplog.text
    assert "number 5, Lung 2.0, 5 slices" in caplog.text


@pytest.mark.fault("a series that was sent twice")
def test_a_series_that_was_sent_twice_under_two_uids_is_read_once(tmp_path, caplog):
    first = series(tmp_path / "s" / "a", **ONE_STUDY)
    second = series(tmp_path / "s" / "b", **ONE_STUDY)
    assert list(paths(tmp_path).values()) == [first]
    assert "(the first of equal ones); --series picks another" in caplog.text
    changed_slice(min(second.iterdir()), min(second.iterdir()), RescaleIntercept=-1023)
    assert "no rule tells apart" in next(iter(find_scans(tmp_path).values())).problem


@pytest.mark.fault("enhanced CT")
@pytest.mark.parametrize(("name", "case_id"), [("a.b.dcm", "a.b"), ("a.IMA", "a"), ("1.2.840.113", "1.2.840.113")])
def test_an_enhanced_ct_is_read_frame_by_frame_and_has_the_name_of_its_file(tmp_path, name, case_id):
    folder, path = series(tmp_path / "plain", slope=2.0, intercept=-1000.0), tmp_path / "enhanced" / name
    write_enhanced(folder, path, STORED, order=[3, 0, 5, 1, 4, 2])
    assert [*find_scans(path)] == [case_id]
    plain, enhanced = (open_scan(place).read() for place in (folder, path.parent))
    np.testing.assert_array_equal(pixels(enhanced), 2 * STORED.astype(int) - 1000)
    for found, expected in zip(geometry(enhanced), geometry(plain), strict=True):
        np.testing.assert_allclose(found, expected)


@pytest.mark.fault("padding above the range of CT")
def test_padding_is_air(tmp_path):
    stored = STORED.copy()
    stored[:, 0, 0] = -2000
    padding = pydicom.DataElement("PixelPaddingValue", "US", 63536)
    folder = write_dicom(tmp_path / "case", stored, PixelRepresentation=0)
    edited(folder, lambda number, data: data.add(padding))
    assert (taken(tmp_path)[:, 0, 0] == 0).all()  # -1024 HU


def test_the_index_is_csv(tmp_path, capsys):
    series(tmp_path / "a", **ONE_STUDY, SeriesDescription="Thin", PatientName="Doe^John")
    series(tmp_path / "b", slices=5, **ONE_STUDY, PatientName="Doe^John")
    touched(tmp_path, "c.nii.gz", b"not\xe9s.txt".decode("utf-8", "surrogateescape"))
    assert run(lambda: main([str(tmp_path), "--quiet"])) == 0
    text, said = capsys.readouterr()
    assert "2 scans" in said
    assert "passed over: other file (1)" in said
    assert text.startswith("scan,taken,reason,patient,study,series,number,description,kernel,slices")
    assert re.search(r"^a,yes,most slices.*,6,0.7x0.8x2.5,8x7,", text, re.MULTILINE)
    assert re.search(r"^,no,most slices", text, re.MULTILINE)
    assert "not\\udce9s.txt" in text
    assert "Doe" not in text
