"""Segmentations as 3D Slicer writes them, made with pynrrd, and DICOM SEG, made with highdicom."""

import highdicom as hd
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from datasets.pairs import match_masks
from datasets.scans import find_scans, open_scan
from datasets.volumes import Reading, read_mask_on
from tests.volumes import ORIGIN, SPACING, changed_slice, image_of, refused, write, write_dicom
from utils.errors import VolumeError

SHAPE = (6, 7, 8)
CT = image_of(np.zeros(SHAPE, np.int16))
START = np.array([2, 1, 3])  # x, y, z of the first voxel of the extent
LESION = [("Lesion", 0, 1)]


def segmentation(path, layers, names, space="left-posterior-superior", start=START, shift=0.0):
    """Write layers of labels, (layer, x, y, z), that begin at a voxel of the CT."""
    signs = np.array([-1.0, -1.0, 1.0]) if space.startswith("right") else np.ones(3)
    directions = np.diag(np.array(SPACING)) * signs
    header = {
        "space": space,
        "space origin": (np.array(ORIGIN) + (start + shift) * SPACING) * signs,
        "space directions": directions,
        "kinds": ["domain"] * 3,
    }
    data = np.array(layers, np.uint8)
    if len(layers) == 1:
        data = data[0]
    else:
        header["space directions"] = np.vstack([[np.nan] * 3, directions])
        header["kinds"] = ["list", *header["kinds"]]
    for number, (name, layer, value) in enumerate(names):
        header |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": str(value)}
        header |= {} if layer is None else {f"Segment{number}_Layer": str(layer)}
    path.parent.mkdir(exist_ok=True)
    nrrd.write(str(path), data, header)
    return path


def expected(inside):
    whole = np.zeros(SHAPE[::-1], np.uint8)
    whole[tuple(slice(a, a + n) for a, n in zip(START, inside.shape, strict=True))] = inside
    return whole.transpose()


@pytest.mark.fault("a segmentation of 3D Slicer")
@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
def test_a_segmentation_that_is_cut_to_its_extent_lies_on_the_ct(tmp_path, space):
    inside = np.random.default_rng(0).integers(0, 3, (3, 4, 2))
    for names, counted in ((LESION, inside == 1), ([], inside > 0)):  # without names, all of it counts
        path = segmentation(tmp_path / "a.seg.nrrd", [inside], names, space)
        np.testing.assert_array_equal(read_mask_on(path, "ct", CT), expected(counted))


@pytest.mark.fault("a segmentation of 3D Slicer")
def test_layers_and_label_values_say_what_a_segment_is(tmp_path):
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 3, (2, 3, 4, 2))
    names = [("GGO", 0, 2), ("Left lung", 0, 1), ("Consolidation", 1, 1), ("Heart", 1, 2)]
    for name in ("a.nrrd", "a.seg.nhdr", "a.seg.nrrd"):  # by the header, whatever the file is called
        path = segmentation(tmp_path / name, [first, second], names)
        np.testing.assert_array_equal(read_mask_on(path, "ct", CT), expected((first == 2) | (second == 1)))
        np.testing.assert_array_equal(read_mask_on(path, "ct", CT, lungs=True), expected(first == 1))
    heart = read_mask_on(path, "ct", CT, Reading(segments=("heart",)))
    np.testing.assert_array_equal(heart, expected(second == 2))
    refused(path, lambda: read_mask_on(path, "ct", CT, Reading(segments=("liver",))), "it has GGO, Left lung")


@pytest.mark.fault("a segmentation of 3D Slicer")
def test_without_a_layer_each_segment_has_its_own(tmp_path):
    layers = np.random.default_rng(2).integers(0, 2, (3, 3, 4, 2))
    names = [(name, None, 1) for name in ("Lung", "GGO", "Consolidation")]
    path = segmentation(tmp_path / "old.seg.nrrd", layers, names)
    np.testing.assert_array_equal(read_mask_on(path, "ct", CT), expected(layers[1] | layers[2]))


@pytest.mark.parametrize(
    ("names", "place", "match"),
    [
        ([("Segment_1", 0, 1), ("Segment_2", 0, 2)], {}, "the segments Segment_1, Segment_2; name those that count"),
        (LESION, {"shift": 0.3}, "are not those of ct"),
        (LESION, {"start": np.array([6, 5, 5])}, "segments lie outside ct"),
        ([("Lesion", 1, 1)], {}, "not a readable segmentation"),  # in a layer that is missing
    ],
)
def test_segmentations_that_are_refused(tmp_path, names, place, match):
    path = segmentation(tmp_path / "a.seg.nrrd", [np.ones((3, 4, 2), np.uint8)], names, **place)
    refused(path, lambda: read_mask_on(path, "ct", CT), match)


@pytest.mark.fault("a mask in another axis order")
@pytest.mark.parametrize("order", ["RAS", "LAS", "PIR", "SAL"])
def test_a_mask_on_the_same_voxels_in_another_order_is_turned(tmp_path, order):
    mask = np.random.default_rng(2).integers(0, 3, SHAPE).astype(np.uint8)
    turned = sitk.DICOMOrient(image_of(mask), order)
    path = write(tmp_path / "a.nii.gz", turned)
    np.testing.assert_array_equal(read_mask_on(path, "ct", CT), mask)
    shifted = sitk.DICOMOrient(image_of(mask), order)
    shifted.SetOrigin(np.array(turned.GetOrigin()) + 0.5)
    other = write(tmp_path / "b.nii.gz", shifted)
    refused(other, lambda: read_mask_on(other, "ct", CT), "its origin .* differs from")


def dicom_seg(path, folder, masks, labels, kind="BINARY"):
    sources = sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda d: float(d.ImagePositionPatient[2]))
    for source in sources:
        source.SpacingBetweenSlices = 2.5
        for name in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
            setattr(source, name, "")
        source.AccessionNumber = source.ReferringPhysicianName = ""
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    descriptions = [
        hd.seg.SegmentDescription(k + 1, label, tissue, tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for k, label in enumerate(labels)
    ]
    fraction = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    hd.seg.Segmentation(
        sources, np.stack(masks, -1), kind, descriptions, hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "serial",
        **fraction,
    ).save_as(path)  # fmt: skip
    return path


@pytest.fixture
def series_and_masks(tmp_path):
    rng = np.random.default_rng(5)
    folder = write_dicom(tmp_path / "scans" / "p1", rng.integers(0, 700, SHAPE).astype(np.int16))
    masks = rng.integers(0, 2, (2, *SHAPE)).astype(np.uint8)
    masks[:, [0, 2, 3]] = 0  # slices without a segment have no frame
    (tmp_path / "labels").mkdir()
    return folder, masks


@pytest.mark.fault("labels as DICOM SEG")
def test_a_dicom_seg_lies_on_the_voxels_of_its_series(tmp_path, series_and_masks):
    folder, masks = series_and_masks
    path = dicom_seg(tmp_path / "labels" / "any name.dcm", folder, masks, ["GGO", "Heart"])
    write_dicom(tmp_path / "scans" / "p2", np.zeros(SHAPE, np.int16))
    scans = find_scans(tmp_path / "scans")
    assert match_masks(tmp_path / "labels", scans) == ({"p1": path}, [])
    ct = scans["p1"].geometry()
    np.testing.assert_array_equal(read_mask_on(path, "ct", ct), masks[0])
    np.testing.assert_array_equal(read_mask_on(path, "ct", ct, Reading(segments=("Heart", "GGO"))), masks.any(0))
    # A CT that was converted, with the rows from below to above.
    np.testing.assert_array_equal(read_mask_on(path, "ct", sitk.DICOMOrient(ct, "LAS")), masks[0][:, ::-1])
    shifted = image_of(np.zeros(SHAPE, np.uint8), origin=(ORIGIN[0] + 0.3, *ORIGIN[1:]))
    refused(path, lambda: read_mask_on(path, "other", shifted), "are not those of other")


@pytest.mark.fault("a DICOM SEG whose SeriesInstanceUID several scans have")
def test_of_scans_with_one_uid_the_name_tells_which_a_dicom_seg_belongs_to(tmp_path, series_and_masks):
    folder, masks = series_and_masks
    uids = {
        tag: pydicom.dcmread(next(folder.iterdir()))[tag].value for tag in ("SeriesInstanceUID", "StudyInstanceUID")
    }
    write_dicom(tmp_path / "scans" / "p2", np.zeros(SHAPE, np.int16), PatientID="other", **uids)
    scans = find_scans(tmp_path / "scans")
    assert list(scans) == ["p1", "p2"]
    path = dicom_seg(tmp_path / "labels" / "p1.dcm", folder, masks[:1], ["Lesion"])
    assert match_masks(tmp_path / "labels", scans) == ({"p1": path}, [])
    path = path.rename(path.with_name("any.dcm"))
    with pytest.raises(VolumeError, match=r"no mask matches any scan, such as any\.dcm"):
        match_masks(tmp_path / "labels", scans)


@pytest.mark.fault("labels as DICOM SEG")
def test_a_dicom_seg_that_is_no_mask_is_refused(tmp_path, series_and_masks):
    folder, masks = series_and_masks
    ct = open_scan(folder).geometry()
    path = dicom_seg(tmp_path / "labels" / "a.dcm", folder, masks, ["Heart", "Liver"])
    refused(path, lambda: read_mask_on(path, "ct", ct), "name those that count with --segments")
    soft = dicom_seg(tmp_path / "labels" / "b.dcm", folder, masks[:1] * np.float32(0.7), ["Lesion"], "FRACTIONAL")
    refused(soft, lambda: read_mask_on(soft, "ct", ct), "holds probabilities")
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, lambda: read_mask_on(path, "ct", ct), "not a readable segmentation")


@pytest.mark.fault("labels as RTSTRUCT")
def test_contours_are_refused_as_what_they_are(tmp_path, series_and_masks):
    folder, _ = series_and_masks
    path = tmp_path / "labels" / "p1.dcm"
    changed_slice(min(folder.iterdir()), path, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", Modality="RTSTRUCT")
    changed_slice(path, PixelData=None, ImagePositionPatient=None)
    scans = find_scans(tmp_path / "scans")
    assert match_masks(tmp_path / "labels", scans)[0] == {"p1": path}
    refused(path, lambda: read_mask_on(path, "ct", scans["p1"].geometry()), "holds contours .*not read; convert it")
