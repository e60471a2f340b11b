import os

import pytest

from benchmarks.speed.worker_process import process, requests


def double(connection, offset):
    for number in requests(connection):
        connection.send(2 * number + offset)


def fail(connection):
    raise RuntimeError("not today")


def say_limits(connection):
    for _ in requests(connection):
        connection.send((len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]))


def test_a_worker_answers_until_the_block_ends_and_a_failing_one_is_noticed():
    with process(double, 1) as ask:
        assert [ask(1), ask(5)] == [3, 11]
    with pytest.raises(EOFError), process(fail):
        pass


def test_a_worker_may_be_limited_to_some_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = os.sched_getaffinity(0)
    with process(say_limits, cores=1) as ask:
        assert (os.sched_getaffinity(0), os.environ["OMP_NUM_THREADS"]) == (before, "7")
        assert ask("") == (1, "1")
