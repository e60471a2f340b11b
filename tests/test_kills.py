"""Effects of kills on runs and folders; kill_everything.py is the long version."""

import os
import random

import pytest

import lungCrop
import post_processing
import predict
import test
import train
from tests import kill_everything
from tests.utils.test_files import holder
from utils.cli import run


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return kill_everything.make_jobs(tmp_path_factory.mktemp("kills"), iterations=6)


@pytest.mark.slow
@pytest.mark.fault("any script killed at")
@pytest.mark.parametrize("script", kill_everything.SCRIPTS)
def test_killed_scripts_lose_nothing(jobs, script):
    tally = kill_everything.kill_often(jobs[script], 5, random.Random(1))
    assert tally["kills"] == 5
    assert tally["runs"] >= 1


@pytest.mark.fault("two runs on one folder")
@pytest.mark.parametrize("script", [lungCrop, train, test, post_processing, predict])
def test_a_second_run_on_a_folder_is_refused_in_one_line(jobs, script, capsys):
    job = jobs[script.__name__]
    with holder(job.output) as first:
        before = sorted(job.output.rglob("*"))
        assert run(lambda: script.main(job.command())) == 1
        assert sorted(job.output.rglob("*")) == before
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {job.output}: process {first.pid} on {os.uname().nodename} is writing here; ")
