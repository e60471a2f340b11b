import numpy as np
import pytest

from tests.volumes import write_dicom


@pytest.fixture
def stored():
    """Stored values of a small CT, (z, y, x)."""
    return np.random.default_rng(1).integers(0, 700, (6, 7, 8)).astype(np.int16)


@pytest.fixture
def folder(tmp_path, stored):
    """A series of the stored values, one file a slice."""
    return write_dicom(tmp_path / "case", stored)


@pytest.fixture
def hu():
    """HU of a small CT, (z, y, x)."""
    return np.random.default_rng(0).integers(-1000, 400, (6, 7, 8)).astype(np.int16)
