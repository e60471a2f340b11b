import cv2
import imgaug.augmenters as iaa
import numpy as np
import pytest
import torch
from imgaug.augmentables.segmaps import SegmentationMapsOnImage

from datasets.augment import NOISE, augment, build_augmenter
from datasets.device_augment import (
    BORDERS,
    Blur,
    Warp,
    affine,
    augment_on_device,
    average,
    draw,
    gaussian,
    mirrored,
    perspective,
)

IMGAUG_MODES = {
    "black": "constant",
    "edge": "edge",
    "mirror": "reflect",
    "mirror with edge": "symmetric",
    "other side": "wrap",
}


@pytest.fixture(scope="module")
def smooth():
    """Slices of (48, 64): waves, no two alike, between 0.1 and 0.9."""
    y, x = np.mgrid[:48, :64]
    slices = [0.5 + 0.4 * np.sin(x / (6 + n) + n) * np.cos(y / 7 - n) for n in range(3)]
    return np.stack(slices).astype(np.float32)


@pytest.fixture(scope="module")
def disc():
    """Slices of (160, 160) that are all alike: a disc, off the middle."""
    y, x = np.mgrid[:160, :160]
    return np.repeat(((y - 60) ** 2 + (x - 55) ** 2 < 30**2).astype(np.uint8)[None], 4, 0)


def applied(transform, *arrays):
    return [volume.numpy() for volume in transform(tuple(torch.from_numpy(array) for array in arrays))]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("linear", [True, False])
def test_affine_is_that_of_imgaug(smooth, border, linear):
    mask = (smooth > 0.5).astype(np.int32)
    published = iaa.Affine(scale={"x": 1.05, "y": 1.01}, rotate=5, order=int(linear), mode=IMGAUG_MODES[border])
    maps = SegmentationMapsOnImage(np.moveaxis(mask, 0, -1), shape=smooth.shape[1:])
    image, maps = published(image=np.ascontiguousarray(np.moveaxis(smooth, 0, -1)), segmentation_maps=maps)
    ours, our_mask = applied(affine((1.05, 1.01), 5, smooth.shape[1:], linear, border), smooth, mask)
    difference = np.abs(ours - np.moveaxis(image, -1, 0))
    # OpenCV rounds places to 1/32 of a voxel, which changes values at a black border by up to 1/64; a nearest voxel may
    # be another.
    assert np.mean(difference > 0.017) < (0.0005 if linear else 0.01)
    assert np.mean(our_mask != np.moveaxis(maps.arr, -1, 0)) < 0.01
    # And not by doing nothing.
    assert np.mean(np.abs(ours - smooth)) > 0.03


def test_perspective_stretches_a_quadrilateral_over_the_slice():
    height, width = 48, 64
    insets = np.array([[0.05, 0.01], [0.02, 0.06], [0.03, 0.0], [0.0, 0.04]])
    corners = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    inner = corners + np.float32([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * insets * [width, height]
    matrix = cv2.getPerspectiveTransform(corners, inner.astype(np.float32))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    centres = np.stack([x, y], -1).reshape(1, -1, 2) + 0.5
    expected = (cv2.perspectiveTransform(centres, matrix) - 0.5).reshape(height, width, 2)
    found_x, found_y = applied(perspective(insets, (height, width)), np.stack([x, y]))[0]
    inside = np.s_[2:-2, 3:-3]
    np.testing.assert_allclose(found_x[inside], expected[..., 0][inside], atol=1e-3)
    np.testing.assert_allclose(found_y[inside], expected[..., 1][inside], atol=1e-3)


def test_perspective_is_about_that_of_imgaug(smooth):
    # imgaug resamples twice, to the size of the quadrilateral and back to that of the slice.
    published = iaa.PerspectiveTransform(scale=0.03, seed=3)
    drawn = published.deepcopy()._draw_samples([smooth.shape[1:]], published.random_state.copy().advance_().copy())
    height, width = smooth.shape[1:]
    matrix, size = np.linalg.inv(drawn.matrices[0]), (drawn.max_widths[0], drawn.max_heights[0])
    ends = np.float32([[[0, 0], [size[0], 0], size, [0, size[1]]]])
    inner = cv2.perspectiveTransform(ends, matrix)[0]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    insets = np.abs(inner - corners) / [width, height]
    image = np.moveaxis(published(image=np.ascontiguousarray(np.moveaxis(smooth, 0, -1))), -1, 0)
    ours = applied(perspective(insets, (height, width)), smooth)[0]
    inside = np.s_[:, 3:-3, 3:-3]
    moved = np.abs(image - smooth)[inside].mean()
    assert moved > 0.02
    assert np.abs(ours - image)[inside].mean() < moved / 4


@pytest.mark.parametrize("sigma", [0.3, 0.8])
def test_gaussian_blur_is_that_of_opencv(smooth, sigma):
    ours, mask = applied(gaussian(sigma), smooth, smooth)
    for one, other in zip(ours, smooth, strict=True):
        np.testing.assert_allclose(one, cv2.GaussianBlur(other, (5, 5), sigma), atol=1e-6)
    assert mask is not None
    np.testing.assert_array_equal(mask, smooth)


@pytest.mark.parametrize("width", [2, 3])
def test_average_blur_is_that_of_opencv(smooth, width):
    for one, other in zip(applied(average(width), smooth)[0], smooth, strict=True):
        np.testing.assert_allclose(one, cv2.blur(other, (width, width)), atol=1e-6)


@pytest.mark.parametrize("blur", [average(0), average(1), gaussian(0), gaussian(1e-4)])
def test_blurs_of_no_width_change_nothing(smooth, blur):
    np.testing.assert_array_equal(applied(blur, smooth)[0], smooth)


def test_the_published_elastic_transformation_changes_nothing(smooth):
    elastic = iaa.ElasticTransformation(alpha=0.4, sigma=0.0005)
    image = np.ascontiguousarray(np.moveaxis(smooth, 0, -1))
    for seed in range(5):
        elastic.seed_(seed)
        np.testing.assert_array_equal(elastic(image=image.copy()), image)


def test_transforms_are_drawn_as_often_as_published():
    drawn = [draw(np.random.default_rng(seed), (160, 160)) for seed in range(2000)]
    flips = sum(mirrored in transforms for transforms in drawn) / 2000
    blurs = sum(any(isinstance(t, Blur) for t in transforms) for transforms in drawn) / 2000
    warps = sum(sum(isinstance(t, Warp) for t in transforms) for transforms in drawn) / 2000
    # Four standard deviations: 0.045, 0.036, 0.05.
    assert abs(flips - 0.5) < 0.045
    assert abs(blurs - 0.2) < 0.036
    assert abs(warps - 0.4) < 0.05
    first = [transforms[0] is mirrored for transforms in drawn if len(transforms) > 1 and mirrored in transforms]
    # In random order: of two transforms, the flip is the first half of the time, of three a third.
    assert 0.35 < np.mean(first) < 0.55


def test_samples_have_the_statistics_of_the_published_pipeline(disc):
    augmenter, count, apart = build_augmenter(), 400, []
    image = 0.2 + 0.6 * disc.astype(np.float32)

    def facts(image, mask):
        apart.append(((image > 0.5) != mask).mean())
        return (
            np.array_equal(mask, disc) or np.array_equal(mask, disc[..., ::-1]),
            np.argwhere(mask).mean(0)[2] > 80,
            (image < 0.1).mean(),
            mask.mean(),
            np.argwhere(mask).mean(0)[1],
            image[:, 90:110, 100:120].std(),
        )

    published = [facts(*augment(augmenter, np.random.default_rng(seed), image, disc)) for seed in range(count)]
    arrays = torch.from_numpy(image), torch.from_numpy(disc)
    ours = [facts(*(a.numpy() for a in augment_on_device(np.random.default_rng(n), *arrays))) for n in range(count)]
    means, spreads = np.mean([published, ours], axis=1), np.std([published, ours], axis=1)
    error = np.sqrt((spreads**2).sum(0) / count)
    assert (np.abs(means[0] - means[1]) < 4 * error + 1e-9).all(), (means, error)
    # What is compared varies, so that a difference would show.
    assert (spreads[0] > 0).all()
    # imgaug's perspective moves image and mask apart by up to half a voxel; ours keeps them together.
    assert np.mean(apart[count:]) < np.mean(apart[:count])


def test_image_and_masks_move_together(disc):
    image = torch.from_numpy(0.2 + 0.6 * disc.astype(np.float32))
    for seed in range(60):
        moved, mask, rest = augment_on_device(
            np.random.default_rng(seed), image, torch.from_numpy(disc), 1 - torch.from_numpy(disc)
        )
        assert moved.shape == mask.shape == image.shape
        assert moved.min() >= 0
        assert moved.max() <= 1
        bright = moved > 0.5
        assert 2 * (bright & (mask == 1)).sum() / (bright.sum() + mask.sum()) > 0.95, seed
        assert not (mask & rest).any()


def test_a_sample_depends_on_its_generator_alone(disc):
    image = torch.from_numpy(disc).float() / 2
    torch.manual_seed(0)
    before = [augment_on_device(np.random.default_rng(seed), image)[0] for seed in range(5)]
    torch.manual_seed(1)
    for seed in reversed(range(5)):
        assert torch.equal(augment_on_device(np.random.default_rng(seed), image)[0], before[seed])
    assert len({volume.numpy().tobytes() for volume in before}) == 5


def test_the_noise_is_uniform_and_comes_first():
    flat = torch.full((2, 64, 64), 0.5)
    spreads = [(augment_on_device(np.random.default_rng(s), flat)[0] - 0.5)[:, 24:40, 24:40].std() for s in range(200)]
    spreads = np.array(spreads) / (NOISE / np.sqrt(3))
    assert 0.15 < np.mean(spreads < 0.9) < 0.5
    assert spreads.max() < 1.1
