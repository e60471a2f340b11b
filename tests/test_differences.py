"""The numbers of docs/differences.md."""

import json

import numpy as np
import pytest
from scipy import ndimage

from datasets.crop import CROP_SIZE
from datasets.window import map_window
from tests.reference import DATA

IN_2020 = json.loads((DATA / "year_2020.json").read_text(encoding="utf-8"))


def test_the_last_plane_of_a_published_crop_is_0_for_some_lengths():
    black = {new: set(IN_2020["crop_last_plane"][str(new)]) for new in (40, 160)}
    assert (len(black[40]), len(black[160])) == (35, 74)
    assert {40, 160} == set(CROP_SIZE)
    for new, lengths in black.items():
        for n in range(3, 701):
            for order in (0, 1):
                assert (ndimage.zoom(np.ones(n), new / n, order=order)[-1] == 0) == (n in lengths)
    assert map_window(np.zeros(1))[0] == 212.5
    kept = [1 - len(black[new]) / 698 for new in CROP_SIZE]
    assert 1 - np.prod(kept) == pytest.approx(0.24, abs=0.005)
