import numpy as np
import pytest
import torch

from benchmarks.speed import peers

CPU = torch.device("cpu")


@pytest.mark.parametrize("part", [peers.lungs, peers.reading, peers.preparation])
def test_every_way_runs_and_lungs_agree(part, monkeypatch):
    monkeypatch.setattr(peers, "QUICK_SHAPE", (12, 64, 64))
    for title, ways in part(CPU, quick=True):
        if title.startswith("lungs by lungmask"):
            continue  # the network of lungmask takes long
        found = [way() for way in ways.values()]
        assert len(found) > 1
        if "full size" in title:
            np.testing.assert_array_equal(*found)
            assert {1, 2} < set(np.unique(found[0]))
