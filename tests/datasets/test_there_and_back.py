"""Properties of cropping and pasting back that hold for every scan, drawn by hypothesis."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.crop import LINEAR, NEAREST, paste_back
from datasets.geometry import image_like, located, shape_of
from tests.volumes import crop_to_box, rotation
from tests.volumes import geometry as geometry_of

AXES = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in itertools.product([1, -1], repeat=3)
]
"""The 48 ways in which the axes of a volume can lie along those of the patient; 24 of them are left-handed."""

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
size = st.integers(2, 14)
spacing = st.floats(0.2, 8, allow_subnormal=False)
origin = st.floats(-2000, 2000)
angle = st.floats(-0.6, 0.6).map(lambda a: round(a, 9))  # ITK answers subnormal cosines with NaN
seed = st.integers(0, 2**32 - 1)


@st.composite
def geometries(draw, turned=True):
    """Geometries of any size and spacing, along any axes, turned by less than 45 degrees."""
    turn = rotation(*(draw(angle) for _ in range(3))) if turned else np.eye(3)
    direction = turn @ draw(st.sampled_from(AXES))
    return located(
        np.zeros(draw(st.tuples(size, size, size)), np.uint8),
        draw(st.tuples(spacing, spacing, spacing)),
        draw(st.tuples(origin, origin, origin)),
        direction.ravel().tolist(),
    )


@st.composite
def boxes(draw, shape):
    """Boxes of at least two voxels along each axis inside a shape."""
    box = []
    for length in shape:
        start = draw(st.integers(0, length - 2))
        box.append(slice(start, draw(st.integers(start + 2, length))))
    return tuple(box)


@pytest.mark.fault("the 48 orientations")
@few
@given(geometries(), st.data(), seed)
def test_a_mask_at_crop_resolution_comes_back_exactly(geometry, data, seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape_of(geometry)) < 0.4).astype(np.uint8)
    scan = sitk.DICOMOrient(image_like(geometry, mask), "LPS")
    box = data.draw(boxes(scan.GetSize()[::-1]))
    own_size = tuple(s.stop - s.start for s in box)
    only_box = np.zeros(scan.GetSize()[::-1], np.uint8)
    only_box[box] = sitk.GetArrayViewFromImage(scan)[box]
    expected = image_like(scan, only_box)
    for threshold, order in ((None, NEAREST), (0.5, LINEAR)):
        image = sitk.Cast(scan, sitk.sitkFloat32) if threshold is not None else scan
        back = paste_back(crop_to_box(image, box, own_size, order), geometry, threshold)
        assert geometry_of(back) == geometry_of(geometry)
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(sitk.DICOMOrient(back, "LPS")), sitk.GetArrayFromImage(expected)
        )
