import numpy as np
import pytest

from utils.errors import VolumeError
from utils.failures import OF_ONE_ITEM, for_each, print_failures


@pytest.mark.fault("an error in a library or the system")
@pytest.mark.parametrize("error", [*OF_ONE_ITEM, np.linalg.LinAlgError, UnicodeEncodeError("ascii", "ä", 0, 1, "bad")])
def test_an_item_that_fails_is_named_and_the_others_are_done(error, capsys, caplog):
    done = []

    def work(case_id, item):
        if item == "bad":
            raise error if isinstance(error, Exception) else error("two\nlines")
        done.append(case_id)

    failed = for_each([("a", 1), ("b", "bad"), ("c", 2)], work, "trying", total=3, progress=False)
    assert done == ["a", "c"]
    assert list(failed) == ["b"]
    assert failed["b"].startswith("cannot be processed (")
    assert "\n" not in failed["b"]
    assert "b: cannot be processed" in caplog.text
    assert print_failures(failed) == 1
    assert capsys.readouterr().out == f"failed: b: {failed['b']}\n"


def test_errors_that_name_their_file_are_passed_on():
    def work(case_id, item):
        raise VolumeError("x.nii: cut short")

    assert for_each([("x", None)], work, "trying", total=1, progress=False) == {"x": "x.nii: cut short"}


@pytest.mark.parametrize("error", [AssertionError, TypeError, KeyboardInterrupt, SystemExit])
def test_faults_of_the_program_and_signals_end_the_run(error):
    def work(case_id, item):
        raise error

    with pytest.raises(error):
        for_each([("x", None)], work, "trying", total=1, progress=False)
