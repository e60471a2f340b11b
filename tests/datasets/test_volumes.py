import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from datasets.scans import read_ct
from datasets.volumes import EXTENSIONS, Reading, read_geometry, read_labels, read_volume, volume_id, write_volume
from tests.volumes import ORIGIN, SPACING, geometry, pixels, refused, rotation, write

SHAPE = (6, 7, 8)


@pytest.mark.fault("spaces, letters of")
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


@pytest.mark.fault("empty file, text, random")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.mhd"])
@pytest.mark.parametrize("content", [b"", b"Once upon a time", bytes(range(256)) * 8])
def test_files_that_are_no_images(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, lambda: read_volume(path), "damaged or contradictory header|not a NIfTI file|cut short")


@pytest.mark.fault("missing file, dangling")
def test_paths_that_lead_to_no_file(tmp_path, hu):
    (tmp_path / "dangling.nrrd").symlink_to(tmp_path / "gone.nrrd")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    os.mkfifo(tmp_path / "pipe.mha")
    lost = "a link to a file that is not there"
    missing = dict.fromkeys(("none.nii.gz", "a/b.nrrd", "pipe.mha"), "no such file")
    for name, match in (missing | {"dangling.nrrd": lost, "loop.nii": lost}).items():
        for read in (read_volume, read_geometry):
            refused(tmp_path / name, lambda name=name, read=read: read(tmp_path / name), match)
    link = tmp_path / "link to a scan.nii.gz"
    link.symlink_to(write(tmp_path / "scan.nii.gz", hu))
    np.testing.assert_array_equal(pixels(read_volume(link)), hu)
    (tmp_path / "scan.txt").write_text("text")
    refused(tmp_path / "scan.txt", lambda: read_volume(tmp_path / "scan.txt"), "is none of .nii.gz, .nii, ")


@pytest.mark.fault("2D, 4D, one slice, several")
@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_of_other_shapes(tmp_path, hu, extension):
    path = tmp_path / f"scan{extension}"
    for image in (
        sitk.GetImageFromArray(hu[0]),
        sitk.GetImageFromArray(np.stack([hu, hu]), isVector=False),
        sitk.GetImageFromArray(np.stack([hu] * 3, -1), isVector=True),
        sitk.GetImageFromArray(hu[:1]),
        sitk.GetImageFromArray(hu.astype(np.complex64)),
    ):
        sitk.WriteImage(image, str(path))
        refused(path, lambda: read_volume(path), "expected one|cannot be decoded")


@pytest.mark.fault("NaN or infinite voxels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(tmp_path, hu, value, dtype):
    array = hu.astype(np.float32)
    array[3, 3, 3] = value
    # The NIfTI reader would put a 0, that is soft tissue, in their place.
    for name in ("scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha"):
        path = write(tmp_path / name, array.astype(dtype))
        refused(path, lambda path=path: read_volume(path), "NaN or infinite")


@pytest.mark.fault("scaled values; slope", "a CT without air, constant")
def test_a_ct_has_air(tmp_path, hu):
    good = write(tmp_path / "good.nii.gz", hu)
    assert read_ct(good).GetSize() == (8, 7, 6)
    for name, array, match in (
        ("constant", np.full(SHAPE, -1000, np.int16), "are not HU, all are the same"),
        ("unscaled", (hu + 1024).astype(np.int16), r"no air.*an intercept of -1024 were lost"),
        ("overscaled", hu.astype(np.float32) * 1e30, "not HU of anything"),
        ("low", hu.astype(np.float32) - 40_000, "not HU of anything"),
    ):
        path = write(tmp_path / f"{name}.nii.gz", array)
        refused(path, lambda path=path: read_ct(path), match)


@pytest.mark.fault("a CT mapped to 0..255")
@pytest.mark.parametrize(
    "values",
    [*(lambda hu, sd=sd: (hu - hu.mean()) / sd for sd in (100, 300, 500)), lambda hu: hu > 0, lambda hu: -1 * (hu > 0)],
    ids=["100", "300", "500", "mask", "negative mask"],
)
def test_a_standardised_ct_and_a_mask_are_no_mapped_ct(tmp_path, hu, values):
    path = write(tmp_path / "other.nii.gz", values(hu).astype(np.float32))
    for window in (None, (-1250.0, 250.0)):
        message = refused(path, lambda window=window: read_ct(path, Reading(grey_window=window)), "are not HU")
        assert window is None or "mapped" not in message


@pytest.mark.fault("a CT mapped to 0..255")
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255)])
@pytest.mark.parametrize("over", [0, 0.03])
def test_a_ct_mapped_to_a_scale_is_named_or_mapped_back(tmp_path, hu, low, high, over):
    clipped = np.clip(hu, -1250, 250).astype(np.float64)
    clipped[0, 0, :2] = -1250 - over * 1500, 250 + over * 1500
    mapped = low + (clipped + 1250) / 1500 * (high - low)
    path = write(tmp_path / "mapped.nii.gz", mapped.astype(np.float32))
    refused(path, lambda: read_ct(path), rf"as if mapped to {low}\.\.{high}; state the HU .* with --grey-window")
    window = Reading(grey_window=(-1250.0, 250.0))
    np.testing.assert_allclose(pixels(read_ct(path, window)), clipped, atol=0.01)
    # A CT in HU is what it was, whatever the window.
    np.testing.assert_array_equal(pixels(read_ct(write(tmp_path / "hu.nii.gz", hu), window)), hu)


@pytest.mark.fault("masks of 0 and 255")
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.int64])
def test_labels_are_whole_numbers_from_0_to_255(tmp_path, dtype):
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3], array[2, 3, 4] = 255, 1
    image = read_labels(write(tmp_path / "mask.nii.gz", array))
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(pixels(image), array.astype(np.uint8))


@pytest.mark.fault("labels that nibabel")
@pytest.mark.parametrize(("highest", "dtype"), [(2, np.uint8), (4, np.int16), (10, np.uint8)])
def test_labels_that_nibabel_scaled_are_rounded(tmp_path, highest, dtype):
    array = np.zeros(SHAPE)
    array.flat[: highest + 1] = np.arange(highest + 1)
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(array.T, np.diag([-1, -1, 1, 1]), header), path)
    assert (pixels(path) != array).any()
    np.testing.assert_array_equal(pixels(read_labels(path)), array)


@pytest.mark.fault("mask values that are")
@pytest.mark.parametrize(
    ("value", "dtype"), [(0.97, np.float32), (0.5, np.float32), (-1, np.int16), (256, np.int16), (-0.25, np.float64)]
)
def test_other_values_are_not_labels(tmp_path, value, dtype):
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3] = value
    path = write(tmp_path / "mask.nii.gz", array)
    refused(path, lambda: read_labels(path), "not labels")


@pytest.mark.fault("a disk that fails, a")
@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("file/scan.nii.gz", 8, "cannot be written"),
        ("folder.nii.gz", 8, "cannot be written"),
        ("scan.nii.gz", 32768, "cannot be written"),  # NIfTI cannot say so
        ("scan.mhd", 8, r"write \.mha"),  # in two files
    ],
)
def test_what_cannot_be_written(tmp_path, name, size, match):
    (tmp_path / "file").touch()
    (tmp_path / "folder.nii.gz").mkdir()
    path = tmp_path / name
    refused(path, lambda: write_volume(sitk.Image([size, 2, 2], sitk.sitkUInt8), path), match)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder.nii.gz"}
