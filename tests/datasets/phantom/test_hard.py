from dataclasses import replace

import numpy as np
import pytest

from datasets.phantom import confounders, lesions
from datasets.phantom.anatomy import draw_anatomy
from datasets.phantom.confounders import CONFOUNDERS, Confounder, Lung, add_confounders
from datasets.phantom.hard import HARD, Hardness, label_patient, make_crop, site_of
from datasets.phantom.lesions import FILLINGS, STAGES, Filling, Patient, draw_patient
from datasets.phantom.pose import draw_pose
from datasets.phantom.sites import SITES, Protocol, Site, acquire, draw_protocol, slice_matrices

SIZE = (16, 48, 48)
EASY = Hardness(sites=False, inspiration=False, confounders=0.0, stages=False)


def crop(seed, diseased=True, site="A", hardness=HARD, patient=None):
    rng = np.random.default_rng(seed)
    return make_crop(rng, SIZE, patient or (draw_patient(rng) if diseased else None), site, hardness)


def test_the_same_state_gives_the_same_bits():
    first, again, other = crop(1), crop(1), crop(2)
    for name in ("hu", "lung", "lesion"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.facts == again.facts
    assert (first.hu != other.hu).mean() > 0.5


def test_crops_are_boxes_around_the_lungs():
    for seed in range(4):
        case = crop(seed, diseased=seed % 2 == 1, hardness=replace(HARD, confounders=0.0))
        assert case.hu.shape == case.lung.shape == case.lesion.shape == SIZE
        assert (case.hu.dtype, case.lung.dtype, case.lesion.dtype) == (np.float32, np.uint8, np.uint8)
        assert set(np.unique(case.lung)) == {0, 1, 2}
        assert case.lesion.any() == (seed % 2 == 1)
        assert not (case.lesion.astype(bool) & (case.lung == 0)).any()
        for axis in range(3):  # the lungs reach all faces, to about 4 mm
            filled = np.flatnonzero((case.lung > 0).any(tuple({0, 1, 2} - {axis})))
            slack = np.ceil(6 / case.spacing[2 - axis])
            assert filled[0] <= slack
            assert filled[-1] >= SIZE[axis] - 1 - slack
        assert 2000 < (case.lung > 0).sum() * np.prod(case.spacing) / 1000 < 7000


def test_a_pose_gives_the_same_body_on_every_grid():
    rng = np.random.default_rng(0)
    body = draw_anatomy(rng)
    pose = draw_pose(rng, body)
    fine = pose.frame(np.array([20.0, 30.0, 40.0]), np.array([2.0, 3.0, 5.0]), (9, 11, 13))
    coarse = pose.frame(np.array([20.0, 30.0, 40.0]), np.array([4.0, 6.0, 10.0]), (5, 6, 7))
    for axis in "xyz":
        np.testing.assert_allclose(getattr(fine, axis)[::2, ::2, ::2], getattr(coarse, axis), atol=1e-3)
    points = np.stack([getattr(fine, axis)[3, 4, 5] for axis in "xyz"])[None]
    np.testing.assert_allclose(fine.to_scan(points)[0], [5 * 2.0, 4 * 3.0, 3 * 5.0], atol=1)


def test_inspiration_makes_the_lungs_less_dense():
    levels, medians = [], []
    for seed in range(6):
        case = crop(seed, diseased=False, hardness=replace(EASY, inspiration=True))
        levels.append(case.facts["inspiration"])
        medians.append(np.median(case.hu[case.lung > 0]))
    assert np.corrcoef(levels, medians)[0, 1] > 0.8
    assert crop(0, hardness=EASY).facts["inspiration"] is None


def test_sites_are_balanced_in_every_list_and_do_not_depend_on_its_length():
    drawn = [site_of([7, 1], number) for number in range(40)]
    assert all(sorted(drawn[k : k + 4]) == ["A", "B", "C", "D"] for k in range(0, 40, 4))
    assert drawn != [site_of([7, 2], number) for number in range(40)]


def test_protocols_stay_in_the_ranges_of_their_site():
    rng = np.random.default_rng(0)
    for site in SITES.values():
        for _ in range(50):
            protocol = draw_protocol(rng, site)
            for value, (low, high) in (
                (protocol.slice_mm, site.slices), (protocol.blur, site.blur), (protocol.noise, site.noise)
            ):  # fmt: skip
                assert low <= value <= high
            assert abs(protocol.gain) <= site.gain
            assert abs(protocol.offset) <= site.offset


def test_thick_slices_are_means_and_are_interpolated():
    # Planes of 2 mm, slices of 8 mm from z = 0: each slice averages the linear interpolant over +-4 mm.
    mean, back = slice_matrices(17, 2.0, 8.0, 0.0)
    ramp = 5.0 * np.arange(17)
    np.testing.assert_allclose((mean @ ramp)[1:4], [20, 40, 60], atol=1e-9)
    np.testing.assert_allclose((back @ mean @ ramp)[4:13], ramp[4:13], atol=1e-9)
    spike = np.zeros(17)
    spike[8] = 1
    np.testing.assert_allclose(mean @ spike, [0, 0, 0.25, 0, 0], atol=0.01)
    thin, same = slice_matrices(5, 10.0, 1.0, 0.0)
    np.testing.assert_array_equal(same, np.eye(5))
    np.testing.assert_allclose(np.diag(thin)[1:-1], 1 - 1 / 40, atol=2e-3)


def test_noise_gain_and_offset_are_those_of_the_protocol():
    flat = np.full((12, 64, 64), 40.0, np.float32)
    flat[:, :32] = -1000
    protocol = Protocol(slice_mm=1.0, blur=0.5, edges=0.0, noise=30.0, gain=0.05, offset=12.0)
    site = Site((1, 1), (0.5, 0.5), (0, 0), (30, 30), 0.5, 0.05, 12.0)
    found = acquire(np.random.default_rng(0), flat, (2.0, 2.0, 5.0), site, protocol)
    tissue, air = found[:, 40:, :], found[:, :24, :]
    assert tissue.mean() == pytest.approx(-1000 + 1040 * 1.05 + 12, abs=1)
    assert tissue.std() == pytest.approx(30 * 1.05, rel=0.05)
    assert air.std() < 0.6 * tissue.std()


def test_confounders_are_alike_in_healthy_and_diseased_scans_and_can_be_weakened():
    rng = np.random.default_rng(0)
    body = draw_anatomy(rng)
    g = draw_pose(rng, body).crop_frame(body, SIZE)
    mask = np.ones(SIZE, np.uint8)
    depth = np.full(SIZE, 4.0, np.float32)

    def added(name, strength, seed=3):
        tissue = np.full(SIZE, -800, np.float32)
        lung = Lung(g, body, tissue, mask, depth, np.full(SIZE, 5.0, np.float32))
        for _ in range(4):
            CONFOUNDERS[name].add(np.random.default_rng(seed), lung, strength)
            seed += 1
        return tissue + 800

    for name in CONFOUNDERS:
        full, half = added(name, 1.0), added(name, 0.5)
        assert np.abs(full).sum() > 0, name
        assert np.abs(half).sum() < np.abs(full).sum(), name
        assert (full.min() >= 0) == (name != "emphysema")
    healthy = [crop(seed, diseased=False).facts["confounders"] for seed in range(6)]
    assert {name for names in healthy for name in names} > {"bands", "dependent density", "nodules"}
    assert crop(0, hardness=EASY).facts["confounders"] == []


def test_a_new_confounder_is_one_row(monkeypatch):
    def fill(rng, lung, strength):
        lung.tissue[:] = 7 * strength

    monkeypatch.setattr(confounders, "CONFOUNDERS", {"everything": Confounder(1.0, fill)})
    lung = Lung(None, None, np.zeros(SIZE, np.float32), None, None, None)
    assert add_confounders(np.random.default_rng(0), lung, 0.5) == ("everything",)
    assert (lung.tissue == 3.5).all()


def test_stages_have_their_kinds_and_shares():
    assert sum(share for share, _ in STAGES.values()) == pytest.approx(1)
    for _, kinds in STAGES.values():
        assert sum(kinds.values()) == pytest.approx(1)
        assert set(kinds) <= set(FILLINGS)
    rng = np.random.default_rng(0)
    drawn = [draw_patient(rng).stage for _ in range(2000)]
    for stage, (share, _) in STAGES.items():
        assert drawn.count(stage) / 2000 == pytest.approx(share, abs=0.04)
    assert draw_patient(rng, stages=False).stage is None
    patient = label_patient(rng)
    assert (patient.stage, patient.kinds) == ("progressive", {"ground glass": 1.0})


@pytest.mark.parametrize("kind", FILLINGS)
def test_lesions_fill_the_airspace_to_their_share(kind):
    """Half of the range of the share lies between 0 and 1 of the way from the patient's own lung to soft tissue."""
    rises = []
    for seed in range(4):
        with_lesion, without = (crop(seed, patient=p, hardness=EASY) for p in (Patient(None, {kind: 1.0}, 0.5), None))
        assert with_lesion.facts["kinds"] == [kind]
        core = with_lesion.lesion > 0
        lung = np.median(without.hu[without.lung > 0])
        rises.append((np.median(with_lesion.hu[core]) - lung) / (40 - lung))
    low, high = FILLINGS[kind].share
    assert 0.5 * low < np.mean(rises) < min(1, high + 0.15)


def test_a_new_filling_is_one_row(monkeypatch):
    monkeypatch.setitem(lesions.FILLINGS, "solid", Filling((1.0, 1.0), texture=0.0))
    case = crop(0, patient=Patient(None, {"solid": 1.0}, 0.5), hardness=EASY)
    assert case.facts["kinds"] == ["solid"]
    assert np.quantile(case.hu[case.lesion > 0], 0.75) > -50
