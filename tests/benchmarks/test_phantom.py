import numpy as np
import pytest

from benchmarks.phantom.confounders import CONFOUNDERS, Lung
from benchmarks.phantom.diseases import STAGES, draw_patient
from benchmarks.phantom.make import draw_crop_frame, label_patient, make_crop, paint_body, site_of
from datasets.phantom.body import draw_anatomy
from datasets.phantom.lesions import FILLINGS

CROP = (16, 48, 48)


def crop(seed, diseased=True, patient=None):
    rng = np.random.default_rng(seed)
    return make_crop(rng, CROP, patient or (draw_patient(rng) if diseased else None), "A")


def ml(mask, spacing):
    return float((mask > 0).sum() * np.prod(spacing) / 1000)


@pytest.fixture(scope="module")
def crops():
    """Healthy crops with all that makes the cohort hard."""
    return [crop(seed, diseased=False) for seed in range(6)]


def test_crops_are_boxes_around_the_lungs():
    for seed in range(2):
        case = crop(seed, diseased=seed == 1)
        assert case.hu.shape == case.lung.shape == case.lesion.shape == CROP
        assert (case.hu.dtype, case.lung.dtype, case.lesion.dtype) == (np.float32, np.uint8, np.uint8)
        assert set(np.unique(case.lung)) == {0, 1, 2}
        assert case.lesion.any() == (seed == 1)
        assert not case.lesion[case.lung == 0].any()
        for axis in range(3):  # the lungs reach all faces, to about 4 mm
            filled = np.flatnonzero((case.lung > 0).any(tuple({0, 1, 2} - {axis})))
            slack = np.ceil(6 / case.spacing[2 - axis])
            assert filled[0] <= slack
            assert filled[-1] >= CROP[axis] - 1 - slack
        assert 2000 < ml(case.lung, case.spacing) < 7000


def test_a_frame_maps_points_of_the_body_to_the_voxels_that_show_them():
    rng = np.random.default_rng(0)
    g = draw_crop_frame(rng, draw_anatomy(rng), CROP)
    points = np.stack([axis[8, 24, 20] for axis in (g.x, g.y, g.z)])[None]
    np.testing.assert_allclose(g.to_scan(points)[0], np.multiply((20, 24, 8), g.spacing), atol=1)


def test_sites_are_balanced_in_every_list_and_do_not_depend_on_its_length():
    drawn = [site_of([7, 1], number) for number in range(40)]
    assert all(sorted(drawn[k : k + 4]) == ["A", "B", "C", "D"] for k in range(0, 40, 4))
    assert drawn != [site_of([7, 2], number) for number in range(40)]


def test_confounders_are_in_healthy_scans_and_can_be_weakened(crops):
    rng = np.random.default_rng(0)
    body = draw_anatomy(rng)
    g = draw_crop_frame(rng, body, CROP)
    mask, depth, above = np.ones(CROP, np.uint8), np.full(CROP, 4.0, np.float32), np.full(CROP, 5.0, np.float32)

    def added(name, strength):
        tissue = np.full(CROP, -800, np.float32)
        for seed in range(3, 7):
            CONFOUNDERS[name][1](np.random.default_rng(seed), Lung(g, body, tissue, mask, depth, above), strength)
        return tissue + 800

    for name in CONFOUNDERS:
        full, half = added(name, 1.0), added(name, 0.5)
        assert 0 < np.abs(half).sum() < np.abs(full).sum(), name
        assert (full.min() >= 0) == (name != "emphysema")
    assert {name for case in crops for name in case.facts["confounders"]} > {"bands", "dependent density", "nodules"}
    assert paint_body(np.random.default_rng(0), CROP, None, confounders=0.0).facts["confounders"] == []


def test_stages_have_their_kinds_and_shares():
    assert sum(share for share, _ in STAGES.values()) == pytest.approx(1)
    for _, kinds in STAGES.values():
        assert sum(kinds.values()) == pytest.approx(1)
        assert set(kinds) <= set(FILLINGS)
    rng = np.random.default_rng(0)
    drawn = [draw_patient(rng).stage for _ in range(2000)]
    for stage, (share, _) in STAGES.items():
        assert drawn.count(stage) / 2000 == pytest.approx(share, abs=0.04)
    patient = label_patient(rng)
    assert (patient.stage, patient.kinds) == ("progressive", {"ground glass": 1.0})
