import numpy as np
import torch

from benchmarks.speed import preparation
from datasets.crop import crop_to_lungs, paste_back
from tests.volumes import dice, pixels

SHAPE = (40, 64, 64)


def test_compared_implementations_agree():
    ct, lungs = preparation.make_body(SHAPE)
    for theirs, ours in zip(preparation.scipys_crop(ct, lungs), crop_to_lungs(ct, lungs), strict=True):
        # To 1e-6 of 0..255.
        np.testing.assert_allclose(pixels(ours), theirs, rtol=0, atol=255e-6)
    mask = crop_to_lungs(ct, lungs)[1]
    # The published way segments the lungs again, so its box differs slightly.
    published, ours = preparation.published_paste_back(ct, pixels(mask)), paste_back(mask, ct)
    assert dice(pixels(ours), lungs) > 0.97
    assert dice(pixels(published), pixels(ours)) > 0.95


def test_every_way_runs(monkeypatch):
    monkeypatch.setattr(preparation, "QUICK_SHAPE", SHAPE)
    titles = []
    for title, ways in preparation.preparation(torch.device("cpu"), quick=True):
        titles.append(title)
        for way in ways.values():
            way()
    assert len(titles) == 4
