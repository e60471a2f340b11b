import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from datasets.formats import read_header, read_voxels
from datasets.geometry import MAX_VOXELS
from datasets.volumes import is_volume_file, read_volume, volume_id, write_volume
from tests.volumes import ORIGIN, SPACING, geometry, image_of, pixels, refused, rotation


def nifti(path, array, header=None, affine=None, kind=nib.Nifti1Image):
    """Write (z, y, x) with nibabel, whose axes are (x, y, z) and whose world is RAS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if affine is None:
        affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])
        affine[:3, 3] = -ORIGIN[0], -ORIGIN[1], ORIGIN[2]
    nib.save(kind(array.T, affine, header), path)
    return path


def changed(path, *changes):
    """Overwrite fields of the header: (place, format, values...)."""
    whole = bytearray(path.read_bytes())
    for place, kind, *values in changes:
        struct.pack_into(f"<{kind}", whole, place, *values)
    path.write_bytes(whole)
    return path


def voxels(path, max_voxels=MAX_VOXELS):
    return read_voxels(read_header(path, max_voxels))


def refuses(path, match, **options):
    return refused(path, lambda: voxels(path, **options), match)


@pytest.mark.fault("big-endian files, all", "NIfTI-2 and pairs")
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_and_byte_orders(tmp_path, hu, kind, order):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    path = nifti(tmp_path / "scan.nii", hu, header, kind=kind)
    assert struct.unpack(f"{order}i", path.read_bytes()[:4]) == (header.sizeof_hdr,)
    grid, found = read_header(path, MAX_VOXELS), voxels(path)
    np.testing.assert_array_equal(found, hu)
    assert found.dtype.isnative
    np.testing.assert_allclose((grid.spacing, grid.origin), (SPACING, ORIGIN), rtol=1e-6)
    assert grid.direction == tuple(np.eye(3).ravel())
    path.write_bytes(path.read_bytes()[:-2])
    refuses(path, "cut short")


@pytest.mark.parametrize("forms", [(1, 1), (2, 0), (0, 1)])
@pytest.mark.parametrize("handedness", [1, -1])
def test_the_geometry_is_simpleitks(tmp_path, hu, forms, handedness):
    affine = np.eye(4)
    affine[:3, :3] = rotation(0.1, -0.4, 0.7) * (SPACING[0], SPACING[1] * handedness, SPACING[2])
    affine[:3, 3] = ORIGIN
    image = nib.Nifti1Image(hu.T, affine)
    image.set_qform(affine, forms[0])
    image.set_sform(affine, forms[1])
    nib.save(image, tmp_path / "scan.nii.gz")
    grid = read_header(tmp_path / "scan.nii.gz", MAX_VOXELS)
    ours = grid.size, grid.spacing, grid.origin, grid.direction
    for one, other in zip(ours, geometry(tmp_path / "scan.nii.gz"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.fault("scaled values; slope")
@pytest.mark.parametrize(("kind", "read_as"), [("u2", "f4"), ("i2", "f4"), ("f4", "f4"), ("i4", "f8"), ("f8", "f8")])
def test_scaled_values(tmp_path, hu, kind, read_as):
    path = changed(nifti(tmp_path / "scan.nii", np.abs(hu).astype(kind)), (112, "2f", 0.5, -1024))
    found = voxels(path)
    assert found.dtype == read_as
    np.testing.assert_allclose(found, np.abs(hu) * 0.5 - 1024)
    np.testing.assert_allclose(found, pixels(path))


@pytest.mark.fault("scaled values; slope")
@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_values_without_a_slope_are_not_scaled(tmp_path, hu, slope):
    path = nifti(tmp_path / "scan.nii", hu)
    for intercept in (0, np.nan):
        found = voxels(changed(path, (112, "2f", slope, intercept)))
        np.testing.assert_array_equal(found, hu)
        assert found.dtype == np.int16
    # With an intercept, readers disagree.
    refuses(changed(path, (112, "2f", slope, -24)), "header .scaled by")


@pytest.mark.fault("header extensions", "zeros behind a compressed file")
def test_a_header_of_extensions_and_zeros_behind_a_compressed_file_are_passed_over(tmp_path, hu):
    image = nib.Nifti1Image(hu.T, np.diag([-1, -1, 1, 1]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    path = tmp_path / "scan.nii.gz"
    nib.save(image, path)
    path.write_bytes(path.read_bytes() + bytes(512))
    np.testing.assert_array_equal(voxels(path), hu)


@pytest.mark.fault("a plain file named .nii.gz")
def test_a_file_is_read_by_its_first_bytes(tmp_path, hu):
    plain = nifti(tmp_path / "scan.nii", hu)
    (tmp_path / "plain.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "compressed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    for name in ("plain.nii.gz", "compressed.nii"):
        np.testing.assert_array_equal(voxels(tmp_path / name), hu)
    cut = tmp_path / "compressed.nii"
    cut.write_bytes(cut.read_bytes()[:-9])
    refuses(cut, "damaged, cut short or unreadable")


@pytest.mark.fault("NIfTI-2 and pairs")
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("extension", ["", ".gz"])
def test_a_header_and_its_voxels_in_two_files(tmp_path, hu, kind, extension):
    path, image = tmp_path / f"scan.hdr{extension}", tmp_path / f"scan.img{extension}"
    nib.save(kind(hu.T, np.diag([-1, -1, 2, 1])), image)
    assert is_volume_file(path)
    assert volume_id(path) == "scan"
    grid = read_header(path, MAX_VOXELS)
    np.testing.assert_array_equal(voxels(path), hu)
    assert grid.spacing == (1, 1, 2)
    assert grid.data.name == image.name
    refused(image, lambda: read_volume(image), "name the .hdr")
    content = gzip.decompress(image.read_bytes()) if extension else image.read_bytes()
    for wrong, match in ((content[:-2], "cut short"), (content + b"xx", "holds more than")):
        image.write_bytes(gzip.compress(wrong) if extension else wrong)
        refused(image, lambda: voxels(path), match)
    image.unlink()
    refuses(path, rf"its voxels, scan\.img{extension}, are missing")


@pytest.mark.fault("ANALYZE without orientation")
def test_analyze_is_refused_and_other_headers_are_no_volumes(tmp_path, hu):
    nib.save(nib.AnalyzeImage(hu.T, np.eye(4)), tmp_path / "scan.img")
    assert is_volume_file(tmp_path / "scan.hdr")  # it is a CT, and is named
    refuses(tmp_path / "scan.hdr", "if ANALYZE, it does not say how it is oriented")
    (tmp_path / "envi.hdr").write_text("ENVI\nsamples = 10\n")
    (tmp_path / "empty.hdr").touch()
    assert not is_volume_file(tmp_path / "envi.hdr")
    assert not is_volume_file(tmp_path / "empty.hdr")


@pytest.mark.fault("axes that lean")
@pytest.mark.parametrize("qform", [0, 1])
@pytest.mark.parametrize("leaning", [5e-5, 5e-4, 9.9e-4, 2e-3])
def test_axes_that_lean_a_little_are_straightened(tmp_path, hu, qform, leaning, caplog):
    straight = np.diag([-0.7, -0.8, 2.5, 1])
    affine = straight.copy()
    affine[:2, 1] = 0.8 * np.array([np.sin(leaning), -np.cos(leaning)])
    image = nib.Nifti1Image(hu.T, affine)
    image.set_sform(affine, 1)
    image.set_qform(straight, qform)
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    if leaning > 1e-3:
        refused(path, lambda: read_volume(path), "contradict" if qform else "not at right angles")
        return
    direction = np.reshape(read_volume(path).GetDirection(), (3, 3))
    assert ("radians from right angles" in caplog.text) == (leaning > 1e-4)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-4 if leaning < 1e-4 else 1e-12)
    np.testing.assert_allclose(direction, np.eye(3), atol=1.01 * max(leaning / 2, 1e-4))  # half of the angle each


@pytest.mark.fault("NIfTI cut short, header", "NIfTI longer than its")
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        *((lambda whole, end=end: whole[:end], "cut short") for end in (0, 4, 347, 352, 352 + 300, -1)),
        (lambda whole: whole + b"x", "holds more than the 1024 bytes of its header"),
        # A slice less in the header, and SimpleITK drops the last one.
        (lambda whole: whole[:46] + b"\5\0" + whole[48:], "holds more than the 912 bytes"),
    ],
)
def test_a_file_cut_short_or_too_long(tmp_path, hu, damage, match):
    path = nifti(tmp_path / "scan.nii", hu)
    path.write_bytes(damage(path.read_bytes()))
    refuses(path, match)


@pytest.mark.fault("NIfTI cut short, header", "flipped bit in a compressed", "junk behind a compressed")
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        *((lambda packed, whole, end=end: packed[: int(end * len(packed))], "cut short") for end in (0.02, 0.5, 0.98)),
        *((lambda packed, whole, place=place: flipped(packed, place), "damaged") for place in (0.3, 0.6, -2, -6)),
        (lambda packed, whole: packed + b"something", "damaged"),
        (lambda packed, whole: gzip.compress(whole[:352]), "cut short: 352 of 1024 bytes"),
        (lambda packed, whole: gzip.compress(whole + b"x"), "holds more"),
    ],
)
def test_a_compressed_file_that_is_damaged(tmp_path, hu, damage, match):
    path = nifti(tmp_path / "scan.nii.gz", hu)
    path.write_bytes(damage(path.read_bytes(), nifti(tmp_path / "scan.nii", hu).read_bytes()))
    refuses(path, match)


def flipped(content, place):
    """A file with one bit flipped, at a share of its length or at so many bytes from its end."""
    data = bytearray(content)
    data[place if place < 0 else int(place * len(data))] ^= 0x40
    return bytes(data)


@pytest.mark.fault("voxels at an impossible")
def test_where_the_voxels_begin(tmp_path, hu):
    path = nifti(tmp_path / "scan.nii", hu)
    whole = path.read_bytes()
    refuses(changed(path, (108, "f", 400)), "cut short: 1024 of 1072 bytes")
    path.write_bytes(whole[:352] + bytes(48) + whole[352:])
    np.testing.assert_array_equal(voxels(changed(path, (108, "f", 400))), hu)


@pytest.mark.fault("header of gigabytes")
def test_a_large_volume_in_a_small_file_is_refused_before_memory_is_taken(tmp_path, hu):
    path = changed(nifti(tmp_path / "scan.nii", hu), (42, "3h", 32767, 32767, 32767))
    refuses(path, "more than 536870912; if that is right, allow it with --max-voxels")
    refuses(path, "do not fit into memory", max_voxels=2**60)
    bomb = tmp_path / "bomb.nii.gz"
    changed(path, (42, "3h", 1024, 1024, 8))
    bomb.write_bytes(gzip.compress(path.read_bytes()[:352] + bytes(2**26)))
    refuses(bomb, "holds more than")


@pytest.mark.fault("qform and sform that")
def test_two_orientations_that_contradict_each_other(tmp_path, hu):
    path = changed(nifti(tmp_path / "scan.nii", hu), (252, "2h", 1, 1))
    voxels(path)
    refuses(changed(path, (256, "3f", 0.2, 0, 0)), "qform and sform contradict")
    changed(path, (256, "3f", 0, 0, 1), (268, "f", 13.0))
    refuses(path, "qform and sform contradict")


@pytest.mark.fault("sheared, zero or NaN")
def test_axes_that_are_sheared(tmp_path, hu):
    tilted = changed(nifti(tmp_path / "scan.nii", hu), (280, "4f", -0.7, 0, 1.0, 0))
    refuses(tilted, "sheared by 21.8 degrees, as by a gantry tilt; take the file .* _Tilt")
    affine = np.eye(4)
    affine[:3, :3] = [[-0.7, -0.2, 0], [0, -np.sqrt(0.6), 0], [0, 0, 2.5]]
    sheared = nifti(tmp_path / "scan.nii", hu, affine=affine)
    refuses(changed(sheared, (252, "2h", 0, 1)), "not at right angles")


DAMAGED = "damaged or contradictory header"


@pytest.mark.fault("RGB, complex, unknown", "spacing 0, negative", "NIfTI without orientation")
@pytest.mark.fault("sheared, zero or NaN", "bits a voxel that are", "spacing that is not", "voxels at an impossible")
@pytest.mark.fault("2D, 4D, one slice, several")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *((((88, "f", spacing),), DAMAGED) for spacing in (0, -0.7, np.nan, np.inf)),
        *((((112, "2f", 1, intercept),), DAMAGED) for intercept in (np.nan, np.inf)),
        *((((108, "f", at),), DAMAGED) for at in (0, -16, 348, 352.5, np.nan, np.inf)),
        *((((280, "4f", *row),), DAMAGED) for row in ((np.nan, 0, 0, 0), (0, 0, 0, 0))),
        *((((76, "f", factor), (252, "2h", 1, 0)), DAMAGED) for factor in (-2, 0.5, np.nan)),
        (((252, "2h", 1, 0), (256, "3f", 0.9, 0.9, 0.9)), DAMAGED),  # no rotation
        (((72, "h", 24),), DAMAGED),  # bits per voxel
        (((80, "f", 5),), DAMAGED + " .axes with steps of"),  # SimpleITK believes the one, nibabel the other
        *((((123, "B", units),), "not in mm") for units in (1, 3, 7)),
        (((252, "2h", 0, 0),), "does not say how it is oriented"),
        *((((40, "h", dimensions),), "not three-dimensional") for dimensions in (-1, 0, 2, 8)),
        (((344, "4s", b"ni1\0"),), r"NIfTI in one file ends in \.nii or \.nii\.gz, in two in \.hdr and \.img"),
        *((((344, "4s", magic),), "not a NIfTI file; if ANALYZE") for magic in (b"n+2\0", bytes(4))),
        (((0, "i", 540),), "not a NIfTI file"),
        *((((70, "h", code),), f"type {code}") for code in (9999, 128, 32)),  # none, RGB, complex
        *((((place, "h", size),), "size") for place, size in ((42, -8), (42, 0), (46, 1))),
    ],
)
def test_headers_that_cannot_be(tmp_path, hu, changes, match):
    path = changed(nifti(tmp_path / "scan.nii", hu), (123, "B", 10), (76, "f", 0))  # mm and s; a handedness of 1
    np.testing.assert_array_equal(voxels(path), hu)
    refuses(changed(path, *changes), match)


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("handedness", [1, -1])
def test_what_is_written_is_read_by_others_as_what_itk_writes(tmp_path, hu, kind, handedness):
    for k in range(3):
        turn = rotation(*np.random.default_rng(k).uniform(-3, 3, 3)) * (1, handedness, 1)
        image = image_of(hu.astype(kind), (0.7, 0.8 + k, 2.5), (-12.3, 45.6 * k, 789.1), turn)
        ours, plain, theirs = (tmp_path / name for name in ("ours.nii.gz", "plain.nii", "theirs.nii"))
        write_volume(image, ours)
        write_volume(image, plain)
        assert ours.read_bytes()[3:8] == bytes(5)  # neither a name nor a time: equal images give equal files
        sitk.WriteImage(image, str(theirs))
        assert gzip.decompress(ours.read_bytes()) == plain.read_bytes()
        for one, other in zip(geometry(ours), geometry(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(nib.load(ours).affine, nib.load(theirs).affine, rtol=1e-6, atol=1e-6)
        for array in (pixels(ours), voxels(ours)):
            np.testing.assert_array_equal(array, hu.astype(kind))
        assert read_header(ours, MAX_VOXELS).voxel == kind
