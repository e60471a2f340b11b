"""Numbers computed once with the published formulas; tests/data/README.md says how."""

from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"


def load(name):
    """The arrays of tests/data/<name>.npz."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays)


def wave(shape, phase):
    """The test signal of the reference numbers: a wavering sine over the C-ordered elements, float32."""
    i = np.arange(np.prod(shape), dtype=np.float64)
    signal = np.sin(0.37 * i + phase + 0.5 * np.sin(0.011 * i))
    return torch.from_numpy(signal.astype(np.float32).reshape(shape))


def published_state(arrays):
    """The published state dict among the arrays of a network's reference file."""
    return {
        name.removeprefix("state/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("state/")
    }
