import json

import imgaug
import imgaug.augmenters as iaa
import numpy as np
import pytest

from datasets import augment as module
from datasets.augment import NOISE, augment, build_augmenter, build_perspective, shift
from tests.reference import DATA
from tests.volumes import dice

IN_2020 = {
    # What the published code passes; all else is the default of imgaug 0.4.0.
    "Sequential": {"random_order": True},
    "Sometimes": {"p": 0.2},
    "Fliplr": {"p": 0.5},
    # Scales are drawn for each axis apart.
    "Affine": {
        "scale": {"x": (1.0, 1.05), "y": (1.0, 1.05)}, "translate_percent": None, "translate_px": None, "shear": None,
        "rotate": (-5, 5), "order": [0, 1], "cval": 0, "mode": imgaug.ALL, "fit_output": False, "backend": "auto",
    },
    # Neither blur has a draw per channel, and one width holds for both axes.
    "GaussianBlur": {"sigma": (0.0, 0.8)},
    "ElasticTransformation": {"alpha": (0.0, 0.4), "sigma": 0.0005, "order": 3, "cval": 0, "mode": "constant"},
}  # fmt: skip
"""Parameters by augmenter; average blur and perspective transform are ours."""

STATISTICS = json.loads((DATA / "year_2020.json").read_text(encoding="utf-8"))["augmentation"]
NAMES = ("unchanged", "mask_unchanged", "sharper", "sharpness", "change", "brightness", "mask_size")


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


def test_every_parameter_is_passed_as_in_2020(monkeypatch):
    passed = {}
    for name in IN_2020:
        kind = getattr(iaa, name)

        def record(*children, name=name, kind=kind, **parameters):
            passed.setdefault(name, []).append({k: v for k, v in parameters.items() if k != "then_list"})
            return kind(*children, **parameters)

        monkeypatch.setattr(iaa, name, record)
    build_augmenter()
    monkeypatch.undo()
    assert passed.pop("Sometimes") == [IN_2020["Sometimes"]] * 4
    assert passed == {name: [parameters] for name, parameters in IN_2020.items() if name != "Sometimes"}


def sharpness(image):
    """Mean squared gradient inside of the border."""
    inside = image[:, 8:-8, 8:-8]
    return (np.diff(inside, axis=1) ** 2).mean() + (np.diff(inside, axis=2) ** 2).mean()


def statistics(augmenter, count):
    """Means over draws, in the order of NAMES, on a texture with a disc."""
    y, x = np.mgrid[:96, :96].astype(float)
    disc = ((y - 40) ** 2 + (x - 52) ** 2 < 20**2)[None].repeat(2, 0)
    image = 0.45 + 0.15 * np.sin(x / 7) * np.cos(y / 5) + 0.1 * np.sin(0.9 * x + 0.4 * y) + 0.3 * disc
    image, disc = image.astype(np.float32), disc.astype(np.uint8)
    rows = []
    for seed in range(count):
        noisy = (image + np.random.default_rng(seed).uniform(-NOISE, NOISE, image.shape)).astype(np.float32)
        found, mask = augment(augmenter, np.random.default_rng(seed), image, disc)
        before = min((noisy, noisy[:, :, ::-1]), key=lambda other: np.abs(found - other).mean())
        same = np.abs(found - before).max() < 1e-6
        kept = np.array_equal(mask, disc) or np.array_equal(mask, disc[:, :, ::-1])
        ratio = sharpness(found) / sharpness(noisy)
        change = np.abs(found - before)[:, 8:-8, 8:-8].mean()
        brightness, size = found.mean() - noisy.mean(), mask.mean() / disc.mean()
        rows.append((same, kept and not same, ratio > 1.005, ratio, change, brightness, size))
    return dict(zip(NAMES, np.mean(rows, 0), strict=True))


EXCEPTIONS = {
    # A square of two voxels moves the image of 2020 by half a voxel.
    "blur": ("change",),
    # Resampled twice in 2020.
    "perspective": ("sharpness",),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_draws_are_those_of_2020(monkeypatch, name):
    """Means over 250 draws, to four standard deviations of the difference and 1 %."""
    kind, _, alpha = name.partition(", alpha ")
    if alpha:
        monkeypatch.setattr(module, "JITTER", float(alpha))
    build = build_augmenter if kind == "all" else getattr(module, f"build_{kind}")
    found = statistics(build(), 250)
    for statistic, (mean, deviation) in STATISTICS[name].items():
        if statistic not in EXCEPTIONS.get(name, ()):
            tolerance = 4 * deviation * (1 / 250 + 1 / 800) ** 0.5 + 0.01 * mean + 1e-5
            assert abs(found[statistic] - mean) < tolerance, (statistic, found[statistic], mean)


def overlaps(augmenter, radius, count, size=160):
    """Dice of a disc in the image and its mask, and the distance of their centres in voxels, for each draw."""
    y, x = np.mgrid[:size, :size]
    found = []
    for seed in range(count):
        cy, cx = np.random.default_rng([1, seed]).uniform(radius + 12, size - radius - 12, 2)
        disc = ((y - cy) ** 2 + (x - cx) ** 2 < radius**2)[None].astype(np.uint8)
        image, mask = augment(augmenter, np.random.default_rng(seed), 0.2 + 0.6 * disc.astype(np.float32), disc)
        shape, mask = image[0] > 0.5, mask[0] > 0
        centres = [np.array([y[m].mean(), x[m].mean()]) for m in (shape, mask)]
        found.append((dice(shape, mask), np.linalg.norm(centres[0] - centres[1])))
    return np.array(found).T


def test_an_image_stays_over_its_mask(augmenter):
    overlap, distance = overlaps(augmenter, 30, 200)
    assert (distance > 0.4).mean() <= 0.01
    assert overlap.mean() > 0.995
    for radius, least in ((3, 0.99), (6, 0.99), (30, 0.998)):
        overlap, distance = overlaps(build_perspective(), radius, 200)
        assert overlap.mean() > least
        assert distance.max() < 0.4
        assert distance.mean() < 0.05


def test_types_and_ranges(augmenter, volume):
    for seed in range(20):
        image, first, second = drawn(augmenter, 1 - volume, seed, volume)
        assert (image.dtype, first.dtype, second.dtype) == (np.float32, np.uint8, np.uint8)
        assert image.shape == first.shape == second.shape == volume.shape
        assert 0 <= image.min() <= image.max() <= 1
        assert set(np.unique(first)) <= {0, 1}
        # Two masks that share no voxel still do not.
        assert not (first & second).any()


def test_the_flip_is_drawn_half_of_the_time_and_most_samples_are_not_warped(augmenter, volume):
    masks = [drawn(augmenter, volume, seed)[1] for seed in range(200)]
    exact, mirrored = (sum(np.array_equal(m, same) for m in masks) for same in (volume, volume[:, :, ::-1]))
    # Affine, elastic and perspective are left out together with probability 0.8^3 = 0.51; elastic moves a mask by
    # less than a voxel, so that up to 0.8^2 = 0.64 stay as they are. Four standard deviations are 0.14.
    assert 0.37 < (exact + mirrored) / 200 < 0.78
    assert 0.35 < mirrored / (exact + mirrored) < 0.65


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
