import json

import numpy as np
import pytest

from benchmarks.weak_supervision.cohort import LEAST_LABELLED, Counts, read_facts
from benchmarks.weak_supervision.hard_cohort import SIZES, HardSize, main, make_scan, write_cohort
from datasets.cohort import read_cohort, read_volumes
from datasets.phantom.hard import Hardness
from tests.volumes import pixels
from utils.errors import SettingsError

SIZE = HardSize((16, 32, 48), Counts(labelled=1, diseased=4, healthy=4, valid=1, validh=1, test=1, testh=1))
SPLITS = {
    "LABELED": "labels_3", "WO_LABEL": "diseased", "HEALTHY": "healthy",
    "VALID": "valid", "VALIDH": "validh", "TEST": "test", "TESTH": "testh",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hard") / "cohort"
    write_cohort(root, SIZE, seed=5)
    return root


def test_training_accepts_the_cohort(root):
    cohort = read_cohort(root, SPLITS, SIZE.crop)
    counts = {split: len(cases) for split, cases in cohort.items()}
    assert counts == {"LABELED": 3, "WO_LABEL": 4, "HEALTHY": 4, "VALID": 1, "VALIDH": 1, "TEST": 1, "TESTH": 1}
    for name, facts in read_facts(root).items():
        healthy = name.startswith(("healthy", "validh", "testh"))
        assert pixels(root / "lesion" / f"{name}.nii.gz").any() == (not healthy)
        assert (facts["lesion_ml"] == 0) == healthy == (facts["kinds"] == []) == (facts["stage"] is None)
    for kind in ("diseased", "healthy"):
        assert sorted(read_facts(root)[f"{kind}_{k:03d}"]["site"] for k in range(4)) == ["A", "B", "C", "D"]


def test_the_labelled_scan_is_an_easy_one(root):
    facts = read_facts(root)["labelled_000"]
    assert (facts["site"], facts["stage"], facts["kinds"]) == ("A", "progressive", ["ground glass"])
    case = read_cohort(root, {"LABELED": "labels_1"}, SIZE.crop)["LABELED"][0]
    volumes = read_volumes(case)
    assert volumes.lesion.sum() >= LEAST_LABELLED * volumes.lung.sum()


def test_a_scan_depends_only_on_seed_kind_and_number(root, tmp_path):
    few = HardSize(SIZE.crop, Counts(labelled=0, diseased=2, healthy=0, valid=0, validh=0, test=0, testh=1))
    write_cohort(tmp_path / "other", few, seed=5, processes=2)
    for name in ("diseased_001", "testh_000"):
        for folder in ("images", "lung", "lesion"):
            file = f"{folder}/{name}.nii.gz"
            np.testing.assert_array_equal(pixels(root / file), pixels(tmp_path / "other" / file))
    assert (make_scan(6, "test", 0, SIZE.crop).hu != make_scan(5, "test", 0, SIZE.crop).hu).mean() > 0.5


def test_another_cohort_is_refused(root):
    with pytest.raises(SettingsError, match=r"holds a cohort of .*'confounders': 1"):
        write_cohort(root, SIZE, seed=5, hardness=Hardness(confounders=0.5))


def test_sizes_have_the_lists_of_the_benchmark():
    assert SIZES["small"].crop == (20, 96, 96)
    assert SIZES["full"].crop == (40, 160, 160)
    for size, training in (("small", 100), ("full", 300)):
        assert SIZES[size].counts == Counts(1, training, training, 20, 10, 100, 30)


def test_the_command_passes_its_switches(tmp_path, monkeypatch, capsys):
    tiny = HardSize((16, 32, 32), Counts(labelled=0, diseased=1, healthy=0, valid=0, validh=0, test=0, testh=0))
    monkeypatch.setitem(SIZES, "small", tiny)
    options = ["--confounders", "0.5", "--no-sites", "--no-stages", "--no-inspiration", "--seed", "3", "--quiet"]
    assert main([str(tmp_path / "c"), *options]) == 0
    assert json.loads((tmp_path / "c" / "cohort.json").read_text()) == {
        "seed": 3, "crop": [16, 32, 32],
        "hardness": {"sites": False, "inspiration": False, "confounders": 0.5, "stages": False},
    }  # fmt: skip
    with pytest.raises(SystemExit):
        main([str(tmp_path / "c"), "--confounders", "2"])
    assert "--confounders 0 to 1" in capsys.readouterr().err
