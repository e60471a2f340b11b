import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.weak_supervision.cohort import (
    LEAST_LABELLED,
    SIZES,
    Counts,
    Size,
    label_lists,
    main,
    make_scan,
    write_cohort,
)
from datasets.cohort import read_cohort, read_volumes
from tests.volumes import pixels
from utils.errors import SettingsError

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "weak_supervision"
SIZE = Size((16, 32, 48), Counts(labelled=1, diseased=4, healthy=4, valid=1, validh=1, test=1, testh=1))
SPLITS = {
    "LABELED": "labels_3", "WO_LABEL": "diseased", "HEALTHY": "healthy",
    "VALID": "valid", "VALIDH": "validh", "TEST": "test", "TESTH": "testh",
}  # fmt: skip


def read_facts(root):
    return {path.stem: json.loads(path.read_text()) for path in sorted((root / "facts").glob("*.json"))}


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
    few = Size(SIZE.crop, Counts(labelled=0, diseased=2, healthy=0, valid=0, validh=0, test=0, testh=1))
    write_cohort(tmp_path / "other", few, seed=5, processes=2)
    for name in ("diseased_001", "testh_000"):
        for folder in ("images", "lung", "lesion"):
            file = f"{folder}/{name}.nii.gz"
            np.testing.assert_array_equal(pixels(root / file), pixels(tmp_path / "other" / file))
    assert (make_scan(6, "test", 0, SIZE.crop).hu != make_scan(5, "test", 0, SIZE.crop).hu).mean() > 0.5


def test_label_lists_are_nested():
    lists = label_lists(0, Counts())
    assert {name: len(ids) for name, ids in lists.items()} == {
        "labels_1": 1, "labels_3": 3, "labels_10": 10, "labels_40": 40,
    }  # fmt: skip
    assert lists["labels_1"] == ["labelled_000"]
    assert set(lists["labels_3"]) < set(lists["labels_10"]) < set(lists["labels_40"])
    assert len(set(lists["labels_40"])) == 40
    assert label_lists(1, Counts()) != lists


def test_existing_scans_are_kept_and_another_cohort_is_refused(root):
    kept, lost = root / "images" / "diseased_000.nii.gz", root / "facts" / "test_000.json"
    before, facts = kept.stat().st_mtime_ns, json.loads(lost.read_text())
    lost.unlink()
    write_cohort(root, SIZE, seed=5)
    assert kept.stat().st_mtime_ns == before
    assert json.loads(lost.read_text()) == facts
    with pytest.raises(SettingsError, match=r"holds a cohort of .*'seed': 5"):
        write_cohort(root, SIZE, seed=6)


def test_the_command_passes_its_switches(tmp_path, monkeypatch, ends):
    tiny = Size((16, 32, 32), Counts(labelled=0, diseased=1, healthy=0, valid=0, validh=0, test=0, testh=0))
    monkeypatch.setitem(SIZES, "small", tiny)
    assert main([str(tmp_path / "c"), "--seed", "3", "--quiet"]) == 0
    assert json.loads((tmp_path / "c" / "cohort.json").read_text()) == {"seed": 3, "crop": [16, 32, 32]}
    for option in (["--seed", "-1"], ["--processes", "0"]):
        ends(2, partial(main, [str(tmp_path / "c"), *option]), "--seed must be at least 0, --processes at least 1")


@pytest.mark.parametrize(
    ("kind", "number", "mean_hu", "sd_of_steps"),
    [
        *(("test", 0, -184.709, 150.633), ("test", 2, -177.509, 104.684), ("test", 20, -133.538, 104.068)),
        *(("test", 23, -169.926, 115.126), ("testh", 0, -213.997, 92.310), ("testh", 1, -180.901, 113.432)),
    ],
)
def test_scans_are_those_of_the_recorded_results(kind, number, mean_hu, sd_of_steps):
    """All sites, stages and confounders are among them."""
    recorded = json.loads((RESULTS / "long" / "s-1_seed_0.json").read_text(encoding="utf-8"))["test"]["rows"]
    true_ml = {row["id"]: row["true_ml"] for row in recorded}
    scan = make_scan(0, kind, number, SIZES["long"].crop)
    assert scan.lesion.sum() * np.prod(scan.spacing) / 1000 == pytest.approx(true_ml[f"{kind}_{number:03d}"], rel=1e-5)
    found = scan.hu.mean(dtype=float), np.diff(scan.hu, axis=2).std(dtype=float)  # from voxel to voxel
    assert found == pytest.approx((mean_hu, sd_of_steps), abs=0.05)
