import numpy as np
import pytest

from datasets.lungs import segment_by_threshold
from tests.datasets.gas_phantoms import (
    Scan,
    check,
    healthy,
    with_bulla,
    with_consolidated_base,
    with_gas,
    with_noise,
    with_pneumothorax,
)
from tests.volumes import dice


def check_gas_is_not_lung(scan: Scan, ml: float):
    assert scan.ml(scan.gas) > ml
    assert (check(scan)[scan.gas > 0.5] > 0).mean() < 0.02


def check_gas_is_lung(scan: Scan, ml: float):
    assert scan.ml(scan.gas) > ml
    assert (check(scan, 0.97)[scan.gas > 0.5] > 0).mean() > 0.99


@pytest.mark.fault("gas in stomach or bowel below")
@pytest.mark.parametrize(
    ("offset", "radius", "ml"),
    [((0, 25), 50, 250), ((30, 0), 50, 250), ((-30, 0), 45, 200), ((0, -20), 60, 500), ((0, 0), 25, 30)],
    ids=["lateral", "posterior", "anterior", "medial and large", "small"],
)
def test_gas_in_the_stomach_is_not_lung(offset, radius, ml):
    check_gas_is_not_lung(with_gas(healthy(3), 2, (radius,) * 3, offset), ml)


@pytest.mark.parametrize(("wall", "hu"), [(1.5, -1024.0), (4.0, -940.0)])
def test_gas_of_other_density_and_behind_another_wall(wall, hu):
    check_gas_is_not_lung(with_gas(healthy(5), 2, (50, 50, 50), (0, 10), wall, hu), 350)


def test_gas_in_a_noisy_scan():
    check_gas_is_not_lung(with_noise(with_gas(healthy(5), 2, (50, 50, 50)), 60), 350)


@pytest.mark.parametrize("radii", [(22, 60, 30), (30, 40, 75)], ids=["along", "across"])
def test_colon_between_liver_and_diaphragm_is_not_lung(radii):
    check_gas_is_not_lung(with_gas(healthy(3), 1, radii, (-15, 0)), 80)


def test_gas_below_a_consolidated_base_costs_no_lung():
    consolidated = with_consolidated_base(healthy(5), 2, 10)
    without = segment_by_threshold(consolidated.image())
    labels = segment_by_threshold(with_gas(consolidated, 2, (50, 50, 50), (0, 10)).image())
    left = consolidated.lung == 2
    assert dice(labels == 2, left) > dice(without == 2, left) - 0.002
    assert (labels[left] == 2).mean() > (without[left] == 2).mean() - 0.002


@pytest.mark.parametrize(
    ("side", "place", "radius"),
    [(1, (0.8, 0.5, 0.5), 60), (2, (0.08, 0.85, 0.5), 35), (1, (0.3, 0.4, 0.5), 40), (2, (0.2, 0.5, 0.5), 60)],
    ids=["apex", "posterior base", "middle base", "giant, at the base"],
)
def test_bullae_are_lung(side, place, radius):
    check_gas_is_lung(with_bulla(healthy(3), side, place, radius), 40)


def test_pneumothorax_is_lung():
    check_gas_is_lung(with_pneumothorax(healthy(3), 1, 60), 300)


def test_emphysema_is_lung():
    scan = healthy(5)
    hu = np.where(scan.lung > 0, np.maximum(scan.hu - 110, -1000), scan.hu)
    check(Scan(hu, scan.lung, scan.gas, scan.spacing))
