import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless, generate_uid
from scipy import ndimage

from datasets.io.dicom import read_native
from datasets.io.grid import MAX_VOXELS, Grid
from datasets.io.volume import Reading, read_ct, read_geometry, read_series, read_volume, volume_id
from tests.fuzz_volumes import fuzz_others
from tests.volumes import ORIGIN, SPACING, pixels, refused, rotation, write_dicom, write_enhanced

SHAPE = (6, 7, 8)


@pytest.fixture
def stored():
    return np.random.default_rng(1).integers(0, 700, SHAPE).astype(np.int16)


def changed(path, **tags):
    """Write a slice again with other tags; None removes one."""
    data = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            delattr(data, tag)
        else:
            setattr(data, tag, value)
    data.save_as(path)
    return path


def refuses(folder, match, **reading):
    return refused(folder, lambda: read_volume(folder, Reading(**reading)), match)


# ------------------------------------------------------------------------------------------ good series


def test_a_folder_in_hu_and_in_the_order_of_positions(tmp_path, stored):
    folder = write_dicom(tmp_path / "case 1", stored, slope=2.0, intercept=-1024.0)
    image = read_ct(folder)
    np.testing.assert_array_equal(pixels(image), 2 * stored.astype(int) - 1024)
    np.testing.assert_allclose(image.GetSpacing(), SPACING)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN)
    assert read_geometry(folder) == Grid.of(image)
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
    image = read_volume(folder)
    np.testing.assert_array_equal(pixels(image), stored - 1024)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), direction, atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, atol=1e-6)


@pytest.mark.fault("coronal, sagittal, prone")
def test_slices_from_above_to_below_are_turned_upwards(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored, spacing=(0.7, 0.8, -2.5))
    image = read_volume(folder)
    np.testing.assert_array_equal(pixels(image), stored[::-1] - 1024)
    assert image.GetSpacing()[2] == pytest.approx(2.5)
    assert image.GetOrigin()[2] == pytest.approx(ORIGIN[2] - 5 * 2.5)


@pytest.mark.fault("slope and intercept, each")
def test_a_slope_and_intercept_of_every_slices_own(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored)
    for k in range(6):
        changed(folder / f"slice{6 - k:03d}.dcm", RescaleSlope=k + 1, RescaleIntercept=-1000 - k)
    expected = [plane * (k + 1) - 1000.0 - k for k, plane in enumerate(stored.astype(float))]
    np.testing.assert_allclose(pixels(read_volume(folder)), expected)


@pytest.mark.fault("slope and intercept missing")
def test_values_without_slope_and_intercept_are_not_hu(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored, intercept=None)
    np.testing.assert_array_equal(pixels(read_volume(folder)), stored)
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
@pytest.mark.parametrize("syntax", ENCODERS)
def test_what_independent_encoders_write(tmp_path, syntax):
    stored = smooth((4, 32, 32))
    folder = write_dicom(tmp_path / "case", stored)
    for path in folder.iterdir():
        encoded(path, ENCODERS[syntax])
    found = pixels(read_volume(folder)).astype(int)
    assert np.abs(found - (stored - 1024)).max() <= LOSSY.get(syntax, 0)
    lossless = syntax not in LOSSY
    assert lossless or np.abs(found - (stored - 1024)).max() > 0  # it was encoded


@pytest.mark.fault("compressed slices")
@pytest.mark.parametrize("syntax", [name for name in ENCODERS if name not in LOSSY])
def test_compressed_frames_of_an_enhanced_ct(tmp_path, syntax):
    stored = smooth((4, 32, 32))
    path = tmp_path / "enhanced" / "all.dcm"
    write_enhanced(write_dicom(tmp_path / "plain", stored), path, stored, [1, 0, 3, 2], 1.0, -1024.0)
    encoded(path, ENCODERS[syntax])
    np.testing.assert_array_equal(pixels(read_volume(path.parent)), stored - 1024)


@pytest.mark.fault("compressed slices")
def test_what_cannot_be_decoded_names_the_plug_ins(tmp_path):
    stored = smooth((4, 32, 32))
    path = tmp_path / "enhanced" / "all.dcm"
    write_enhanced(write_dicom(tmp_path / "plain", stored), path, stored, [0, 1, 2, 3], 1.0, -1024.0)
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(100)] * 4)
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # high-throughput JPEG 2000
    data.save_as(path)
    refused(path, lambda: read_volume(path.parent), "cannot be decoded .* install pylibjpeg, pylibjpeg-libjpeg and")


@pytest.mark.fault("compressed slices")
@pytest.mark.parametrize("syntax", ["RLE", "JPEG 2000"])
def test_compressed_slices(tmp_path, syntax):
    stored = np.random.default_rng(1).integers(0, 700, (4, 16, 16)).astype(np.int16)
    folder = write_dicom(tmp_path / "case", stored)
    for path, plane in zip(sorted(folder.iterdir(), reverse=True), stored, strict=True):
        data = pydicom.dcmread(path)
        if syntax == "RLE":
            data.compress(RLELossless)
        else:
            writer = sitk.ImageFileWriter()
            writer.SetCompressor("JPEG2000")
            writer.UseCompressionOn()
            writer.SetFileName(str(tmp_path / "compressed.dcm"))
            writer.Execute(sitk.GetImageFromArray(plane))
            compressed = pydicom.dcmread(tmp_path / "compressed.dcm")
            data.PixelData = compressed.PixelData
            data["PixelData"].is_undefined_length = True
            data.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
        assert data.file_meta.TransferSyntaxUID.is_compressed
        data.save_as(path)
    np.testing.assert_array_equal(pixels(read_volume(folder)), stored - 1024)
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, lambda: read_volume(folder), "damaged|cannot be decoded")


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("above", [False, True])
def test_uncompressed_pixels_are_those_of_simpleitk(tmp_path, signed, bits, above):
    rng = np.random.default_rng(bits + signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    stored = rng.integers(max(low, -31000), min(high, 33000), SHAPE)
    folder = write_dicom(tmp_path / "case", np.zeros(SHAPE, np.int16))
    for path, plane in zip(sorted(folder.iterdir(), reverse=True), stored, strict=True):
        pixels_of_16 = (plane % 2**bits if above else plane % 2**16).astype(np.uint16)
        if above and bits < 16:
            pixels_of_16 |= (rng.integers(0, 2, plane.shape) << 15).astype(np.uint16)  # an overlay
        changed(path, PixelRepresentation=signed, BitsStored=bits, HighBit=bits - 1, PixelData=pixels_of_16.tobytes())
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    image = read_volume(folder)
    np.testing.assert_array_equal(pixels(image), pixels(theirs))
    np.testing.assert_array_equal(pixels(image), stored - 1024)
    native = read_native(read_series(folder))
    assert (native is None) == ((above and bits < 16) or stored.max() - 1024 > 32767)


def test_scaling_without_a_decoder_stays_within_16_bits(tmp_path):
    stored = np.array([0, 1, 2, 32767] * 84, np.int16).reshape(SHAPE)
    for slope, intercept in ((1, -1024), (-1, 0), (2, -40000), (2, 0)):
        folder = write_dicom(tmp_path / f"{slope}_{intercept}", stored, slope=slope, intercept=intercept)
        np.testing.assert_array_equal(pixels(read_volume(folder)), slope * stored.astype(int) + intercept)


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
    np.testing.assert_array_equal(pixels(read_volume(folder)), stored - 1024)


# -------------------------------------------------------------------------------------- several series


@pytest.mark.fault("several series in one study")
def test_of_several_series_the_longest_is_taken_and_said(tmp_path, stored, caplog):
    folder = write_dicom(
        tmp_path / "case", stored, StudyInstanceUID="1.2", SeriesNumber=2, SeriesDescription="Lung 1.0"
    )
    write_dicom(
        folder, stored[:4] + 1, name="soft", StudyInstanceUID="1.2", SeriesNumber=3, SeriesDescription="Soft tissue 5.0"
    )
    np.testing.assert_array_equal(pixels(read_volume(folder)), stored - 1024)
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
    np.testing.assert_array_equal(pixels(read_volume(folder, Reading(series=choice))), stored[:4] - 1023)
    assert read_geometry(folder, Reading(series=choice)).shape == (4, 7, 8)
    assert caplog.text == ""


@pytest.mark.fault("several series of as")
def test_a_choice_that_is_not_clear(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored, StudyInstanceUID="1.2", SeriesDescription="Lung 1.0")
    write_dicom(folder, stored, name="b", StudyInstanceUID="1.2", SeriesDescription="Lung 1.0 again")
    assert "Lung 1.0 again" in refuses(
        folder, "several series of 6 slices that no rule tells apart: .* pick one with --series"
    )
    assert "Lung 1.0 again" in refuses(folder, "no series 'bone'; it holds", series="bone")
    read_volume(folder, Reading(series="again"))


# ----------------------------------------------------------------------------------------- bad series


@pytest.mark.fault("all slices in one file, damaged")
def test_a_folder_without_a_ct(tmp_path, stored):
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "no CT series")
    refuses(write_dicom(tmp_path / "mr", stored, Modality="MR"), "no CT series")


@pytest.mark.fault("a slice cut short, the")
@pytest.mark.parametrize("number", [1, 3, 6])
@pytest.mark.parametrize("kept", [0, 60, 300, -60])
def test_a_slice_cut_short_wherever_it_lies(tmp_path, stored, number, kept):
    folder = write_dicom(tmp_path / "case", stored)
    path = folder / f"slice00{number}.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, lambda: read_volume(folder), "damaged, or not DICOM|cut short")


@pytest.mark.fault("missing slice")
@pytest.mark.fault("double slice")
def test_a_missing_and_a_double_slice(tmp_path, stored):
    folder = write_dicom(tmp_path / "gap", stored)
    (folder / "slice003.dcm").unlink()
    refuses(folder, r"not evenly spaced: 5 mm between slice004\.dcm and slice002\.dcm, 2\.5 mm elsewhere")
    double = write_dicom(tmp_path / "double", stored)
    copy = double / "copy.dcm"
    copy.write_bytes((double / "slice003.dcm").read_bytes())
    np.testing.assert_array_equal(pixels(read_volume(double)), stored - 1024)
    other = pydicom.dcmread(copy)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(copy)
    refuses(double, r"copy\.dcm and slice003\.dcm lie at the same place; remove one of them")


@pytest.mark.fault("all slices in one file, damaged")
def test_one_slice_is_no_volume(tmp_path, stored):
    refuses(write_dicom(tmp_path / "case", stored[:1]), "one slice")


@pytest.mark.fault("gantry tilt")
def test_a_gantry_tilt(tmp_path, stored):
    tilt = write_dicom(tmp_path / "tilt", stored, shift=(0, 2.5 * np.tan(np.radians(12)), 0))
    refuses(tilt, r"gantry tilt of 12\.0 degrees; .* dcm2niix")
    read_volume(write_dicom(tmp_path / "rounded", stored, shift=(0, 0.001, 0)))


@pytest.mark.fault("a slice of another")
@pytest.mark.fault("all slices in one file, damaged")
@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "oriented otherwise"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 2, 0]}, "impossible"),
        ({"PixelSpacing": [0.8, 0.9]}, "slice001.dcm has .* of"),
        ({"Modality": "MR"}, "no slice of a CT"),
        ({"ImagePositionPatient": None}, "damaged, or not DICOM"),
        ({"PixelData": None}, "damaged, or not DICOM"),
        ({"SeriesInstanceUID": "1.2.3"}, "continues the series .* as another series"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "damaged, or not DICOM"),
    ],
)
def test_a_slice_that_does_not_belong_to_the_others(tmp_path, stored, tags, match):
    folder = write_dicom(tmp_path / "case", stored)
    changed(folder / "slice006.dcm", **tags)
    refused(folder, lambda: read_volume(folder), match)


def test_a_volume_that_is_too_large(tmp_path, stored):
    folder = write_dicom(tmp_path / "case", stored)
    refuses(folder, "more than 335; if that is right", max_voxels=335)
    assert read_volume(folder, Reading(max_voxels=336)).GetSize() == SHAPE[::-1]
    assert MAX_VOXELS > 336


@pytest.mark.fault("any of it at random")
def test_no_mutant_crashes_or_loses_a_slice():
    counts, wrong = fuzz_others("dicom", 300, seed=0)
    assert wrong == []
    assert counts["refused"] > 100
