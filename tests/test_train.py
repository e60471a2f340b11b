import json
import os
import re
import shutil
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
from tests import reference
from tests.several import Ended, in_double_precision, on_processes
from training import log as training_log
from training import run as training_run
from training.run import TrainingRun
from utils import distributed
from utils.cli import run
from utils.errors import GasnetError, TrainingError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def started(config, *overrides, **options):
    settings = read_settings(config, overrides)
    cohort = read_cohort(settings.dataset.root, train.used_splits(settings, validate=True), settings.image.size)
    return TrainingRun(settings, cohort, CPU, progress=False, **options)


def parameters(training):
    return {
        network: [p.detach().clone() for p in getattr(training.networks, network).parameters()]
        for network in Networks._fields
    }


def changed(before, after):
    return {
        name for name in before if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


def states_equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


def test_the_schedule_steps_the_networks_in_turn(config):
    training = started(config, "LOSS.MIL_START=100", "LOSS.PERCEPTION_START=100")
    calls = []
    minimise, batch = training.minimise, training.batch

    def spy(objective, *batches, trains):
        before = parameters(training)
        minimise(objective, *batches, trains=trains)
        calls.append((training.iteration, objective, changed(before, parameters(training)), set(trains)))

    taken = []
    training.minimise = spy
    training.batch = lambda split: taken.append((training.iteration, split)) or batch(split)
    train.train(training)
    expected = []
    for t in range(8):
        if t in (0, 1, 4, 5):
            expected += [(t, joint_objective, {"segmenter", "generator"}), (t, segmenter_objective, {"segmenter"})]
        else:
            expected += [(t, discriminator_objective, {"discriminator"})] * 2
    assert [call[:3] for call in calls] == expected
    assert all(call[2] == call[3] for call in calls)
    assert sorted(split for t, split in taken if t == 0) == ["HEALTHY", "HEALTHY", "LABELED", "WO_LABEL"]
    assert [split for t, split in taken if t == 2] == ["WO_LABEL", "HEALTHY"] * 2


def test_a_run_leaves_everything_that_it_promises(config, run_folder):
    assert train.main(["--config-path", str(config), "--is-validation", "--quiet", "--device", "cpu"]) == 0
    names = {p.name for p in run_folder.iterdir()}
    assert names == {
        "settings.yaml", "metrics.jsonl", "pictures", "tensorboard", "segmenter_best.pth", "segmenter_last.pth",
        "state_0000004.pth", "state_0000008.pth", "ledger", "report.html", ".lock",
    }  # fmt: skip
    assert read_settings(run_folder / "settings.yaml") == read_settings(config)
    assert [p.name for p in sorted((run_folder / "pictures").iterdir())] == ["0000004.png", "0000008.png"]
    assert any(p.name.startswith("events") for p in (run_folder / "tensorboard").iterdir())

    entries = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    logged = {name for entry in entries for name in entry}
    assert {
        "joint/adversarial", "joint/genImgToD", "joint/recons", "joint/MIL", "joint/perception", "joint/total",
        "segmenter/healthy", "segmenter/labelled", "segmenter/total", "discriminator/synthetic",
        "discriminator/healthy", "discriminator/origImgToD", "discriminator/genImgToD", "discriminator/total",
        "right/healthy", "right/synthetic", "lr/segmenter", "lr/generator", "lr/discriminator", "valid/dice",
        "validh/false_positive_ml",
    } <= logged  # fmt: skip
    best = max(entry["valid/dice"] for entry in entries if "valid/dice" in entry)
    assert load(run_folder / "segmenter_best.pth")["valid_dice"] == best
    _, facts = load_segmenter(run_folder / "segmenter_last.pth")
    assert facts.trained_on == SegmenterInput(size=(20, 64, 64), window=(-1250.0, 250.0), normalization="minmax")
    assert (facts.width, facts.threshold, facts.iteration) == (2, 0.5, 8)


def test_the_window_of_the_data_is_written_into_every_checkpoint(config, run_folder, capsys):
    training = started(config, "IMAGE.WINDOW=[-1000, 400]", "SOLVER.ITER_MAX=1", "INTERVAL.VALID=1")
    train.train(training)
    for name in ("segmenter_best.pth", "segmenter_last.pth"):
        assert load(run_folder / name)["input"]["window"] == (-1000.0, 400.0)
    # The cohort has the published one.
    arguments = ["--config-path", str(config), "--quiet", "--dry-run", "IMAGE.WINDOW=[-1000, 400]"]
    assert run(lambda: train.main(arguments)) == 1
    assert "cropped with the window [-1250.0, 250.0], IMAGE.WINDOW is [-1000.0, 400.0]" in capsys.readouterr().err


def test_the_page_is_written_at_saves_while_that_takes_little_of_the_time(config, run_folder, monkeypatch):
    written, now = [], [0.0]
    monkeypatch.setattr(training_log.time, "monotonic", lambda: now[0])

    def write(folder):
        written.append(training.iteration)
        now[0] += 2.0

    monkeypatch.setattr(training_log, "write_training_report", write)
    training = started(config, "SOLVER.ITER_MAX=12", "INTERVAL.SAVE=1", "SOLVER.DISCRIMINATOR_STEPS=1", validate=False)
    for _ in training.iterations():
        now[0] += 20.0
    # Not in the first 50 s; then, since it takes 2 s, every 100 s.
    assert written == [3, 8]


def test_a_page_that_cannot_be_written_ends_no_training(config, run_folder, monkeypatch, capsys):
    def fail(folder):
        raise RuntimeError("no room")

    monkeypatch.setattr(training_log, "write_training_report", fail)
    arguments = ["--config-path", str(config), "--quiet", "--device", "cpu", "SOLVER.ITER_MAX=2"]
    assert train.main(arguments) == 0
    assert f"{run_folder / 'report.html'}: not written (RuntimeError: no room)" in capsys.readouterr().err
    assert (run_folder / "segmenter_last.pth").is_file()


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
def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--config-path", str(config), "--is-validation", "--quiet", "--device", "cpu"]
    train.main([*arguments, f"EXP.OUTPUT_DIR={whole}"])

    # Stop at iterations 3, 5 and 6: within both phases and between them.
    for stop in (3, 5, 6):
        training = started(config, f"EXP.OUTPUT_DIR={parts}", resume=parts.exists())
        between = training.between

        def stop_there(training=training, between=between, stop=stop):
            if training.iteration == stop:
                training.stop.receive(signal.SIGTERM)
            between()

        training.between = stop_there
        with pytest.raises(SystemExit) as stopped:
            train.train(training)
        assert stopped.value.code == 143
    train.main([*arguments, "--resume", f"EXP.OUTPUT_DIR={parts}"])

    name = read_settings(config).exp.id
    for file in ("state_0000008.pth", "segmenter_best.pth", "segmenter_last.pth"):
        a, b = load(whole / name / file), load(parts / name / file)
        a.pop("settings", None), b.pop("settings", None)
        assert states_equal(a, b), file
    validations = [
        [line for line in (folder / name / "metrics.jsonl").read_text().splitlines() if "valid/dice" in line]
        for folder in (whole, parts)
    ]
    assert validations[0] == validations[1]


@pytest.mark.fault("another number of workers")
def test_results_do_not_depend_on_the_number_of_workers(config, tmp_path):
    weights = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        overrides = [f"EXP.OUTPUT_DIR={folder}", f"DATALOADER.NUM_WORKERS={workers}", "SOLVER.ITER_MAX=4"]
        train.main(["--config-path", str(config), "--quiet", "--device", "cpu", *overrides])
        weights.append(load(next(folder.glob("*/state_0000004.pth")))["networks"])
    assert states_equal(*weights)


def losses(config, *overrides):
    """Every term of two iterations of each phase, in single precision."""
    always = [
        # Adam's first step is a whole learning rate, whatever the sign of a gradient that is all rounding.
        *(f"SOLVER.OPTIMIZER.{network}.LR=1e-6" for network in "UGD"),
        "SOLVER.ITER_MAX=4",
        "SOLVER.PRECISION=fp32",
        "LOSS={MIL_START: 0, PERCEPTION_START: 0}",
        "INTERVAL.LOG=1",
    ]
    training = started(config, *always, *overrides, validate=False)
    train.train(training)
    entries = [json.loads(line) for line in (training.folder / "metrics.jsonl").read_text().splitlines()]
    found = {
        (entry["iteration"], name): value
        for entry in entries
        for name, value in entry.items()
        if name.startswith((*Networks._fields, "joint")) and "/" in name
    }
    assert len(found) == 2 * (4 + 3 + 5) + 2  # terms and totals of the objectives; MIL and perception begin with t = 1
    return found


@pytest.mark.slow
def test_compiling_changes_rounding_at_most(config, tmp_path, monkeypatch):
    compiled = []
    plain_compile = torch.nn.Module.compile

    def compile_without_a_compiler(network):
        compiled.append(type(network).__name__)
        plain_compile(network, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_a_compiler)
    expected = losses(config, f"EXP.OUTPUT_DIR={tmp_path / 'off'}")
    assert compiled == []
    found = losses(config, "SPEED.COMPILE=true", f"EXP.OUTPUT_DIR={tmp_path / 'on'}")
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-4)
    assert compiled == ["Segmenter", "Generator"]


def poisoned(training, iterations):
    """Let some iterations have a NaN in the diseased batch."""
    batch = training.batch

    def next_batch(split):
        value = batch(split)
        if split == "WO_LABEL" and training.iteration in iterations:
            return value._replace(image=value.image * float("nan"))
        return value

    training.batch = next_batch


@pytest.mark.fault("NaN or Inf in a loss")
def test_nan_never_reaches_the_weights_and_is_reported_with_the_batch(config, run_folder, caplog):
    training = started(config)
    poisoned(training, {1, 2})
    train.train(training)
    assert all(torch.isfinite(p).all() for network in parameters(training).values() for p in network)
    # One joint step and two steps of D; the segmenter's own objective had a good batch.
    assert training.state.skipped.count == 3
    assert caplog.text.count("this step was skipped") == 3
    assert "NaN or Inf in the loss of the joint objective of iteration 1, batch sick_" in caplog.text
    entries = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["skipped"] for entry in entries if "skipped" in entry] == [1, 3, 3, 3]


@pytest.mark.fault("many of them")
def test_too_many_nan_stop_the_run_with_the_batch(config):
    training = started(config, "SOLVER.MAX_SKIPPED=2")
    poisoned(training, range(8))
    with pytest.raises(
        TrainingError, match=r"in 6 steps, the last in the loss of the discriminator .* batch sick_\d"
    ) as caught:
        train.train(training)
    assert "\n" not in str(caught.value)


def test_a_run_starts_from_given_networks(config, run_folder, tmp_path):
    train.main(["--config-path", str(config), "--quiet", "--device", "cpu"])
    state = run_folder / "state_0000008.pth"
    keys = {"UNET": run_folder / "segmenter_last.pth", "G": state, "D": state}
    training = started(config, f"EXP.OUTPUT_DIR={tmp_path / 'new'}", *(f"INIT_MODEL.{k}={p}" for k, p in keys.items()))
    for name, network in training.networks._asdict().items():
        saved = load(state)["networks"][name]
        assert all(torch.equal(tensor, saved[key]) for key, tensor in network.state_dict().items()), name
    assert training.iteration == 0


def test_a_run_starts_from_published_networks(config, tmp_path):
    for name in ("segmenter_base4", "generator_base4"):
        torch.save(reference.published_state(reference.load(name)), tmp_path / f"{name}.pth")
    training = started(
        config,
        "MODEL.WIDTH.UNET=4",
        "MODEL.WIDTH.G=4",
        f"INIT_MODEL.UNET={tmp_path / 'segmenter_base4.pth'}",
        f"INIT_MODEL.G={tmp_path / 'generator_base4.pth'}",
    )
    published = reference.published_state(reference.load("segmenter_base4"))
    assert torch.equal(training.networks.segmenter.stem[0].weight, published["conv.weight"])


def test_a_dry_run_prints_settings_and_splits_and_writes_nothing(config, run_folder, capsys):
    arguments = ["--config-path", str(config), "--dry-run", "--is-validation", "--quiet", "SOLVER.BATCH_SIZE=3"]
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "BATCH_SIZE: 3" in printed
    assert "constraints: MIL, genImgToD, origImgToD, perception, recons" in printed
    assert [line.split()[:2] for line in printed.splitlines() if line.endswith("scans")] == [
        ["LABELED", "1"], ["WO_LABEL", "3"], ["HEALTHY", "2"], ["VALID", "2"], ["VALIDH", "1"]
    ]  # fmt: skip
    assert not run_folder.exists()


@pytest.mark.fault("a disk that fails, a")
def test_a_disk_that_fails_is_one_line(config, run_folder, capsys):
    run_folder.mkdir(parents=True)
    (run_folder / "pictures").touch()
    arguments = ["--config-path", str(config), "--quiet", "--device", "cpu", "SOLVER.ITER_MAX=1"]
    assert run(lambda: train.main(arguments)) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {run_folder / 'pictures'}: ")


@pytest.mark.fault("no GPU, a bad device")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATASET.ROOT=nowhere"], "no cohort here .* try sh demo.sh"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--device", "tpu"], "--device tpu: no such device"),
        (["SOLVER.LR=1"], "SOLVER.LR: unknown setting"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_1(config, arguments, message, capsys):
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert run(lambda: train.main(["--config-path", str(config), "--quiet", *device, *arguments])) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert re.search(message, errors[0]), errors[0]


def test_a_misspelt_constraint_in_the_id_is_warned_of(config, capsys):
    train.main(["--config-path", str(config), "--quiet", "--dry-run", "EXP.ID=sample1_percepton"])
    assert "percepton (did you mean perception?) has no effect" in capsys.readouterr().err


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
    arguments = [
        "--config-path", str(config), "--is-validation", "--device", "cpu", "SOLVER.ITER_MAX=5",
        "SOLVER.DISCRIMINATOR_STEPS=1", "LOSS.MIL_START=0", "LOSS.PERCEPTION_START=0", "INTERVAL.LOG=1",
        "INTERVAL.VALID=2", "INTERVAL.PICTURE=5",
    ]  # fmt: skip

    def ended(name, count, stop_at, *more):
        folder = f"EXP.OUTPUT_DIR={tmp_path / name.split()[0]}"
        return on_processes(count, tmp_path / name, train_in_double, stop_at, [*arguments, folder, *more])

    (alone,) = ended("alone", 1, None)
    assert alone.code == 0, alone.err
    both = ended("together", 2, 4)
    assert [e.code for e in both] == [128 + signal.SIGTERM] * 2
    assert "stopped at iteration 4, state saved" in both[0].err
    assert both[1] == Ended(128 + signal.SIGTERM, "", "")
    (resumed,) = ended("together again", 1, None, "--resume")
    assert resumed.code == 0, resumed.err

    entries = []
    for name in ("alone", "together"):
        (log,) = (tmp_path / name).glob("*/metrics.jsonl")
        entries.append([json.loads(line) for line in log.read_text().splitlines()])
    assert len(entries[0]) == len(entries[1]) == 5 + 3
    for one, two in zip(*entries, strict=True):
        one.pop("seconds_per_iteration", None), two.pop("seconds_per_iteration", None)
        assert two == pytest.approx(one, rel=1e-8)

    (alone,), (together,) = ((tmp_path / n).glob("*/state_0000005.pth") for n in ("alone", "together"))
    alone, together = load(alone), load(together)
    assert together["position"] == alone["position"] == {"LABELED": 3, "WO_LABEL": 10, "HEALTHY": 16}
    for network, weights in alone["networks"].items():
        for name, weight in weights.items():
            # Biases before an instance norm change nothing, and their gradients are nothing but rounding.
            tolerance = 1e-4 if name.endswith("bias") else 1e-8
            torch.testing.assert_close(together["networks"][network][name], weight, rtol=0, atol=tolerance, msg=name)


def test_a_batch_that_cannot_be_shared_out_is_one_line(config, tmp_path):
    arguments = ["--config-path", str(config), "--device", "cpu", "SOLVER.BATCH_SIZE=3"]
    ended = on_processes(2, tmp_path / "log", train.main, arguments)
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
    assert (run_folder / "state_0000012.pth").is_file()
    shutil.rmtree(run_folder)


def named(training):
    """The objectives of a run's steps, and the splits that its batches come from."""
    steps, splits = [], []
    minimise, batch = training.minimise, training.batch
    training.minimise = lambda *rest, trains: steps.append((rest[0], *trains)) or minimise(*rest, trains=trains)
    training.batch = lambda split: splits.append(split) or batch(split)
    return steps, splits


def test_a_segmenter_alone_learns_its_own_objective_and_nothing_else_moves(config):
    training = started(config, "SOLVER.SEGMENTER_ONLY=true", "SOLVER.ITER_MAX=4", validate=False)
    before = parameters(training)
    steps, splits = named(training)
    train.train(training)
    assert steps == [(segmenter_objective, "segmenter")] * 4
    assert splits == ["HEALTHY", "LABELED"] * 4
    assert changed(before, parameters(training)) == {"segmenter"}


def test_a_segmenter_on_labels_alone_needs_no_other_scans(config, run_folder):
    overrides = ["SOLVER.SEGMENTER_ONLY=true", "LOSS.HEALTHY=0", "SOLVER.ITER_MAX=4"]
    overrides += ["DATASET.SPLIT.HEALTHY=null", "DATASET.SPLIT.WO_LABEL=null"]
    training = started(config, *overrides)
    steps, _ = named(training)
    train.train(training)
    assert steps == [(segmenter_objective, "segmenter")] * 4
    entries = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    terms = {name for entry in entries for name in entry if name.startswith("segmenter/")}
    assert terms == {"segmenter/labelled", "segmenter/total"}
    state = load(run_folder / "state_0000004.pth")
    assert state["position"] == {"LABELED": 4}
    assert load(run_folder / "segmenter_last.pth")["training"]["scans"]["LABELED"] == 1
    train.train(started(config, *overrides[:1], "LOSS.HEALTHY=0", "SOLVER.ITER_MAX=5", resume=True))


def test_a_teacher_labels_other_volumes_for_s(config, monkeypatch):
    alone = ["SOLVER.SEGMENTER_ONLY=true", "SOLVER.SEGMENTER_AVERAGE=0.5", "SOLVER.ITER_MAX=3", "INTERVAL.LOG=1"]
    training = started(config, *alone, "LOSS.TEACHER=1", "LOSS.DISTURBANCE=0.05", validate=False)
    taught = []
    teach = training.taught

    def spy(unlabelled):
        found = teach(unlabelled)
        with torch.no_grad():
            expected = training.state.segmenter(unlabelled.image).sigmoid()
        taught.append((unlabelled, found, torch.equal(found.lesion, expected)))
        return found

    training.taught = spy
    train.train(training)
    assert len(taught) == 3
    for unlabelled, found, by_the_average in taught:
        assert by_the_average  # the average, and what it was shown undisturbed
        assert not torch.equal(found.image, unlabelled.image)
        assert torch.equal(found.lung, unlabelled.lung)
    assert not torch.equal(training.state.segmenter(found.image), training.networks.segmenter(found.image))
    entries = [json.loads(line) for line in (training.folder / "metrics.jsonl").read_text().splitlines()]
    assert all({"teacher/consistency", "segmenter/labelled"} <= set(entry) for entry in entries)


def test_every_step_of_the_segmenter_takes_a_fresh_healthy_batch_and_the_labelled_scans_there_are(config):
    for fill, labelled in ((False, ("sick_0",)), (True, ("sick_0", "sick_0"))):
        output = f"EXP.OUTPUT_DIR={config.parent / str(fill)}"
        training = started(config, f"SOLVER.FILL_LABELLED_BATCH={fill}", "SOLVER.ITER_MAX=2", output, validate=False)
        minimise, seen = training.minimise, []
        training.minimise = lambda *rest, trains, seen=seen, minimise=minimise: (
            seen.append(rest) or minimise(*rest, trains=trains)
        )
        train.train(training)
        joint, own, *_ = seen
        assert (joint[0], own[0]) == (joint_objective, segmenter_objective)
        assert not torch.equal(joint[2].image, own[1].image)
        assert own[2].ids == labelled
        assert own[2].image.shape[0] == len(labelled)


def test_a_run_stops_after_the_iteration_that_was_asked_for_on_the_whole_schedule(config, run_folder):
    training = started(config, "SOLVER.STOP_AFTER=3", "INTERVAL.LOG=1", validate=False)
    train.train(training)
    assert training.iteration == 3
    assert (run_folder / "state_0000003.pth").is_file()
    assert training.method.last_iteration == 8


def test_a_run_with_a_discriminator_of_two_heads(config, run_folder, tmp_path):
    published = reference.published_state(reference.load("discriminator_two_heads_base2"))
    training = started(config, "MODEL.DISCRIMINATOR_HEADS=2", "SOLVER.ITER_MAX=4", validate=False)
    before = parameters(training)
    train.train(training)
    assert changed(before, parameters(training)) == set(Networks._fields)
    # One head begins near log 2 a term, two near twice that.
    entries = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert 1 < next(entry["discriminator/healthy"] for entry in entries if "discriminator/healthy" in entry) < 2
    assert started(config, "MODEL.DISCRIMINATOR_HEADS=2", "SOLVER.ITER_MAX=4", resume=True).iteration == 4
    torch.save(published, tmp_path / "checkpointD_1.pth")
    with pytest.raises(GasnetError, match=r"checkpointD_1.pth: the weights of .* two heads, .* set MODEL.DISC"):
        started(config, f"INIT_MODEL.D={tmp_path / 'checkpointD_1.pth'}", "EXP.ID=x")


def test_the_moving_average_is_kept_validated_and_resumed(config, run_folder, tmp_path):
    decay = 0.75
    average = f"SOLVER.SEGMENTER_AVERAGE={decay}"
    training = started(config, average, "SOLVER.ITER_MAX=6", "INTERVAL.SAVE=2", "INTERVAL.VALID=6")
    expected = []
    minimise = training.minimise

    def follow(*rest, trains):
        minimise(*rest, trains=trains)
        if "segmenter" in trains:
            now = parameters(training)["segmenter"]
            old = expected[-1] if expected else now
            expected.append([decay * a + (1 - decay) * b for a, b in zip(old, now, strict=True)])

    training.minimise = follow
    train.train(training)
    kept, _ = load_segmenter(run_folder / "segmenter_best.pth")
    for found, by_hand in zip(kept.parameters(), expected[-1], strict=True):
        torch.testing.assert_close(found, by_hand)
    assert len(expected) == 8  # joint and own steps of four iterations
    weights = load(run_folder / "segmenter_last.pth")["weights"]
    assert states_equal(dict(kept.state_dict()), weights)

    for state in run_folder.glob("state_0000006.pth"):
        state.unlink()
    resumed = started(config, average, "SOLVER.ITER_MAX=6", resume=True)
    assert resumed.iteration == 4
    train.train(resumed)
    assert states_equal(load(run_folder / "segmenter_last.pth")["weights"], weights)
