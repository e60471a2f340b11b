import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import pytest

from benchmarks.weak_supervision.cohort import (
    LABELLED_KINDS,
    LEAST_LABELLED,
    Counts,
    Size,
    draw_variety,
    label_lists,
    main,
    make_scan,
    read_facts,
    write_cohort,
)
from datasets.cohort import read_cohort
from datasets.phantom import LESION_KINDS
from tests.volumes import pixels
from utils.errors import FolderError, SettingsError
from utils.files import lock_folder

SIZE = Size(raw=(16, 32, 32), crop=(16, 32, 64))
COUNTS = Counts(labelled=1, diseased=3, healthy=1, valid=1, validh=1, test=1, testh=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("weak") / "cohort"
    write_cohort(root, SIZE, seed=5, counts=COUNTS)
    return root


def test_training_accepts_the_cohort(root):
    splits = {
        "LABELED": "labels_3", "WO_LABEL": "diseased", "HEALTHY": "healthy",
        "VALID": "valid", "VALIDH": "validh", "TEST": "test", "TESTH": "testh",
    }  # fmt: skip
    cohort = read_cohort(root, splits, SIZE.crop)
    counts = {split: len(cases) for split, cases in cohort.items()}
    assert counts == {"LABELED": 3, "WO_LABEL": 3, "HEALTHY": 1, "VALID": 1, "VALIDH": 1, "TEST": 1, "TESTH": 1}
    for name, facts in read_facts(root).items():
        healthy = name.startswith(("healthy", "validh", "testh"))
        assert pixels(root / "lesion" / f"{name}.nii.gz").any() == (not healthy)
        assert (facts["lesion_ml"] == 0) == healthy == (facts["kinds"] == [])
        assert facts["lesion_ml"] < facts["lung_ml"]


def test_a_scan_depends_only_on_seed_kind_and_number(root, tmp_path):
    other = tmp_path / "other"
    write_cohort(other, SIZE, seed=5, counts=Counts(1, 1, 0, 0, 0, 1, 0), processes=2)
    for name in ("labelled_000", "diseased_000", "test_000"):
        for folder in ("images", "lung", "lesion"):
            file = f"{folder}/{name}.nii.gz"
            np.testing.assert_array_equal(pixels(root / file), pixels(other / file))
    images = [pixels(path) for path in sorted((root / "images").iterdir())]
    assert len(images) == 9
    assert all((a != b).mean() > 0.5 for a, b in pairwise(images))
    assert (make_scan(6, "test", 0, SIZE.raw).ct != make_scan(5, "test", 0, SIZE.raw).ct).mean() > 0.5


def test_the_labelled_scan_lacks_lesion_kinds_of_others():
    raw = (16, 32, 32)
    for seed in range(3):
        phantom = make_scan(seed, "labelled", 0, raw)
        assert set(phantom.kinds) <= set(LABELLED_KINDS)
        assert phantom.lesion.sum() >= LEAST_LABELLED * (phantom.lung > 0).sum()
    shown = {kind for number in range(8) for kind in make_scan(0, "diseased", number, raw).kinds}
    assert shown == set(LESION_KINDS)


def test_varieties_differ_and_contain_only_permitted_kinds():
    rng = np.random.default_rng(0)
    first, second = draw_variety(rng), draw_variety(rng)
    assert sum(first.shares) == pytest.approx(1)
    assert first.shares != second.shares
    alone = draw_variety(rng, ("consolidation",))
    assert dict(zip(LESION_KINDS, alone.shares, strict=True)) == {
        "ground glass": 0, "mixed": 0, "crazy paving": 0, "consolidation": 1,
    }  # fmt: skip


def test_label_lists_are_nested():
    lists = label_lists(0, Counts())
    assert {name: len(ids) for name, ids in lists.items()} == {
        "labels_1": 1, "labels_3": 3, "labels_10": 10, "labels_40": 40, "label_b": 1, "label_c": 1, "label_d": 1,
    }  # fmt: skip
    assert lists["labels_1"] == ["labelled_000"]
    assert set(lists["labels_3"]) < set(lists["labels_10"]) < set(lists["labels_40"])
    assert len(set(lists["labels_40"])) == 40
    others = {lists[f"label_{x}"][0] for x in "bcd"}
    assert len(others) == 3
    assert not others & set(lists["labels_40"])
    assert label_lists(1, Counts()) != lists


def test_existing_scans_are_kept_and_another_cohort_is_refused(root):
    kept = root / "images" / "diseased_000.nii.gz"
    before = kept.stat().st_mtime_ns
    lost = root / "facts" / "test_000.json"
    facts = json.loads(lost.read_text())
    lost.unlink()
    write_cohort(root, SIZE, seed=5, counts=COUNTS)
    assert kept.stat().st_mtime_ns == before
    assert json.loads(lost.read_text()) == facts
    with pytest.raises(SettingsError, match=r"holds a cohort of .*'seed': 5"):
        write_cohort(root, SIZE, seed=6, counts=COUNTS)


def test_a_complete_cohort_is_shared_and_an_incomplete_one_has_one_writer(root):
    again = partial(write_cohort, root, SIZE, 5, COUNTS)
    with lock_folder(root), ProcessPoolExecutor(1, get_context("spawn")) as others:
        others.submit(again).result()
        (root / "id_txt" / "labels_3.txt").unlink()
        with pytest.raises(FolderError, match="is writing here"):
            others.submit(again).result()
    again()
    assert len((root / "id_txt" / "labels_3.txt").read_text().split()) == 3


def test_the_command_refuses_invalid_options(capsys):
    with pytest.raises(SystemExit):
        main(["somewhere", "--seed", "-1"])
    assert "--seed must be at least 0" in capsys.readouterr().err
