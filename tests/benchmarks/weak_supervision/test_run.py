import json

import numpy as np
import pytest
import torch

from benchmarks.weak_supervision import rows, run
from benchmarks.weak_supervision.cohort import SIZES, Counts, Size, write_cohort
from benchmarks.weak_supervision.rows import ROWS, Row, Scale, row_settings
from models.losses import Weights
from tests.several import stop_at
from utils.errors import SettingsError

CPU = torch.device("cpu")
COUNTS = Counts(labelled=1, diseased=2, healthy=1, valid=1, validh=1, test=2, testh=1)
TINY = Scale(
    overrides=(
        "IMAGE.SIZE=[16, 32, 64]",
        "IMAGE.SLICES=16",
        "MODEL.WIDTH={UNET: 2, G: 2, D: 2}",
        "DATALOADER.NUM_WORKERS=0",
        "SOLVER.ITER_MAX=4",
        "INTERVAL={LOG: 1, VALID: 2, SAVE: 2, PICTURE: 4}",
    ),
    by_config={"supervised.yaml": ("SOLVER.ITER_MAX=3", "SOLVER.SEGMENTER_AVERAGE=0")},
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("weak") / "cohort"
    write_cohort(root, Size((16, 32, 64), COUNTS))
    return root


@pytest.fixture
def output(cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(rows.SCALES, "small", TINY)
    monkeypatch.setitem(SIZES, "small", Size((16, 32, 64), COUNTS))
    (tmp_path / "cohort").symlink_to(cohort)
    return tmp_path


def settings_of(name, size="small"):
    return row_settings(name, size, 3, rows.Path("c"), rows.Path("o"))


def test_every_row_has_the_settings_its_name_promises():
    for name, row in ROWS.items():
        settings = settings_of(name)
        assert settings.dataset.split.labeled == row.labels
        assert settings.solver.segmenter_only is (row.group == "alone")
        assert settings.exp.seed == 3
        assert settings.image.size == (20, 96, 96)
        assert settings_of(name, "full").image.size == (40, 160, 160)
    assert {name for name in ROWS if settings_of(name).loss.adversarial == 0} == {"no-adversarial"}
    assert {name for name in ROWS if not settings_of(name).loss.healthy} == {"labels-only-1"}
    published = {"published-1", "published-loss-1", "published-1-one-head"}
    assert {name for name in ROWS if settings_of(name).loss.segmentation_loss == "focal"} == published
    assert {name for name in ROWS if not any(settings_of(name).image.shift)} == published
    # All rows of a size have the learning rate of S, and those of S alone the same number of steps.
    for size in rows.SCALES:
        assert len({settings_of(name, size).solver.optimizer.u.lr for name in ROWS}) == 1
        assert len({settings_of(n, size).solver.iter_max for n, row in ROWS.items() if row.group == "alone"}) == 1


def test_what_the_authors_ran_keeps_its_weights_and_gates():
    found, one_head = settings_of("published-1"), settings_of("published-1-one-head")
    assert found.exp.constraints == {"recons", "origImgToD", "genImgToD", "perception"}
    assert (found.model.discriminator_heads, one_head.model.discriminator_heads) == (2, 1)
    default = Weights()
    same = {"perception_start": default.perception_start, "mil_start": default.mil_start}
    assert found.loss.model_copy(update=same) == default
    assert found.gate.enabled
    assert found.loss.perception_start == found.solver.iter_max // 2 == found.solver.last_iteration // 2


def test_runs_are_trained_tested_and_skipped_when_finished(output, monkeypatch, capsys):
    def command(output, *rows):
        return ["--output", str(output), "--seeds", "0", "--device", "cpu", "--quiet", "--rows", *rows]

    names = "s-1", "gasnet-1"
    assert run.main(command(output, *names)) == 0
    results = {name: json.loads(run.result_path(output, name, 0).read_text()) for name in names}
    for name, result in results.items():
        assert [(row["id"], row["kind"]) for row in result["test"]["rows"]] == [
            ("test_000", "lesion"), ("test_001", "lesion"), ("testh_000", "no lesion")
        ]  # fmt: skip
        assert result["test"]["lesion"]["scans"] == 2
        assert result["valid_dice"] == max(entry["dice"] for entry in result["curve"])
        assert [entry["iteration"] for entry in result["curve"]] == {"s-1": [2, 3], "gasnet-1": [2, 4]}[name]
        assert 0 < result["test"]["threshold"] < 1

    monkeypatch.setattr(run, "train", lambda training: pytest.fail("trained again"))
    assert run.main(command(output, *names)) == 0
    # Scores that are undefined for a scan are left out.
    assert "null" not in run.result_path(output, "s-1", 0).read_text().split('"rows"')[1].split("]")[0]
    # The folder may move.
    output = output.rename(output.with_name(f"{output.name} moved"))
    assert run.main(command(output, *names)) == 0
    # A result with other settings, or with settings that do not exist, is refused.
    path = run.result_path(output, "s-1", 0)
    path.write_text(path.read_text().replace('"SEED": 0', '"SEED": 0, "SETTING_OF_OLD": 1'))
    monkeypatch.setitem(ROWS, "gasnet-1", Row("GASNet, 1 label", overrides=("LOSS.RECONS=7",)))
    assert run.main(command(output, *names)) == 1
    said = capsys.readouterr().err
    for name in names:
        assert f"{name}, seed 0: {run.result_path(output, name, 0)}: made with other settings" in said


def test_an_interrupted_run_resumes_and_one_with_other_settings_is_refused(output, monkeypatch):
    settings, begun, train = row_settings("s-1", "small", 0, output / "cohort", output), [], run.train
    path = run.result_path(output, "s-1", 0)

    def stopped(training):
        begun.append(training.iteration)
        stop_at(training, 2)
        train(training)

    monkeypatch.setattr(run, "train", stopped)
    with pytest.raises(SystemExit):
        run.run_once(path, {}, settings, run.test_row, CPU)
    assert not path.exists()
    monkeypatch.setattr(run, "train", lambda training: begun.append(training.iteration) or train(training))
    run.run_once(path, {}, settings, run.test_row, CPU)
    assert begun == [0, 2]
    longer = settings.solver.model_copy(update={"iter_max": 9})
    with pytest.raises(SettingsError, match="started with other settings"):
        run.run_once(path.with_name("new.json"), {}, settings.model_copy(update={"solver": longer}), run.test_row, CPU)


def test_the_threshold_is_the_best_in_the_mean_over_scans():
    probabilities = [np.array([0.11, 0.41, 0.91]), np.array([0.35, 0.55, 0.8])]
    truths = [np.array([False, False, True]), np.array([False, True, True])]
    assert 0.4 < run.best_threshold(probabilities, truths) < 0.55
