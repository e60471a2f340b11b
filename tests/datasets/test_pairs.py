import unicodedata
from pathlib import Path

import pytest

from datasets.pairs import match_masks
from datasets.scans import find_scans
from datasets.volumes import Scan
from tests.volumes import touched
from utils.errors import VolumeError


def scans_of(*ids):
    return {case_id: Scan(case_id, Path(f"/scans/{case_id}.nii.gz")) for case_id in ids}


def test_masks_are_matched_by_name_with_and_without_a_suffix(tmp_path):
    ends = (".nii.gz", "_label.nrrd", "-label.nii", "_seg.nii", "_mask.mha", "_lesion.nii", ".seg.nrrd", "_GT.nii")
    files = {f"s{k}": f"s{k}{end}" for k, end in enumerate((*ends, "_lung_mask.nii"))}
    touched(tmp_path, *files.values(), "x.nii")
    assert match_masks(tmp_path, scans_of(*files, "other")) == (
        {case_id: tmp_path / name for case_id, name in files.items()},
        [tmp_path / "x.nii"],
    )


@pytest.mark.fault("names of nnU-Net, COVID-19-20")
@pytest.mark.parametrize(
    ("cts", "masks", "others"),
    [
        (["imagesTr/a_0000.nii"], ["labelsTr/a.nii"], ["imagesTr/b_0000.nii"]),
        (["Train/v-1_ct.nii"], ["Train/v-1_seg.nii"], []),
        (["s1/ct.nii", "s2/ct.nii"], ["masks/s1.nii", "masks/s2/mask.nii"], []),
        (["CT-1/s_0255.nii"], ["masks/s_0255_mask.nii"], []),
    ],
)
def test_layouts_of_the_field(tmp_path, cts, masks, others):
    touched(tmp_path, *cts, *masks, *others)
    scans = find_scans(tmp_path)
    assert len(scans) == len(cts) + len(others)
    matched, _ = match_masks(tmp_path / masks[0].split("/")[0], scans)
    pairs = {scans[case_id].path: path for case_id, path in matched.items()}
    assert pairs == {tmp_path / ct: tmp_path / mask for ct, mask in zip(cts, masks, strict=True)}


def test_a_scan_whose_name_ends_like_a_mask_keeps_its_own(tmp_path):
    touched(tmp_path, "a_mask.nii")
    assert match_masks(tmp_path, scans_of("a", "a_mask"))[0] == {"a_mask": tmp_path / "a_mask.nii"}


def test_one_file_for_one_scan(tmp_path):
    touched(tmp_path, "anything.nii")
    assert match_masks(tmp_path / "anything.nii", scans_of("scan")) == ({"scan": tmp_path / "anything.nii"}, [])


@pytest.mark.fault("two scans, or two labels")
def test_what_is_ambiguous_is_refused_by_name(tmp_path):
    touched(tmp_path / "two", "a.nii", "a_label.nii")
    with pytest.raises(VolumeError, match="both belong to a; keep one of them"):
        match_masks(tmp_path / "two", scans_of("a"))
    touched(tmp_path / "one", "a_seg.nii")
    with pytest.raises(VolumeError, match=r"a_seg.nii: fits the scans a_0000, a_ct; name it as one of them"):
        match_masks(tmp_path / "one", scans_of("a_ct", "a_0000"))


@pytest.mark.fault("a mask in the folder of one patient")
def test_a_mask_in_the_folder_of_another_scan_is_not_taken(tmp_path):
    touched(tmp_path, "ct/p1/a.nii", "ct/p2/b.nii", "labels/p2/a.nii", "labels/p2/b.nii", "labels/masks/p1_a.nii")
    labels = tmp_path / "labels"
    matched, others = match_masks(labels, find_scans(tmp_path / "ct"))
    assert matched == {"p1_a": labels / "masks" / "p1_a.nii", "p2_b": labels / "p2" / "b.nii"}
    assert others == [labels / "p2" / "a.nii"]


@pytest.mark.fault("a mask in the folder of one patient")
@pytest.mark.parametrize("root", ["ct", "ct/p1"])
def test_a_mask_in_a_folder_without_scans_is_not_taken_where_others_lie_in_those_of_scans(tmp_path, root):
    touched(tmp_path, "ct/p1/a.nii", "ct/p1/b.nii", "labels/p1/b.nii", "labels/p3/a.nii")
    labels = tmp_path / "labels"
    matched, others = match_masks(labels, find_scans(tmp_path / root))
    assert (list(matched.values()), others) == ([labels / "p1" / "b.nii"], [labels / "p3" / "a.nii"])


@pytest.mark.fault("labels that match no scan")
def test_no_match_at_all_is_an_error(tmp_path):
    touched(tmp_path, "x.nii", "y.nii")
    with pytest.raises(VolumeError, match=r"no mask matches any scan, such as x\.nii for a"):
        match_masks(tmp_path, scans_of("a", "b"))
    with pytest.raises(VolumeError, match="no such folder"):
        match_masks(tmp_path / "nowhere", scans_of("a", "b"))


def test_a_link_to_a_mask_that_is_not_there_is_no_missing_mask(tmp_path):
    touched(tmp_path, "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "nothing")
    assert set(match_masks(tmp_path, scans_of("a", "b"))[0]) == {"a", "b"}


@pytest.mark.fault("names in Unicode's decomposed form")
@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_compared_in_their_composed_form(tmp_path, forms):
    ct, mask = (unicodedata.normalize(form, "Müller") for form in forms)
    assert ct != mask
    touched(tmp_path, f"ct/{ct}.nii", f"labels/{mask}_mask.nii")
    scans = find_scans(tmp_path / "ct")
    assert list(scans) == [unicodedata.normalize("NFC", "Müller")]
    assert match_masks(tmp_path / "labels", scans)[0] == {next(iter(scans)): tmp_path / "labels" / f"{mask}_mask.nii"}
