import argparse

import numpy as np
import pytest

from datasets.make_splits import LISTS, amount, cohort_ids, main, make_splits
from utils.cli import run
from utils.errors import CohortError

LABELLED = [f"a{k}" for k in range(10)]
UNLABELLED = [f"b{k}" for k in range(8)]
HEALTHY = [f"h{k}" for k in range(12)]
AMOUNTS = {"LABELED": 1, "VALID": 0.2, "VALIDWL": 2, "VALIDH": 0.25, "TEST": 3, "TESTH": 0.5}


def split(seed=0, **amounts):
    return make_splits(LABELLED, UNLABELLED, HEALTHY, {**AMOUNTS, **amounts}, np.random.default_rng(seed))


def test_counts_and_proportions_of_each_kind():
    sizes = {key: len(ids) for key, ids in split().items()}
    assert sizes == {
        "LABELED": 1, "WO_LABEL": 4 + 6, "HEALTHY": 3, "VALID": 2, "VALIDWL": 2, "VALIDH": 3, "TEST": 3, "TESTH": 6
    }  # fmt: skip


def test_every_scan_is_dealt_once_and_to_a_split_of_its_kind():
    splits = split()
    assert sorted(i for ids in splits.values() for i in ids) == sorted(LABELLED + UNLABELLED + HEALTHY)
    for key, kinds in (("LABELED", "a"), ("VALID", "a"), ("TEST", "a"), ("VALIDWL", "b"), ("WO_LABEL", "ab")):
        assert all(i[0] in kinds for i in splits[key])
    for key in ("HEALTHY", "VALIDH", "TESTH"):
        assert all(i[0] == "h" for i in splits[key])


def test_the_seed_deals():
    assert split(seed=1) == split(seed=1)
    assert any(split(seed=1) != split(seed=k) for k in range(2, 5))
    shuffled = make_splits(LABELLED[::-1], UNLABELLED, HEALTHY, AMOUNTS, np.random.default_rng(1))
    assert shuffled == split(seed=1)


def test_more_than_there_is_cannot_be_dealt():
    with pytest.raises(CohortError, match="LABELED asks for 6 scans, 5 of 10 are left"):
        split(LABELED=6)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("0", 0), ("0.25", 0.25), ("1.0", 1.0)])
def test_amounts(text, value):
    assert amount(text) == value
    assert type(amount(text)) is type(value)


@pytest.mark.parametrize("text", ["-1", "1.5", "-0.5", "x", "nan", "1e3"])
def test_impossible_amounts(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a count such as 3 or a proportion such as 0\.25"):
        amount(text)


@pytest.fixture
def root(tmp_path):
    for folder, ids in (("images", LABELLED + UNLABELLED + HEALTHY), ("lesion", LABELLED + HEALTHY[:2])):
        (tmp_path / folder).mkdir()
        for case_id in ids:
            (tmp_path / folder / f"{case_id}.nii.gz").touch()
    return tmp_path


def test_the_command_writes_the_lists(root, capsys):
    assert main([str(root), "--healthy", "h*", "--valid", "2", "--validh", "0.25", "--test", "3"]) == 0
    lists = {path.stem: path.read_text().splitlines() for path in (root / "id_txt").iterdir()}
    assert set(lists) == set(LISTS.values())
    assert {name: len(ids) for name, ids in lists.items()} == {
        "train_id_L": 1, "train_id_WL": 12, "train_id_H": 9, "valid_id_L": 2, "valid_id_WL": 0, "valid_id_H": 3,
        "test_id_L": 3, "test_id_H": 0,
    }  # fmt: skip
    assert "LABELED       1" in capsys.readouterr().out


@pytest.mark.fault("lists of ids that were written or edited by hand")
def test_lists_of_the_user_are_not_replaced(root, capsys):
    edited, arguments = root / "id_txt" / "train_id_WL.txt", [str(root), "--healthy", "h*", "--quiet"]
    assert main(arguments) == 0
    before = edited.read_text()
    assert main([*arguments, "--seed", "3"]) == main(arguments) == 0  # its own lists
    edited.write_text(before.split("\n", 1)[1])
    assert run(lambda: main([*arguments, "--seed", "3"])) == 1
    assert f"{edited}: was changed since this command wrote it, and is not replaced" in capsys.readouterr().err
    assert edited.read_text() == before.split("\n", 1)[1]
    edited.write_text(before)  # what would be written is no reason to stop
    assert main(arguments) == 0
    (root / ".results" / "id_txt" / "make_splits.json").unlink()
    assert main(arguments) == 0
    assert run(lambda: main([*arguments, "--seed", "3"])) == 1
    assert "was not written by this command" in capsys.readouterr().err


def test_healthy_scans_by_a_list(root, tmp_path):
    path = tmp_path / "healthy.txt"
    path.write_text("\n".join(HEALTHY[:4]))
    labelled, unlabelled, healthy = cohort_ids(root, HEALTHY[:4])
    assert healthy == HEALTHY[:4]
    # The other healthy ones now count as diseased: nothing says that they are not.
    assert set(unlabelled) == set(UNLABELLED + HEALTHY[4:])
    assert labelled == LABELLED
    assert main([str(root), "--healthy-list", str(path)]) == 0
    assert len((root / "id_txt" / "train_id_H.txt").read_text().splitlines()) == 4 - round(0.2 * 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--healthy", "x*"], "no scan here is called x*"),
        (["--healthy", "*"], "30 of 30 ids are healthy"),
        ([], "0 of 30 ids are healthy"),
        (["--healthy", "h*", "--test", "11"], "TEST asks for 11 scans"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(root, arguments, message, capsys):
    assert run(lambda: main([str(root), *arguments])) == 1
    assert message in capsys.readouterr().err
    assert not (root / "id_txt").exists()


def test_a_healthy_id_that_is_mistyped_is_not_taken_for_diseased(root, tmp_path, capsys):
    path = tmp_path / "healthy.txt"
    path.write_text("h0\nh01\n")
    assert run(lambda: main([str(root), "--healthy-list", str(path)])) == 1
    assert "no scan here is called h01" in capsys.readouterr().err


def test_ids_that_look_like_patterns_are_ids(root):
    (root / "images" / "h[1].nii.gz").touch()
    assert cohort_ids(root, ["h[1]"])[2] == ["h1", "h[1]"]
    (root / "images" / "h1.nii.gz").unlink()
    assert cohort_ids(root, ["h[1]"])[2] == ["h[1]"]


@pytest.mark.parametrize("seed", ["-1", "x", "1.5"])
def test_an_impossible_seed_is_a_usage_error(root, seed):
    with pytest.raises(SystemExit) as stopped:
        main([str(root), "--healthy", "h*", "--seed", seed])
    assert stopped.value.code == 2


def test_a_folder_without_images(tmp_path):
    with pytest.raises(CohortError, match="no images; make them with python lungCrop"):
        cohort_ids(tmp_path, ["h*"])
