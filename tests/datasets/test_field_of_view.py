from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from datasets.lungs import segment_by_threshold
from tests.datasets.gas_phantoms import check, healthy, in_round_field, with_noise
from utils.errors import VolumeError

ALL = slice(None)


@pytest.mark.fault("a lung that the edge of the image cuts at the front")
@pytest.mark.parametrize(
    "box",
    [
        (ALL, ALL, slice(36, None)),
        (ALL, ALL, slice(0, -26)),
        (ALL, ALL, slice(26, -26)),
        (ALL, slice(31, None), ALL),
        (ALL, slice(26, 88), slice(26, -26)),
    ],
    ids=["most of the right", "left", "both", "front", "heart"],
)
def test_lung_cut_by_the_edge_of_the_image(box):
    scan = healthy(3)
    cut = scan.cut(*box)
    lost = [scan.ml(scan.lung == side) - scan.ml(cut.lung == side) for side in (1, 2)]
    assert max(lost) > 20
    check(cut, 0.975)


@pytest.mark.fault("a lung that the edge of the image cuts at the back")
@pytest.mark.parametrize("lost_mm", [3, 50])
def test_lung_cut_at_the_back_is_refused(lost_mm):
    scan = healthy(3)
    last = np.flatnonzero((scan.lung > 0).any((0, 2)))[-1]
    cut = scan.cut(ALL, slice(None, last + 1 - round(lost_mm / scan.spacing[1])), ALL)
    with pytest.raises(VolumeError, match=r"open to the back edge of the image.*--lungs lungmask"):
        segment_by_threshold(cut.image())


def test_lung_cut_in_a_noisy_scan():
    check(with_noise(healthy(5).cut(ALL, ALL, slice(26, None)), 40), 0.975)


@pytest.mark.parametrize("padding", [-1024, -2000])
def test_lung_cut_by_a_round_field_of_view(padding):
    scan = in_round_field(healthy(5), 110, padding)
    assert scan.ml(scan.lung) < 0.95 * scan.ml(healthy(5).lung)
    check(scan, 0.97)


def test_couch_and_air_around_the_body_are_no_lung():
    scan = healthy(3)
    outline = np.nonzero((scan.hu > -200).any(0).sum(0) > 20)[0]
    # The couch reaches the edges of this image; the body nearly does.
    tight = scan.cut(ALL, slice(8, -8), slice(max(0, outline[0] - 1), outline[-1] + 2))
    check(tight, 0.975)


@pytest.mark.fault("a CT cut out around the lungs")
@pytest.mark.parametrize("margin", [2, 5])
def test_filling_around_a_cut_out_is_no_chest_wall(margin):
    scan = healthy(3)
    hu = np.full_like(scan.hu, 40)
    for k in np.flatnonzero(scan.lung.any((1, 2))):
        y, x = (slice(i.min() - margin, i.max() + margin + 1) for i in np.nonzero(scan.lung[k]))
        hu[k, y, x] = np.pad(scan.hu[k, y, x][1:-1, 1:-1], 1, constant_values=-900)  # interpolated rims are dark
    check(replace(scan, hu=hu), 0.97)


@pytest.mark.fault("a CT cut out around the lungs")
def test_corners_of_a_rotated_ct_filled_with_0():
    scan = healthy(3)
    hu = ndimage.rotate(scan.hu, 25, (1, 2), reshape=False, order=1, cval=0)
    check(replace(scan, hu=hu, lung=ndimage.rotate(scan.lung, 25, (1, 2), reshape=False, order=0)), 0.97)


@pytest.mark.fault("HU that were estimated")
def test_air_around_the_body_is_no_lung_where_hu_are_estimated():
    scan = healthy(3)
    check(replace(scan, hu=0.93 * scan.hu), 0.98)  # air at -930
