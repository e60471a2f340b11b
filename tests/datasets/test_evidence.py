"""Headers that lie: what is one series, and what is one scan, from all evidence. Truth is the phantom's own."""

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, RLELossless, generate_uid

from datasets.phantom.make import write_phantoms
from datasets.scans import find_scans, index_scans, open_scan
from tests.volumes import changed_slice, edited, pixels, refused, write_dicom

STORED = np.random.default_rng(3).integers(0, 700, (12, 7, 8)).astype(np.int16)
NO_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID")


@pytest.fixture
def stored():
    return STORED


def only(root, **options):
    (scan,) = find_scans(root, **options).values()
    return scan


@pytest.mark.fault("a patient who is spelled differently")
@pytest.mark.parametrize("other", [lambda number: number >= 6, lambda number: number % 2], ids=["half", "every second"])
@pytest.mark.parametrize(
    ("tag", "values"), [("PatientName", ("DOE^J", "DOE^J^^")), ("PatientBirthDate", ("", "19500101"))]
)
def test_a_patient_who_is_corrected_within_a_series_is_one_patient(folder, other, tag, values):
    edited(folder, lambda number, data: setattr(data, tag, values[bool(other(number))]))
    np.testing.assert_array_equal(pixels(only(folder).read()), STORED - 1024)


CONSTANT = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"}


def without_uids(number, data):
    for name in NO_UIDS:
        if name in data:
            delattr(data, name)
    data.PatientName = data.PatientBirthDate = ""


@pytest.mark.fault("one set of UIDs for several patients", "no UIDs at all")
@pytest.mark.parametrize("steps_above", [0, 0.5, 12, None])
def test_two_folders_with_constant_uids_or_without_any_are_two_scans(tmp_path, steps_above, caplog):
    for k, name in enumerate("ab"):
        origin = (0.0, 0.0, 2.5 * (steps_above or 0) * k)
        folder = write_dicom(tmp_path / "ct" / name, STORED + k, origin=origin, PatientID="", **CONSTANT)
        if steps_above is None:
            edited(folder, without_uids)
    found = {case_id: pixels(scan.read()) for case_id, scan in find_scans(tmp_path / "ct").items()}
    assert sorted(found) == ["a", "b"]
    for k, name in enumerate("ab"):
        np.testing.assert_array_equal(found[name], STORED - 1024 + k)
    assert ("one SeriesInstanceUID in 2 folders" in caplog.text) == (steps_above is not None)


@pytest.mark.fault("one set of UIDs for several patients")
def test_patients_of_other_ids_in_one_folder_with_one_set_of_uids_are_scans_of_their_own(tmp_path):
    for number in (0, 1):
        write_dicom(tmp_path / "flat", STORED + number, name=f"{'ab'[number]}_", PatientID=str(number), **CONSTANT)
    found = [pixels(scan.read())[0, 0, 0] for scan in find_scans(tmp_path).values()]
    assert sorted(found) == [STORED[0, 0, 0] - 1024, STORED[0, 0, 0] - 1023]


def test_slices_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for k, name in enumerate("ab"):
        write_dicom(tmp_path / "ct" / name, STORED + k, InstanceNumber=1, **CONSTANT)
    (tmp_path / "ct" / "a" / "slice003.dcm").unlink()  # so that a folder is no scan by itself
    refused("ct", only(tmp_path).read, r"a/slice\d+\.dcm and b/slice\d+\.dcm lie at the same place")


@pytest.mark.fault("one StudyInstanceUID for several days")
@pytest.mark.parametrize(
    ("dates", "ids"), [(("20200301", "20200401"), 2), (("20200301", "20200301"), 1), (("20200301", ""), 1)]
)
def test_series_of_several_days_are_scans_of_their_own(tmp_path, dates, ids):
    for k, date in enumerate(dates):
        stored = STORED[: 12 - k]
        write_dicom(tmp_path, stored, name=f"{'ab'[k]}_", StudyInstanceUID="1.2", StudyDate=date)
    assert len(scans := find_scans(tmp_path)) == ids
    assert sorted(len(scan.files) for scan in scans.values()) == [11, 12][2 - ids :]


@pytest.mark.fault("a slice that is empty")
@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        (b"", "IM{}", "IM9: empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8912\n", "IM{}", "IM9: a Git LFS pointer"),
        (b"\0" * 300, "IM{}.crdownload", "IM9.crdownload: copied in part"),
        (b"\0" * 300, ".IM{}.filepart", ".IM9.filepart: copied in part"),
        (b"\0" * 300, ".IM{}.Xy12Zq", ".IM9.Xy12Zq: copied in part"),  # of rsync
        (b"\0" * 300, ".syncthing.IM{}.tmp", "IM9.tmp: copied in part"),
        (b"\x1f\x8b" * 99, "IM{}.gz", r"IM9.gz: packed, unlike other slices of its folder \(unpack it\)"),
        (b"text", "IM{}", "IM9: damaged, or not DICOM"),
    ],
)
def test_a_file_named_as_a_slice_that_cannot_be_read(folder, content, name, match):
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        path.rename(folder / f"IM{number}")
    for number in (9, 10, 11):  # the last slices, so that no gap shows
        (folder / f"IM{number}").unlink()
    assert len(only(folder).series.slices) == 9
    (folder / name.format(9)).write_bytes(content)
    (folder / "notes.txt").write_text("is no slice")
    (folder / "done").touch()
    refused(folder, only(folder).read, match)
    if name != "IM{}":  # beside the slice that it is a copy of
        (folder / name.format(8)).write_bytes(content)
        (folder / name.format(9)).unlink()
        assert len(only(folder).files) == 9


@pytest.mark.fault("fewer slices than were acquired")
def test_slices_that_are_missing_at_an_end_are_told_by_the_number_that_was_acquired(tmp_path, caplog):
    folder = write_dicom(tmp_path / "case", STORED, ImagesInAcquisition=12)
    find_scans(tmp_path)
    assert caplog.text == ""
    for number in (1, 2, 3):
        (folder / f"slice{number:03d}.dcm").unlink()
    assert pixels(only(tmp_path).read()).shape == (9, 7, 8)
    assert "holds 9 slices, InstanceNumbers 1 to 9, but 12 were acquired (ImagesInAcquisition)" in caplog.text


@pytest.mark.fault("two acquisitions whose slices alternate")
@pytest.mark.parametrize("tag", ["AcquisitionNumber", "AcquisitionTime", "a time per slice", "InstanceNumber"])
def test_two_breaths_between_each_other_are_two_volumes(folder, tag):

    def change(number, data):
        number = 11 - number  # names run downwards
        breath, place = number % 2, number // 2
        data.InstanceNumber = 1 + place + (6 * breath if tag == "InstanceNumber" else 0)  # one breath after the other
        if tag == "AcquisitionNumber":
            data.AcquisitionNumber = 1 + breath
        elif tag == "AcquisitionTime":
            data.AcquisitionTime = f"10100{breath}"
        elif tag == "a time per slice":
            data.AcquisitionTime = f"10{10 + 5 * breath}{number:02d}.5"

    edited(folder, change)
    (scan,) = index_scans(folder).scans.values()
    found = scan.problem or pixels(scan.read())
    assert "2 acquisitions whose slices alternate" in " ".join(scan.notes) or "no rule tells apart" in found
    chosen = only(folder, series="#1" if tag != "AcquisitionNumber" else "2")
    np.testing.assert_array_equal(pixels(chosen.read()), STORED[1::2] - 1024)
    np.testing.assert_allclose(chosen.geometry().GetSpacing()[2], 5.0)


@pytest.mark.fault("two acquisitions or reconstructions under one UID")
@pytest.mark.parametrize("tag", ["InstanceNumber", "AcquisitionTime", "a time per slice"])
def test_two_phases_at_the_same_places_are_told_apart_by_their_order(folder, tag):
    later = STORED[::-1].copy()
    second = write_dicom(folder.parent / "second", later)
    for path in second.iterdir():
        path.rename(folder / f"later_{path.name}")
    second.rmdir()

    def change(number, data):
        phase, place = divmod(number, 12)  # the names of the second phase come first
        data.SeriesInstanceUID = data.StudyInstanceUID = "1.2.3"
        data.InstanceNumber = 1 + place + (12 * (1 - phase) if tag == "InstanceNumber" else 0)
        data.AcquisitionTime = f"10{15 - 5 * phase}{place if tag == 'a time per slice' else 0:02d}.5"

    edited(folder, change)
    refused(folder, only(folder).read, "no rule tells apart: .* #1; .* #2; pick one with --series")
    found = [pixels(only(folder, series=f"#{k}").read()) for k in (1, 2)]
    assert [values.tobytes() for values in found] == [(values - 1024).tobytes() for values in (later, STORED)]


def test_neighbours_of_one_number_in_one_folder_are_refused(folder):
    edited(folder, lambda number, data: setattr(data, "InstanceNumber", 1 + number // 2))
    refused(folder, only(folder).read, r"are neighbours and have the same InstanceNumber \d; are two scans mixed")


@pytest.mark.fault("slopes or intercepts that differ")
@pytest.mark.parametrize("scalings", [[(1, -1024), (1, -1000.5)], [(1, 0), (1, -1024)], [(0.5, -1000), (2, -900)]])
def test_compressed_slices_have_the_scaling_of_their_own(folder, scalings):

    def change(number, data):
        data.RescaleSlope, data.RescaleIntercept = scalings[(11 - number) % 2]
        data.compress(RLELossless)

    edited(folder, change)
    expected = [plane * slope + intercept for plane, (slope, intercept) in zip(STORED, scalings * 6, strict=True)]
    np.testing.assert_array_equal(pixels(only(folder).read()), np.array(expected, np.float32))


@pytest.mark.fault("chest and abdomen in one study")
def test_the_series_that_shows_both_lungs_is_taken_where_words_are_silent(tmp_path):
    write_phantoms(tmp_path, 0, 1, (32, 64, 64), dicom=True)
    folder = tmp_path / "ct" / "diseased_000"
    edited(folder, lambda number, data: (delattr(data, "BodyPartExamined"), setattr(data, "SeriesDescription", "5.0")))
    paths = sorted(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    heights = [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in paths]
    uid = generate_uid()
    for k in range(40):  # the lowest 10 slices of the chest, on top of an abdomen
        data = pydicom.dcmread(paths[max(k - 30, 0)])
        data.SeriesInstanceUID, data.SOPInstanceUID = uid, generate_uid()
        height = heights[0] + (k - 30) * (heights[1] - heights[0])
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], f"{height:.6f}"]
        data.save_as(folder / f"abdomen{k:03d}.dcm")
    scan = only(tmp_path / "ct")
    assert set(scan.files) == set(paths)
    assert scan.reason == "shows both lungs whole"


@pytest.mark.fault("no UIDs at all")
@pytest.mark.parametrize("tag", ["AcquisitionNumber", "ConvolutionKernel", None])
def test_without_uids_what_is_in_one_folder_is_told_apart_by_what_is_left(tmp_path, tag):
    for number in (0, 1):
        tags = {} if tag is None else {tag: str(number + 1)}
        folder = write_dicom(tmp_path / "case", STORED + number, name=f"{'ab'[number]}_", **tags)
    edited(folder, without_uids)
    scan = only(tmp_path)
    assert "no rule tells apart" in scan.problem
    names = [line for line in scan.problem.split("; ") if "12 slices" in line]
    assert len(set(names)) == 2
    np.testing.assert_array_equal(pixels(only(tmp_path, series="#2" if tag is None else "2").read()), STORED - 1023)


@pytest.mark.fault("a SeriesInstanceUID per slice")
def test_slices_with_a_uid_each_that_stack_evenly_are_one_series(folder, caplog):
    edited(folder, lambda number, data: setattr(data, "SeriesInstanceUID", generate_uid()))
    np.testing.assert_array_equal(pixels(only(folder).read()), STORED - 1024)
    assert "12 slices with a SeriesInstanceUID each are read as one series" in caplog.text
    (folder / "slice005.dcm").unlink()
    message = refused(folder, only(folder).read, "not evenly spaced")
    assert len(message) < 400


@pytest.mark.fault("archives and files of other types")
@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        *(
            (["a.zip"], "unpack"),
            (["a/1.dcm.gz", "a/2.dcm.gz"], "unpack"),
            (["a.npz"], "convert"),
            (["a.mgz"], "convert"),
        ),
        *((["a.nii.gz.part"], "copy again"), ([".a.nii.gz.Ab12Cd"], "copy again")),
    ],
)
def test_what_may_hold_cts_and_is_not_read_is_named_even_if_quiet(tmp_path, names, remedy, caplog):
    write_dicom(tmp_path / "case", STORED)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    caplog.set_level("WARNING")
    assert list(find_scans(tmp_path)) == ["case"]
    for name in names:
        assert str(tmp_path / name) in caplog.text
    assert f"; {remedy} " in caplog.text


def test_copies_of_another_patient_are_that_patients(tmp_path):
    folder = write_dicom(tmp_path / "a", STORED, PatientName="Roe")
    shutil.copytree(folder, tmp_path / "b")
    edited(tmp_path / "b", lambda number, data: setattr(data, "PatientName", "Doe"))
    assert sorted(find_scans(tmp_path)) == ["a", "b"]
    changed_slice(min(folder.iterdir()), folder / "copy.dcm")
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), STORED - 1024)


def test_a_slice_of_which_only_an_unknown_kind_is_left_is_missed(folder):
    last = sorted(folder.iterdir())[-1]
    lost = ("Modality", "InstanceNumber", "SeriesInstanceUID", "ImagePositionPatient", "Rows", "PixelData")
    changed_slice(last, SOPClassUID="1.2", **dict.fromkeys(lost))
    last.write_bytes(last.read_bytes().replace(CTImageStorage.encode(), b"1.2".ljust(len(CTImageStorage), b"\0")))
    refused(folder, only(folder).read, last.name)


def test_a_header_that_ends_within_an_element_is_damaged(folder):
    last = sorted(folder.iterdir())[-1]
    changed_slice(last, SOPClassUID="1.2.840.10408.5.1.4.1.1.2")
    content = last.read_bytes().replace(CTImageStorage.encode(), b"1.2.840.10408.5.1.4.1.1.2")
    last.write_bytes(content[: content.index(b"\x20\x00\x0e\x00UI") + 20])
    refused(folder, only(folder).read, rf"{last.name}: damaged, or not DICOM \(its header is cut short")


def test_a_slice_that_is_ct_by_one_of_two_elements_and_has_lost_its_rows_is_missed(folder):
    last = sorted(folder.iterdir())[-1]
    changed_slice(last, Rows=None)
    content = last.read_bytes()
    place = content.rindex(CTImageStorage.encode())  # the first is that of the file meta header
    last.write_bytes(content[:place] + CTImageStorage.replace("10008.5", "10008.7").encode() + content[place + 25 :])
    assert len(last.read_bytes()) == len(content)
    refused(folder, only(folder).read, last.name)


@pytest.mark.fault("double slice")
@pytest.mark.parametrize("number", [None, 99], ids=["of its number", "numbered anew"])
def test_slices_copied_under_other_uids_are_passed_over_if_their_pixels_are_equal(folder, number, caplog):
    for name in ("slice001", "slice005"):
        tags = {"SOPInstanceUID": generate_uid()} | ({} if number is None else {"InstanceNumber": number})
        changed_slice(folder / f"{name}.dcm", folder / f"{name} (1).dcm", **tags)
    np.testing.assert_array_equal(pixels(only(folder).read()), STORED - 1024)
    assert "exact copies of slices passed over: 2" in caplog.text
    copy = folder / "slice005 (1).dcm"
    changed_slice(copy, RescaleIntercept=-1000)  # equal pixels, other HU
    refused(folder, only(folder).read, "lie at the same place")


def test_a_copy_does_not_hide_that_slices_of_two_scans_are_mixed(tmp_path):
    """Slices of air are alike in two scans; they are of one scan only where all others are."""
    stored = STORED.copy()
    stored[9:] = 0
    write_dicom(tmp_path / "case", stored, SeriesInstanceUID="1.2.3")
    write_dicom(tmp_path / "case", np.where(stored, stored + 1, 0), name="other", SeriesInstanceUID="1.2.3")
    refused(tmp_path / "case", only(tmp_path).read, "lie at the same place")


@pytest.mark.fault("every n-th slice of a series")
@pytest.mark.parametrize("step", [2, 3])
def test_every_nth_slice_of_a_series_is_read_and_said(folder, step, caplog):
    find_scans(folder)
    assert caplog.text == ""
    for k in range(12):
        if k % step:
            (folder / f"slice{12 - k:03d}.dcm").unlink()
    scan = only(folder)
    np.testing.assert_array_equal(pixels(scan.read()), STORED[::step] - 1024)
    np.testing.assert_allclose(scan.geometry().GetSpacing()[2], 2.5 * step)
    found = f"InstanceNumbers 1 to {13 - step} in steps of {step}, {2.5 * step:g} mm apart and 2.5 mm thick"
    assert found in caplog.text
    changed_slice(folder, SliceThickness=2.5 * step)  # slices that touch are numbered so
    caplog.clear()
    find_scans(folder)
    assert caplog.text == ""
    (folder / f"slice{12 - step:03d}.dcm").unlink()  # the second
    refused(folder, only(folder).read, "not evenly spaced|one slice")
