import numpy as np
import pytest

from evaluation.burden import measure_burden, severity


def scan():
    """Two lungs of 8 and 4 voxels, 2 of them of the lesion in the right one, 3 in the left one; 1 voxel beside them."""
    lungs = np.zeros((2, 3, 6), np.uint8)
    lungs[:, :2, :2] = 1
    lungs[:, :1, 4:] = 2
    lesion = np.zeros(lungs.shape, bool)
    lesion[0, 0, :2] = True
    lesion[0, 0, 4:] = lesion[1, 0, 4] = True
    lesion[1, 2, 3] = True
    hu = np.full(lungs.shape, -900, np.int16)
    hu[lesion] = [-500, -400, -300, -200, -100, 30]
    return lesion, lungs, hu


def test_numbers_of_a_scan_counted_by_hand():
    lesion, lungs, hu = scan()
    burden = measure_burden(lesion, lungs, hu, voxel_ml=0.5)
    assert burden.lesion_ml == 3.0  # 6 voxels, the one beside the lungs, too
    assert burden.lung_ml == 6.0
    assert burden.right_lung_percent == 25.0
    assert burden.left_lung_percent == 75.0
    assert burden.lesion_percent_of_lung == pytest.approx(100 * 5 / 12)
    assert burden.lesion_mean_hu == pytest.approx(-1470 / 6)
    assert burden.severity == "CT-3"  # of the left lung


def test_lung_of_no_known_side_counts_among_all_lung_and_one_lung_is_all():
    lesion, lungs, hu = scan()
    lungs[1, 0, 4] = 3
    burden = measure_burden(lesion, lungs, hu, 0.5)
    assert burden.lesion_percent_of_lung == pytest.approx(100 * 5 / 12)
    assert burden.left_lung_percent == pytest.approx(100 * 2 / 3)
    burden = measure_burden(lesion, (lungs > 0) * np.uint8(3), hu, 0.5)
    assert burden.right_lung_percent is burden.left_lung_percent is None
    assert burden.severity == "CT-2"  # 41.7 % of both
    lungs[lungs != 2] = 0
    burden = measure_burden(lesion, lungs, hu, 0.5)
    assert burden.right_lung_percent is None
    assert burden.left_lung_percent == burden.lesion_percent_of_lung == pytest.approx(100 * 2 / 3)


def test_no_lesion_and_no_lung():
    lesion, lungs, hu = scan()
    burden = measure_burden(np.zeros(lungs.shape, bool), lungs, hu, 0.5)
    assert (burden.lesion_ml, burden.lesion_percent_of_lung, burden.right_lung_percent) == (0, 0, 0)
    assert (burden.lesion_mean_hu, burden.severity) == (None, "CT-0")
    burden = measure_burden(lesion, np.zeros_like(lungs), hu, 0.5)
    assert (burden.lesion_ml, burden.lung_ml) == (3.0, 0)
    assert burden.lesion_percent_of_lung is burden.right_lung_percent is burden.severity is None


def test_the_mean_of_many_bright_voxels_does_not_overflow():
    lesion = np.ones((40, 40, 40), bool)
    hu = np.full(lesion.shape, 3071, np.int16)
    assert measure_burden(lesion, lesion.astype(np.uint8), hu, 1.0).lesion_mean_hu == 3071


@pytest.mark.parametrize(
    ("percent_of_lung", "grade"),
    [
        *((0, "CT-0"), (1e-9, "CT-1"), (25, "CT-1"), (25.001, "CT-2"), (50, "CT-2"), (50.001, "CT-3"), (75, "CT-3")),
        *((75.001, "CT-4"), (100, "CT-4"), (None, None)),
    ],
)
def test_grades_and_their_limits(percent_of_lung, grade):
    assert severity(percent_of_lung) == grade
