import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from datasets import volume as module
from datasets.volume import (
    EXTENSIONS,
    check_same_grid,
    is_volume_file,
    read_ct,
    read_geometry,
    read_labels,
    read_volume,
    volume_id,
    write_volume,
)
from tests.volumes import ORIGIN, SPACING, geometry, image_of, pixels, refused, rotation, write, write_dicom

SHAPE = (6, 7, 8)


@pytest.fixture
def hu():
    return np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)


def nifti(path, array, header=None):
    """Write (z, y, x) with nibabel, whose axes are (x, y, z) and whose world is RAS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])
    affine[:3, 3] = -ORIGIN[0], -ORIGIN[1], ORIGIN[2]
    nib.save(nib.Nifti1Image(array.T, affine, header), path)
    return path


# ------------------------------------------------------------------------------------------- good files


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_file_type_keeps_voxels_and_geometry(tmp_path, hu, extension):
    path = write(tmp_path / f"ä scan.1{extension}", hu, direction=rotation(0.2, -0.1, 0.3))
    image = read_volume(path)
    np.testing.assert_array_equal(pixels(image), hu)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, rtol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), rotation(0.2, -0.1, 0.3).ravel(), atol=1e-6)
    assert geometry(read_geometry(path)) == geometry(image)
    assert volume_id(path) == "ä scan.1"


@pytest.mark.parametrize("extension", [e for e in EXTENSIONS if e != ".mhd"])
def test_what_is_written_is_read_by_others(tmp_path, hu, extension):
    path = tmp_path / "new folder" / f"scan{extension}"
    write_volume(image_of(hu), path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(pixels(path), hu)
    if ".nii" in extension:
        loaded = nib.load(path)
        np.testing.assert_array_equal(np.asarray(loaded.dataobj).T, hu)
        expected = np.diag([-0.7, -0.8, 2.5, 1])
        expected[:3, 3] = 12.3, -45.6, 789.1
        np.testing.assert_allclose(loaded.affine, expected, rtol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_of_both_byte_orders(tmp_path, hu, order):
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.int16)
    path = nifti(tmp_path / "scan.nii", hu, header)
    assert struct.unpack(f"{order}i", path.read_bytes()[:4]) == (348,)
    image = read_volume(path)
    np.testing.assert_array_equal(pixels(image), hu)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, rtol=1e-6)
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, lambda: read_volume(path), "cut short")


def test_dicom_folder_in_hu_and_in_the_order_of_positions(tmp_path):
    stored = np.random.default_rng(1).integers(0, 700, SHAPE).astype(np.int16)
    folder = write_dicom(tmp_path / "case 1", stored, slope=2.0, intercept=-1024.0)
    (folder / "notes.txt").write_text("not a slice")
    image = read_ct(folder)
    np.testing.assert_array_equal(pixels(image), 2 * stored.astype(int) - 1024)
    np.testing.assert_allclose(image.GetSpacing(), SPACING)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN)
    assert geometry(read_geometry(folder)) == geometry(image)
    assert volume_id(folder) == "case 1"


def test_hidden_and_other_files_are_not_volumes(tmp_path):
    for name in ("a.nii", "B.NII.GZ", ".partial.nii.gz", "a.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    assert {p.name for p in tmp_path.iterdir() if is_volume_file(p)} == {"a.nii", "B.NII.GZ"}


# -------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.mhd"])
@pytest.mark.parametrize("content", [b"", b"Once upon a time", bytes(range(256)) * 8])
def test_files_that_are_no_images(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, lambda: read_volume(path), "not a readable image")


def test_a_missing_file(tmp_path):
    for name in ("none.nii.gz", "a/b.nrrd"):
        refused(tmp_path / name, lambda name=name: read_volume(tmp_path / name), "no such file")


def test_a_folder_without_dicom(tmp_path):
    refused(tmp_path, lambda: read_volume(tmp_path), "no DICOM series")


@pytest.mark.parametrize("kept", [352, 353, 352 + 300, -1])
def test_plain_nifti_cut_short(tmp_path, hu, kept):
    path = nifti(tmp_path / "scan.nii", hu)
    path.write_bytes(path.read_bytes()[:kept])
    # SimpleITK itself reads it, and fills in zeros.
    assert sitk.ReadImage(str(path)).GetSize() == SHAPE[::-1]
    refused(path, lambda: read_volume(path), "cut short")


def test_where_the_voxels_begin(tmp_path, hu):
    path = nifti(tmp_path / "scan.nii", hu)
    whole = bytearray(path.read_bytes())
    whole[108:112] = struct.pack("<f", 400)
    path.write_bytes(whole[:352] + bytes(48) + whole[352:])
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)
    path.write_bytes(whole)
    refused(path, lambda: read_volume(path), "cut short: 1024 of 1072 bytes")
    # SimpleITK reads the voxels from such places, wrongly.
    for offset in (0, -16, 348, np.nan):
        whole[108:112] = struct.pack("<f", offset)
        path.write_bytes(whole)
        refused(path, lambda: read_volume(path), "place of its voxels is impossible")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64, np.int64])
def test_the_length_of_every_type_of_voxel(tmp_path, hu, dtype):
    path = write(tmp_path / "scan.nii", (hu > 0).astype(dtype))
    whole = bytearray(path.read_bytes())
    assert len(whole) == 352 + hu.size * np.dtype(dtype).itemsize
    # The reader does not look at the bits a voxel; junk behind the voxels does no harm.
    whole[72:74] = struct.pack("<h", 0)
    path.write_bytes(whole + b"junk")
    np.testing.assert_array_equal(pixels(read_volume(path)), hu > 0)
    path.write_bytes(whole[:-1])
    refused(path, lambda: read_volume(path), "cut short")


@pytest.mark.parametrize("spacing", [0, np.nan, np.inf])
def test_spacing_that_would_silently_become_1(tmp_path, hu, spacing):
    path = nifti(tmp_path / "scan.nii", hu)
    whole = bytearray(path.read_bytes())
    whole[88:92] = struct.pack("<f", spacing)
    path.write_bytes(whole)
    refused(path, lambda: read_volume(path), "spacing or .* impossible")


@pytest.mark.parametrize("share", [0.5, 0.98])
def test_compressed_nifti_cut_short(tmp_path, hu, share):
    path = nifti(tmp_path / "scan.nii.gz", hu)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, lambda: read_volume(path), "cut short")


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_cut_short_within_a_voxel_and_followed_by_other_bytes(tmp_path, hu, kind):
    path = nifti(tmp_path / "scan.nii", hu.astype(kind))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    refused(path, lambda: read_volume(path), "cut short")
    path.write_bytes(whole + b"\xff" * 13)  # NaN, were they voxels
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)


def test_compressed_nifti_of_a_shorter_volume(tmp_path, hu):
    whole = nifti(tmp_path / "scan.nii", hu).read_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(whole[:352]))
    refused(path, lambda: read_volume(path), "cut short: 352 of 1024 bytes")


@pytest.mark.parametrize("place", [0.3, 0.6, -6])
def test_damaged_gzip(tmp_path, hu, place):
    path = nifti(tmp_path / "scan.nii.gz", hu)
    data = bytearray(path.read_bytes())
    data[place if place < 0 else int(place * len(data))] ^= 0x40
    path.write_bytes(data)
    refused(path, lambda: read_volume(path), "damaged|not a readable image")


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_other_files_cut_short(tmp_path, hu, extension):
    path = write(tmp_path / f"scan{extension}", hu)
    path.write_bytes(path.read_bytes()[:-60])
    refused(path, lambda: read_volume(path), "cannot be decoded")


def test_a_header_without_its_voxels(tmp_path, hu):
    path = write(tmp_path / "scan.mhd", hu)
    (tmp_path / "scan.raw").unlink()
    refused(path, lambda: read_volume(path), "cannot be decoded")


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_of_other_shapes(tmp_path, hu, extension):
    shapes = {
        "2D": sitk.GetImageFromArray(hu[0]),
        "4D": sitk.GetImageFromArray(np.stack([hu, hu]), isVector=False),
        "RGB": sitk.GetImageFromArray(np.stack([hu] * 3, -1), isVector=True),
        "slice": sitk.GetImageFromArray(hu[:1]),
        "complex": sitk.GetImageFromArray(hu.astype(np.complex64)),
    }
    for name, image in shapes.items():
        path = tmp_path / f"{name}{extension}"
        sitk.WriteImage(image, str(path))
        refused(path, lambda path=path: read_volume(path), "expected one|cannot be decoded")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(tmp_path, hu, value, dtype):
    array = hu.astype(np.float32)
    array[3, 3, 3] = value
    # The NIfTI reader would put a 0, that is soft tissue, in their place.
    for name in ("scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha"):
        path = write(tmp_path / name, array.astype(dtype))
        refused(path, lambda path=path: read_volume(path), "NaN or infinite")


def test_a_series_with_a_slice_cut_short(tmp_path):
    folder = write_dicom(tmp_path / "case", np.zeros(SHAPE, np.int16))
    path = folder / "slice003.dcm"
    path.write_bytes(path.read_bytes()[:-60])
    refused(folder, lambda: read_volume(folder), "not evenly spaced")


def test_series_with_a_missing_or_double_slice(tmp_path):
    stored = np.zeros(SHAPE, np.int16)
    folder = write_dicom(tmp_path / "gap", stored)
    (folder / "slice003.dcm").unlink()
    refused(folder, lambda: read_volume(folder), "not evenly spaced")
    double = write_dicom(tmp_path / "double", stored)
    (double / "copy.dcm").write_bytes((double / "slice003.dcm").read_bytes())
    refused(double, lambda: read_volume(double), "not evenly spaced")


# ----------------------------------------------------------------------------------------- CTs and labels


def test_a_ct_has_air(tmp_path, hu):
    good = write(tmp_path / "good.nii.gz", hu)
    assert read_ct(good).GetSize() == (8, 7, 6)
    mapped = write(tmp_path / "mapped.nii.gz", np.linspace(0, 255, hu.size).reshape(SHAPE).astype(np.float32))
    refused(mapped, lambda: read_ct(mapped), "0..255 are not HU")
    constant = write(tmp_path / "constant.nii.gz", np.full(SHAPE, -1000, np.int16))
    refused(constant, lambda: read_ct(constant), "not HU")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.int64])
def test_labels_are_whole_numbers_from_0_to_255(tmp_path, dtype):
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3], array[2, 3, 4] = 255, 1
    image = read_labels(write(tmp_path / "mask.nii.gz", array))
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(pixels(image), array.astype(np.uint8))


@pytest.mark.parametrize(("value", "dtype"), [(0.5, np.float32), (-1, np.int16), (256, np.int16), (-0.25, np.float64)])
def test_other_values_are_not_labels(tmp_path, value, dtype):
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3] = value
    path = write(tmp_path / "mask.nii.gz", array)
    refused(path, lambda: read_labels(path), "not labels")


# ------------------------------------------------------------------------------------------------ grids


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("size", {"shape": (6, 7, 9)}),
        ("spacing", {"spacing": (0.7, 0.8, 2.51)}),
        ("spacing", {"spacing": (0.702, 0.8, 2.5)}),
        ("origin", {"origin": (-12.3, 45.6, 789.1 + 0.02)}),
        ("origin", {"origin": (12.3, 45.6, 789.1)}),
        ("direction", {"direction": (1, 0, 0, 0, 1, 0, 0, 0, -1)}),
        ("direction", {"direction": rotation(0.01, 0, 0)}),
    ],
)
def test_grids_that_differ(tmp_path, what, change):
    shape = change.pop("shape", SHAPE)
    scan, mask = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    grid, reference = image_of(np.zeros(shape, np.uint8), **change), image_of(np.zeros(SHAPE, np.uint8))
    message = refused(mask, lambda: check_same_grid(mask, grid, scan, reference), f"its {what} ")
    assert str(scan) in message


def test_grids_that_differ_by_single_precision_are_the_same(tmp_path):
    reference = image_of(np.zeros(SHAPE, np.uint8), direction=rotation(0.1, 0.2, 0.3))
    grid = read_volume(write(tmp_path / "mask.nii.gz", reference))
    assert geometry(grid) != geometry(reference)
    check_same_grid(tmp_path / "mask.nii.gz", grid, tmp_path / "scan.nrrd", reference)


# ---------------------------------------------------------------------------------------------- writing


def _half_written(image, name, **_):
    Path(name).write_bytes(b"half")
    raise RuntimeError("Exception thrown in SimpleITK\nNo space left on device")


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, hu, monkeypatch):
    path = write(tmp_path / "scan.nii.gz", hu)
    before = path.read_bytes()
    monkeypatch.setattr(module.sitk, "WriteImage", _half_written)
    message = refused(path, lambda: write_volume(image_of(hu + 1), path), "No space left on device")
    assert "check the folder and the disk" in message
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path, hu):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "scan.nii.gz"
    refused(path, lambda: write_volume(image_of(hu), path), "cannot be written")
    (tmp_path / "folder.nii.gz").mkdir()
    refused(tmp_path / "folder.nii.gz", lambda: write_volume(image_of(hu), tmp_path / "folder.nii.gz"), "cannot be")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder.nii.gz"}


def test_volumes_in_two_files_are_not_written(tmp_path, hu):
    path = tmp_path / "scan.mhd"
    refused(path, lambda: write_volume(image_of(hu), path), r"write \.mha")
    assert not list(tmp_path.iterdir())
