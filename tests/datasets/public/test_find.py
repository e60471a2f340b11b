from dataclasses import replace

import pytest

from datasets.public.make import find_public_scans
from datasets.public.sets import COVIDSEG, LUNG, MEDSEG, MOSMED, SETS
from tests.datasets.public.test_command import LONG, covidseg, medseg, mosmed
from tests.volumes import touched
from utils.errors import VolumeError

RADIOPAEDIA = [
    "10_85902_1", "10_85902_3", "14_85914_0", "27_86410_0", "29_86490_1", "29_86491_1", "36_86526_0", "40_86625_0",
    "4_85506_1", "7_85703_0",
]  # fmt: skip
SHORT = [*(f"coronacases_{k:03d}" for k in range(1, 11)), *(f"radiopaedia_{name}" for name in RADIOPAEDIA)]


def whole_covidseg(folder, layout="second"):
    return covidseg(folder, layout, range(1, 11), RADIOPAEDIA)


SHORT_NAMES = ("COVID-19-CT-Seg_20cases/{}.nii.gz", "Lung_Mask/{}.nii.gz", "Infection_Mask/{}.nii.gz")
LONG_NAMES = (f"ct_scans/{LONG.format(RADIOPAEDIA[1])}.nii", "lung_mask/{}.nii", "infection_mask/{}.nii")


@pytest.mark.parametrize(
    ("nested", "layout", "files"),
    [("", "first", LONG_NAMES), ("archive", "second", SHORT_NAMES), ("a/b", "second", SHORT_NAMES)],
)
def test_both_layouts_of_covidseg(tmp_path, nested, layout, files):
    whole_covidseg(tmp_path / nested, layout)
    found = find_public_scans(COVIDSEG, tmp_path)
    assert sorted(found.scans) == sorted(f"covidseg_{name}" for name in SHORT)
    assert (found.failed, found.odd) == ({}, [])
    assert [found.counts[f"CTs of {half}"] for half in ("coronacases", "radiopaedia")] == [(10, 10), (10, 10)]
    scan = found.scans["covidseg_radiopaedia_10_85902_3"]
    expected = [tmp_path / nested / name.format(SHORT[11]) for name in files]
    assert [scan.ct.path, scan.lung.path, scan.lesion.path] == expected
    patients = {name: found.scans[f"covidseg_{name}"].patient for name in SHORT}
    assert len(set(patients.values())) == 18
    for one, other in (("10_85902_1", "10_85902_3"), ("29_86490_1", "29_86491_1")):
        assert patients[f"radiopaedia_{one}"] == patients[f"radiopaedia_{other}"]
    for case_id, scan in found.scans.items():
        half = "A_sub2" if "radiopaedia" in case_id else "A_sub1"
        assert (scan.group, scan.grey) == (half, half == "A_sub2")
        assert (scan.lung.labels.counted, scan.lesion.labels.counted) == ({1, 2}, {1})


@pytest.mark.parametrize(
    ("public_set", "name", "case_id"),
    [
        (COVIDSEG, "coronacases_org_001.nii", "covidseg_coronacases_001"),
        (COVIDSEG, "coronacases_001.nii.gz", "covidseg_coronacases_001"),
        (COVIDSEG, "covidseg_Coronacases_010", "covidseg_coronacases_010"),
        (COVIDSEG, "radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm.nii", "covidseg_radiopaedia_10_85902_1"),
        (COVIDSEG, "radiopaedia_10_85902_1.nii.gz", "covidseg_radiopaedia_10_85902_1"),
        (COVIDSEG, "radiopaedia_org_covid-19-pneumonia-10-dcm.nii", None),
        (COVIDSEG, "radiopaedia_10_85902_1_copy.nii", None),
        (COVIDSEG, "coronacases.nii", None),
        (COVIDSEG, "study_0001.nii", None),
        (MEDSEG, "3.nii.gz", "medseg_3"),
        (MEDSEG, "three.nii.gz", None),
        (MOSMED, "study_0255.nii.gz", "mosmed_study_0255"),
        (MOSMED, "study_0255_mask.nii", "mosmed_study_0255"),
        (MOSMED, "study_0255_mask_2.nii", None),
    ],
)
def test_names(public_set, name, case_id):
    case = public_set.case(name)
    assert (case and case.id) == case_id


@pytest.mark.fault("missing masks")
def test_missing_masks_cost_their_scans(tmp_path):
    whole_covidseg(tmp_path)
    (tmp_path / "Lung_Mask" / "coronacases_001.nii.gz").unlink()
    (tmp_path / "Infection_Mask" / "coronacases_002.nii.gz").unlink()
    found = find_public_scans(COVIDSEG, tmp_path)
    assert len(found.scans) == 18
    assert "no lung mask for it" in found.failed["covidseg_coronacases_001"]
    assert "no lesion mask for it" in found.failed["covidseg_coronacases_002"]
    assert found.counts["lung masks"] == (19, 20)
    without = replace(COVIDSEG, masks={kind: labels for kind, labels in COVIDSEG.masks.items() if kind != LUNG})
    found = find_public_scans(without, tmp_path)
    assert list(found.failed) == ["covidseg_coronacases_002"]


@pytest.mark.fault("two files for one CT")
def test_two_files_for_one_thing_are_never_chosen_from(tmp_path):
    mosmed(tmp_path, (2, 4), (3, 4))
    touched(tmp_path / "studies", "CT-2/study_0001.nii.gz", "CT-1/study_0006.nii")
    touched(tmp_path / "masks", "study_0004_mask.nii")
    found = find_public_scans(MOSMED, tmp_path)
    assert set(found.failed) == {f"mosmed_study_{k}" for k in ("0001", "0006", "0004")}
    assert not set(found.failed) & set(found.scans)
    assert "studies/CT-0/study_0001.nii.gz" in found.failed["mosmed_study_0001"]
    assert "studies/CT-2/study_0001.nii.gz: 2 files for one CT" in found.failed["mosmed_study_0001"]
    assert "2 files for one lesion mask" in found.failed["mosmed_study_0004"]


def test_masks_of_c_that_are_missing_or_contradict_the_folder(tmp_path):
    mosmed(tmp_path, (3, 3), (4, 5))
    touched(tmp_path / "masks", "study_0003_mask.nii.gz")
    (tmp_path / "masks" / "study_0004_mask.nii.gz").rename(tmp_path / "masks" / "4.nii.gz")
    found = find_public_scans(MOSMED, tmp_path)
    assert "without findings by its folder" in found.failed["mosmed_study_0003"]
    assert found.scans["mosmed_study_0004"].group == "D_diseased"
    assert any(line.startswith("lesion masks are missing") for line in found.odd)
    assert any("4.nii.gz: not a name of MosMed" in line for line in found.odd)


@pytest.mark.fault("files that belong to")
def test_what_belongs_to_nothing_is_named(tmp_path):
    medseg(tmp_path, 9)
    touched(tmp_path, "rp_msk/10.nii.gz", "rp_im/notes.txt", "elsewhere/1.nii.gz", "rp_im.zip", "rp_im/x.nii.gz")
    touched(tmp_path, "__MACOSX/rp_im/1.nii.gz", "rp_im/._1.nii.gz")
    found = find_public_scans(MEDSEG, tmp_path)
    assert (len(found.scans), found.failed) == (9, {})
    told = {line.split(": ")[0].removeprefix(f"{tmp_path}/"): line.split(": ")[1] for line in found.odd}
    assert told == {
        "rp_msk/10.nii.gz": "no CT for it; ignored",
        "rp_im/notes.txt": "no volume",
        "rp_im/x.nii.gz": "not a name of MedSeg (B); ignored",
        "elsewhere/1.nii.gz": "in no folder of MedSeg (B); ignored",
        "rp_im.zip": "no volume",
    }


def test_links_to_folders_are_followed_but_not_in_circles_nor_into_the_cohort(tmp_path):
    medseg(tmp_path / "disk", 9)
    (tmp_path / "download").mkdir()
    for folder in ("rp_im", "rp_lung_msk", "rp_msk"):
        (tmp_path / "download" / folder).symlink_to(tmp_path / "disk" / folder)
    (tmp_path / "download" / "again").symlink_to(tmp_path / "download")
    touched(tmp_path / "download" / "cohort", "images/medseg_1.nii.gz")
    found = find_public_scans(MEDSEG, tmp_path / "download", skip=tmp_path / "download" / "cohort")
    assert (len(found.scans), found.failed, found.odd) == (9, {}, [])


@pytest.mark.parametrize("public_set", SETS.values(), ids=SETS)
def test_a_folder_of_something_else(tmp_path, public_set):
    with pytest.raises(VolumeError, match="no such folder; expected the unpacked download"):
        find_public_scans(public_set, tmp_path / "nowhere")
    touched(tmp_path, "scans/1.nii.gz")
    with pytest.raises(VolumeError, match=r"no CT of .* here; expected"):
        find_public_scans(public_set, tmp_path)
