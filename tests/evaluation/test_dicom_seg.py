import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from pydicom.uid import SegmentationStorage

from datasets.scans import open_scan, read_ct
from evaluation.burden import NOTICE
from evaluation.dicom_seg import make_dicom_seg, read_source
from tests.volumes import SPACING, changed_slice, refused, rotation, write_dicom, write_enhanced

SHAPE = (6, 9, 7)
STORED = np.random.default_rng(0).integers(0, 1500, SHAPE).astype(np.int16)

DIRECTIONS = {
    "axial": np.eye(3),
    "feet first": np.diag([-1, 1, -1]),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": rotation(0.2, -0.3, 0.4),
}


def series(folder, direction=DIRECTIONS["axial"], **tags):
    return write_dicom(folder, STORED, direction=direction, **tags)


def some_lesion():
    lesion = np.random.default_rng(1).random(SHAPE) < 0.2
    lesion[[0, 3]] = False
    return lesion


def written(folder, lesion, path):
    make_dicom_seg(lesion, read_source(open_scan(folder)), version="1.2", model="abc", threshold=0.4).save_as(path)
    return path


def slices_by_uid(folder):
    return {(data := pydicom.dcmread(path)).SOPInstanceUID: data for path in folder.iterdir()}


def frames_of(data):
    """The voxels of each frame, the slice or frame that it refers to, and its position."""
    for frame, groups in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        (reference,) = groups.DerivationImageSequence[0].SourceImageSequence
        yield frame, reference, groups.PlanePositionSequence[0].ImagePositionPatient


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_every_voxel_lies_on_the_slice_that_its_frame_refers_to(tmp_path, direction):
    folder = series(tmp_path / "ct", direction)
    lesion = some_lesion()
    data = pydicom.dcmread(written(folder, lesion, tmp_path / "seg.dcm"))
    sources = slices_by_uid(folder)
    assert int(data.NumberOfFrames) == len(data.PerFrameFunctionalGroupsSequence) == 4
    grid = read_ct(folder)
    seen = np.zeros(SHAPE, bool)
    for frame, reference, position in frames_of(data):
        source = sources[reference.ReferencedSOPInstanceUID]
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert position == source.ImagePositionPatient
        # The slice that read_ct has there, by its position.
        x, y, k = grid.TransformPhysicalPointToIndex([float(value) for value in position])
        assert (x, y) == (0, 0)
        np.testing.assert_array_equal(frame > 0, lesion[k])
        stored = source.pixel_array * source.RescaleSlope + source.RescaleIntercept
        np.testing.assert_array_equal(stored, [[grid[i, j, k] for i in range(7)] for j in range(9)])
        seen[k] = frame > 0
    np.testing.assert_array_equal(seen, lesion)
    shared = data.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(orientation, np.asarray(direction, float).T[:2].ravel(), atol=1e-6)
    measures = shared.PixelMeasuresSequence[0]
    assert [float(mm) for mm in measures.PixelSpacing] == [SPACING[1], SPACING[0]]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(SPACING[2])
    instances = data.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in instances} == set(sources)


def test_what_it_says_of_itself(tmp_path, caplog):
    folder = series(tmp_path / "ct", PatientName="Doe^J", PatientSex="F", StudyDate="20200401", SeriesNumber=4)
    caplog.set_level(0)
    data = pydicom.dcmread(written(folder, some_lesion(), tmp_path / "seg.dcm"))
    assert caplog.messages == []  # highdicom tells no tales
    source = next(iter(slices_by_uid(folder).values()))
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "PatientSex", "StudyDate"):
        assert data[name].value == source[name].value
    assert data.SeriesInstanceUID != source.SeriesInstanceUID
    assert (data.SOPClassUID, data.SegmentationType, data.SeriesNumber) == (SegmentationStorage, "BINARY", 1004)
    assert (data.ContentDescription, data.Manufacturer, data.SoftwareVersions) == (NOTICE, "GASNet", "1.2")
    (segment,) = data.SegmentSequence
    names = ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence", "AnatomicRegionSequence")
    assert [segment[name][0].CodeValue for name in names] == ["49755003", "52988006", "39607008"]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (segment.SegmentAlgorithmType, algorithm.AlgorithmVersion) == ("AUTOMATIC", "1.2")
    assert algorithm.AlgorithmParameters == "model=abc,threshold=0.4"


def test_what_an_anonymised_series_lacks_is_empty(tmp_path):
    folder = series(tmp_path / "ct")
    changed_slice(folder, PatientID=None, SliceThickness=None)
    data = pydicom.dcmread(written(folder, some_lesion(), tmp_path / "seg.dcm"))
    for name in ("PatientID", "PatientName", "PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber"):
        assert not data[name].value
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == pytest.approx(SPACING[2])


def changed(folder, *edits, only=None, **values):
    """Set values in all slices, or in one, without any check; each edit replaces bytes of the files."""
    for path in folder.iterdir() if only is None else [only]:
        data = pydicom.dcmread(path)
        for name, value in values.items():
            data[name] = pydicom.DataElement(name, pydicom.datadict.dictionary_VR(name), value, validation_mode=0)
        data.save_as(path)
        for old, new in edits:
            content = path.read_bytes()
            assert content.count(old) == 1
            path.write_bytes(content.replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("FrameOfReferenceUID", None, "has no valid FrameOfReferenceUID, which a DICOM SEG needs"),
        ("StudyInstanceUID", "anonymous", "has no valid StudyInstanceUID"),
        ("FrameOfReferenceUID", "1.2.3", "its FrameOfReferenceUID differs from that of"),
    ],
)
def test_headers_that_no_segmentation_can_be_made_of(tmp_path, name, value, match):
    folder = series(tmp_path / "ct")
    path = min(folder.iterdir())  # the last slice
    if value is None:
        changed_slice(path, **{name: None})
    else:
        changed(folder, only=path, **{name: value})
    refused(path, lambda: read_source(open_scan(folder)), match)


def judged_valid(path):
    """dciodvfy finds no error, where it is installed."""
    if shutil.which("dciodvfy"):
        found = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert [line for line in (found.stderr + found.stdout).splitlines() if line.startswith("Error")] == []


KANJI = (
    b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
)


@pytest.mark.fault("DICOM SEG of patients' names")
@pytest.mark.parametrize(
    ("declared", "stored", "name"),
    [
        ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        ("ISO_IR 100", "Müller^José".encode("latin-1"), "Müller^José"),
        ("ISO_IR 144", "Люксембург".encode("iso8859-5"), "Люксембург"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东".encode(), "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], *KANJI),
    ],
)
def test_names_in_any_character_set_stay_what_they_are(tmp_path, declared, stored, name):
    stored += b" " * (len(stored) % 2)
    held = "N" * len(stored)
    folder = changed(series(tmp_path / "ct"), (held.encode(), stored), SpecificCharacterSet=declared, PatientName=held)
    path = written(folder, some_lesion(), tmp_path / "seg.dcm")
    data = pydicom.dcmread(path)
    assert data.SpecificCharacterSet == "ISO_IR 192"
    assert name.encode() in path.read_bytes()
    assert data.PatientName == name
    judged_valid(path)


@pytest.mark.fault("DICOM SEG of patients' names")
@pytest.mark.parametrize("declared", [None, "ISO_IR 192", "KLINGON"])
def test_a_name_whose_bytes_are_not_of_its_character_set_is_left_empty(tmp_path, caplog, declared):
    stored = "Müller^José".encode("latin-1") + b" "
    held = "N" * len(stored)
    sets = {} if declared is None else {"SpecificCharacterSet": declared}
    folder = changed(series(tmp_path / "ct"), (held.encode(), stored), PatientName=held, **sets)
    path = written(folder, some_lesion(), tmp_path / "seg.dcm")
    assert pydicom.dcmread(path).PatientName == ""
    assert "DICOM SEG without PatientName" in caplog.text
    judged_valid(path)


@pytest.mark.fault("DICOM SEG of a CT whose header")
@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("PatientBirthDate", "19600102", "19600102"),
        ("PatientBirthDate", "1960.01.02", ""),
        ("PatientBirthDate", "19600231", ""),
        ("PatientSex", "female", ""),
        ("StudyTime", "25:61", ""),
        ("PatientAge", "61 years", None),
        ("PatientID", "a\\b", ""),
        ("PatientName", "a\x07b", ""),
        ("AccessionNumber", "y" * 17, ""),
    ],
)
def test_values_that_the_standard_does_not_allow_are_left_out(tmp_path, caplog, name, value, kept):
    path = written(changed(series(tmp_path / "ct"), **{name: value}), some_lesion(), tmp_path / "seg.dcm")
    data = pydicom.dcmread(path)
    assert str(data[name].value) == kept if kept is not None else name not in data
    emptied = not kept
    assert (f"DICOM SEG without {name}" in caplog.text) == emptied
    assert caplog.text.count("DICOM SEG without") == emptied  # once, not for every slice
    judged_valid(path)


@pytest.mark.fault("enhanced CT")
def test_frames_of_an_enhanced_ct_are_referred_to(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    write_enhanced(series(tmp_path / "plain"), tmp_path / "ct" / "all.dcm", STORED, order)
    lesion = some_lesion()
    source = pydicom.dcmread(tmp_path / "ct" / "all.dcm")
    data = pydicom.dcmread(written(tmp_path / "ct", lesion, tmp_path / "seg.dcm"))
    seen = np.zeros(SHAPE, bool)
    grid = read_ct(tmp_path / "ct")
    for frame, reference, position in frames_of(data):
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        number = int(reference.ReferencedFrameNumber)
        own = source.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0]
        assert position == own.ImagePositionPatient
        k = grid.TransformPhysicalPointToIndex([float(value) for value in position])[2]
        assert k == order[number - 1]
        seen[k] = frame > 0
    np.testing.assert_array_equal(seen, lesion)
