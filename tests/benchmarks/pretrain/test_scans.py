"""Bodies and samples of the pretrained segmenter's training."""

import numpy as np
import pytest

from benchmarks.pretrain import scans
from benchmarks.pretrain.scans import draw_sample, paint, write_body

CROP = (12, 48, 48)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """Files of four small bodies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, "CROP", CROP)
        paths = [tmp_path_factory.mktemp("bodies") / f"{number}.npz" for number in range(4)]
        for number, path in enumerate(paths):
            write_body(path, 29, number)
        painted = [paint(29, number) for number in range(4)]
    return paths, painted


def test_a_file_holds_what_was_painted(bodies):
    for path, body in zip(*bodies, strict=True):
        with np.load(path) as stored:
            assert abs(stored["hu"] - np.clip(body.hu, -1024, 1500)).max() <= 0.5
            assert (stored["lung"] == body.lung).all()
            inside = body.lung > 0
            assert abs(stored["density"] / 200 - body.density)[inside].max() <= 0.5 / 200 + 1e-6
            assert not stored["density"][~inside].any()
    means = [body.hu.mean(dtype=float) for body in bodies[1]]
    assert means == pytest.approx([-148.702, -130.386, -122.776, -125.946], abs=0.05)  # as pretrained/ has seen them


def test_samples_are_in_range_and_lesions_lie_in_the_lungs(bodies):
    lesioned = 0
    for seed in range(24):
        sample = draw_sample(np.random.default_rng(seed), bodies[0][seed % 4], CROP)
        assert sample.image.min() >= -1
        assert sample.image.max() <= 1
        assert set(np.unique(sample.lung)) <= {0, 1}
        assert set(np.unique(sample.lesion)) <= {0, 1}
        assert (sample.lesion <= sample.lung).all()
        lesioned += sample.lesion.any()
    assert 4 <= lesioned <= 24


def test_the_whole_crop_shows_the_lesion_of_the_body_mirrored_or_not(bodies):
    path, body = next(pair for pair in zip(*bodies, strict=True) if pair[1].density.any())
    sample = draw_sample(np.random.default_rng(5), path, CROP)
    truth = (body.density > 0.5) & (body.lung > 0)
    ways = [sample.lesion > 0, sample.lesion[:, :, ::-1] > 0]
    assert max(2 * (way & truth).sum() / (way.sum() + truth.sum()) for way in ways) > 0.6
