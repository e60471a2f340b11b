"""Stopping a run, and resuming it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

import train
from datasets.cohort import contents_of
from datasets.samples import Samples
from models.checkpoint import load, load_segmenter, save
from tests.several import on_processes, started_process
from tests.test_train import ROOT, command, started
from training.run import TrainingRun
from utils.errors import GasnetError, TrainingError
from utils.files import lock_folder


def one_iteration(config, *more):
    return train.main(command(config, "SOLVER.ITER_MAX=1", *more))


def train_and_signal(number, arguments):
    """train.py, which gets a signal in its fourth iteration; its loaders got it before, in the second."""
    between = TrainingRun.between

    def signalled(self):
        if self.iteration == 2 and number != signal.SIGTERM:  # which is how the main process ends them
            loaders = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            assert len(loaders) == 3
            for loader in loaders:
                os.kill(int(loader), number)
        if self.iteration == 4:
            os.kill(os.getpid(), number)
        between(self)

    TrainingRun.between = signalled
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, as tests may run, it is ignored
    return train.main(arguments)


@pytest.mark.fault("Ctrl-C, SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_all_processes_saves_before_the_end(config, run_folder, tmp_path, number):
    arguments = command(config, "INTERVAL.SAVE=100", "DATALOADER.NUM_WORKERS=1", "SOLVER.ITER_MAX=100")
    (ended,) = on_processes(1, tmp_path / "log", train_and_signal, number, arguments)
    assert ended.code == 128 + number, ended.err
    assert ended.err.splitlines() == ["warning: stopped at iteration 4, state saved; continue with --resume"]
    assert [path.name for path in run_folder.glob("state_*.pth")] == ["state_0000004.pth"]


@pytest.mark.fault("a folder that holds")
def test_a_folder_of_a_run_is_resumed_or_refused_with_what_helps(config, run_folder):
    def refused(match, *more):
        with pytest.raises(TrainingError, match=match):
            one_iteration(config, *more)

    assert one_iteration(config, "--resume") == 0  # which starts a run that left no state
    refused(r"files of a run .state_0000001.pth.; resume it with --resume")
    (run_folder / "state_0000001.pth").unlink()
    for more in ([], ["--resume"]):
        refused(r"files of a run .segmenter_last.pth., but no state; move them away", *more)
    (run_folder / "segmenter_last.pth").unlink()  # as a kill before the first save leaves it
    refused(r"files of a run .metrics.jsonl.; resume it with --resume")
    assert one_iteration(config, "--resume") == 0
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.fault("a list of scans that changed")
def test_a_list_that_changed_cannot_be_resumed(config, cohort, tmp_path):
    mine = shutil.copytree(cohort, tmp_path / "cohort")
    root = f"DATASET.ROOT={mine}"
    one_iteration(config, root)
    path = mine / "id_txt" / "train_id_WL.txt"
    ids = path.read_text().split()
    for folder in ("images", "lung"):
        shutil.copy(mine / folder / f"{ids[0]}.nii.gz", mine / folder / "sick_9.nii.gz")
    for others in ([*ids, "sick_9"], ids[1:], ids[::-1]):
        path.write_text("\n".join(others))
        with pytest.raises(TrainingError, match=r"DATASET.SPLIT.WO_LABEL has other scans .*; restore them"):
            one_iteration(config, root, "--resume")
    path.write_text("\n".join(ids))
    assert one_iteration(config, root, "SOLVER.ITER_MAX=2", "--resume") == 0


@pytest.mark.fault("a segmenter that began from another", "a run that is resumed on other CTs")
def test_the_scans_that_a_segmenter_has_seen_stay_with_its_weights(config, cohort, run_folder, tmp_path):
    def seen(path):
        return set(load_segmenter(path)[1].seen)

    def voxels(folder, *ids):
        return set(contents_of(folder, ids).values())

    last, other = run_folder / "segmenter_last.pth", shutil.copytree(cohort, tmp_path / "other")
    trained = voxels(cohort, *(f"sick_{k}" for k in range(4)), "well_0", "well_1")
    judged = trained | voxels(cohort, "sick_4", "sick_5", "well_2")
    assert one_iteration(config, "--is-validation") == 0
    assert seen(last) == seen(run_folder / "segmenter_best.pth") == judged
    # Goes on without validation; not with other voxels under the same ids.
    image = sitk.ReadImage(str(other / "images" / "sick_0.nii.gz"))
    sitk.WriteImage(255 - image, str(other / "images" / "sick_0.nii.gz"))
    with pytest.raises(TrainingError, match=r"LABELED has other scans .* \(sick_0 has another CT or mask\)"):
        train.main(command(config, "SOLVER.ITER_MAX=2", f"DATASET.ROOT={other}", "--resume"))
    relabelled = shutil.copytree(cohort, tmp_path / "relabelled")
    shutil.copy(relabelled / "lesion" / "sick_5.nii.gz", relabelled / "lesion" / "sick_4.nii.gz")
    with pytest.raises(TrainingError, match=r"VALID has other scans .* \(sick_4 has another CT or mask\)"):
        train.main(command(config, "--is-validation", f"DATASET.ROOT={relabelled}", "--resume"))
    assert train.main(command(config, "SOLVER.ITER_MAX=2", "--resume")) == 0
    assert seen(last) == set(load(run_folder / "state_0000002.pth")["seen"]) == judged
    # A run that begins with its networks, on one of its scans.
    for name, ids in (("train_id_L", ["sick_5"]), ("train_id_WL", ["sick_5"]), ("train_id_H", ["well_2"])):
        (other / "id_txt" / f"{name}.txt").write_text("\n".join(ids))
    begun = [f"INIT_MODEL.{name}={run_folder / 'state_0000002.pth'}" for name in ("UNET", "G")]
    assert one_iteration(config, f"DATASET.ROOT={other}", "EXP.ID=second_recons", *begun) == 0
    assert seen(run_folder.parent / "second_recons" / "segmenter_last.pth") == judged


def train_and_hang(arguments):
    """train.py, whose second batch of healthy volumes takes for ever, in a worker."""
    sample = Samples.__getitem__

    def hang(self, position):
        if self.split == "HEALTHY" and position == 5:
            time.sleep(600)
        return sample(self, position)

    Samples.__getitem__ = hang
    return train.main(arguments)


def living(pids):
    stats = [Path(f"/proc/{pid}/stat") for pid in pids]
    return [s for s in stats if s.is_file() and s.read_text().rpartition(")")[2].split()[0] != "Z"]


@pytest.mark.fault("a run that ended by", "two runs on one folder")
@pytest.mark.parametrize("end", ["error", "killed"])
def test_a_training_that_ends_leaves_no_workers_and_its_folder_free(config, run_folder, tmp_path, end):
    timeout = f"DATALOADER.TIMEOUT={3 if end == 'error' else 600}"
    arguments = command(config, "DATALOADER.NUM_WORKERS=1", "INTERVAL.SAVE=1", timeout)
    process = started_process(tmp_path / "log", train_and_hang, arguments)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers, deadline = [], time.monotonic() + 120
    while len(workers) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        workers = children.read_text().split()
    assert len(living(workers)) == 3
    if end == "killed":
        time.sleep(1)  # until one hangs
        process.kill()
    process.join(60)
    if end == "error":
        assert process.exitcode == 1
        (error,) = (tmp_path / "log" / "0.err").read_text().splitlines()
        assert re.search(r"before the batch well_\d, well_\d was there \(timed out after 3 seconds\)", error)
    deadline = time.monotonic() + 5
    while living(workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert living(workers) == []
    with lock_folder(run_folder):
        pass
    assert end == "killed" or started(config, resume=True).iteration == 1


@pytest.mark.fault("networks or optimisers")
def test_what_a_resumed_run_takes_from_its_settings_and_what_does_not_fit(config, run_folder, tmp_path):
    def refused(match, *overrides):
        with pytest.raises(GasnetError, match=match):
            started(config, *overrides, resume=True)

    one_iteration(config)
    gone = f"INIT_MODEL.UNET={tmp_path / 'gone.pth'}"  # it does not need what it started from
    training = started(config, "SOLVER.OPTIMIZER.D.WEIGHT_DECAY=0.5", gone, resume=True)
    assert training.iteration == 1
    assert training.optimizers["discriminator"].param_groups[0]["weight_decay"] == 0.5
    assert training.optimizers["segmenter"].state  # its moments are those of the saved run
    refused("it belongs to another optimiser than Adam", "SOLVER.OPTIMIZER.D.NAME=Adam")
    refused("its state does not fit these settings", "MODEL.WIDTH.UNET=3")
    path = run_folder / "state_0000001.pth"
    content = load(path)
    content["optimizers"]["segmenter"]["state"][0]["exp_avg"] = torch.zeros(3)
    save(content, path)
    refused("the optimiser state has weights of other shapes")
    del content["optimizers"]
    save(content, path)
    refused(r"its state does not fit these settings \('optimizers'\)")


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_before_the_end(config, run_folder):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(ROOT / "train.py"), *command(config, "SOLVER.ITER_MAX=100000")]
    process = subprocess.Popen([*launcher, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run_folder / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("state saved; continue with --resume") == 1
    assert "error:" not in errors
    saved = sorted(run_folder.glob("state_*.pth"))[-1]
    assert load(saved)["iteration"] > 0
