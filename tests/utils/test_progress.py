import io
import logging
import os
import sys

import pytest
from tqdm.contrib.logging import logging_redirect_tqdm

from utils import progress
from utils.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def standard_error(monkeypatch, kind=io.StringIO):
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_pipe_gets_one_plain_line_of_short_work(monkeypatch):
    stream = standard_error(monkeypatch)
    assert list(progress_bar(range(3), "cropping", unit="scan")) == [0, 1, 2]
    assert stream.getvalue() == "cropping: 3 of 3 scans, 00:00 in all\n"


def test_a_pipe_gets_the_time_left_of_long_work(monkeypatch):
    stream = standard_error(monkeypatch)
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = progress_bar(None, "training", unit="iteration", total=100, initial=40)
    bar._time = lambda: clock[0]
    bar.start_t = bar.last_print_t = clock[0]
    bar.set_postfix({"joint": "1.2"}, refresh=False)
    for _ in range(3):  # ten iterations in twenty seconds: after sixty seconds 70 are done, and 30 take another minute
        clock[0] += 20
        bar.update(10)
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines == ["training: 60 of 100 iterations, 01:20 left, joint=1.2"]


@pytest.mark.parametrize(
    ("total", "initial", "line"),
    [(1, 0, "predicting: 0 of 1 scans"), (9, 4, "predicting: 4 of 9 scans"), (None, 0, "predicting: 0 scans")],
)
def test_while_nothing_is_done_a_line_says_nothing_of_time(total, initial, line, monkeypatch):
    stream = standard_error(monkeypatch)
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = progress_bar(None, "predicting", unit="scan", total=total, initial=initial)
    bar._time = lambda: clock[0]
    bar.start_t = bar.last_print_t = clock[0]
    clock[0] += 37
    bar.refresh()  # as a message in between does
    assert stream.getvalue() == f"{line}\n"
    clock[0] += 37
    bar.update()
    when = {1: "01:14 in all", 9: "04:56 left", None: "01:14 in all"}[total]  # 74 s a scan, four of nine left
    assert stream.getvalue().splitlines()[1].endswith(f" scans, {when}")


def test_an_interrupted_bar_does_not_say_that_it_is_done(monkeypatch):
    stream = standard_error(monkeypatch)
    bar = progress_bar(None, "testing", unit="scan", total=3)
    bar.update()
    bar.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_nothing_is_shown_where_nothing_is_wanted(kind, monkeypatch):
    stream = standard_error(monkeypatch, kind)
    list(progress_bar(range(3), "cropping", unit="scan", shown=False))
    assert stream.getvalue() == ""


def test_messages_in_between_leave_no_control_characters_in_a_pipe(monkeypatch):
    stream = standard_error(monkeypatch)
    logging.basicConfig(stream=stream, format="%(message)s", force=True)
    with logging_redirect_tqdm():
        for _ in progress_bar(range(2), "cropping", unit="scan"):
            logging.getLogger("any").warning("scan.nii: cut short")
    assert stream.getvalue() == "scan.nii: cut short\nscan.nii: cut short\ncropping: 2 of 2 scans, 00:00 in all\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = standard_error(monkeypatch, Terminal)
    list(progress_bar(range(3), "cropping", unit="scan"))
    assert "cropping: 100%|" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert os.linesep in stream.getvalue()
