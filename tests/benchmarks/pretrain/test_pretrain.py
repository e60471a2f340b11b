"""The command that trains the pretrained segmenter."""

import numpy as np
import pytest
import torch

from benchmarks.pretrain import __main__ as pretrain
from benchmarks.pretrain import scans
from benchmarks.pretrain.__main__ import RATE, loss_of, main, rate_at
from models.checkpoint import load_segmenter


@pytest.fixture
def small(monkeypatch):
    """Small bodies and sub-volumes."""
    monkeypatch.setattr(scans, "CROP", (12, 48, 48))
    monkeypatch.setattr(pretrain, "SUB_VOLUMES", (((8, 32, 32), 2), ((12, 32, 32), 1)))
    monkeypatch.setattr(pretrain, "SAVED_EVERY", 2)


def test_the_rate_is_highest_after_the_warm_up_and_low_at_the_end():
    rates = np.array([rate_at(step, 2400) for step in range(1, 2401)])
    assert rates.argmax() == 49
    assert 0.98 * RATE < rates.max() <= RATE
    assert rates[-1] == pytest.approx(0.02 * RATE)
    assert rates[1199] == pytest.approx(0.51 * RATE)


def test_the_loss_sees_the_lungs_alone():
    lesion, lung = torch.zeros(1, 1, 4, 8, 8), torch.zeros(1, 1, 4, 8, 8)
    lung[..., :4] = 1
    lesion[..., :2] = 1
    logits = 12 * (2 * lesion - 1)
    right = loss_of(logits, lesion, lung)
    logits[..., 4:] = 12
    assert torch.equal(loss_of(logits, lesion, lung), right)
    assert right < 1e-3
    assert loss_of(-logits, lesion, lung) > 1


def test_an_interrupted_training_ends_as_one_that_was_not(small, tmp_path):
    options = ["--bodies", "3", "--width", "4", "--steps", "4", "--quiet"]
    assert main([str(tmp_path / "one"), *options]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.Training, "save", _save_and_stop(pretrain.Training.save))
        with pytest.raises(KeyboardInterrupt):
            main([str(tmp_path / "two"), *options])
    assert main([str(tmp_path / "two"), *options]) == 0
    one, two = (load_segmenter(tmp_path / name / "segmenter.pth") for name in ("one", "two"))
    assert one[1].iteration == two[1].iteration == 4
    assert one[1].trained_on.normalization == "window"
    for name, weights in one[0].state_dict().items():
        assert torch.equal(weights, two[0].state_dict()[name]), name


def _save_and_stop(save):
    def stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    return stop
