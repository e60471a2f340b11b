import numpy as np
import pytest
from lungmask import utils as lungmask
from scipy import ndimage

from datasets.lungmask_steps import SIZE, body_boxes, clean, prepare_slice, resize_nearest


def body(rng, rows, columns):
    """A slice with noise, bodies of any shape, or none at all."""
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    plane = rng.normal(-900, 80, (rows, columns))
    for _ in range(rng.integers(0, 4)):
        (cy, cx), (ry, rx) = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.05, 0.9, 2)
        plane[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = rng.uniform(-1000, 900)
    return plane + rng.normal(0, 30, plane.shape)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_the_input_of_the_network_is_lungmasks(dtype):
    rng = np.random.default_rng(0)
    for shape in ((512, 512), (333, 480), (600, 768), (200, 200), (128, 100), (40, 300), (32, 17), (256, 1)):
        volume = np.stack([body(rng, *shape) for _ in range(12)]).astype(dtype)
        slices, boxes = lungmask.preprocess(volume, resolution=[SIZE, SIZE])
        slices[slices > 600] = 600
        expected = np.divide(slices + 1024, 1624).astype(np.float32)
        for plane, wanted, limits, box in zip(volume, expected, boxes, body_boxes(volume), strict=True):
            top, left, bottom, right = limits
            found = prepare_slice(plane[box])
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, wanted, err_msg=str(shape))
            assert plane[box].shape == plane[top:bottom, left:right].shape
            assert np.shares_memory(plane[box], plane[top:bottom, left:right])
            labels = rng.integers(0, 3, (SIZE, SIZE), np.uint8)
            full = np.zeros(plane.shape, np.uint8)
            full[box] = resize_nearest(labels, full[box].shape)
            np.testing.assert_array_equal(full, lungmask.reshape_mask(labels, limits, plane.shape))


def random_labels(rng):
    """Labels with specks, components of equal size, holes, and lungs that touch each other and the edges."""
    shape = tuple(rng.integers(2, 26, 3)) if rng.random() < 0.9 else (1, *rng.integers(4, 40, 2))
    labels = rng.choice(3, shape, p=rng.dirichlet((2, 1, 1)))
    if rng.random() < 0.7:
        smooth = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, *rng.uniform(0.5, 3, 3)))
        labels = smooth.argmax(0)
    labels[rng.random(shape) < rng.choice([0, 0.01, 0.1])] = rng.integers(0, 3)
    return labels.astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_labels_are_cleaned_as_lungmask_does(seed):
    rng = np.random.default_rng(seed)
    for _ in range(50):
        labels = random_labels(rng)
        expected = lungmask.postprocessing(labels.copy(), disable_tqdm=True)
        np.testing.assert_array_equal(clean(labels), expected)
    assert not clean(np.zeros((3, 9, 9), np.uint8)).any()
