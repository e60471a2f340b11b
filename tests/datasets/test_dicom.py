import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from scipy import ndimage

from datasets.dicom import write_series
from datasets.phantom.make import write_phantoms
from datasets.scans import open_scan, read_ct
from tests.volumes import (
    changed_slice,
    edited,
    geometry,
    image_of,
    pixels,
    refused,
    rotation,
    write_dicom,
    write_enhanced,
)


@pytest.mark.fault("slope and intercept, each")
def test_a_slope_and_intercept_of_every_slices_own(folder, stored):
    for k in range(6):
        changed_slice(folder / f"slice{6 - k:03d}.dcm", RescaleSlope=k + 1, RescaleIntercept=-1000 - k)
    expected = [plane * (k + 1) - 1000.0 - k for k, plane in enumerate(stored.astype(float))]
    np.testing.assert_allclose(pixels(open_scan(folder).read()), expected)


@pytest.mark.fault("slope and intercept missing")
def test_values_without_slope_and_intercept_are_not_hu(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored, intercept=None)
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), stored)
    refused(folder, lambda: read_ct(folder), "no air.*an intercept of -1024 were lost")


ENCODERS = {
    "implicit": "dcmconv +ti",
    "big endian": "dcmconv +tb",
    "deflated": "dcmconv +td",
    "RLE": "dcmcrle",
    "RLE by GDCM": "gdcmconv --rle",
    "JPEG lossless, first-order": "dcmcjpeg +e1",
    "JPEG lossless": "dcmcjpeg +el",
    "JPEG lossless by GDCM": "gdcmconv --jpeg",
    "JPEG-LS": "dcmcjpls +el",
    "JPEG-LS by GDCM": "gdcmconv --jpegls",
    "JPEG 2000": "gdcmconv --j2k",
    "JPEG, 12 bits": "dcmcjpeg +ee +q 100",
}
"""Commands of DCMTK and GDCM that encode a file."""

LOSSY = {"JPEG, 12 bits": 8}
"""HU that a voxel may differ."""


def encoded(path, command):
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"{command.split()[0]} is not installed")
    out = path.with_suffix(".encoded")
    subprocess.run([*command.split(), path, out], check=True, capture_output=True)
    out.replace(path)


def smooth(shape):
    """Values of a picture, as noise alone would not survive a lossy encoder."""
    noise = np.random.default_rng(1).normal(size=shape)
    return np.clip(ndimage.gaussian_filter(noise, (0, 2, 2)) * 3000 + 1000, 0, 2000).astype(np.int16)


@pytest.mark.fault("compressed slices")
@pytest.mark.parametrize("syntax", ["RLE by pydicom", *ENCODERS])
def test_what_independent_encoders_write(tmp_path, syntax):
    stored = smooth((4, 32, 32))
    folder = write_dicom(tmp_path / "case", stored)
    for path in folder.iterdir():
        if syntax in ENCODERS:
            encoded(path, ENCODERS[syntax])
    if syntax not in ENCODERS:
        edited(folder, lambda number, data: data.compress(RLELossless))
    found = pixels(open_scan(folder).read()).astype(int)
    assert np.abs(found - (stored - 1024)).max() <= LOSSY.get(syntax, 0)
    lossless = syntax not in LOSSY
    assert lossless or np.abs(found - (stored - 1024)).max() > 0  # it was encoded
    if pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_encapsulated:
        path.write_bytes(path.read_bytes()[:-100])
        refused(folder, lambda: open_scan(folder).read(), "damaged|cannot be decoded")


@pytest.fixture
def enhanced(tmp_path):
    """The file of an enhanced CT of which no frame is in place, and its stored values."""
    stored, path = smooth((4, 32, 32)), tmp_path / "enhanced" / "all.dcm"
    write_enhanced(write_dicom(tmp_path / "plain", stored), path, stored, [1, 0, 3, 2], 1.0, -1024.0)
    return path, stored


@pytest.mark.fault("compressed slices")
@pytest.mark.parametrize("syntax", ENCODERS)
def test_compressed_frames_of_an_enhanced_ct(enhanced, syntax):
    path, stored = enhanced
    encoded(path, ENCODERS[syntax])
    if syntax in LOSSY:  # ITK would scale all frames as the first
        refused(path, lambda: open_scan(path.parent).read(), "cannot be decoded")
    else:
        np.testing.assert_array_equal(pixels(open_scan(path.parent).read()), stored - 1024)


@pytest.mark.fault("enhanced CT")
@pytest.mark.parametrize("places", [3, 5])
def test_an_enhanced_ct_with_places_for_another_number_of_frames(enhanced, places):
    path, _ = enhanced
    data = pydicom.dcmread(path)
    groups = data.PerFrameFunctionalGroupsSequence
    data.PerFrameFunctionalGroupsSequence = [*groups, groups[1]][:places]
    data.save_as(path)
    refused(path, lambda: open_scan(path.parent).read(), f"of 4 frames, with places for {places}")


@pytest.mark.fault("compressed slices")
def test_what_cannot_be_decoded_names_the_plug_ins(enhanced):
    path, _ = enhanced
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(100)] * 4)
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # high-throughput JPEG 2000
    data.save_as(path)
    refused(path, lambda: open_scan(path.parent).read(), "cannot be decoded .* install pylibjpeg")


@pytest.mark.fault("pixels in the upper bits")
@pytest.mark.parametrize(("bits", "high", "above"), [(12, 15, 4), (12, 13, 2), (12, 15, 0), (12, 3, 0), (16, 11, 0)])
@pytest.mark.parametrize("signed", [0, 1])
def test_pixels_lie_where_high_bit_says_unless_the_bits_below_are_taken(tmp_path, stored, bits, high, above, signed):
    tags = {"BitsStored": bits, "HighBit": high, "PixelRepresentation": signed}
    folder = write_dicom(tmp_path / "case", stored * 2**above, **tags)
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), stored - 1024)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("above", [False, True])
def test_uncompressed_pixels_are_those_of_simpleitk(tmp_path, signed, bits, above):
    rng = np.random.default_rng(bits + signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    stored = rng.integers(max(low, -31000), min(high, 33000), (6, 7, 8))
    folder = write_dicom(tmp_path / "case", np.zeros(stored.shape, np.int16))
    for path, plane in zip(sorted(folder.iterdir(), reverse=True), stored, strict=True):
        pixels_of_16 = (plane % 2**bits if above else plane % 2**16).astype(np.uint16)
        if above and bits < 16:
            pixels_of_16 |= (rng.integers(0, 2, plane.shape) << 15).astype(np.uint16)  # an overlay
        changed_slice(
            path, PixelRepresentation=signed, BitsStored=bits, HighBit=bits - 1, PixelData=pixels_of_16.tobytes()
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    image = open_scan(folder).read()
    np.testing.assert_array_equal(pixels(image), pixels(theirs))
    np.testing.assert_array_equal(pixels(image), stored - 1024)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_pixels_at_the_end_of_a_file_need_no_pydicom(tmp_path, monkeypatch, syntax):
    stored = np.random.default_rng(0).integers(0, 1400, (6, 7, 8)).astype(np.int16)
    folder = write_dicom(tmp_path / "case", stored)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    first = min(folder.iterdir())
    changed_slice(first, DataSetTrailingPadding=bytes(10))
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), stored - 1024)
    padded, read = [], pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda path, **options: padded.append(path) or read(path, **options))
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), stored - 1024)
    assert padded == [first]


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (-1, 0), (2, -40000), (2, 0)])
def test_scaling_without_a_decoder_stays_within_16_bits(tmp_path, slope, intercept):
    stored = np.array([0, 1, 2, 32767] * 84, np.int16).reshape(6, 7, 8)
    folder = write_dicom(tmp_path / "case", stored, slope=slope, intercept=intercept)
    np.testing.assert_array_equal(pixels(open_scan(folder).read()), slope * stored.astype(int) + intercept)


def test_a_series_is_read_by_others_as_it_was_written(tmp_path):
    voxels = np.random.default_rng(0).integers(-1024, 3000, (5, 7, 6)).astype(np.int16)
    image = image_of(voxels, direction=rotation(0.1, -0.2, 0.3))
    voxels[0, 0, 0] = -1024
    image[0, 0, 0] = -3024  # padding, which would wrap
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
