import csv
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import test
from command_line import run
from models import Discriminator, Generator, Segmenter, load_published
from tests import reference
from tests.several import on_processes
from training.checkpoint import SegmenterInput, save_segmenter, save_state

OF_A_RUN = (".lock", "manifest.json")
"""Files that differ from run to run."""

TRAINED_ON = SegmenterInput((20, 64, 64), (-1250.0, 250.0), "minmax")


@pytest.fixture
def model(tmp_path):
    """A segmenter whose predictions are neither empty nor full: bright voxels are lesion."""
    torch.manual_seed(1)
    path = tmp_path / "run" / "segmenter_best.pth"
    save_segmenter(path, Segmenter(2), TRAINED_ON, 0, None)
    return path


def rows(folder):
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def results_of(config, model, *arguments):
    assert (
        test.main(["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", *arguments])
        == 0
    )
    return model.parent / "test"


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_masks_probabilities_and_scores_agree(config, cohort, model, tmp_path, capsys):
    output = tmp_path / "results"
    results_of(config, model, "--split", "VALID", "VALIDH", "--output", str(output))
    table = rows(output)
    assert list(table) == ["sick_4", "sick_5", "well_2"]
    summary = json.loads((output / "summary.json").read_text())
    dices = []
    for case_id, row in table.items():
        image = sitk.ReadImage(str(cohort / "images" / f"{case_id}.nii.gz"))
        lung = read(cohort / "lung" / f"{case_id}.nii.gz") > 0
        probability = sitk.ReadImage(str(output / "probabilities" / f"{case_id}.nii.gz"))
        for written in (probability, sitk.ReadImage(str(output / "masks" / f"{case_id}.nii.gz"))):
            assert written.GetSpacing() == image.GetSpacing()
            assert written.GetOrigin() == image.GetOrigin()
            assert written.GetDirection() == image.GetDirection()
        mask = read(output / "masks" / f"{case_id}.nii.gz") > 0
        assert np.array_equal(mask, sitk.GetArrayFromImage(probability) > 0.5)
        assert mask.any()
        assert not mask[~lung].any()
        assert sitk.GetArrayFromImage(probability)[lung].min() > 0
        voxel_ml = 2.0 * 1.5 * 6.0 / 1000
        assert float(row["predicted_ml"]) == pytest.approx(mask.sum() * voxel_ml, rel=1e-4)
        assert float(row["predicted_percent_of_lung"]) == pytest.approx(100 * mask.sum() / lung.sum(), rel=1e-4)
        if case_id.startswith("well"):
            assert (row["kind"], row["split"], row["dice"]) == ("no lesion", "VALIDH", "")
            assert row["false_positive_ml"] == row["predicted_ml"]
            assert float(row["true_ml"]) == 0
            continue
        truth = read(cohort / "lesion" / f"{case_id}.nii.gz") > 0
        dices.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        assert float(row["dice"]) == pytest.approx(dices[-1], rel=1e-4)
        assert float(row["true_ml"]) == pytest.approx(truth.sum() * voxel_ml, rel=1e-4)
        assert row["false_positive_ml"] == ""
    assert summary["lesion"]["scans"] == 2
    assert summary["lesion"]["dice"]["mean"] == pytest.approx(np.mean(dices))
    assert summary["lesion"]["dice"]["std"] == pytest.approx(np.std(dices))
    assert summary["no_lesion"]["scans"] == 1
    assert f"{100 * np.mean(dices):5.1f} ± {100 * np.std(dices):.1f} %" in capsys.readouterr().out


def test_the_prediction_is_the_published_segmenters(config, cohort, tmp_path):
    path = tmp_path / "checkpointU_1.pth"
    torch.save(reference.published_state(reference.load("segmenter_base4")), path)
    output = results_of(config, path)
    segmenter = Segmenter(4)
    load_published(segmenter, reference.published_state(reference.load("segmenter_base4")))
    image = read(cohort / "images" / "sick_4.nii.gz")
    scaled = (image - image.min()) / (image.max() - image.min()) * 2 - 1
    with torch.no_grad():
        expected = segmenter(torch.from_numpy(scaled)[None, None]).sigmoid()[0, 0].numpy()
    expected = expected * read(cohort / "lung" / "sick_4.nii.gz")
    np.testing.assert_allclose(read(output / "probabilities" / "sick_4.nii.gz"), expected, atol=1e-4)


def test_the_intensity_settings_come_from_the_model(config, cohort, tmp_path):
    torch.manual_seed(1)
    segmenter = Segmenter(2)
    found = []
    for normalization in ("minmax", "window"):
        path = tmp_path / normalization / "segmenter_best.pth"
        save_segmenter(path, segmenter, SegmenterInput((20, 64, 64), (-1250.0, 250.0), normalization), 0, None)
        found.append(read(results_of(config, path) / "probabilities" / "sick_4.nii.gz"))
    image = read(cohort / "images" / "sick_4.nii.gz") / 255 * 2 - 1
    with torch.no_grad():
        expected = segmenter(torch.from_numpy(image)[None, None]).sigmoid()[0, 0].numpy()
    lung = read(cohort / "lung" / "sick_4.nii.gz")
    np.testing.assert_allclose(found[1], expected * lung, atol=1e-4)
    assert not np.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("with_generator", [False, True])
def test_figures_have_the_columns_of_the_papers(config, model, tmp_path, monkeypatch, with_generator):
    drawn = {}
    save = test.save_case_figure
    monkeypatch.setattr(
        test, "save_case_figure", lambda columns, *rest: drawn.update({rest[-1].stem: columns}) or save(columns, *rest)
    )
    arguments = ["--save-vis", "--split", "VALID", "VALIDH"]
    if with_generator:
        networks = {
            "segmenter": Segmenter(2),
            "generator": Generator(2),
            "discriminator": Discriminator(2, (16, 64, 64)),
        }
        state = save_state(tmp_path, {"networks": {name: n.state_dict() for name, n in networks.items()}}, 1)
        arguments += ["--generator-path", str(state)]
    output = results_of(config, model, *arguments)
    assert sorted(p.name for p in (output / "figures").iterdir()) == ["sick_4.png", "sick_5.png", "well_2.png"]
    assert list(drawn["sick_4"]) == ["input", "M", "predicted", "true", *(("I_g", "I_s") if with_generator else ())]
    for volume in drawn["sick_4"].values():
        assert volume.shape == (20, 64, 64)
        assert volume.min() >= 0
        assert volume.max() <= 1
    if with_generator:
        columns = drawn["sick_4"]
        mixed = columns["M"] * columns["I_g"] + (1 - columns["M"]) * columns["input"]
        np.testing.assert_allclose(columns["I_s"], mixed, atol=1e-5)


def test_the_best_model_of_the_run_is_the_default(config, run_folder, capsys):
    arguments = ["--config-path", str(config), "--quiet", "--device", "cpu"]
    assert run(lambda: test.main(arguments)) == 1
    assert f"{run_folder / 'segmenter_best.pth'}: no such file" in capsys.readouterr().err
    save_segmenter(run_folder / "segmenter_best.pth", Segmenter(2), TRAINED_ON, 0, None)
    assert test.main(arguments) == 0
    assert (run_folder / "test" / "metrics.csv").is_file()


def test_scans_of_unknown_truth_are_predicted_too(config, model):
    output = results_of(
        config, model, "--split", "VALIDWL", "--output", str(model.parent / "test"), "DATASET.SPLIT.VALIDWL=valid_id_L"
    )
    row = rows(output)["sick_4"]
    assert (row["kind"], row["dice"], row["true_ml"]) == ("unknown", "", "")
    assert float(row["predicted_ml"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "TEST"], "DATASET.SPLIT.TEST names no list"),
        (["--model-path", "none.pth"], "none.pth: no such file"),
        (["IMAGE.SIZE=[16,64,64]"], r"was trained on crops of \(20, 64, 64\), IMAGE.SIZE is \(16, 64, 64\)"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_1(config, model, arguments, message, capsys):
    command = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", *arguments]
    assert run(lambda: test.main(command)) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert re.search(message, errors[0])


def test_a_generator_without_figures_is_a_usage_error(config, model):
    with pytest.raises(SystemExit) as stopped:
        test.main(["--config-path", str(config), "--model-path", str(model), "--generator-path", "g.pth"])
    assert stopped.value.code == 2


def test_overrides_may_follow_the_splits(config, model):
    output = results_of(config, model, "--split", "VALID", "VALIDH", "DATASET.SPLIT.VALIDH=valid_id_H")
    assert set(rows(output)) == {"sick_4", "sick_5", "well_2"}


def test_an_unknown_split_is_a_usage_error(config, model, capsys):
    with pytest.raises(SystemExit) as stopped:
        results_of(config, model, "--split", "VALDI")
    assert stopped.value.code == 2
    assert "VALDI is none of LABELED, WO_LABEL" in capsys.readouterr().err


def test_the_page_shows_every_scan_with_its_scores(config, model, tmp_path):
    output = results_of(config, model, "--split", "VALID", "VALIDH", "--no-report")
    assert not (output / "report.html").exists()
    results_of(config, model, "--split", "VALID", "VALIDH")
    page = (output / "report.html").read_text(encoding="utf-8")
    table = rows(output)
    shown = [
        re.findall(r'data-value="[^"]*">(?:<button type="button">)?([^<]*)<', row) for row in page.split("<tr data-")
    ]
    cells = {cells[0]: cells[1:4] for cells in shown[1:]}
    assert list(cells) == list(table)
    for case_id, row in table.items():
        dice = f"{float(row['dice']):.3f}" if row["dice"] else "\N{EN DASH}"
        assert cells[case_id] == [dice, f"{float(row['predicted_ml']):.1f}", f"{float(row['true_ml']):.1f}"]
    cases = [json.loads(text) for text in re.findall(r'id="case-\d">(.*?)</script>', page)]
    assert [case["truth"] for case in cases] == [True, True, True]
    assert [plane["size"] for plane in cases[0]["planes"]] == [[64, 64], [64, 20]]


def test_two_processes_write_the_files_of_one(config, model, tmp_path):
    arguments = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", "--save-vis"]
    written, printed = [], []
    for count in (1, 2):
        output = tmp_path / str(count)
        # Splits of two scans and of one: a process has nothing to do.
        more = ["--output", str(output), "--split", "VALID", "VALIDH"]
        ended = on_processes(count, tmp_path / f"log {count}", test.main, [*arguments, *more])
        assert [(e.code, e.err) for e in ended] == [(0, "")] * count
        assert all(e.out == "" for e in ended[1:])
        printed.append(ended[0].out.replace(str(output), ""))
        written.append(
            {p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file() and p.name not in OF_A_RUN}
        )
    assert printed[0] == printed[1]
    assert len(written[0]) == 3 * 3 + 3
    assert written[0] == written[1]
