import json
import os
import signal
from pathlib import Path

import pytest
import torch

import train
from configs.settings import read_settings
from datasets import samples
from datasets.cohort import read_cohort
from evaluation import inference as predict
from models.checkpoint import SegmenterInput, load, load_segmenter
from models.objectives import Networks, discriminator_objective, joint_objective, segmenter_objective
from tests.conftest import write_config
from tests.outputs import same
from tests.several import Ended, in_double_precision, on_processes, stop_at
from training import run as training_run
from training.run import TrainingRun
from utils import distributed
from utils.cli import run

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def started(config, *overrides, **options):
    settings = read_settings(config, overrides)
    cohort = read_cohort(settings.dataset.root, train.used_splits(settings, validate=True), settings.image.size)
    return TrainingRun(settings, cohort, CPU, progress=False, **options)


def command(config, *more):
    return ["--config-path", str(config), "--quiet", "--device", "cpu", *more]


def parameters(training):
    return {name: [p.detach().clone() for p in n.parameters()] for name, n in training.networks._asdict().items()}


def moved(before, training):
    """The networks whose parameters are no longer those of before."""
    return {name for name, tensors in parameters(training).items() if not same(tensors, before[name])}


def entries(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def followed(training):
    """What a run does, as it does it: (iteration, objective, its batches, the networks) of each step."""
    steps, minimise = [], training.minimise

    def follow(objective, *batches, trains):
        before = parameters(training)
        minimise(objective, *batches, trains=trains)
        assert moved(before, training) == set(trains)
        steps.append((training.iteration, objective, batches, trains))

    training.minimise = follow
    return steps


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
    """The folder of an undisturbed run with the config of the fixture `config`, which validates."""
    path = write_config(tmp_path_factory.mktemp("whole"), cohort)
    assert train.main(command(path, "--is-validation")) == 0
    return read_settings(path).exp.folder


def test_the_schedule_steps_the_networks_in_turn(config):
    training = started(config, "LOSS={MIL_START: 100, PERCEPTION_START: 100}", "SOLVER.ITER_MAX=5", validate=False)
    steps, taken, batch = followed(training), [], training.batch
    training.batch = lambda split: taken.append((training.iteration, split)) or batch(split)
    train.train(training)
    expected = []
    for t in range(5):
        if t in (0, 1, 4):
            expected += [(t, joint_objective, ("segmenter", "generator")), (t, segmenter_objective, ("segmenter",))]
        else:
            expected += [(t, discriminator_objective, ("discriminator",))] * 2
    assert [(t, objective, trains) for t, objective, _, trains in steps] == expected
    assert sorted(split for t, split in taken if t == 0) == ["HEALTHY", "HEALTHY", "LABELED", "WO_LABEL"]
    assert [split for t, split in taken if t == 2] == ["WO_LABEL", "HEALTHY"] * 2


def test_a_run_leaves_everything_that_it_promises(whole):
    assert {p.name for p in whole.iterdir()} == {
        "settings.yaml", "metrics.jsonl", "pictures", "tensorboard", "segmenter_best.pth", "segmenter_last.pth",
        "state_0000004.pth", "state_0000008.pth", "ledger", ".lock",
    }  # fmt: skip
    assert read_settings(whole / "settings.yaml") == read_settings(whole.parents[1] / "config.yaml")
    assert [p.name for p in sorted((whole / "pictures").iterdir())] == ["0000004.png", "0000008.png"]
    assert any(p.name.startswith("events") for p in (whole / "tensorboard").iterdir())
    assert {
        "joint/adversarial", "joint/genImgToD", "joint/recons", "joint/MIL", "joint/perception", "joint/total",
        "segmenter/healthy", "segmenter/labelled", "segmenter/total", "discriminator/synthetic",
        "discriminator/healthy", "discriminator/origImgToD", "discriminator/genImgToD", "discriminator/total",
        "right/healthy", "right/synthetic", "lr/segmenter", "lr/generator", "lr/discriminator", "valid/dice",
        "validh/false_positive_ml",
    } <= {name for entry in entries(whole) for name in entry}  # fmt: skip
    best = max(entry["valid/dice"] for entry in entries(whole) if "valid/dice" in entry)
    assert load(whole / "segmenter_best.pth")["valid_dice"] == best
    _, facts = load_segmenter(whole / "segmenter_last.pth")
    assert facts.trained_on == SegmenterInput(size=(20, 64, 64), window=(-1250.0, 250.0), normalization="minmax")
    assert (facts.width, facts.threshold, facts.iteration) == (2, 0.5, 8)


def test_the_window_of_the_data_is_written_into_every_checkpoint(config, run_folder, capsys):
    training = started(config, "IMAGE.WINDOW=[-1000, 400]", "SOLVER.ITER_MAX=1", "INTERVAL.VALID=1")
    train.train(training)
    for name in ("segmenter_best.pth", "segmenter_last.pth"):
        assert load(run_folder / name)["input"]["window"] == (-1000.0, 400.0)
    # The cohort has the published one.
    assert run(lambda: train.main(command(config, "--dry-run", "IMAGE.WINDOW=[-1000, 400]"))) == 1
    assert "cropped with the window [-1250.0, 250.0], IMAGE.WINDOW is [-1000.0, 400.0]" in capsys.readouterr().err


@pytest.mark.slow
def test_training_teaches_the_segmenter_to_find_the_lesions(config):
    # Wide enough to learn, and without the terms that take longer.
    overrides = ["EXP.ID=sample1_recons", "MODEL.WIDTH.UNET=6", "SOLVER.ITER_MAX=60", "SOLVER.DISCRIMINATOR_STEPS=1"]
    # The best of six, as it is kept: so short a training swings, and rounding decides where it is at its end.
    training = started(config, *overrides, "INTERVAL.PICTURE=60", "INTERVAL.SAVE=60", "INTERVAL.VALID=10")
    training.validated()
    assert training.state.best_dice < 0.1
    train.train(training)
    assert training.state.best_dice > 0.5


@pytest.mark.fault("resumed instead of")
def test_resumed_equals_uninterrupted_bit_for_bit(config, whole, run_folder):
    # Stop at iterations 3, 5 and 6: within both phases and between them.
    for stop in (3, 5, 6):
        training = started(config, resume=run_folder.exists())
        stop_at(training, stop)
        with pytest.raises(SystemExit, match="143"):
            train.train(training)
    train.main(command(config, "--is-validation", "--resume"))
    for file in ("state_0000008.pth", "segmenter_best.pth", "segmenter_last.pth"):
        one, other = (load(folder / file) for folder in (whole, run_folder))
        assert same(one | {"settings": None}, other | {"settings": None}), file  # they name the folder
    one, other = ([entry for entry in entries(folder) if "valid/dice" in entry] for folder in (whole, run_folder))
    assert one == other


@pytest.mark.fault("another number of workers")
def test_neither_workers_nor_a_stop_on_the_way_nor_validation_change_the_weights(config, whole, run_folder):
    train.main(command(config, "DATALOADER.NUM_WORKERS=2", "SOLVER.STOP_AFTER=4", "INTERVAL.SAVE=8"))
    one, other = (load(folder / "state_0000004.pth") for folder in (whole, run_folder))
    assert same(one["networks"], other["networks"])
    assert not (run_folder / "state_0000005.pth").exists()


@pytest.mark.slow
def test_compiling_changes_rounding_at_most(config, tmp_path, monkeypatch):
    compiled = []
    plain_compile = torch.nn.Module.compile

    def compile_without_a_compiler(network):
        compiled.append(type(network).__name__)
        plain_compile(network, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_a_compiler)
    # Adam's first step is a whole learning rate, whatever the sign of a gradient that is all rounding.
    always = [f"SOLVER.OPTIMIZER.{network}.LR=1e-6" for network in "UGD"]
    always += ["SOLVER.ITER_MAX=4", "SOLVER.PRECISION=fp32", "LOSS={MIL_START: 0, PERCEPTION_START: 0}"]
    logs = []
    for value in ("false", "true"):
        assert compiled == []
        output = f"EXP.OUTPUT_DIR={tmp_path / value}"
        training = started(config, *always, "INTERVAL.LOG=1", f"SPEED.COMPILE={value}", output, validate=False)
        train.train(training)
        logs.append([{**entry, "seconds_per_iteration": 0} for entry in entries(training.folder)])
    assert compiled == ["Segmenter", "Generator"]
    assert [set(entry) for entry in logs[0]] == [set(entry) for entry in logs[1]]
    for plain, found in zip(*logs, strict=True):
        assert found == pytest.approx(plain, rel=2e-3, abs=1e-4)


@pytest.mark.fault("NaN or Inf in a loss")
def test_nan_never_reaches_the_weights_and_is_reported_with_the_batch(config, run_folder, caplog):
    training = started(config, "SOLVER.ITER_MAX=4", "INTERVAL.LOG=1", validate=False)
    batch = training.batch

    def poisoned(split):
        wrong = float("nan") if split == "WO_LABEL" and training.iteration in (1, 2) else 1
        return (value := batch(split))._replace(image=value.image * wrong)

    training.batch = poisoned
    train.train(training)
    assert all(torch.isfinite(p).all() for network in parameters(training).values() for p in network)
    # One joint step and two steps of D; the segmenter's own objective had a good batch.
    assert training.state.skipped.count == 3
    assert caplog.text.count("this step was skipped") == 3
    assert "NaN or Inf in the loss of the joint objective of iteration 1, batch sick_" in caplog.text
    assert [entry["skipped"] for entry in entries(run_folder)] == [0, 1, 3, 3]


def test_a_run_starts_from_given_networks(config, whole):
    state = whole / "state_0000008.pth"
    keys = {"UNET": whole / "segmenter_last.pth", "G": state, "D": state}
    training = started(config, *(f"INIT_MODEL.{key}={path}" for key, path in keys.items()))
    for name, network in training.networks._asdict().items():
        saved = load(state)["networks"][name]
        assert all(torch.equal(tensor, saved[key]) for key, tensor in network.state_dict().items()), name
    assert training.iteration == 0


def test_a_dry_run_prints_settings_and_splits_and_writes_nothing(config, run_folder, capsys):
    overrides = ["SOLVER.BATCH_SIZE=3", "EXP.ID=sample1_recons_MIL_percepton"]
    assert train.main(command(config, "--dry-run", "--is-validation", *overrides)) == 0
    printed, warned = capsys.readouterr()
    assert "BATCH_SIZE: 3" in printed
    assert "constraints: MIL, recons" in printed
    assert "percepton (did you mean perception?) has no effect" in warned
    assert [line.split()[:2] for line in printed.splitlines() if line.endswith("scans")] == [
        ["LABELED", "1"], ["WO_LABEL", "3"], ["HEALTHY", "2"], ["VALID", "2"], ["VALIDH", "1"]
    ]  # fmt: skip
    assert not run_folder.parent.exists()


def train_in_double(stop_at, arguments):
    """train.py in double precision; the last process alone gets a signal, twice, in one iteration."""
    in_double_precision()
    predict.as_input = lambda image, take=samples.as_input: take(image).double()
    training_run.scan_input = lambda *inputs, take=samples.scan_input: take(*inputs).double()
    batch, between = TrainingRun.batch, TrainingRun.between
    TrainingRun.batch = lambda self, split: (taken := batch(self, split))._replace(image=taken.image.double())

    def interrupted(self):
        if self.iteration == stop_at and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # torchrun may pass on what came already
        between(self)

    TrainingRun.between = interrupted
    return train.main(arguments)


def test_two_processes_take_the_steps_of_one_stop_together_and_go_on_as_one(config, tmp_path):
    always = ["--config-path", str(config), "--is-validation", "--device", "cpu", "SOLVER.ITER_MAX=4"]
    always += ["LOSS={MIL_START: 0, PERCEPTION_START: 0}", "SOLVER.DISCRIMINATOR_STEPS=1"]
    arguments = [*always, "INTERVAL={LOG: 1, VALID: 3, PICTURE: 4}"]

    def ended(name, count, stop_at, *more):
        folder = f"EXP.OUTPUT_DIR={tmp_path / name.split()[0]}"
        return on_processes(count, tmp_path / name, train_in_double, stop_at, [*arguments, folder, *more])

    (alone,) = ended("alone", 1, None)
    assert alone.code == 0, alone.err
    both = ended("together", 2, 3)
    assert [e.code for e in both] == [128 + signal.SIGTERM] * 2
    assert "stopped at iteration 3, state saved" in both[0].err
    assert both[1] == Ended(128 + signal.SIGTERM, "", "")
    (resumed,) = ended("together again", 1, None, "--resume")
    assert resumed.code == 0, resumed.err

    folders = [next((tmp_path / name).glob("*/state_0000004.pth")).parent for name in ("alone", "together")]
    logs = [[entry | {"seconds_per_iteration": 0} for entry in entries(folder)] for folder in folders]
    assert len(logs[0]) == 4 + 2
    for one, two in zip(*logs, strict=True):
        assert two == pytest.approx(one, rel=1e-8)
    alone, together = (load(folder / "state_0000004.pth") for folder in folders)
    assert together["position"] == alone["position"] == {"LABELED": 2, "WO_LABEL": 8, "HEALTHY": 12}
    for network, weights in alone["networks"].items():
        for name, weight in weights.items():
            # Biases before an instance norm change nothing, and their gradients are nothing but rounding.
            tolerance = 1e-4 if name.endswith("bias") else 1e-8
            torch.testing.assert_close(together["networks"][network][name], weight, rtol=0, atol=tolerance, msg=name)


def test_a_batch_that_cannot_be_shared_out_is_one_line(config, tmp_path):
    ended = on_processes(2, tmp_path / "log", train.main, command(config, "SOLVER.BATCH_SIZE=3"))
    assert [e.code for e in ended] == [1, 1]
    told = [line for e in ended for line in e.err.splitlines() if "error" in line]
    assert told == ["error: SOLVER.BATCH_SIZE: 3 volumes cannot be split over 2 ranks; make it a multiple"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_on_cuda_trains_resumes_and_goes_on_on_the_cpu(config, run_folder, precision):
    arguments = ["--config-path", str(config), "--is-validation", "--quiet", f"SOLVER.PRECISION={precision}"]
    assert train.main([*arguments, "--device", "cuda"]) == 0
    assert load(run_folder / "segmenter_best.pth")["valid_dice"] > 0
    assert train.main([*arguments, "--device", "cuda", "--resume", "SOLVER.ITER_MAX=10"]) == 0
    assert train.main([*arguments, "--device", "cpu", "--resume", "SOLVER.ITER_MAX=12"]) == 0


def test_a_segmenter_alone_learns_its_own_objective_and_nothing_else_moves(config):
    training = started(config, "SOLVER.SEGMENTER_ONLY=true", "SOLVER.ITER_MAX=3", validate=False)
    steps = followed(training)
    train.train(training)
    assert [(objective, trains) for _, objective, _, trains in steps] == [(segmenter_objective, ("segmenter",))] * 3
    for _, _, (healthy, labelled), _ in steps:
        assert {case_id[:4] for case_id in healthy.ids} == {"well"}
        assert labelled.ids == ("sick_0",)  # as many as there are
    assert not torch.equal(steps[0][2][0].image, steps[1][2][0].image)


def test_a_segmenter_on_labels_alone_needs_no_other_scans(config, run_folder):
    overrides = ["SOLVER.SEGMENTER_ONLY=true", "LOSS.HEALTHY=0"]
    others = ["DATASET.SPLIT.HEALTHY=null", "DATASET.SPLIT.WO_LABEL=null"]
    training = started(config, *overrides, "SOLVER.ITER_MAX=2", *others)
    train.train(training)
    terms = {name for entry in entries(run_folder) for name in entry if name.startswith(("segmenter/", "joint/"))}
    assert terms == {"segmenter/labelled", "segmenter/total"}
    assert load(run_folder / "state_0000002.pth")["position"] == {"LABELED": 2}
    assert load(run_folder / "segmenter_last.pth")["training"]["scans"]["LABELED"] == 1
    assert started(config, *overrides, resume=True).iteration == 2


def test_a_run_with_a_discriminator_of_two_heads(config, run_folder):
    overrides = ["MODEL.DISCRIMINATOR_HEADS=2", "SOLVER.DISCRIMINATOR_STEPS=1", "SOLVER.ITER_MAX=3"]
    training = started(config, *overrides, validate=False)
    before = parameters(training)
    train.train(training)
    assert moved(before, training) == set(Networks._fields)
    assert started(config, *overrides, resume=True).iteration == 3


def test_the_moving_average_is_kept_validated_and_resumed(config, run_folder):
    overrides = ["SOLVER.SEGMENTER_AVERAGE=0.75", "SOLVER.DISCRIMINATOR_STEPS=1", "SOLVER.ITER_MAX=5"]
    training = started(config, *overrides, "INTERVAL={SAVE: 2, VALID: 5, PICTURE: 5}")
    expected, minimise = [], training.minimise

    def follow(*rest, trains):
        minimise(*rest, trains=trains)
        if "segmenter" in trains:
            now = parameters(training)["segmenter"]
            old = expected[-1] if expected else now
            expected.append([0.75 * a + 0.25 * b for a, b in zip(old, now, strict=True)])

    training.minimise = follow
    train.train(training)
    assert len(expected) == 6  # joint and own steps of three iterations
    kept, _ = load_segmenter(run_folder / "segmenter_best.pth")
    torch.testing.assert_close(list(kept.parameters()), expected[-1])
    weights = load(run_folder / "segmenter_last.pth")["weights"]
    assert same(dict(kept.state_dict()), weights)

    (run_folder / "state_0000005.pth").unlink()
    resumed = started(config, *overrides, resume=True, validate=False)
    assert resumed.iteration == 4
    train.train(resumed)
    assert same(load(run_folder / "segmenter_last.pth")["weights"], weights)
