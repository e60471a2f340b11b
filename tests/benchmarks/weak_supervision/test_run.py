import json
import signal

import pytest
import torch

from benchmarks.weak_supervision import plots, rows, run, table
from benchmarks.weak_supervision.cohort import Counts, Size, write_cohort
from benchmarks.weak_supervision.rows import ROWS, Row, Scale, row_settings
from configs.settings import CONSTRAINTS
from utils.errors import SettingsError

CPU = torch.device("cpu")
TINY = Scale(
    overrides=(
        "IMAGE.SIZE=[16, 32, 64]",
        "IMAGE.SLICES=16",
        "MODEL.WIDTH={UNET: 2, G: 2, D: 2}",
        "DATALOADER.NUM_WORKERS=0",
        "SOLVER.ITER_MAX=4",
        "INTERVAL={LOG: 1, VALID: 2, SAVE: 2, PICTURE: 4}",
    ),
    gasnet=(),
    supervised=("SOLVER.ITER_MAX=3", "SOLVER.SEGMENTER_AVERAGE=0"),
    published=(),
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("weak") / "cohort"
    counts = Counts(labelled=1, diseased=2, healthy=1, valid=1, validh=1, test=2, testh=1)
    write_cohort(root, Size((16, 32, 32), (16, 32, 64)), counts=counts)
    return root


@pytest.fixture
def output(cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(rows.SCALES, "small", TINY)
    (tmp_path / "cohort").symlink_to(cohort)
    return tmp_path


def settings_of(name, size="small"):
    return row_settings(name, size, 3, rows.Path("c"), rows.Path("o"))


def test_every_row_has_the_settings_its_name_promises():
    for name, row in ROWS.items():
        settings = settings_of(name)
        assert settings.dataset.split.labeled == row.labels
        assert settings.solver.segmenter_only is name.startswith("s-")
        assert settings.exp.seed == 3
        assert settings.image.size == (16, 64, 64)
        assert settings_of(name, "full").image.size == (40, 160, 160)
        if not settings.solver.segmenter_only:
            assert settings.exp.constraints == frozenset(row.constraints)
    for name in CONSTRAINTS:
        assert set(CONSTRAINTS) - settings_of(f"no-{name}").exp.constraints == {name}
    weak, published = settings_of("gasnet-1"), settings_of("published-1")
    assert published.loss.segmentation == 100
    assert published.gate.enabled
    assert published.solver.segmenter_average == 0
    assert weak.image == settings_of("s-40").image
    assert (
        weak.solver.optimizer.u
        == settings_of("s-40").solver.optimizer.u
        == published.solver.optimizer.u.model_copy(update={"weight_decay": weak.solver.optimizer.u.weight_decay})
    )
    weights = {name: settings_of(name).loss.labelled for name, row in ROWS.items() if row.group == "main"}
    many = {name for name, weight in weights.items() if weight == 1}
    assert many == {"s-10", "s-40", "gasnet-10"}
    assert {weight for name, weight in weights.items() if name not in many} == {5}
    without_d = {name for name in ROWS if settings_of(name).loss.adversarial == 0 and not name.startswith("s-")}
    assert without_d == {"no-adversarial", "perception-only"}


def test_runs_are_trained_tested_and_skipped_when_finished(output, monkeypatch):
    runs = [("s-1", 0), ("gasnet-1", 0)]
    assert run.run_all(runs, "small", output, CPU, processes=1, progress=False) == {}
    results = {name: json.loads(run.result_path(output, name, 0).read_text()) for name, _ in runs}
    for name, result in results.items():
        assert [(row["id"], row["kind"]) for row in result["test"]["rows"]] == [
            ("test_000", "lesion"), ("test_001", "lesion"), ("testh_000", "no lesion")
        ]  # fmt: skip
        assert result["test"]["lesion"]["scans"] == 2
        assert result["valid_dice"] == max(entry["dice"] for entry in result["curve"])
        assert [entry["iteration"] for entry in result["curve"]] == {"s-1": [2, 3], "gasnet-1": [2, 4]}[name]

    monkeypatch.setattr(run, "train", lambda training: pytest.fail("trained again"))
    assert run.run_all(runs, "small", output, CPU, processes=1, progress=False) == {}
    # Scores that are undefined for a scan are left out, and every scan has a line of its own.
    text = run.result_path(output, "s-1", 0).read_text()
    assert "null" not in text.split('"rows"')[1].split("]")[0]
    assert [line.strip()[:17] for line in text.splitlines() if '"id"' in line] == [
        '{"id": "test_000"', '{"id": "test_001"', '{"id": "testh_000'
    ]  # fmt: skip
    # The folder may move.
    moved = output.with_name(f"{output.name} moved")
    output.rename(moved)
    assert run.run_all(runs, "small", moved, CPU, processes=1, progress=False) == {}
    output = moved
    # A result with other settings, or with settings that do not exist, is refused.
    path = run.result_path(output, "s-1", 0)
    path.write_text(path.read_text().replace('"PATIENCE"', '"PATIENCE_OF_OLD"'))
    failed = run.run_all(runs[:1], "small", output, CPU, processes=1, progress=False)
    assert "made with other settings" in failed["s-1, seed 0"]
    monkeypatch.setitem(ROWS, "gasnet-1", Row("GASNet, 1 label", overrides=("LOSS.MIL=7",)))
    failed = run.run_all(runs[1:], "small", output, CPU, processes=1, progress=False)
    assert list(failed) == ["gasnet-1, seed 0"]
    assert "made with other settings" in failed["gasnet-1, seed 0"]


def test_an_interrupted_run_resumes_and_one_with_other_settings_is_refused(output, monkeypatch):
    settings = row_settings("s-1", "small", 0, output / "cohort", output)
    begun = []
    train = run.train

    def stopped(training):
        begun.append(training.iteration)
        between = training._between

        def stop():
            if training.iteration == 2:
                signal.raise_signal(signal.SIGTERM)
            between()

        training._between = stop
        train(training)

    monkeypatch.setattr(run, "train", stopped)
    with pytest.raises(SystemExit):
        run.run_row("s-1", "small", 0, output, CPU)
    assert not run.result_path(output, "s-1", 0).exists()
    monkeypatch.setattr(run, "train", lambda training: begun.append(training.iteration) or train(training))
    run.run_row("s-1", "small", 0, output, CPU)
    assert begun == [0, 2]
    with pytest.raises(SettingsError, match="started with other settings"):
        run.train_row(
            settings.model_copy(update={"solver": settings.solver.model_copy(update={"iter_max": 9})}), CPU, False
        )


def test_table_and_figures_are_made_from_results(output, capsys, monkeypatch):
    for name in ("s-1", "s-40", "gasnet-1"):
        run.run_row(name, "small", 0, output, CPU)
    assert table.main([str(output)]) == 0
    assert capsys.readouterr().out.strip() == (output / "table.md").read_text().strip()
    drawn = []
    with monkeypatch.context() as patched:
        patched.setattr(plots.plt, "close", drawn.append)
        assert plots.main([str(output)]) == 0
    titles = [axis.get_title() for axis in drawn[-1].axes]
    assert titles[:8] == ["input", "true", "S, 1 label", "M", "GASNet, 1 label", "S, 40 labels", "I_g", "I_s"]
    assert not any(titles[8:])
    plots.plt.close("all")
    for name in ("curves.png", "cases.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_an_unknown_row_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--output", str(tmp_path), "--rows", "s-1", "s-2"])
    assert "--rows: unknown row s-2; choose from s-1, gasnet-1" in capsys.readouterr().err
