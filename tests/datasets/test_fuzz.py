import pytest

from tests.fuzz_volumes import fuzz


@pytest.mark.slow
@pytest.mark.fault("any of it at random")
@pytest.mark.parametrize(("kind", "count"), [("nifti", 4000), ("mha", 500), ("nrrd", 500), ("dicom", 500)])
def test_no_mutant_crashes_or_is_read_as_something_else(kind, count):
    counts, wrong = fuzz(kind, count, seed=0)
    assert wrong == []
    assert counts.total() == count
    assert counts["refused"] > count / 3
    if kind == "nifti":  # the mutations reach what cannot be told
        assert counts["read, changed: voxels, in a file without checksum"] > 100
