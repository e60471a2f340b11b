import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from datasets.dicom import write_series
from datasets.phantom import write_phantoms
from datasets.scans import read_ct
from tests.volumes import geometry, image_of, pixels, rotation
from utils.errors import FolderError


def test_a_series_is_read_by_others_as_it_was_written(tmp_path):
    voxels = np.random.default_rng(0).integers(-1024, 3000, (5, 7, 6)).astype(np.int16)
    image = image_of(voxels, direction=rotation(0.1, -0.2, 0.3))
    write_series(image, tmp_path / "case", "case", "seed")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "case")))
    for read in (reader.Execute(), read_ct(tmp_path / "case")):
        np.testing.assert_array_equal(pixels(read), voxels)
        for ours, theirs in zip(geometry(read), geometry(image), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_uids_depend_on_the_seed_alone_and_slices_have_their_own(tmp_path):
    image = image_of(np.zeros((3, 4, 4), np.int16))
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        write_series(image, tmp_path / folder, "case", seed)
    a, b, c = ([pydicom.dcmread(p) for p in sorted((tmp_path / n).iterdir())] for n in "abc")
    assert [s.SOPInstanceUID for s in a] == [s.SOPInstanceUID for s in b]
    assert len({s.SOPInstanceUID for s in (*a, *c)}) == 6
    assert len({s.SeriesInstanceUID for s in a}) == 1
    assert a[0].StudyInstanceUID != c[0].StudyInstanceUID
    assert len({a[0].StudyInstanceUID, a[0].SeriesInstanceUID, a[0].FrameOfReferenceUID}) == 3


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "report.txt").touch()
    with pytest.raises(FolderError, match="case: is not an empty folder"):
        write_series(image_of(np.zeros((3, 4, 4), np.int16)), tmp_path / "case", "case", "1")


def test_phantoms_as_dicom_are_those_of_nifti(tmp_path):
    size = (16, 32, 32)
    write_phantoms(tmp_path / "nifti", 1, 0, size)
    write_phantoms(tmp_path / "dicom", 1, 0, size, dicom=True)
    ct = read_ct(tmp_path / "dicom" / "ct" / "healthy_000")
    np.testing.assert_array_equal(pixels(ct), pixels(tmp_path / "nifti" / "ct" / "healthy_000.nii.gz"))
    before = (tmp_path / "dicom" / "ct" / "healthy_000").stat().st_mtime_ns
    write_phantoms(tmp_path / "dicom", 1, 0, size, dicom=True)
    assert (tmp_path / "dicom" / "ct" / "healthy_000").stat().st_mtime_ns == before


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy of dicom3tools")
@pytest.mark.parametrize("direction", [np.eye(3), rotation(0.1, -0.2, 0.3)], ids=["axial", "oblique"])
def test_every_slice_conforms_to_the_standard(tmp_path, direction):
    write_series(image_of(np.zeros((3, 4, 5), np.int16), direction=direction), tmp_path / "case", "case", "seed")
    for path in sorted((tmp_path / "case").iterdir()):
        found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert [line for line in found.stderr.splitlines() if line.startswith("Error")] == []
        assert "CTImage" in found.stderr.splitlines()  # what it was checked as
