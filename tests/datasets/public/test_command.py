import json
from pathlib import Path

import numpy as np
import pytest

import test
import train
from configs.settings import read_settings
from datasets import lungmask_model
from datasets.cohort import read_id_list
from datasets.public.__main__ import main
from datasets.public.make import PublicScan, lesion_note, make_lists
from datasets.public.sets import COVIDSEG, MEDSEG, MOSMED
from tests.outputs import save_model, summary
from tests.volumes import image_of, pixels, write
from utils.cli import run
from utils.errors import CohortError

ROOT = Path(__file__).parents[3]
SHAPE = (8, 16, 16)
LUNGS = (slice(1, 7), slice(2, 14), slice(3, 13))
SIZE = (6, 12, 10)
"""Of crops: the box of LUNGS, so that nothing is interpolated."""
SMALL, OF_SMALL = (16, 32, 64), ("IMAGE.SIZE=[16, 32, 64]", "IMAGE.SLICES=16")
"""Of crops for the networks."""
PAIR = ("radiopaedia_10_85902_1", "radiopaedia_10_85902_3")
LONG = "radiopaedia_org_covid-19-pneumonia-{}-dcm"
LAYOUTS = {
    "first": ("ct_scans", "lung_mask", "infection_mask", ".nii"),
    "second": ("COVID-19-CT-Seg_20cases", "Lung_Mask", "Infection_Mask", ".nii.gz"),
}


def hu(seed=0):
    """A CT of soft tissue with aerated lungs, int16, in which every voxel of the lungs is different."""
    ct = np.full(SHAPE, 40, np.int16)
    ct[0, 0, 0] = -1000
    ct[LUNGS] = np.random.default_rng(seed).permutation(int(np.prod(SIZE))).reshape(SIZE) - 950
    return ct


def grey(seed=0):
    """The same kind of CT in steps of 0..255, as CovidSeg ships half of its scans."""
    return ((np.clip(hu(seed).astype(float), -1250, 250) + 1250) * 255 / 1500).round().astype(np.int16)


def lungs():
    mask = np.zeros(SHAPE, np.uint8)
    mask[LUNGS] = 1
    mask[LUNGS][:, :, 5:] = 2
    return mask


def lesion(*labels):
    """A mask with a block of 8 voxels of each label, one in every other slice of the lungs."""
    mask = np.zeros(SHAPE, np.uint8)
    for k, label in enumerate(labels):
        mask[2 * k + 1, 4:6, 4:8] = label
    return mask


def covidseg(folder, layout="first", coronacases=(1, 2, 3), radiopaedia=("10_85902_1", "10_85902_3", "4_85506_1")):
    cts, lung_masks, lesion_masks, extension = LAYOUTS[layout]
    names = [(f"coronacases_org_{k:03d}", f"coronacases_{k:03d}", hu(k)) for k in coronacases]
    names += [(LONG.format(name), f"radiopaedia_{name}", grey(k)) for k, name in enumerate(radiopaedia)]
    for long, short, ct in names:
        write(folder / cts / f"{long if layout == 'first' else short}{extension}", ct)
        write(folder / lung_masks / f"{short}{extension}", lungs())
        write(folder / lesion_masks / f"{short}{extension}", lesion(1))
    return folder


def medseg(folder, count=2):
    for k in range(1, count + 1):
        artefact = lungs()
        artefact[7, 15, 15] = 3
        write(folder / "rp_im" / f"{k}.nii.gz", hu(k))
        write(folder / "rp_lung_msk" / f"{k}.nii.gz", artefact)
        write(folder / "rp_msk" / f"{k}.nii.gz", lesion(1, 2, 3))
    return folder


def mosmed(folder, grades=(3, 5, 2), labelled=(4, 5, 6)):
    numbers = iter(range(1, 1111))
    for grade, count in enumerate(grades):
        for _ in range(count):
            write(folder / "studies" / f"CT-{grade}" / f"study_{next(numbers):04d}.nii.gz", hu(grade))
    for number in labelled:
        write(folder / "masks" / f"study_{number:04d}_mask.nii.gz", lesion(1))
    return folder


@pytest.fixture(autouse=True)
def lungmask(monkeypatch):
    """In the place of lungmask's network, which needs its weights: what is darker than fat. Counts what it is given."""
    found = []

    def load(model, weights, device, precision):
        def segment(ct):
            found.append((model, weights, device.type))
            labels = (pixels(ct) < -200).astype(np.uint8)
            labels[0, 0, 0] = 0
            return labels

        return segment

    monkeypatch.setattr(lungmask_model, "load_lungmask", load)
    return found


def made(public_set, download, output, *options, size=SIZE):
    arguments = [public_set, str(download), "--output", str(output), "--size", *map(str, size), "--quiet", *options]
    return main(arguments)


def crop(output, folder, case_id):
    return pixels(output / folder / f"{case_id}.nii.gz")


def lists(output):
    return {path.stem: read_id_list(path) for path in sorted((output / "id_txt").iterdir())}


def report(output, public_set):
    return json.loads((output / f"public_{public_set}.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_covidseg_becomes_a_cohort_each_half_with_values_of_its_own(tmp_path, layout):
    output = tmp_path / "cohort"
    assert made("covidseg", covidseg(tmp_path / "a", layout), output) == 0
    # In HU: -1250 is 0, 250 is 255, and the box is not resized.
    image = crop(output, "images", "covidseg_coronacases_002")
    np.testing.assert_allclose(image, (hu(2)[LUNGS].astype(float) + 1250) * 0.17, atol=1e-4)
    # Mapped to 0..255 already: mapped to HU and back, they are what they were. As HU, all would be above 212.
    image = crop(output, "images", "covidseg_radiopaedia_10_85902_3")
    np.testing.assert_allclose(image, grey(1)[LUNGS], atol=1e-3)
    assert image.max() < 180
    for folder, expected in (("lung", np.ones(SIZE)), ("lesion", lesion(1)[LUNGS])):
        np.testing.assert_array_equal(crop(output, folder, "covidseg_radiopaedia_10_85902_3"), expected)
    assert lists(output) == {
        "A_labelled": ["covidseg_coronacases_001"],
        "A_sub1": ["covidseg_coronacases_002", "covidseg_coronacases_003"],
        "A_sub2": ["covidseg_radiopaedia_4_85506_1", *(f"covidseg_{name}" for name in PAIR)],
    }


@pytest.mark.fault("missing masks")
def test_masks_of_both_are_used_where_others_are_missing(tmp_path):
    download = covidseg(tmp_path / "a", coronacases=(1, 2), radiopaedia=())
    both = lungs()
    both[lesion(1) == 1] = 3
    write(download / "lung_and_infection_mask" / "coronacases_001.nii", both)
    for folder in ("lung_mask", "infection_mask"):
        (download / folder / "coronacases_001.nii").unlink()
    output = tmp_path / "cohort"
    assert made("covidseg", download, output) == 0
    np.testing.assert_array_equal(crop(output, "lung", "covidseg_coronacases_001"), np.ones(SIZE))
    np.testing.assert_array_equal(crop(output, "lesion", "covidseg_coronacases_001"), lesion(1)[LUNGS])
    assert sum("taken from" in line for line in report(output, "covidseg")["odd"]) == 2


@pytest.mark.fault("another rule for lungs")
def test_medseg_counts_ground_glass_and_consolidation_and_on_request_effusion(tmp_path, capsys):
    download = medseg(tmp_path / "b")
    assert made("medseg", download, tmp_path / "one") == 0
    # The artefact in the corner is no lung: the box does not reach it.
    np.testing.assert_array_equal(crop(tmp_path / "one", "lung", "medseg_1"), np.ones(SIZE))
    np.testing.assert_array_equal(crop(tmp_path / "one", "lesion", "medseg_1"), lesion(1, 1, 0)[LUNGS])
    assert lists(tmp_path / "one") == {"B": ["medseg_1", "medseg_2"]}
    assert made("medseg", download, tmp_path / "one", "--lesion-labels", "1", "2", "3") == 0
    assert "2 result(s) are redone, the first medseg_1: other lesion_labels" in capsys.readouterr().err
    np.testing.assert_array_equal(crop(tmp_path / "one", "lesion", "medseg_1"), lesion(1, 1, 1)[LUNGS])
    note = "MedSeg (B): lesion is labels 1 2; the published test counts labels 1 2 3, so its Dice does not compare"
    assert lesion_note(MEDSEG, {1, 2}) == note
    assert lesion_note(MEDSEG, {1, 2, 3}) == "MedSeg (B): lesion is labels 1 2 3, as in the published test"


def test_mosmed_is_told_apart_by_folders_and_masks_and_lungmask_finds_its_lungs(tmp_path, lungmask):
    output = tmp_path / "cohort"
    options = ["--weights", "w.pth", "--device", "cpu"]
    assert made("mosmed", mosmed(tmp_path / "COVID19_1110"), output, *options) == 0
    assert lungmask == [("R231", Path("w.pth"), "cpu")] * 10
    ids = [f"mosmed_study_{k:04d}" for k in range(1, 11)]
    assert lists(output) == {"C": ids[3:6], "D_diseased": ids[6:], "D_healthy": ids[:3]}
    np.testing.assert_array_equal(crop(output, "lesion", ids[3]), lesion(1)[LUNGS])
    assert not (output / "lesion" / f"{ids[0]}.nii.gz").exists()
    found = report(output, "mosmed")
    assert found["files"]["CTs in CT-1"] == {"found": 5, "expected": 684}
    assert found["rules"]["lungs"] == "lungmask R231"


def test_given_lungs_are_not_looked_at_where_lungmask_is_asked_for(tmp_path, lungmask):
    download = covidseg(tmp_path / "a", coronacases=(1,), radiopaedia=("10_85902_1",))
    (download / "lung_mask" / "coronacases_001.nii").unlink()
    assert made("covidseg", download, tmp_path / "cohort", "--lungs", "lungmask") == 0
    assert len(lungmask) == 2
    # The lungs of scans of 0..255 are found in HU.
    np.testing.assert_array_equal(crop(tmp_path / "cohort", "lung", f"covidseg_{PAIR[0]}"), np.ones(SIZE))


def patient_of(case_id):
    return (COVIDSEG if case_id.startswith("covidseg") else MOSMED).case(case_id).patient


def scans(group, *ids):
    return [PublicScan(case_id, group, patient_of(case_id), Path(case_id)) for case_id in ids]


A = [
    *scans("A_sub1", *(f"covidseg_coronacases_{k:03d}" for k in range(1, 5))),
    *scans("A_sub2", *(f"covidseg_radiopaedia_{k}" for k in ("10_85902_1", "10_85902_3", "29_86490_1", "29_86491_1"))),
    *scans("A_sub2", *(f"covidseg_radiopaedia_{k}" for k in ("14_85914_0", "27_86410_0", "4_85506_1", "7_85703_0"))),
]
CD = [
    *scans("D_healthy", *(f"mosmed_study_{k:04d}" for k in range(10))),
    *scans("C", *(f"mosmed_study_{k:04d}" for k in range(10, 16))),
    *scans("D_diseased", *(f"mosmed_study_{k:04d}" for k in range(16, 30))),
]
NONE_HELD_OUT = {"valid": 0, "validh": 0, "validwl": 0}


@pytest.mark.fault("a patient on both sides")
@pytest.mark.parametrize("valid", [0, 1, 7])
def test_whatever_is_labelled_or_held_out_lists_share_no_patient_but_those_of_tests(valid):
    for labelled in (case.id for case in A):
        for seed in range(3):
            dealt = make_lists(COVIDSEG, A, [labelled], {**NONE_HELD_OUT, "valid": valid}, seed)
            assert dealt["A_labelled"] == [labelled]
            assert len(dealt["A_valid"]) == valid
            sides = [dealt["A_labelled"], dealt["A_valid"], dealt["A_sub1"] + dealt["A_sub2"]]
            patients = [{patient_of(case_id) for case_id in ids} for ids in sides]
            assert not patients[0] & (patients[1] | patients[2])
            assert not patients[1] & patients[2]
            in_no_list = {case.id for case in A} - {case_id for ids in dealt.values() for case_id in ids}
            assert in_no_list == {c.id for c in A if c.patient == patient_of(labelled) and c.id != labelled}


def test_held_out_scans_are_in_no_other_list_and_the_seed_draws_them():
    amounts = {"valid": 2, "validh": 3, "validwl": 4}
    dealt = make_lists(MOSMED, CD, [], amounts, 0)
    assert {name: len(ids) for name, ids in dealt.items()} == {
        "C_labelled": 0, "C_valid": 2, "C": 4, "D_valid_healthy": 3, "D_healthy": 7, "D_valid_diseased": 4,
        "D_diseased": 10,
    }  # fmt: skip
    assert sorted(case_id for ids in dealt.values() for case_id in ids) == sorted(case.id for case in CD)
    assert set(dealt["C_valid"] + dealt["C"]) == {case.id for case in CD if case.group == "C"}
    assert set(dealt["D_valid_healthy"] + dealt["D_healthy"]) == {c.id for c in CD if c.group == "D_healthy"}
    assert make_lists(MOSMED, CD[::-1], [], amounts, 0) == dealt
    assert any(make_lists(MOSMED, CD, [], amounts, seed) != dealt for seed in range(1, 4))


def test_more_than_there_is_cannot_be_held_out():
    with pytest.raises(CohortError, match="--validh asks for 11 of 10 scans"):
        make_lists(MOSMED, CD, [], {**NONE_HELD_OUT, "validh": 11}, 0)
    pair = [case for case in A if "10_85902" in case.id]
    with pytest.raises(CohortError, match="by whole patients"):
        make_lists(COVIDSEG, pair, [], {**NONE_HELD_OUT, "valid": 1}, 0)


@pytest.mark.fault("a scan of C whose mask")
def test_a_scan_of_c_is_not_in_d_whether_it_is_labelled_held_out_or_broken(tmp_path, capsys):
    download, output = mosmed(tmp_path / "c", labelled=(4, 5, 6, 7)), tmp_path / "cohort"
    (download / "masks" / "study_0006_mask.nii.gz").write_bytes(b"no gzip")
    write(download / "studies" / "CT-0" / "study_0002.nii.gz", grey())
    assert made("mosmed", download, output, "--label", "study_0005", "--valid", "1", "--seed", "1") == 1
    out = capsys.readouterr().out
    assert "failed: mosmed_study_0006: " in out
    assert "failed: mosmed_study_0002: " in out  # grey values in a set in HU
    found = lists(output)
    assert found["C_labelled"] == ["mosmed_study_0005"]
    assert set(found.get("C_valid", []) + found.get("C", [])) == {"mosmed_study_0004", "mosmed_study_0007"}
    assert found["D_diseased"] == [f"mosmed_study_{k:04d}" for k in range(8, 11)]
    assert found["D_healthy"] == ["mosmed_study_0001", "mosmed_study_0003"]


def test_sets_are_added_to_one_cohort_and_the_configs_train_on_its_lists(tmp_path, capsys):
    output = tmp_path / "cohort"
    assert made("mosmed", mosmed(tmp_path / "c"), output, "--valid", "1", size=SMALL) == 0
    before = lists(output)
    assert set(before) == {"C", "C_valid", "D_healthy", "D_diseased"}
    assert made("covidseg", covidseg(tmp_path / "a"), output, size=SMALL) == 0
    assert made("medseg", medseg(tmp_path / "b"), output, size=SMALL) == 0
    after = lists(output)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"A_labelled", "A_sub1", "A_sub2", "B"}
    listed = [case_id for ids in after.values() for case_id in ids]
    assert len(listed) == len(set(listed)) == 18 == len(list((output / "images").iterdir()))
    found = tmp_path / "test"
    options = ["--model-path", str(save_model(tmp_path / "s.pth", SMALL)), "--output", str(found), "--split", "TEST"]
    options += ["--config-path", str(ROOT / "configs" / "mosmed.yaml"), "--quiet", *OF_SMALL, f"DATASET.ROOT={output}"]
    assert test.main([*options, "DATASET.SPLIT.TEST=B"]) == 0
    assert summary(found)["notes"] == [lesion_note(MEDSEG, {1, 2})]
    for name in ("mosmed", "mosmed_finetune"):
        config = ROOT / "configs" / f"{name}.yaml"
        capsys.readouterr()
        options = ["--is-validation", "--dry-run", "--quiet", *OF_SMALL, f"DATASET.ROOT={output}"]
        assert train.main(["--config-path", str(config), *options]) == 0
        # No scan with voxel labels but the labelled one takes part in training, nor in choosing a checkpoint.
        splits = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.endswith(" scans")]
        assert splits == [["LABELED", "1"], ["WO_LABEL", "4"], ["HEALTHY", "3"]]
        assert read_settings(config).dataset.split.test in after


def test_lists_that_nothing_is_in_any_more_are_removed(tmp_path):
    output, download = tmp_path / "cohort", covidseg(tmp_path / "a", radiopaedia=())
    assert made("covidseg", download, output, "--valid", "1") == 0
    assert set(lists(output)) == {"A_labelled", "A_sub1", "A_valid"}
    assert made("covidseg", download, output, "--label", "none") == 0
    assert set(lists(output)) == {"A_sub1"}


@pytest.mark.fault("lists of ids that were written or edited by hand")
@pytest.mark.parametrize("name", ["B", "B_valid"])  # the command would have no list B_valid
def test_a_list_of_others_is_kept_and_nothing_is_cropped(tmp_path, name, ends):
    path = tmp_path / "cohort" / "id_txt" / f"{name}.txt"
    path.parent.mkdir(parents=True)
    path.write_text("medseg_1\n")
    ends(1, lambda: made("medseg", medseg(tmp_path / "b"), tmp_path / "cohort"), str(path))
    assert path.read_text() == "medseg_1\n"
    assert not (tmp_path / "cohort" / "images").exists()


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    download = medseg(tmp_path / "b", count=3)
    (download / "rp_msk" / "3.nii.gz").unlink()
    write(download / "rp_lung_msk" / "2.nii.gz", 9 * lungs())
    (download / "notes.txt").touch()
    assert made("medseg", download, tmp_path / "cohort", "--dry-run") == 1
    assert not (tmp_path / "cohort").exists()
    told = " ".join(capsys.readouterr().out.split())
    findings = ("CTs 3, the set has 9", "lesion masks 2, the set has 9", f"{download}/notes.txt: no volume", "B 1")
    for finding in (*findings, "failed: medseg_2: ", "failed: medseg_3: "):
        assert finding in told


def test_what_is_done_is_skipped_and_what_failed_is_done_when_it_is_mended(tmp_path):
    download, output = medseg(tmp_path / "b"), tmp_path / "cohort"
    broken, crop_of_1 = download / "rp_im" / "2.nii.gz", output / "images" / "medseg_1.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert made("medseg", download, output) == 1
    assert lists(output)["B"] == ["medseg_1"]
    before = crop_of_1.stat().st_mtime_ns
    broken.write_bytes(whole)
    assert made("medseg", download, output) == 0
    assert crop_of_1.stat().st_mtime_ns == before
    assert lists(output)["B"] == ["medseg_1", "medseg_2"]
    assert made("medseg", download, output, "--overwrite") == 0
    assert crop_of_1.stat().st_mtime_ns > before


@pytest.mark.fault("labels that the set", "0..255 in a set in")
def test_files_that_are_not_as_they_should_be_cost_their_scan_alone(tmp_path):
    download, output = covidseg(tmp_path / "a", coronacases=range(1, 7)), tmp_path / "cohort"
    write(download / "infection_mask" / "coronacases_002.nii", lesion(1, 2))
    write(download / "lung_mask" / "coronacases_003.nii", np.zeros(SHAPE, np.uint8))
    write(download / "infection_mask" / "coronacases_004.nii", image_of(lesion(1), origin=(0, 0, 0)))
    write(download / "ct_scans" / "coronacases_org_005.nii", grey(5))
    (download / "ct_scans" / "coronacases_org_006.nii").write_bytes(b"")
    assert made("covidseg", download, output) == 1
    failed = report(output, "covidseg")["failed"]
    reasons = {
        2: "holds the labels 2, which the set does not have",
        3: "holds no lung; use --lungs lungmask",
        4: "its origin",
        5: "as if mapped to 0..255",
        6: "coronacases_org_006.nii",
    }
    assert sorted(failed) == [f"covidseg_coronacases_{number:03d}" for number in reasons]
    for number, reason in reasons.items():
        assert reason in failed[f"covidseg_coronacases_{number:03d}"]
    assert set(lists(output)) == {"A_labelled", "A_sub2"}


def test_odd_files_are_named_and_their_scans_done(tmp_path, capsys):
    download, output = covidseg(tmp_path / "a"), tmp_path / "cohort"
    write(download / "infection_mask" / "coronacases_002.nii", lesion())
    write(download / "ct_scans" / f"{LONG.format('4_85506_1')}.nii", hu(2))
    assert made("covidseg", download, output, "--label", PAIR[0]) == 0
    found = report(output, "covidseg")
    assert (found["lists"]["A_labelled"], found["in_no_list"]) == ([f"covidseg_{PAIR[0]}"], [f"covidseg_{PAIR[1]}"])
    assert "share patients" in "\n".join(found["odd"])
    assert "coronacases_002.nii: holds no lesion" in capsys.readouterr().err
    image = crop(output, "images", "covidseg_radiopaedia_4_85506_1")
    np.testing.assert_allclose(image, (hu(2)[LUNGS].astype(float) + 1250) * 0.17, atol=1e-4)


@pytest.mark.fault("labels that the set")
def test_labels_of_ones_own_choice_pass_over_all_others(tmp_path):
    download, output = covidseg(tmp_path / "a"), tmp_path / "cohort"
    write(download / "infection_mask" / "coronacases_002.nii", lesion(255, 7))
    assert made("covidseg", download, output, "--lesion-labels", "1", "255") == 0
    np.testing.assert_array_equal(crop(output, "lesion", "covidseg_coronacases_002"), lesion(1, 0)[LUNGS])


def test_without_its_labelled_scan_a_set_says_so(tmp_path, capsys):
    download, output = covidseg(tmp_path / "a", coronacases=(2, 3), radiopaedia=()), tmp_path / "cohort"
    assert made("covidseg", download, output) == 0
    assert "A_labelled" not in lists(output)
    assert "covidseg_coronacases_001: would be the labelled scan, but is missing" in capsys.readouterr().out
    assert run(lambda: made("covidseg", download, output, "--label", "coronacases_001")) == 1
    assert run(lambda: made("mosmed", mosmed(tmp_path / "c"), output, "--label", "study_0001")) == 1
    err = capsys.readouterr().err
    assert "--label coronacases_001: no scan of CovidSeg (A) here" in err
    assert "--label study_0001: has no lesion mask" in err


@pytest.mark.parametrize(
    ("public_set", "options"),
    [
        ("mosmed", ["--lungs", "given"]),
        ("medseg", ["--validh", "1"]),
        ("medseg", ["--lungs", "lungmask", "--lung-labels", "1"]),
        ("medseg", ["--lesion-labels", "0"]),
        ("medseg", ["--valid", "-1"]),
        ("covidseg2", []),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(tmp_path, public_set, options):
    with pytest.raises(SystemExit, match="2"):
        made(public_set, tmp_path, tmp_path / "cohort", *options)


def test_the_download_is_never_written_to(tmp_path, ends):
    download = medseg(tmp_path / "b")
    ends(1, lambda: made("medseg", download, download), "is the download itself")
    for _ in range(2):
        assert made("medseg", download, download / "cohort") == 0
    assert report(download / "cohort", "medseg")["odd"] == []
