import numpy as np
import pydicom
import pytest

from datasets.scans import open_scan
from datasets.volumes import Reading
from tests.volumes import pixels, refused, write_dicom


@pytest.mark.fault("several series in one study")
def test_of_several_series_the_longest_is_taken_and_said(tmp_path, stored, caplog):
    folder = write_dicom(
        tmp_path / "case", stored, StudyInstanceUID="1.2", SeriesNumber=2, SeriesDescription="Lung 1.0"
    )
    write_dicom(
        folder, stored[:4] + 1, name="soft", StudyInstanceUID="1.2", SeriesNumber=3, SeriesDescription="Soft tissue 5.0"
    )
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), stored - 1024)
    assert "number 2, Lung 1.0, 6 slices" in caplog.text
    assert "number 3, Soft tissue 5.0, 4 slices" in caplog.text
    assert "--series" in caplog.text


@pytest.mark.fault("several series in one study")
@pytest.mark.parametrize("choice", ["3", "soft", "Soft tissue 5.0", "uid"])
def test_series_picks_by_number_description_or_uid(tmp_path, stored, choice, caplog):
    folder = write_dicom(
        tmp_path / "case", stored, StudyInstanceUID="1.2", SeriesNumber=2, SeriesDescription="Lung 1.0"
    )
    write_dicom(
        folder, stored[:4] + 1, name="soft", StudyInstanceUID="1.2", SeriesNumber=3, SeriesDescription="Soft tissue 5.0"
    )
    if choice == "uid":
        choice = pydicom.dcmread(folder / "soft001.dcm").SeriesInstanceUID
    np.testing.assert_array_equal(pixels(open_scan(folder, Reading(series=choice)).read()), stored[:4] - 1023)
    assert open_scan(folder, Reading(series=choice)).geometry().GetSize() == (8, 7, 4)
    assert caplog.text == ""


@pytest.mark.fault("several series of as")
def test_a_choice_that_is_not_clear(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored, StudyInstanceUID="1.2", SeriesDescription="Lung 1.0")
    write_dicom(folder, stored, name="b", StudyInstanceUID="1.2", SeriesDescription="Lung 1.0 again")
    unclear = "several series of 6 slices that no rule tells apart: .* pick one with --series"
    assert "Lung 1.0 again" in refused(folder, lambda: open_scan(folder).read(), unclear)
    bone = Reading(series="bone")
    assert "Lung 1.0 again" in refused(folder, lambda: open_scan(folder, bone).read(), "no series 'bone'; it holds")
    open_scan(folder, Reading(series="again")).read()
