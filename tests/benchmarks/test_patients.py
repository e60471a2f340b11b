"""Segmenters measured on a folder of CTs with lung and lesion masks."""

import json

import numpy as np
import pytest
import torch

from benchmarks import patients
from benchmarks.patients import find_patients, interval, main
from models.checkpoint import SegmenterFacts, SegmenterInput, save_segmenter
from models.segmenter import Segmenter
from tests.volumes import write
from utils.errors import GasnetError

SIZE = (8, 32, 32)


@pytest.fixture
def folder(tmp_path):
    """Three scans of three boxes of lung; the first two have a lesion mask."""
    (tmp_path / "lists").mkdir()
    for number, name in enumerate(("a", "b", "c")):
        ct = np.full((12, 40, 40), 40, np.int16)
        lung = np.zeros_like(ct, np.uint8)
        lung[2:10, 6:34, 4:36] = 1
        ct[lung > 0] = -850
        lesion = np.zeros_like(lung)
        lesion[3:7, 10:20, 6:20] = 1
        ct[lesion > 0] = -300 + 20 * number
        for part, array in (("ct", ct), ("lung", lung), ("lesion", lesion)):
            if part != "lesion" or name != "c":
                write(tmp_path / part / f"{name}.nii.gz", array, spacing=(2.0, 2.0, 5.0))
    return tmp_path


@pytest.fixture
def model(tmp_path):
    """A segmenter that answers alike everywhere: a probability of 0.6."""
    segmenter = Segmenter(2)
    with torch.no_grad():
        segmenter.predict.weight.zero_()
        segmenter.predict.bias.fill_(float(np.log(0.6 / 0.4)))
    facts = SegmenterFacts(trained_on=SegmenterInput(size=SIZE, window=(-1250, 250), normalization="window"))
    save_segmenter(tmp_path / "s.pth", segmenter, facts)
    return tmp_path / "s.pth"


def test_the_table_holds_dice_by_group_and_volumes_elsewhere(folder, model, tmp_path, capsys):
    (folder / "lists" / "patients.txt").write_text("a\nb\n")
    (folder / "lists" / "others.txt").write_text("c\n")
    output = tmp_path / "out" / "table.md"
    arguments = [str(folder), "--model-path", str(model), "--threshold", "0.5", "0.7", "--output", str(output)]
    assert main([*arguments, "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr().out == output.read_text()
    low, high = json.loads(output.with_suffix(".json").read_text())["rows"]
    of_patients, others = low["groups"]["patients"], low["groups"]["others"]
    share = 4 * 10 * 14 / (8 * 28 * 32)  # of the lungs; all of them are found
    assert of_patients["dice"] == pytest.approx(2 * share / (1 + share), abs=0.03)
    assert of_patients["sensitivity"] == 1
    assert of_patients["scans"] == 2
    assert others["ml by scan"]["c"] == pytest.approx(8 * 28 * 32 * 20 / 1000, rel=0.1)
    assert high["groups"]["patients"]["dice"] == 0
    assert high["groups"]["others"]["ml by scan"]["c"] == 0


def test_scans_in_no_list_are_left_out_and_without_lists_all_are_one_group(folder, model, ends):
    assert find_patients(folder).groups == {"all": ["a", "b", "c"]}
    (folder / "lists" / "patients.txt").write_text("a\n")
    (folder / "ct" / "b.nii.gz").write_bytes(b"never read")
    ends(0, lambda: main([str(folder), "--model-path", str(model), "--device", "cpu", "--quiet"]), "| patients | 1 |")


def test_an_unknown_scan_and_one_without_lungs_are_errors_before_anything_is_segmented(folder, model, monkeypatch):
    monkeypatch.setattr(patients, "score_patients", lambda *_: pytest.fail("not yet"))
    (folder / "lists" / "x.txt").write_text("d\n")
    arguments = [str(folder), "--model-path", str(model), "--device", "cpu", "--quiet"]
    with pytest.raises(GasnetError, match=r"x\.txt: d is not among"):
        main(arguments)
    (folder / "lung" / "b.nii.gz").unlink()
    with pytest.raises(GasnetError, match="no lung mask of b"):
        main(arguments)


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(0.6, 0.1, 200)
    half = 1.96 * values.std() / np.sqrt(200)
    assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)
    assert interval([0.5, 0.5]) == (0.5, 0.5)
