"""Effects of kills on runs and folders; kill_everything.py is the long version."""

import os
import random
import time

import pytest

import lungCrop
import post_processing
import predict
import test
import train
from tests import kill_everything
from tests.several import started_process
from tests.utils.test_files import holder
from training.states import find_states
from utils.cli import run
from utils.files import lock_folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return kill_everything.make_jobs(tmp_path_factory.mktemp("kills"), iterations=6)


@pytest.mark.slow
@pytest.mark.fault("any script killed at")
@pytest.mark.parametrize("script", kill_everything.SCRIPTS)
def test_killed_scripts_lose_nothing(jobs, script):
    kills = 5
    tally = kill_everything.kill_often(jobs[script], kills, random.Random(1))
    assert tally["kills"] == kills
    assert tally["runs"] >= 1


@pytest.mark.fault("two runs on one folder")
@pytest.mark.parametrize("script", [lungCrop, train, test, post_processing, predict])
def test_a_second_run_on_a_folder_is_refused_in_one_line(jobs, script, capsys):
    job = jobs[script.__name__]
    before = sorted(job.output.rglob("*"))
    with holder(job.output) as first:
        assert run(lambda: script.main(job.command())) == 1
        errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {job.output}: process {first.pid} on {os.uname().nodename} is writing here; ")
    assert sorted(job.output.rglob("*")) == before or not before


@pytest.mark.fault("two runs on one folder")
def test_a_killed_run_with_workers_leaves_its_folder_free(config, run_folder, tmp_path):
    endless = ["SOLVER.ITER_MAX=100000", "INTERVAL.SAVE=1", "DATALOADER.NUM_WORKERS=1"]
    command = ["--config-path", str(config), "--quiet", "--device", "cpu", *endless]
    process = started_process(tmp_path / "log", train.main, command)
    while not find_states(run_folder):
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    with lock_folder(run_folder, "pictures"):
        assert not list(run_folder.glob(".*.partial.*"))
