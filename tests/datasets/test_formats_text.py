import gzip
import re

import nrrd as pynrrd
import numpy as np
import pytest
import SimpleITK as sitk

from datasets.formats import files_of
from datasets.volumes import read_geometry, read_volume
from tests.volumes import geometry, image_of, pixels, refused, write


@pytest.mark.fault("MetaImage and NRRD")
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(("extension", "size"), [(".mha", b"DimSize = 8 7 6"), (".nrrd", b"sizes: 8 7 6")])
def test_files_cut_short_and_files_that_are_too_long(tmp_path, hu, extension, size, compress):
    path = write(tmp_path / f"scan{extension}", hu, compress)
    whole = path.read_bytes()
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)
    path.write_bytes(whole[:-60])
    refused(path, lambda: read_volume(path), "damaged|cut short")
    path.write_bytes(whole.replace(size, size[:-1] + b"5"))  # ITK would drop the last slice in silence
    refused(path, lambda: read_volume(path), "holds more than the")
    if not compress:
        path.write_bytes(whole + b"x")
        refused(path, lambda: read_volume(path), "holds more than the")


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "text"])
def test_encodings_of_nrrd(tmp_path, hu, encoding):
    path = tmp_path / "scan.nrrd"
    pynrrd.write(str(path), hu.T, {"encoding": encoding, "spacings": [1, 2, 3]})
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refused(path, lambda: read_volume(path), "damaged|cut short")
    header, _, voxels = whole.partition(b"\n\n")
    for value in (b"x", b"0.5", b"70000") if encoding == "text" else ():
        path.write_bytes(header + b"\n\n" + value + b" " + voxels.split(maxsplit=1)[1])
        refused(path, lambda: read_volume(path), "holds other values than int16")


@pytest.mark.fault("headers that point to several")
@pytest.mark.parametrize(
    ("extension", "old", "new", "match"),
    [
        (".mha", rb"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "several files"),
        (".mha", rb"ElementDataFile = LOCAL", b"ElementDataFile = slice%d.raw 1 6 1", "several files"),
        (".mha", rb"DimSize", b"HeaderSize = 100\nDimSize", "damaged or contradictory header"),
        (".nrrd", rb"encoding", b"data file: other.raw\nencoding", r"its voxels, other\.raw, are missing"),
        (".nrrd", rb"encoding", b"data file: LIST\nencoding", "in several files"),
        (".nrrd", rb"encoding", b"byte skip: 3\nencoding", "damaged or contradictory header"),
    ],
)
def test_voxels_elsewhere(tmp_path, hu, extension, old, new, match):
    path = write(tmp_path / f"scan{extension}", hu, compress=False)
    path.write_bytes(re.sub(old, new, path.read_bytes(), count=1))
    refused(path, lambda: read_volume(path), match)


def metaimage(path, voxels, *fields):
    lines = [
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "CompressedData = False", "DimSize = 8 7 6", "ElementType = MET_SHORT", *fields,
        f"ElementDataFile = {voxels}",
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def nrrd(path, hu, *fields):
    """Write an NRRD by hand; without voxels if `hu` is None."""
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 8 7 6", "endian: little", "encoding: raw", *fields]
    path.write_bytes("\n".join(lines).encode() + (b"\n" if hu is None else b"\n\n" + hu.tobytes()))
    return path


@pytest.mark.fault("MetaImage headers with Windows")
@pytest.mark.parametrize(
    "named", ["data\\scan.raw", "data/scan.raw", "C:\\study\\scan.raw", "/gone/scan.raw", "scan.raw"]
)
def test_voxels_by_a_path_of_another_system(tmp_path, hu, named, caplog):
    raw = tmp_path / ("data" if "data" in named else "") / "scan.raw"
    raw.parent.mkdir(exist_ok=True)
    raw.write_bytes(hu.tobytes())
    # The name occurs twice: only the field of the voxels counts.
    path = metaimage(tmp_path / "scan.mhd", named, "ElementSpacing = 0.7 0.8 2.5", f"Comment = {named}")
    image = read_volume(path)
    np.testing.assert_array_equal(pixels(image), hu)
    assert image.GetSpacing() == (0.7, 0.8, 2.5)
    assert geometry(read_geometry(path)) == geometry(image)
    assert files_of(path) == (path, raw)
    assert ("the header names" in caplog.text) == (named not in ("scan.raw", "data/scan.raw"))
    raw.write_bytes(hu.tobytes()[:-1])
    refused(raw, lambda: read_volume(path), "671 of 672 bytes")
    raw.unlink()
    refused(path, lambda: read_volume(path), "are missing; copy both files")
    assert files_of(path) == (path,)


@pytest.mark.fault("NRRD or MetaImage without spacing")
def test_a_volume_without_spacing(tmp_path, hu):
    (tmp_path / "scan.raw").write_bytes(hu.tobytes())
    path = metaimage(tmp_path / "scan.mhd", "scan.raw")
    refused(path, lambda: read_volume(path), "does not say how large its voxels are")
    sized = metaimage(tmp_path / "scan.mhd", "scan.raw", "ElementSize = 1 2 3")
    assert read_volume(sized).GetSpacing() == sitk.ReadImage(str(sized)).GetSpacing() == (1, 2, 3)
    path = nrrd(tmp_path / "scan.nrrd", hu)
    refused(path, lambda: read_volume(path), "does not say how large its voxels are")
    for field in ("spacings: 1 2 3", "space: left-posterior-superior\nspace directions: (1,0,0) (0,2,0) (0,0,3)"):
        assert read_volume(nrrd(path, hu, field)).GetSpacing() == (1, 2, 3)


@pytest.mark.fault("spacing 0, negative", "2D, 4D, one slice, several")
def test_nrrd_in_other_units_and_with_axes_of_two_dimensions(tmp_path, hu):
    path = nrrd(tmp_path / "flat.nrrd", hu, "space dimension: 2", "space directions: (1,0) (0,2) (0,0)")
    refused(path, lambda: read_volume(path), "damaged or contradictory header")
    space = ("space: left-posterior-superior", "space directions: (1,0,0) (0,2,0) (0,0,3)")
    path = nrrd(tmp_path / "scan.nrrd", hu, *space, 'space units: "cm" "cm" "cm"')
    refused(path, lambda: read_volume(path), "its spacing is not in mm but in cm")
    assert read_volume(nrrd(path, hu, *space, 'space units: "mm" "mm" "mm"')).GetSpacing() == (1, 2, 3)
    path = nrrd(tmp_path / "scan.nrrd", hu, "spacings: 1 2 3", 'units: "cm" "cm" "cm"')
    refused(path, lambda: read_volume(path), "its spacing is not in mm but in cm")


@pytest.mark.fault("a MetaImage whose header")
@pytest.mark.parametrize(
    ("field", "finding"),
    [
        ("ElementToIntensityFunctionSlope = 0.5", "its header scales its values"),
        ("ElementToIntensityFunctionOffset = -1024", "its header scales its values"),
        ("ElementToIntensityFunctionSlope = 1", None),
        ("DistanceUnits = cm", "its spacing is not in mm but in cm"),
        ("DistanceUnits = mm", None),
    ],
)
def test_fields_of_a_metaimage_that_itk_ignores(tmp_path, hu, field, finding):
    (tmp_path / "scan.raw").write_bytes(hu.tobytes())
    path = metaimage(tmp_path / "scan.mhd", "scan.raw", "ElementSpacing = 1 2 3", field)
    np.testing.assert_array_equal(pixels(path), hu)
    assert sitk.ReadImage(str(path)).GetSpacing() == (1, 2, 3)
    if finding:
        refused(path, lambda: read_volume(path), finding)
    else:
        np.testing.assert_array_equal(pixels(read_volume(path)), hu)


@pytest.mark.fault("2D, 4D, one slice, several")
@pytest.mark.parametrize("extension", [".mha", ".nrrd", ".nii.gz"])
def test_a_fourth_dimension_of_one_is_no_dimension(tmp_path, hu, extension):
    path = tmp_path / f"scan{extension}"
    image = image_of(hu, spacing=(0.5, 0.75, 2), origin=(1, 2, 3), direction=(0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(sitk.JoinSeries(image), str(path))
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)
    assert geometry(read_volume(path)) == geometry(image)
    sitk.WriteImage(sitk.JoinSeries(image, image), str(path))
    refused(path, lambda: read_volume(path), "not three-dimensional")


@pytest.mark.fault("2D, 4D, one slice, several")
@pytest.mark.parametrize("axis", [0, 3])
def test_an_axis_of_nrrd_without_a_place(tmp_path, hu, axis):
    steps = np.insert(np.diag([0.5, 0.75, 2.0]), axis, np.nan, axis=0)
    fields = {"space": "right-anterior-superior", "space directions": steps, "space origin": [1, 2, 3]}
    path, voxels = tmp_path / "scan.nrrd", np.expand_dims(hu.T, axis)
    pynrrd.write(str(path), voxels, fields)
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)
    lps = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
    assert geometry(read_volume(path)) == ((8, 7, 6), (0.5, 0.75, 2), (-1, -2, 3), lps)
    pynrrd.write(str(path), np.concatenate([voxels, voxels], axis), fields)
    refused(path, lambda: read_volume(path), "not three-dimensional")


@pytest.mark.fault("NRRD without space")
@pytest.mark.parametrize(
    ("space", "finding"),
    [
        ("left-anterior-superior", None),
        ("RAS", None),
        ("scanner-xyz", "its space is scanner-xyz"),
        ("3D-right-handed", "its space is 3d-right-handed"),
        ("", "no space"),
        ("3D-left-handed", "its space is 3d-left-handed"),
        ("SPL", "its space is spl"),
    ],
)
def test_spaces_of_nrrd(tmp_path, hu, space, finding, caplog):
    fields = (f"space: {space}" if space else "space dimension: 3", "space directions: (1,0,0) (0,2,0) (0,0,3)")
    path = nrrd(tmp_path / "scan.nrrd", hu, *fields, "space origin: (4,5,6)")
    if space in ("3D-left-handed", "SPL"):
        refused(path, lambda: read_volume(path), finding)
        return
    assert geometry(read_volume(path)) == geometry(read_geometry(path)) == geometry(path)
    assert [finding in record.getMessage() for record in caplog.records] == [True] * bool(finding)


def test_what_is_said_of_a_file_is_said_of_the_next_file_of_its_name(tmp_path, hu, caplog):
    """As in a server, which writes what it is sent to one place."""
    for count in (1, 2, 3):
        fields = "space directions: (1,0,0) (0,2,0) (0,0,3)", "space dimension: 3"
        path = nrrd(tmp_path / "scan.nrrd", hu + count, *fields)
        for _ in range(2):
            read_geometry(path), read_volume(path)
        assert len(caplog.records) == count


@pytest.mark.parametrize("name", ["scan.nhdr", "scan.nrrd"])
def test_nrrd_in_two_files(tmp_path, hu, name):
    raw = tmp_path / "scan.raw"
    raw.write_bytes(hu.tobytes())
    path = nrrd(tmp_path / name, None, "spacings: 1 2 3", "data file: scan.raw")
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)
    assert files_of(path) == (path, raw)
    raw.write_bytes(hu.tobytes() + b"x")
    refused(raw, lambda: read_volume(path), "holds more than the")


@pytest.mark.fault("header of gigabytes")
def test_a_bomb_is_not_inflated(tmp_path, hu):
    path = write(tmp_path / "scan.nrrd", hu)
    head = path.read_bytes().split(b"\n\n")[0] + b"\n\n"
    path.write_bytes(head + gzip.compress(bytes(2**26), 1))
    refused(path, lambda: read_volume(path), "holds more than the 672 bytes")
