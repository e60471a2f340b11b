import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from datasets.phantom.__main__ import main
from datasets.phantom.lesions import MIN_LESION_ML, Patient
from datasets.phantom.make import make_phantom, write_phantoms
from tests.volumes import geometry, pixels

SIZE = (32, 96, 96)


def make(seed, size=(20, 48, 48), diseased=True, *more):
    return make_phantom(np.random.default_rng(seed), size, diseased, *more)


def ml(mask, spacing):
    return float((mask > 0).sum() * np.prod(spacing) / 1000)


@pytest.fixture(scope="module")
def cases():
    return {(seed, diseased): make(seed, SIZE, diseased) for seed in range(2) for diseased in (False, True)}


def test_masks_are_nested_and_typed_and_only_diseased_phantoms_have_lesions(cases):
    for (_, diseased), case in cases.items():
        assert (case.ct.dtype, case.lung.dtype, case.lesion.dtype) == (np.int16, np.uint8, np.uint8)
        assert case.ct.shape == case.lung.shape == case.lesion.shape == SIZE
        assert set(np.unique(case.lung)) == {0, 1, 2}
        assert set(np.unique(case.lesion)) <= {0, 1}
        assert not case.lesion[case.lung == 0].any()
        assert -1024 <= case.ct.min() < case.ct.max() <= 3071
        volume = ml(case.lesion, case.spacing)
        assert volume >= MIN_LESION_ML if diseased else volume == 0


def test_geometry_is_that_of_a_chest_ct(cases):
    for case in cases.values():
        x, y, z = np.array(case.spacing) * SIZE[::-1]
        assert 300 <= x <= 380
        assert y == pytest.approx(x)
        assert 240 <= z <= 320
        assert 2500 <= ml(case.lung, case.spacing) <= 6500
        assert all(ml(case.lung == label, case.spacing) >= 900 for label in (1, 2))
        # The right lung lies at low x, the back at high y, the head at high z.
        assert np.nonzero(case.lung == 1)[2].mean() < np.nonzero(case.lung == 2)[2].mean() - 20
        spread = [np.ptp(np.nonzero(case.lung[k])[1]) if case.lung[k].any() else 0 for k in range(SIZE[0])]
        assert max(spread[SIZE[0] * 3 // 4 :]) < max(spread[: SIZE[0] * 3 // 4])
        assert np.nonzero((case.ct > 180) & (case.lung == 0))[1].mean() > SIZE[1] / 2  # bone


def test_healthy_lung_has_the_measured_statistics_is_denser_at_the_back_and_has_vessels(cases):
    for case in (cases[seed, False] for seed in range(2)):
        inside = case.ct[case.lung > 0]
        assert -800 < np.median(inside) < -680
        assert 85 < inside.std() < 180
        assert 0.01 < (inside > -500).mean() < 0.12
        inner = ndimage.binary_erosion(case.lung > 0, np.ones((3, 3, 3)))  # no partial volume
        y, values = np.nonzero(inner)[1], case.ct[inner]
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
    found = [make(seed, (28, 104, 104), True, Patient({kind: 1.0}, 0.5)) for seed in (101, 103, 104)]
    assert [case.facts["kinds"] for case in found] == 3 * [[kind]]
    values = np.concatenate([case.ct[case.lesion > 0] for case in found])
    assert mean[0] < values.mean() < mean[1]
    assert sd[0] < values.std() < sd[1]


@pytest.mark.parametrize("size", [(16, 16, 16), (20, 33, 47), (17, 90, 40)])
def test_any_matrix_size(size):
    for diseased in (False, True):
        case = make(3, size, diseased, Patient({"bands": 1.0}, 0.5))
        assert case.ct.shape == size
        assert case.lesion.any() == diseased
        assert case.facts["kinds"] == (["bands"] if diseased else [])
        assert set(np.unique(case.lung)) == {0, 1, 2}
    with pytest.raises(ValueError, match="at least 16"):
        make(0, (8, 64, 64))


def test_a_case_does_not_depend_on_how_many_are_made_and_finished_ones_are_kept(tmp_path):
    size = (16, 32, 32)
    assert write_phantoms(tmp_path / "few", 0, 2, size, 9) == ["diseased_000", "diseased_001"]
    names = write_phantoms(tmp_path / "more", 1, 3, size, 9)
    assert names == ["healthy_000", "diseased_000", "diseased_001", "diseased_002"]
    for part in ("ct", "lung", "lesion"):
        few, more = (sitk.ReadImage(tmp_path / folder / part / "diseased_001.nii.gz") for folder in ("few", "more"))
        np.testing.assert_array_equal(pixels(few), pixels(more))
        assert geometry(few) == geometry(more)
        middle = few.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in few.GetSize()])
        np.testing.assert_allclose(middle, 0, atol=1e-3)
    assert not pixels(tmp_path / "more/lesion/healthy_000.nii.gz").any()
    kept, lost = tmp_path / "few/ct/diseased_000.nii.gz", tmp_path / "few/lung/diseased_001.nii.gz"
    before = kept.stat().st_mtime_ns
    whole = lost.read_bytes()
    lost.unlink()
    write_phantoms(tmp_path / "few", 0, 2, size, 9)
    assert kept.stat().st_mtime_ns == before
    assert len(lost.read_bytes()) == len(whole)


def test_command_writes_quietly_and_refuses_numbers_out_of_range(tmp_path, ends):
    arguments = [str(tmp_path), "--healthy", "1", "--diseased", "0", "--size", "16", "32", "32", "--quiet"]
    command = [sys.executable, "-m", "datasets.phantom", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
    assert (tmp_path / "ct/healthy_000.nii.gz").exists()
    for option, values in (("--healthy", ["-1"]), ("--seed", ["-1"]), ("--size", ["8", "32", "32"])):
        ends(2, partial(main, [*arguments, option, *values]), option)
