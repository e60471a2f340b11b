import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from datasets.scans import open_scan
from tests.fuzz_volumes import fuzz_others
from tests.volumes import pixels, refused, write_dicom


@pytest.mark.fault("text, reports, scout")
def test_other_files_beside_the_slices(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored)
    slices = sorted(folder.iterdir())
    (folder / "notes.txt").write_text("not a slice")
    (folder / ".hidden.dcm").write_text("not a slice")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "preview").mkdir()
    report = pydicom.dcmread(slices[0])
    report.Modality, report.SeriesInstanceUID = "SR", generate_uid()
    del report.PixelData
    report.save_as(folder / "report.dcm")
    scout = pydicom.dcmread(slices[0])
    scout.SeriesInstanceUID, scout.ImageType = generate_uid(), ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    scout.save_as(folder / "scout.dcm")
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), stored - 1024)


@pytest.mark.fault("all slices in one file, damaged")
def test_a_folder_without_a_ct(tmp_path, stored):
    (tmp_path / "empty").mkdir()
    write_dicom(tmp_path / "mr", stored, Modality="MR")
    for folder in (tmp_path / "empty", tmp_path / "mr"):
        refused(folder, lambda folder=folder: open_scan(folder).read(), "no CT series")


@pytest.mark.fault("a slice cut short, the")
@pytest.mark.parametrize("number", [1, 3, 6])
@pytest.mark.parametrize("kept", [0, 60, 300, -60])
def test_a_slice_cut_short_wherever_it_lies(tmp_path, stored, number, kept):
    folder = write_dicom(tmp_path / "case", stored)
    path = folder / f"slice00{number}.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, lambda: open_scan(folder).read(), "damaged, or not DICOM|cut short")


@pytest.mark.fault("any of it at random")
def test_no_mutant_crashes_or_loses_a_slice():
    counts, wrong = fuzz_others("dicom", 300, seed=0)
    assert wrong == []
    assert counts["refused"] > 100
