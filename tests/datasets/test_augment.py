import numpy as np
import pytest

from datasets.augment import NOISE, augment, build_augmenter


@pytest.fixture(scope="module")
def augmenter():
    return build_augmenter()


@pytest.fixture(scope="module")
def volume():
    """Slices that are all alike: a bright disc, off the middle."""
    y, x = np.mgrid[:64, :64]
    disc = ((y - 24) ** 2 + (x - 22) ** 2 < 12**2).astype(np.uint8)
    return np.repeat(disc[None], 4, 0)


def drawn(augmenter, volume, seed, *masks):
    return augment(augmenter, np.random.default_rng(seed), 0.2 + 0.6 * volume.astype(np.float32), volume, *masks)


def test_image_and_mask_move_together(augmenter, volume):
    for seed in range(60):
        image, mask = drawn(augmenter, volume, seed)
        bright = image > 0.5
        overlap = 2 * (bright & (mask == 1)).sum() / (bright.sum() + mask.sum())
        assert overlap > 0.9, seed


def test_all_slices_are_alike_but_for_the_noise(augmenter, volume):
    for seed in range(20):
        image, mask = drawn(augmenter, volume, seed)
        assert (mask == mask[:1]).all()
        assert np.abs(image - image[:1]).max() <= 2 * NOISE + 1e-6


def test_a_sample_depends_on_its_generator_alone(augmenter, volume):
    # What was drawn before, and with which augmenter, does not matter.
    for seed in range(60):
        for a, b in zip(drawn(augmenter, volume, seed), drawn(build_augmenter(), volume, seed), strict=True):
            np.testing.assert_array_equal(a, b)


def test_every_draw_is_another_one(augmenter, volume):
    images = {drawn(augmenter, volume, seed)[0].tobytes() for seed in range(30)}
    assert len(images) == 30


def test_types_and_ranges(augmenter, volume):
    image, first, second = drawn(augmenter, volume, 0, 1 - volume)
    assert (image.dtype, first.dtype, second.dtype) == (np.float32, np.uint8, np.uint8)
    assert image.shape == first.shape == second.shape == volume.shape
    for seed in range(20):
        image, first, second = drawn(augmenter, 1 - volume, seed, volume)
        assert image.min() >= 0
        assert image.max() <= 1
        assert set(np.unique(first)) <= {0, 1}
        # Two masks that share no voxel still do not.
        assert not (first & second).any()


def test_the_flip_is_drawn_half_of_the_time_and_most_samples_are_not_warped(augmenter, volume):
    flipped = volume[:, :, ::-1]
    exact, mirrored = 0, 0
    for seed in range(200):
        _, mask = drawn(augmenter, volume, seed)
        exact += np.array_equal(mask, volume)
        mirrored += np.array_equal(mask, flipped)
    # Affine, elastic and perspective are left out together with probability 0.8^3 = 0.51; elastic moves a mask by
    # less than a voxel, so that up to 0.8^2 = 0.64 stay as they are. Four standard deviations are 0.14.
    assert 0.37 < (exact + mirrored) / 200 < 0.78
    assert 0.35 < mirrored / (exact + mirrored) < 0.65


def test_the_noise_is_uniform_within_its_width(augmenter):
    flat = np.full((4, 64, 64), 0.5, np.float32)
    # A constant image shows no blur; elastic and affine may fill the border with 0.
    noise = np.concatenate(
        [augment(augmenter, np.random.default_rng(k), flat)[0][:, 24:40, 24:40].ravel() - 0.5 for k in range(20)]
    )
    assert np.abs(noise).max() <= NOISE + 1e-6
    assert noise.std() == pytest.approx(NOISE / np.sqrt(3), rel=0.03)
    assert abs(noise.mean()) < 1e-4
