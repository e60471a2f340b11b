import shutil

import numpy as np
import pydicom
import pytest

from datasets.scans import find_scans, open_scan, read_ct
from datasets.volumes import volume_id
from tests.volumes import ORIGIN, SPACING, changed_slice, geometry, pixels, refused, rotation, write_dicom


def test_a_folder_in_hu_and_in_the_order_of_positions(tmp_path, stored):
    folder = write_dicom(tmp_path / "case 1", stored, slope=2.0, intercept=-1024.0)
    image = read_ct(folder)
    np.testing.assert_array_equal(pixels(image), 2 * stored.astype(int) - 1024)
    np.testing.assert_allclose(image.GetSpacing(), SPACING)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN)
    assert geometry(open_scan(folder).geometry()) == geometry(image)
    assert volume_id(folder) == "case 1"


@pytest.mark.fault("coronal, sagittal, prone")
@pytest.mark.parametrize(
    "direction",
    [
        [[1, 0, 0], [0, 0, 1], [0, -1, 0]],  # coronal
        [[0, 0, -1], [1, 0, 0], [0, -1, 0]],  # sagittal
        [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],  # prone
        rotation(0.2, -0.1, 0.3),
    ],
    ids=["coronal", "sagittal", "prone", "oblique"],
)
def test_acquisitions_of_any_orientation(tmp_path, stored, direction):
    assert np.linalg.det(direction) == pytest.approx(1)
    folder = write_dicom(tmp_path / "case", stored, direction=direction)
    image = open_scan(folder).read()
    np.testing.assert_array_equal(pixels(image), stored - 1024)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), direction, atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, atol=1e-6)


@pytest.mark.fault("coronal, sagittal, prone")
def test_slices_from_above_to_below_are_turned_upwards(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored, spacing=(0.7, 0.8, -2.5))
    image = open_scan(folder).read()
    np.testing.assert_array_equal(pixels(image), stored[::-1] - 1024)
    assert image.GetSpacing()[2] == pytest.approx(2.5)
    assert image.GetOrigin()[2] == pytest.approx(ORIGIN[2] - 5 * 2.5)


@pytest.mark.fault("missing slice", "double slice")
def test_a_missing_and_a_double_slice(tmp_path, stored):
    folder = write_dicom(tmp_path / "gap", stored)
    (folder / "slice003.dcm").unlink()
    uneven = r"not evenly spaced: 5 mm between slice004\.dcm and slice002\.dcm, 2\.5 mm elsewhere"
    refused(folder, lambda: open_scan(folder).read(), uneven)
    double = write_dicom(tmp_path / "double", stored)
    copy = double / "copy.dcm"
    copy.write_bytes((double / "slice003.dcm").read_bytes())
    np.testing.assert_array_equal(pixels(open_scan(double).read()), stored - 1024)
    other = pydicom.dcmread(copy)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(copy)
    same_place = r"copy\.dcm and slice003\.dcm lie at the same place; remove one of them"
    refused(double, lambda: open_scan(double).read(), same_place)


@pytest.mark.fault("slices whose distance changes")
@pytest.mark.parametrize(
    ("above", "said"),
    [
        (5.0, "2.5 mm apart up to slice005.dcm, 5 mm from there on"),
        (30.0, "2.5 mm apart up to slice005.dcm, 30 mm from there on"),
        (0.2, "2.5 mm apart up to slice005.dcm, 0.2 mm from there on"),
    ],
)
def test_a_distance_that_changes_half_way(tmp_path, above, said):
    folder = write_dicom(tmp_path / "case", np.zeros((9, 7, 8)))
    for number in range(5):  # slice009 is the lowest
        position = [0, 0, 10 + (4 - number) * above]
        changed_slice(folder / f"slice00{number + 1}.dcm", ImagePositionPatient=position)
    for number in range(5, 9):
        changed_slice(folder / f"slice00{number + 1}.dcm", ImagePositionPatient=[0, 0, (8 - number) * 2.5])
    refused(folder, lambda: open_scan(folder).read(), said)


@pytest.mark.fault("a series that goes on")
@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesInstanceUID": "1.2.3"},
        {"PixelSpacing": [0.9, 0.9]},
        {"StudyInstanceUID": "1.2.4", "SeriesInstanceUID": "1.2.3"},
    ],
)
def test_the_rest_of_a_series_under_another_uid_or_with_another_field_of_view(tmp_path, tags):
    stored = np.zeros((12, 7, 9), np.int16)
    folder = write_dicom(tmp_path / "case", stored)
    for number in range(1, 6):
        path = folder / f"slice{number:03}.dcm"
        data = pydicom.dcmread(path)
        x, y, z = data.ImagePositionPatient
        if "PixelSpacing" in tags:  # about the same centre: 0.7 mm along 9 columns, 0.8 mm along 7 rows
            x, y = x + 4 * (0.7 - 0.9), y + 3 * (0.8 - 0.9)
        changed_slice(path, ImagePositionPatient=[x, y, z], **tags)
    refused(folder, next(iter(find_scans(folder).values())).read, "slice00[56].*continues the series")
    if "StudyInstanceUID" in tags:
        (tmp_path / "other").mkdir()
        for number in range(1, 6):
            shutil.copy(folder / f"slice{number:03}.dcm", tmp_path / "other")
            (folder / f"slice{number:03}.dcm").unlink()
        for scan in find_scans(tmp_path).values():
            refused(tmp_path, scan.read, "slice00[56].*continues the series")
        return
    # Another name is another series, of which one is taken.
    for number in range(1, 6):
        changed_slice(folder / f"slice{number:03}.dcm", SeriesNumber="7")
    assert {scan.read().GetSize()[2] for scan in find_scans(folder).values()} <= {5, 7}


@pytest.mark.fault("all slices in one file, damaged", "gantry tilt")
@pytest.mark.parametrize(
    ("slices", "written", "match"),
    [
        (0, {}, "no CT series"),
        (1, {}, "one slice"),
        (6, {"Modality": "MR"}, "no CT series"),
        (6, {"shift": (0, 2.5 * np.tan(np.radians(12)), 0)}, r"gantry tilt of 12\.0 degrees; .* dcm2niix .* _Tilt"),
    ],
)
def test_series_that_are_no_straight_volume(tmp_path, stored, slices, written, match):
    folder = write_dicom(tmp_path / "case", stored[:slices], **written)
    refused(folder, lambda: open_scan(folder).read(), match)
    open_scan(write_dicom(tmp_path / "rounded", stored, shift=(0, 0.001, 0))).read()


@pytest.mark.fault("a slice of another", "slope and intercept in some slices only", "all slices in one file, damaged")
@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "another size, spacing or orientation than slice001.dcm"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 2, 0]}, "impossible"),
        ({"PixelSpacing": [0.8, 0.9]}, "another size, spacing or orientation than slice001.dcm"),
        ({"Modality": "MR"}, "no slice of a CT"),
        ({"ImagePositionPatient": None}, "damaged, or not DICOM"),
        ({"PixelData": None}, "damaged, or not DICOM"),
        ({"SeriesInstanceUID": "1.2.3"}, "continues the series .* as another series"),
        ({"RescaleSlope": None}, r"1 of 6 slices have no RescaleSlope \(slice006.dcm\)"),
        ({"RescaleIntercept": None}, r"1 of 6 slices have no RescaleIntercept \(slice006.dcm\)"),
        ({"SeriesInstanceUID": "1.2.3", "ImagePositionPatient": [0, 0, 5000]}, "as another series, object"),
        ({"SeriesInstanceUID": "1.2.3", "Columns": 16392}, "continues the series .* or size"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "damaged, or not DICOM"),
    ],
)
def test_a_slice_that_does_not_belong_to_the_others(folder, tags, match):
    changed_slice(folder / "slice006.dcm", **tags)
    refused(folder, lambda: open_scan(folder).read(), match)


@pytest.mark.fault("a slice cut short, the")
@pytest.mark.parametrize("number", [1, 3, 6])
@pytest.mark.parametrize("kept", [0, 60, 300, -60])
def test_a_slice_cut_short_wherever_it_lies(folder, number, kept):
    path = folder / f"slice00{number}.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, lambda: open_scan(folder).read(), "damaged, or not DICOM|cut short")
