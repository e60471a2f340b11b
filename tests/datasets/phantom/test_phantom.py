import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from datasets.phantom import FILLINGS, MIN_LESION_ML, Patient, lesions, make_phantom, write_phantoms
from datasets.phantom.__main__ import main
from datasets.phantom.lesions import Filling
from datasets.phantom.make import SCANNER
from utils.errors import SettingsError

SIZE = (32, 96, 96)


def _make(seed, size=(20, 48, 48), diseased=True):
    return make_phantom(np.random.default_rng(seed), size, diseased)


@pytest.fixture(scope="module")
def cases():
    return {(seed, diseased): _make(seed, SIZE, diseased) for seed in range(3) for diseased in (False, True)}


def _millilitres(mask, spacing):
    return float((mask > 0).sum() * np.prod(spacing) / 1000)


def test_same_state_gives_the_same_bits_and_another_seed_another_body():
    first, again, other = _make(5), _make(5), _make(6)
    assert first.spacing == again.spacing
    for name in ("ct", "lung", "lesion"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.ct != other.ct).mean() > 0.5


def test_masks_are_nested_and_typed(cases):
    for case in cases.values():
        assert case.ct.dtype == np.int16
        assert case.lung.dtype == np.uint8
        assert case.lesion.dtype == np.uint8
        assert case.ct.shape == case.lung.shape == case.lesion.shape == SIZE
        assert set(np.unique(case.lung)) == {0, 1, 2}
        assert set(np.unique(case.lesion)) <= {0, 1}
        assert not (case.lesion.astype(bool) & (case.lung == 0)).any()
        assert case.ct.min() >= -1024
        assert case.ct.max() <= 3071


def test_only_diseased_phantoms_have_lesions(cases):
    for (_, diseased), case in cases.items():
        volume = _millilitres(case.lesion, case.spacing)
        assert volume >= MIN_LESION_ML if diseased else volume == 0


def test_geometry_is_that_of_a_chest_ct(cases):
    for case in cases.values():
        x, y, z = np.array(case.spacing) * SIZE[::-1]
        assert 300 <= x <= 380
        assert y == pytest.approx(x)
        assert 240 <= z <= 320
        assert 2500 <= _millilitres(case.lung, case.spacing) <= 6500
        for label in (1, 2):
            assert _millilitres(case.lung == label, case.spacing) >= 900
        # The right lung lies at low x, the back at high y, the head at high z.
        assert np.nonzero(case.lung == 1)[2].mean() < np.nonzero(case.lung == 2)[2].mean() - 20
        spread = [np.ptp(np.nonzero(case.lung[k])[1]) if case.lung[k].any() else 0 for k in range(SIZE[0])]
        assert max(spread[SIZE[0] * 3 // 4 :]) < max(spread[: SIZE[0] * 3 // 4])
        bone = (case.ct > 180) & (case.lung == 0)
        assert np.nonzero(bone)[1].mean() > SIZE[1] / 2


def test_healthy_lung_has_the_measured_statistics(cases):
    for (_, diseased), case in cases.items():
        if not diseased:
            inside = case.ct[case.lung > 0]
            assert -800 < np.median(inside) < -680
            assert 85 < inside.std() < 180


def test_lung_is_denser_at_the_back(cases):
    for (_, diseased), case in cases.items():
        if not diseased:
            inner = ndimage.binary_erosion(case.lung > 0, np.ones((3, 3, 3)))  # no partial volume
            _, y, _ = np.nonzero(inner)
            values = case.ct[inner]
            front, back = np.quantile(y, [0.25, 0.75])
            assert np.median(values[y > back]) > np.median(values[y < front]) + 10


@pytest.mark.parametrize(
    ("kind", "mean", "sd"),
    [
        ("ground glass", (-560, -320), (100, 190)),
        ("crazy paving", (-500, -200), (110, 190)),
        ("consolidation", (-320, -80), (120, 235)),
    ],
)
def test_lesions_have_the_measured_statistics(kind, mean, sd):
    values = []
    for seed in (101, 103, 104):
        case = make_phantom(np.random.default_rng(seed), (28, 104, 104), patient=Patient(None, {kind: 1.0}, 0.5))
        values.append(case.ct[case.lesion > 0])
    values = np.concatenate(values)
    assert mean[0] < values.mean() < mean[1]
    assert sd[0] < values.std() < sd[1]


def test_vessels_show_as_bright_branches_in_the_healthy_lung(cases):
    case = cases[0, False]
    bright = ((case.ct > -500) & (case.lung > 0)).sum() / (case.lung > 0).sum()
    assert 0.01 < bright < 0.12


@pytest.mark.parametrize("size", [(24, 48, 48), (16, 16, 16), (20, 33, 47), (17, 90, 40)])
def test_any_matrix_size(size):
    for diseased in (False, True):
        case = _make(3, size, diseased)
        assert case.ct.shape == size
        assert case.lesion.any() == diseased
        assert set(np.unique(case.lung)) == {0, 1, 2}


def test_too_small_a_matrix_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        _make(0, (8, 64, 64))


def test_a_case_does_not_depend_on_how_many_are_made(tmp_path):
    size = (16, 32, 32)
    assert write_phantoms(tmp_path / "few", 0, 2, size, 9, False) == ["diseased_000", "diseased_001"]
    names = write_phantoms(tmp_path / "more", 1, 3, size, 9, False)
    assert names == ["healthy_000", "diseased_000", "diseased_001", "diseased_002"]
    for part in ("ct", "lung", "lesion"):
        name = f"{part}/diseased_001.nii.gz"
        few, more = (sitk.ReadImage(str(tmp_path / folder / name)) for folder in ("few", "more"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(few), sitk.GetArrayFromImage(more))
        assert few.GetSpacing() == more.GetSpacing()
        middle = few.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in few.GetSize()])
        np.testing.assert_allclose(middle, 0, atol=1e-3)
        assert few.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "more/lesion/healthy_000.nii.gz"))).any()


def test_finished_cases_are_kept(tmp_path):
    size = (16, 32, 32)
    write_phantoms(tmp_path, 0, 2, size, 1, False)
    kept, lost = tmp_path / "ct/diseased_000.nii.gz", tmp_path / "lung/diseased_001.nii.gz"
    before = kept.stat().st_mtime_ns
    whole = lost.read_bytes()
    lost.unlink()
    write_phantoms(tmp_path, 0, 2, size, 1, False)
    assert kept.stat().st_mtime_ns == before
    assert len(lost.read_bytes()) == len(whole)


def test_command_writes_quietly_and_explains_itself(tmp_path, capsys):
    arguments = ["--healthy", "1", "--diseased", "0", "--size", "16", "32", "32", "--quiet"]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "datasets.phantom", str(tmp_path), *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == done.stderr == ""
    assert (tmp_path / "ct/healthy_000.nii.gz").exists()
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "Examples:" in capsys.readouterr().out
    for arguments in (["--healthy", "-1"], ["--healthy", "1", "--size", "8", "32", "32"]):
        with pytest.raises(SettingsError, match="--size" if "--size" in arguments else "--healthy"):
            main([str(tmp_path), *arguments, "--diseased", "0"])


def test_a_patient_says_which_lesions_there_are():
    only = Patient(None, {"crazy paving": 1.0}, 0.5)
    assert make_phantom(np.random.default_rng(2), (24, 64, 64), True, only).kinds == ("crazy paving",)
    assert make_phantom(np.random.default_rng(2), (16, 32, 32), False, only).kinds == ()


def test_a_scanner_changes_noise_and_sharpness():
    def muscle(**changes):
        case = make_phantom(np.random.default_rng(4), (24, 64, 64), False, scanner=replace(SCANNER, **changes))
        return case.ct.astype(float)

    quiet, loud = (muscle(noise=(sd, sd)) for sd in (1.0, 80.0))
    # The same anatomy and the same pattern of noise: what differs is 79 HU of it inside the body.
    inside = quiet > 20
    assert (loud - quiet)[inside].std() == pytest.approx(79, rel=0.1)
    sharp, smooth = (muscle(blur=(mm, mm), noise=(1.0, 1.0)) for mm in (0.2, 4.0))
    assert np.abs(np.diff(smooth, axis=2)).mean() < 0.8 * np.abs(np.diff(sharp, axis=2)).mean()


def test_a_new_kind_of_lesion_is_one_row_of_the_table(monkeypatch):
    monkeypatch.setitem(lesions.FILLINGS, "rock", Filling((1.0, 1.0), texture=0.0))
    plain = replace(SCANNER, blur=(0.1, 0.1), noise=(1.0, 1.0))
    rock = Patient(None, {"rock": 1.0}, 1.0)
    case = make_phantom(np.random.default_rng(3), (20, 64, 64), True, rock, plain)
    assert case.kinds == ("rock",)
    assert "rock" in FILLINGS
    assert np.quantile(case.ct[ndimage.binary_erosion(case.lesion > 0)], 0.25) > -60
