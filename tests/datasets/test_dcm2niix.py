"""A DICOM series, and the NIfTI that dcm2niix makes of it, are the same volume."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from datasets.crop import crop_to_lungs
from datasets.geometry import lps_geometry, lps_view
from datasets.scans import open_scan
from tests.volumes import pixels, rotation, write_dicom, write_enhanced

pytestmark = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")

SHAPE = (8, 20, 24)
# dcm2niix knows the tags of vendors.
TAGS = {"Manufacturer": "SIEMENS", "PatientPosition": "HFS", "StudyDate": "20200101", "SeriesTime": "101010"}


@pytest.fixture
def stored():
    return np.random.default_rng(1).integers(0, 2000, SHAPE).astype(np.int16)


def upright(image):
    return lps_geometry(image), lps_view(pixels(image), image)


def converted(folder, out):
    out.mkdir()
    subprocess.run(["dcm2niix", "-z", "y", "-f", "scan", "-o", out, folder], check=True, capture_output=True)
    (path,) = out.glob("*.nii.gz")
    return path


def check_same(folder, out):
    """Both have the same voxels in the same places, and the same crops."""
    ours, theirs = open_scan(folder).read(), open_scan(converted(folder, out)).read()
    (grid, voxels), (other, others) = upright(ours), upright(theirs)
    np.testing.assert_allclose(voxels, others, atol=1e-3)
    np.testing.assert_allclose(grid.GetSpacing(), other.GetSpacing(), rtol=1e-4)
    np.testing.assert_allclose(grid.GetOrigin(), other.GetOrigin(), atol=0.02)
    np.testing.assert_allclose(grid.GetDirection(), other.GetDirection(), atol=1e-3)
    crops = []
    for image in (ours, theirs):
        # A box as lungs, at the same place in the body.
        lungs = np.zeros(SHAPE if image is ours else sitk.GetArrayViewFromImage(image).shape, np.uint8)
        lps_view(lungs, image)[2:-2, 3:-3, 4:-4] = 1
        crops.append(crop_to_lungs(sitk.Cast(image, sitk.sitkFloat32), lungs, None, (8, 16, 16)))
    for ours, theirs in zip(*crops, strict=True):
        if ours is not None:
            np.testing.assert_allclose(pixels(ours), pixels(theirs), atol=0.01)


DIRECTIONS = (
    np.eye(3),
    np.diag([-1, 1, -1]),  # feet first
    np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),  # coronal
    rotation(0.2, -0.3, 0.4),
)


def edited(folder, **values):
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        for name, value in values.items():
            setattr(data, name, value(data) if callable(value) else value)
        data.save_as(path)
    return folder


@pytest.mark.fault("coronal, sagittal, prone")
@pytest.mark.fault("slope and intercept, each")
@pytest.mark.fault("positions rounded to a tenth")
@pytest.mark.parametrize(
    ("written", "changes"),
    [
        *(({"direction": direction}, {}) for direction in DIRECTIONS),
        *(
            ({"slope": slope, "intercept": intercept}, {})
            for slope, intercept in ((2.0, -1e3), (0.5, -1e3), (1.0, 0.0))
        ),
        ({}, {"ImagePositionPatient": lambda data: [round(float(v), 1) for v in data.ImagePositionPatient]}),
        ({}, {"PixelRepresentation": 0}),
    ],
)
def test_plain_series(tmp_path, stored, written, changes):
    check_same(edited(write_dicom(tmp_path / "ct", stored, **written, **TAGS), **changes), tmp_path / "out")


@pytest.mark.fault("one series over several folders")
def test_a_series_over_two_folders(tmp_path, stored):
    folder = write_dicom(tmp_path / "ct" / "a", stored, **TAGS)
    (tmp_path / "ct" / "b").mkdir()
    for path in sorted(folder.iterdir())[::2]:
        path.rename(tmp_path / "ct" / "b" / path.name)
    check_same(tmp_path / "ct", tmp_path / "out")


@pytest.mark.fault("compressed slices")
@pytest.mark.parametrize("command", ["dcmcrle", "dcmcjpeg +e1", "gdcmconv --j2k", "dcmconv +ti"])
def test_compressed_slices(tmp_path, stored, command):
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"{command.split()[0]} is not installed")
    folder = write_dicom(tmp_path / "ct", stored, **TAGS)
    for path in list(folder.iterdir()):
        subprocess.run([*command.split(), path, tmp_path / "encoded"], check=True, capture_output=True)
        (tmp_path / "encoded").replace(path)
    check_same(folder, tmp_path / "out")


@pytest.mark.fault("enhanced CT")
# First and last frame in place: otherwise dcm2niix 1.0.20260724 gives these files a spacing of 1.07 for 2.5 mm.
@pytest.mark.parametrize("order", [range(8), [0, 5, 1, 4, 2, 6, 3, 7]])
def test_enhanced_ct(tmp_path, stored, order):
    plain = write_dicom(tmp_path / "plain", stored, **TAGS)
    write_enhanced(plain, tmp_path / "ct" / "all.dcm", stored, list(order), 1.0, -1024.0)
    check_same(tmp_path / "ct", tmp_path / "out")
