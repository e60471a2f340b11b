import numpy as np
import pytest

from datasets.augment import NOISE, augment, build_affine, build_augmenter, shift


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
        # The weights of cubic interpolation have an absolute sum of up to 1.25 along each axis.
        assert np.abs(image - image[:1]).max() <= 1.25**2 * 2 * NOISE + 1e-6


def test_a_sample_depends_on_its_generator_alone(augmenter, volume):
    # What was drawn before, and with which augmenter, does not matter.
    for seed in range(60):
        for a, b in zip(drawn(augmenter, volume, seed), drawn(build_augmenter(), volume, seed), strict=True):
            np.testing.assert_array_equal(a, b)


def test_every_draw_is_another_one(augmenter, volume):
    images = {drawn(augmenter, volume, seed)[0].tobytes() for seed in range(30)}
    assert len(images) == 30


@pytest.mark.filterwarnings("error")
def test_a_stack_of_the_published_size_causes_no_warning(augmenter):
    augment(augmenter, np.random.default_rng(0), np.zeros((32, 64, 64), np.float32), np.zeros((32, 64, 64), np.uint8))


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


def test_the_noise_is_drawn_first_and_warped_with_the_image(augmenter):
    flat = np.full((2, 64, 64), 0.5, np.float32)
    untouched, mirrored, spreads = 0, 0, []
    for seed in range(300):
        noise = np.random.default_rng(seed).uniform(-NOISE, NOISE, flat.shape)
        found = augment(augmenter, np.random.default_rng(seed), flat)[0] - 0.5
        untouched += np.abs(found - noise).max() < 1e-6
        mirrored += np.abs(found - noise[:, :, ::-1]).max() < 1e-6
        spreads.append(found[:, 24:40, 24:40].std() / (NOISE / np.sqrt(3)))
    # No warp or blur with probability 0.8^4 = 0.41; average blur of 0 or 1, Gaussian blur of almost 0 and elastic with
    # almost no displacement leave the noise as it is, too. Half of these are flips. Four standard deviations are 0.11.
    assert 0.35 < (untouched + mirrored) / 300 < 0.75
    assert 0.35 < mirrored / (untouched + mirrored) < 0.65
    # Blur and interpolation average over neighbours: where noise came last, its spread would always be 1.
    assert 0.15 < np.mean(np.array(spreads) < 0.9) < 0.5
    assert max(spreads) < 1.1


def test_the_fill_of_the_affine_is_drawn_from_all_modes():
    affine, white = build_affine(), np.ones((1, 160, 160), np.float32)
    black, mask_black = [], []
    for seed in range(400):
        image, mask = augment(affine, np.random.default_rng(seed), white, white.astype(np.uint8))
        black.append((image < 0.5).mean())
        mask_black.append((mask == 0).mean())
    # 71 % of the draws move something in over the border, 0.77 % of the slice in the mean over all; a fifth of them is
    # filled with black. Four standard deviations of a share of 400 draws are 0.07 to 0.09. The mask's fill is always 0.
    assert 0.08 < np.mean(np.array(black) > 0) < 0.23
    assert 0.0007 < np.mean(black) < 0.003
    assert 0.6 < np.mean(np.array(mask_black) > 0) < 0.82
    assert 0.005 < np.mean(mask_black) < 0.011


def test_other_fills_repeat_the_image():
    # Columns that count up: what comes in is the edge column again, the image mirrored, or its other side.
    affine = build_affine()
    ramp = np.tile(np.linspace(0.2, 0.9, 160, dtype=np.float32), (1, 160, 1))
    corners = [augment(affine, np.random.default_rng(seed), ramp)[0][0, [0, -1]][:, [0, -1]] for seed in range(200)]
    left, right = (np.stack(corners)[:, :, side].ravel() for side in (0, 1))
    wrapped = (left > 0.7).mean(), ((right > 0.15) & (right < 0.4)).mean()
    assert all(0.02 < share < 0.2 for share in wrapped)
    assert ((left > 0.15) & (left < 0.3)).mean() > 0.7


@pytest.mark.parametrize("offsets", [(1, 0, -2), (0, 0, 0), (-1, 3, 0)])
def test_a_shift_moves_image_and_mask_alike(offsets):
    rng = np.random.default_rng(0)
    image, mask = rng.random((3, 5, 6)).astype(np.float32), rng.integers(0, 2, (3, 5, 6), np.uint8)
    moved, moved_mask = shift(offsets, image, mask)
    assert moved.dtype == np.float32
    assert moved_mask.dtype == np.uint8
    for place in np.ndindex(*image.shape):
        source = np.subtract(place, offsets)
        edge = np.clip(source, 0, np.subtract(image.shape, 1))
        assert moved[place] == image[tuple(edge)]
        assert moved_mask[place] == (mask[tuple(source)] if (edge == source).all() else 0)
