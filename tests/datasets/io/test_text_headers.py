import gzip
import re

import numpy as np
import pytest
import SimpleITK as sitk

from datasets.io.volume import read_volume
from tests.fuzz_volumes import fuzz_others
from tests.volumes import pixels, refused, write

SHAPE = (6, 7, 8)


@pytest.fixture
def hu():
    return np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)


@pytest.mark.fault("MetaImage and NRRD")
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_files_cut_short_and_files_that_are_too_long(tmp_path, hu, extension, compress):
    path = write(tmp_path / f"scan{extension}", hu, compress)
    whole = path.read_bytes()
    np.testing.assert_array_equal(pixels(read_volume(path)), hu)
    path.write_bytes(whole[:-60])
    refused(path, lambda: read_volume(path), "damaged or unreadable|its header promises")
    if not compress:
        path.write_bytes(whole + b"x")
        refused(path, lambda: read_volume(path), "673 bytes of voxels, its header promises 672")


@pytest.mark.fault("MetaImage and NRRD")
@pytest.mark.parametrize(("extension", "size"), [(".mha", b"DimSize = 8 7 6"), (".nrrd", b"sizes: 8 7 6")])
@pytest.mark.parametrize("compress", [True, False])
def test_a_header_of_a_smaller_volume(tmp_path, hu, extension, size, compress):
    path = write(tmp_path / f"scan{extension}", hu, compress)
    whole = path.read_bytes()
    assert size in whole
    path.write_bytes(whole.replace(size, size[:-1] + b"5"))
    # ITK drops the last slice in silence.
    assert sitk.ReadImage(str(path)).GetSize() == (8, 7, 5)
    refused(path, lambda: read_volume(path), "bytes of voxels, its header promises 560")


@pytest.mark.fault("MetaImage and NRRD")
def test_metaimage_in_two_files(tmp_path, hu):
    path = write(tmp_path / "scan.mhd", hu)
    raw = tmp_path / "scan.raw"
    whole = raw.read_bytes()
    raw.write_bytes(whole[:-1])
    refused(path, lambda: read_volume(path), "671 bytes of voxels")
    raw.unlink()
    refused(path, lambda: read_volume(path), r"its voxels, scan\.raw, are missing")


@pytest.mark.fault("headers that point")
@pytest.mark.parametrize(
    ("extension", "old", "new", "match"),
    [
        (".mha", rb"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "several files|not a readable"),
        (".mha", rb"ElementDataFile = LOCAL", b"ElementDataFile = slice%d.raw 1 6 1", "several files|not a readable"),
        (".mha", rb"DimSize", b"HeaderSize = 100\nDimSize", "begin at an offset"),
        (".nrrd", rb"encoding", b"data file: other.raw\nencoding", "in another file|cannot be decoded|not a readable"),
        (".nrrd", rb"encoding", b"byte skip: 3\nencoding", "behind an offset"),
    ],
)
def test_voxels_elsewhere(tmp_path, hu, extension, old, new, match):
    path = write(tmp_path / f"scan{extension}", hu, compress=False)
    path.write_bytes(re.sub(old, new, path.read_bytes(), count=1))
    refused(path, lambda: read_volume(path), match)


@pytest.mark.fault("header of gigabytes")
def test_a_bomb_is_not_inflated(tmp_path, hu):
    path = write(tmp_path / "scan.nrrd", hu)
    head = path.read_bytes().split(b"\n\n")[0] + b"\n\n"
    path.write_bytes(head + gzip.compress(bytes(2**28)))
    refused(path, lambda: read_volume(path), "bytes of voxels, its header promises 672")


@pytest.mark.fault("any of it at random")
@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_no_mutant_crashes_or_has_other_voxels_than_its_header_says(kind):
    counts, wrong = fuzz_others(kind, 300, seed=0)
    assert wrong == []
    assert counts["refused"] > 100
