import argparse
import unicodedata
import zlib
from contextlib import suppress

import numpy as np
import pytest

from datasets.make_splits import amount, cohort_ids, main, make_splits
from tests.volumes import write
from utils.cli import run
from utils.ledger import Ledger

LABELLED = [f"a{k}" for k in range(10)]
UNLABELLED = [f"b{k}" for k in range(8)]
HEALTHY = [f"h{k}" for k in range(12)]
AMOUNTS = {"LABELED": 1, "VALID": 0.2, "VALIDWL": 2, "VALIDH": 0.25, "TEST": 3, "TESTH": 0.5}


def split(seed=0, **amounts):
    return make_splits(LABELLED, UNLABELLED, HEALTHY, {**AMOUNTS, **amounts}, np.random.default_rng(seed))


def test_every_scan_is_dealt_once_and_to_a_split_of_its_kind():
    splits = split()
    assert {key: "".join(sorted(i[0] for i in ids)) for key, ids in splits.items()} == {
        "LABELED": "a", "WO_LABEL": "aaaabbbbbb", "HEALTHY": "hhh", "VALID": "aa", "VALIDWL": "bb", "VALIDH": "hhh",
        "TEST": "aaa", "TESTH": "hhhhhh", "left_out": "",
    }  # fmt: skip
    assert sorted(i for ids in splits.values() for i in ids) == sorted(LABELLED + UNLABELLED + HEALTHY)


def test_the_seed_deals():
    assert split(seed=1) == split(seed=1)
    assert any(split(seed=1) != split(seed=k) for k in range(2, 5))
    shuffled = make_splits(LABELLED[::-1], UNLABELLED, HEALTHY, AMOUNTS, np.random.default_rng(1))
    assert shuffled == split(seed=1)


@pytest.mark.parametrize("text", ["-1", "1.5", "-0.5", "x", "nan", "1e3"])
def test_impossible_amounts(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a count such as 3 or a proportion such as 0\.25"):
        amount(text)


@pytest.fixture
def root(tmp_path):
    for folder, ids in (("images", LABELLED + UNLABELLED + HEALTHY), ("lesion", LABELLED + HEALTHY[:2])):
        (tmp_path / folder).mkdir()
        for case_id in ids:
            touch(tmp_path / folder / f"{case_id}.nii.gz")
    return tmp_path


def touch(path, seed=None):
    """A crop that differs from all others, or from those of another seed."""
    number = zlib.crc32(path.name.encode()) if seed is None else seed
    write(path, np.random.default_rng(number).normal(size=(2, 3, 4)).astype(np.float32))


def lists(root):
    return {path.stem: path.read_text().splitlines() for path in (root / "id_txt").iterdir()}


OPTIONS = ["--healthy", "h*", "--labeled", "1", "--valid", "2", "--validh", "2", "--test", "2", "--testh", "1"]


@pytest.mark.fault("lists that exist when")
def test_lists_that_exist_are_kept_and_new_scans_are_trained_on(root, tmp_path, capsys, ends):
    (tmp_path / "healthy.txt").write_text("\n".join(HEALTHY))
    assert main([str(root), "--healthy-list", str(tmp_path / "healthy.txt"), *OPTIONS[2:]]) == 0
    before = lists(root)
    assert {name: len(ids) for name, ids in before.items()} == {
        "train_id_L": 1, "train_id_WL": 13, "train_id_H": 9, "valid_id_L": 2, "valid_id_H": 2, "test_id_L": 2,
        "test_id_H": 1, "valid_id_WL": 0,
    }  # fmt: skip
    assert "LABELED       1" in capsys.readouterr().out
    for case_id in ("a90", "a91", "b90", "h90"):
        touch(root / "images" / f"{case_id}.nii.gz")
    touch(root / "lesion" / "a90.nii.gz")
    ends(0, lambda: main([str(root), *OPTIONS, "--quiet"]), "kept the lists of 30 scans, added 4")
    after = lists(root)
    added = {name: sorted(set(after[name]) - set(before[name])) for name in after}
    assert {name: ids for name, ids in added.items() if ids} == {
        "train_id_WL": ["a90", "a91", "b90"], "train_id_H": ["h90"]
    }  # fmt: skip
    assert all(set(before[name]) <= set(after[name]) for name in before)
    assert main([str(root), *OPTIONS, "--quiet", "--seed", "5"]) == 0
    assert lists(root) == after
    assert main([str(root), *OPTIONS, "--quiet", "--seed", "5", "--overwrite"]) == 0
    assert lists(root)["test_id_L"] != after["test_id_L"]


def test_new_scans_fill_what_the_options_ask_for_beyond_the_lists(root):
    assert main([str(root), *OPTIONS]) == 0
    before = lists(root)
    for case_id in ("a90", "a91"):
        for folder in ("images", "lesion"):
            touch(root / folder / f"{case_id}.nii.gz")
    assert main([str(root), *OPTIONS, "--test", "3"]) == 0
    (added,) = set(lists(root)["test_id_L"]) - set(before["test_id_L"])
    assert added in ("a90", "a91")


def test_scans_that_are_gone_and_labels_that_were_withdrawn_leave_the_lists(root, capsys):
    assert main([str(root), *OPTIONS]) == 0
    before = lists(root)
    gone, (valid, _), test = before["train_id_WL"][0], before["valid_id_L"], before["test_id_L"][0]
    (root / "images" / f"{gone}.nii.gz").unlink()
    for case_id in (valid, test):
        (root / "lesion" / f"{case_id}.nii.gz").unlink()
    options = [*OPTIONS, "--valid", "1", "--test", "1", "--quiet"]
    assert main([str(root), *options]) == 0
    after = lists(root)
    assert gone not in after["train_id_WL"]
    assert after["valid_id_WL"] == [valid]
    assert after["left_out"] == [test]
    err = capsys.readouterr().err
    assert f"1 scan(s) in the lists are not in the cohort any more, the first {gone}" in err
    assert f"{test} has no voxel label any more; moved to left_out" in err
    assert main([str(root), *options]) == 0
    assert lists(root) == after


def sides(root):
    found = {"train": "training", "valid": "validation", "test_": "testing", "left_": "testing"}
    return {case_id: found[name[:5]] for name, ids in lists(root).items() for case_id in ids}


@pytest.mark.fault("two CTs of a patient")
@pytest.mark.parametrize("seed", range(3))
def test_crops_of_the_same_ct_stay_together(root, seed, capsys):
    for k in range(10):
        touch(root / "images" / f"a{k} (1).nii.gz", seed=k // 2)
        touch(root / "images" / f"a{k}.nii.gz", seed=k // 2)
        touch(root / "lesion" / f"a{k} (1).nii.gz")
    assert main([str(root), "--healthy", "h*", "--valid", "4", "--test", "5", "--seed", str(seed), "--quiet"]) == 0
    found = sides(root)
    for k in range(0, 10, 2):
        assert len({found[case_id] for case_id in (f"a{k}", f"a{k} (1)", f"a{k + 1}", f"a{k + 1} (1)")}) == 1
    assert sum(side == "testing" for side in found.values()) == 4  # one CT has four crops
    err = capsys.readouterr().err
    assert "5 CT(s) have several crops" in err
    assert "TEST has 1 scan(s) fewer than asked for" in err


def test_where_all_patients_have_two_scans_one_is_labelled_and_tests_are_not_empty(caplog):
    groups = {case_id: case_id[0] + str(int(case_id[1:]) // 2) for case_id in LABELLED + UNLABELLED + HEALTHY}
    amounts = {"LABELED": 1, "VALID": 1, "VALIDWL": 0, "VALIDH": 0, "TEST": 2, "TESTH": 0}
    splits = make_splits(LABELLED, UNLABELLED, HEALTHY, amounts, np.random.default_rng(0), groups)
    assert (len(splits["LABELED"]), len(splits["VALID"]), len(splits["TEST"])) == (1, 2, 2)
    assert len({groups[case_id] for case_id in splits["VALID"]}) == 1
    assert "VALID has 1 scan(s) more than asked for" in caplog.text
    assert sorted(case_id for ids in splits.values() for case_id in ids) == sorted(groups)


@pytest.mark.fault("two CTs of a patient")
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_scans_of_a_patient_stay_together(root, tmp_path, separator, capsys):
    table = tmp_path / "patients.csv"
    scans = [f"{kind}{k}" for k in range(8) for kind in "abh"]
    table.write_text("\n".join(["id,patient", *(f"{case_id}{separator}{case_id[1:]}" for case_id in scans)]))
    assert main([str(root), *OPTIONS, "--patients", str(table), "--quiet"]) == 0
    found = sides(root)
    for k in range(8):
        assert len({found[case_id] for case_id in (f"a{k}", f"b{k}", f"h{k}") if case_id in found}) == 1
    assert "scan(s) without voxel label are left out, to hold TEST apart" in capsys.readouterr().err
    assert main([str(root), *OPTIONS, "--patients", str(table), "--quiet"]) == 0  # kept
    assert sides(root) == found
    # A patient on two sides of the lists that are kept, and a table of other scans.
    one, other = lists(root)["test_id_L"][0], lists(root)["train_id_WL"][0]
    for wrong, message in (
        (f"{one},7\n{other},7\n", "are of one patient or CT"),
        ("nobody,1", "names no scan of this"),
        ("a0,7\nb0,8\na0,7\nb0,9\n", "names two patients of b0; keep one"),
    ):
        table.write_text(wrong)
        assert run(lambda: main([str(root), *OPTIONS, "--patients", str(table)])) == 1
        assert message in capsys.readouterr().err


@pytest.mark.fault("crops that were not written to the end")
def test_a_cohort_that_is_being_made_is_refused(root, ends):
    path = root / "images" / "a0.nii.gz"
    path.unlink()
    with suppress(KeyboardInterrupt), Ledger(root, "crops").writing("a0", [path]):
        touch(path)
        raise KeyboardInterrupt
    ends(1, lambda: main([str(root), *OPTIONS]), "a0 is not finished; run lungCrop.py again")


@pytest.mark.fault("lists of ids that were written or edited by hand")
def test_lists_of_the_user_are_not_replaced(root, capsys, ends):
    edited, arguments = root / "id_txt" / "train_id_WL.txt", [str(root), "--healthy", "h*", "--quiet"]
    assert main(arguments) == 0
    before = edited.read_text()
    anew = [*arguments, "--overwrite"]
    assert main([*anew, "--seed", "3"]) == main(anew) == 0  # its own lists
    edited.write_text(before.split("\n", 1)[1])
    assert run(lambda: main([*anew, "--seed", "3"])) == 1
    assert f"{edited}: was changed since this command wrote it, and is not replaced" in capsys.readouterr().err
    assert edited.read_text() == before.split("\n", 1)[1]
    edited.write_text(before)  # what would be written is no reason to stop
    (root / "ledger" / "id_txt" / "make_splits.json").unlink()
    assert main(arguments) == 0
    ends(1, lambda: main([*anew, "--seed", "3"]), "was not written by this command")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--healthy", "x*"], "no scan here is called x*"),
        (["--healthy", "h0", "--healthy", "h01"], "no scan here is called h01"),
        (["--healthy", "*"], "30 of 30 ids are healthy"),
        ([], "0 of 30 ids are healthy"),
        (["--healthy", "h*", "--test", "11"], "TEST asks for 11 scans"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(root, arguments, message, ends):
    ends(1, lambda: main([str(root), *arguments]), message)
    assert not (root / "id_txt").exists()


def test_ids_match_in_either_unicode_form_and_those_that_look_like_patterns_are_ids(root):
    for folder, form in (("images", "NFD"), ("lesion", "NFC")):
        touch(root / folder / f"{unicodedata.normalize(form, 'Müller')}.nii.gz", seed=99)
    assert "M\u00fcller" in cohort_ids(root, ["h*"])[0]
    assert "M\u00fcller" in cohort_ids(root, ["h*", unicodedata.normalize("NFD", "Müll*")])[2]
    touch(root / "images" / "h[1].nii.gz")
    assert cohort_ids(root, ["h[1]"])[2] == ["h1", "h[1]"]
    (root / "images" / "h1.nii.gz").unlink()
    assert cohort_ids(root, ["h[1]"])[2] == ["h[1]"]
