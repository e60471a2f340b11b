import contextlib
import io
import sys
import threading
import time

import numpy as np
import pytest

from utils.errors import VolumeError
from utils.progress import OF_ONE_ITEM, for_each, print_failures, progress_bar


def test_a_bar_is_shown_where_it_is_wanted_and_does_not_flood_a_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    list(progress_bar(range(3), "cropping", unit="scan", shown=False))
    assert stream.getvalue() == ""
    list(progress_bar(range(100_000), "cropping", unit="scan"))
    assert "cropping: 100%|" in stream.getvalue()
    assert len(stream.getvalue()) < 500


@pytest.mark.fault("an error in a library or the system")
@pytest.mark.parametrize("error", [*OF_ONE_ITEM, np.linalg.LinAlgError, UnicodeEncodeError("ascii", "ä", 0, 1, "bad")])
def test_an_item_that_fails_is_named_and_the_others_are_done(error, capsys, caplog):
    done = []

    def work(case_id, item):
        if item == "bad":
            raise error if isinstance(error, Exception) else error("two\nlines")
        done.append(case_id)

    failed = for_each({"a": 1, "b": "bad", "c": 2}, work, "trying", progress=False)
    assert done == ["a", "c"]
    assert list(failed) == ["b"]
    assert failed["b"].startswith("cannot be processed (")
    assert "\n" not in failed["b"]
    assert "b: cannot be processed" in caplog.text
    assert print_failures(failed) == 1
    assert capsys.readouterr().out == f"failed: b: {failed['b']}\n"


def test_an_item_that_cannot_be_prepared_fails_alone_and_errors_that_name_their_file_are_passed_on():
    def prepare(case_id, item):
        if item == 1:
            raise VolumeError("x.nii: cut short")
        return item * 10

    def work(case_id, item):
        found.append(item)

    found = []
    failed = for_each({"a": 0, "b": 1, "c": 2}, work, "trying", prepare=prepare, progress=False)
    assert (found, failed) == ([0, 20], {"b": "x.nii: cut short"})
    assert for_each({}, work, "trying", prepare=prepare, progress=False) == {}


@pytest.mark.parametrize("error", [AssertionError, TypeError, KeyboardInterrupt, SystemExit])
def test_faults_of_the_program_and_signals_end_the_run(error):
    def work(case_id, item):
        raise error

    with pytest.raises(error):
        for_each({"x": None}, work, "trying", progress=False)


def test_one_item_is_prepared_ahead():
    started = []

    def work(case_id, item):
        time.sleep(0.05)
        assert started == list("abcd"[: "abcd".index(case_id) + 2])  # nothing after the next one

    prepare = lambda case_id, item: started.append(case_id)  # noqa: E731
    assert for_each(dict.fromkeys("abcd"), work, "trying", prepare=prepare, progress=False) == {}


def test_an_interruption_ends_the_preparation_of_the_next_item():
    begun, ended = threading.Event(), threading.Event()

    def prepare(case_id, item):
        if case_id == "b":
            begun.set()
            try:
                while True:
                    time.sleep(0.01)
            finally:
                ended.set()

    def work(case_id, item):
        begun.wait(60)
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        for_each({"a": 0, "b": 1, "c": 2}, work, "trying", prepare=prepare, progress=False)
    assert ended.wait(60)
