import json

import numpy as np
import pytest

from benchmarks.weak_supervision import trivial
from benchmarks.weak_supervision.cohort import Counts, Size, write_cohort
from benchmarks.weak_supervision.trivial import (
    AVERAGED,
    FEATURES,
    auc,
    best_threshold,
    classifier_auc,
    dice,
    fit_mlp,
    lung_voxels,
    main,
    nuisances,
    volume_facts,
)
from datasets.cohort import Volumes
from datasets.window import map_window
from tests.volumes import image_of

SHAPE = (8, 24, 24)


def volumes(hu, lung=None, lesion=None, spacing=(2.0, 2.0, 4.0)):
    lung = np.ones(SHAPE, np.uint8) if lung is None else lung
    lesion = np.zeros(SHAPE, np.uint8) if lesion is None else lesion
    return Volumes(map_window(np.asarray(hu, np.float32)), lung, lesion, image_of(lung, spacing, (0, 0, 0)))


def test_dice_and_threshold_by_hand():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a & False, b & False) == 1
    scores, truths = [np.array([0.1, 0.4, 0.9])], [np.array([False, False, True])]
    assert best_threshold(scores, truths, [0.0, 0.2, 0.5]) == 0.5


def test_auc_counts_pairs():
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(scores, positive) == (1 + 0.5 + 2) / 4


def test_the_features_of_a_flat_lung_are_its_hu_without_spread():
    lung = np.zeros(SHAPE, np.uint8)
    lung[1:7, 4:20, 4:20] = 1
    hu = np.where(lung, -700.0, 40.0)
    found = lung_voxels(volumes(hu, lung))
    assert found.features.shape == (lung.sum(), FEATURES)
    np.testing.assert_allclose(found.features[:, :4], -700, atol=0.1)  # the chest wall does not leak in
    np.testing.assert_allclose(found.features[:, 4:6], 0, atol=2)
    assert found.features[:, 6].max() == pytest.approx(4 * 3)  # three slices of 4 mm to the outside
    assert (found.features[:, 7:9].min(), found.features[:, 7:9].max()) > (-1, 0.5)
    assert (found.features[:, 9] >= 0).all()


def test_hu_are_averaged_over_a_cube():
    rng = np.random.default_rng(0)
    hu = rng.uniform(-900, -100, SHAPE)
    found = lung_voxels(volumes(hu)).averaged.reshape(SHAPE)
    half = int(AVERAGED / 2 / 2)  # 4 voxels of 2 mm in plane, 2 of 4 mm along z; even cubes reach one further back
    block = hu[3:5, 10 - half : 10 + half, 10 - half : 10 + half]
    assert found[4, 10, 10] == pytest.approx(block.mean(), abs=1)


def test_the_classifier_learns_what_no_threshold_tells(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6000, FEATURES)).astype(np.float32)
    targets = features[:, 0] * features[:, 1] > 0  # neither feature tells it alone
    monkeypatch.setattr(trivial, "_STEPS", 300)
    predict = fit_mlp(features[:4000], targets[:4000], seed=0)
    assert ((predict(features[4000:]) > 0.5) == targets[4000:]).mean() > 0.9
    monkeypatch.setattr(trivial, "_STEPS", 5)
    first, again = (fit_mlp(features[:500], targets[:500], seed=1)(features) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_nuisances_do_not_see_lesions_but_noise():
    rng = np.random.default_rng(0)
    lung = np.zeros(SHAPE, np.uint8)
    lung[:, 2:22, 2:10] = 1
    hu = np.where(lung, -800.0, 40.0) + rng.normal(0, 20, SHAPE)
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[3:5, 8:12, 4:7] = 1
    with_lesion = np.where(lesion, -200.0, hu)
    quiet, ill = nuisances(volumes(hu, lung, lesion)), nuisances(volumes(with_lesion, lung, lesion))
    np.testing.assert_allclose(quiet, ill, atol=1e-3)
    loud = nuisances(volumes(np.where(lung, -800.0, 40.0) + rng.normal(0, 60, SHAPE), lung, lesion))
    assert loud[0] > 2 * quiet[0]


def test_the_auc_of_the_classifier_is_held_out():
    rng = np.random.default_rng(0)
    diseased = np.arange(200) < 100
    told, untold = (rng.normal(size=(200, 3)) + shift * diseased[:, None] for shift in (3, 0))
    again, more = rng.normal(size=(2, 200, 3))
    assert classifier_auc((told, diseased), (again + 3 * diseased[:, None], diseased), 1.0) > 0.95
    assert classifier_auc((untold, diseased), (more, diseased), 1.0) == pytest.approx(0.5, abs=0.12)


def test_the_facts_of_a_volume_do_not_depend_on_places():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, FEATURES)).astype(np.float32)
    moved = features.copy()
    moved[:, 7:] += 1
    both = [volume_facts(trivial.Voxels(f, f[:, 0], f[:, 0] > 0)) for f in (features, rng.permutation(moved))]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)
    assert both[0].shape == (7 * 9,)


def test_the_command_measures_every_baseline(tmp_path, monkeypatch, capsys):
    counts = Counts(labelled=1, diseased=4, healthy=4, valid=2, validh=1, test=3, testh=2)
    write_cohort(tmp_path / "c", Size((16, 32, 32), counts), seed=1)
    monkeypatch.setattr(trivial, "_STEPS", 30)
    assert main([str(tmp_path / "c"), "--labels", "1", "3", "--output", str(tmp_path / "t.json"), "--quiet"]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert list(found) == [
        "threshold", "mlp-1", "mlp-1-negatives", "mlp-3", "mlp-3-negatives", "nuisance-auc", "volume-auc"
    ]  # fmt: skip
    assert all(0 <= value <= 1 for value in found.values())
    assert f"threshold            {found['threshold']:.3f}" in capsys.readouterr().out
