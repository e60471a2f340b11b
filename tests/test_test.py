import csv
import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

import post_processing
import predict
import test
from datasets.cohort import contents_of
from evaluation import testing
from models import Discriminator, Generator, Segmenter, checkpoint, load_published
from models.checkpoint import SegmenterFacts, SegmenterInput, save_segmenter
from tests import reference
from tests.several import noting_who_indexes, on_processes
from tests.volumes import pixels
from training.states import save_state
from utils.cli import run

OF_A_RUN = (".lock",)
"""Files that differ from run to run, beside the ledger."""

TRAINED_ON = SegmenterInput(size=(20, 64, 64), window=(-1250.0, 250.0), normalization="minmax")


@pytest.fixture
def model(tmp_path):
    """A segmenter whose predictions are neither empty nor full: bright voxels are lesion."""
    torch.manual_seed(1)
    path = tmp_path / "run" / "segmenter_best.pth"
    save_segmenter(path, Segmenter(2), SegmenterFacts(trained_on=TRAINED_ON, iteration=0))
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
        save_segmenter(
            path,
            segmenter,
            SegmenterFacts(
                trained_on=SegmenterInput(size=(20, 64, 64), window=(-1250.0, 250.0), normalization=normalization),
                iteration=0,
            ),
        )
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
    save = testing.save_case_figure
    monkeypatch.setattr(
        testing,
        "save_case_figure",
        lambda columns, *rest: drawn.update({rest[-1].stem: columns}) or save(columns, *rest),
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
    save_segmenter(run_folder / "segmenter_best.pth", Segmenter(2), SegmenterFacts(trained_on=TRAINED_ON, iteration=0))
    assert test.main(arguments) == 0
    assert (run_folder / "test" / "metrics.csv").is_file()


def test_scans_of_unknown_truth_are_predicted_too(config, model):
    output = results_of(
        config, model, "--split", "VALIDWL", "--output", str(model.parent / "test"), "DATASET.SPLIT.VALIDWL=valid_id_L"
    )
    row = rows(output)["sick_4"]
    assert (row["kind"], row["dice"], row["true_ml"]) == ("unknown", "", "")
    assert float(row["predicted_ml"]) > 0


def test_crops_of_the_published_code_are_tested_as_they_were(config, cohort, model, tmp_path, capsys):
    root = shutil.copytree(cohort, tmp_path / "published")
    for path in sorted(root.rglob("*.nii.gz")):
        array = read(path)
        path.unlink()
        # Of the published code, scans of CovidSeg stand on their heads in the files.
        if path.name.startswith("sick_4"):
            array, path = array[:, ::-1], path.with_name("coronacases_004.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    (root / "id_txt" / "valid_id_L.txt").write_text("coronacases_004\nsick_5")
    upright = rows(results_of(config, model, "--output", str(tmp_path / "upright")) and tmp_path / "upright")
    found = {}
    for name, option in (("as they lie", []), ("turned", ["--published-crops"])):
        results_of(config, model, *option, "--output", str(tmp_path / name), f"DATASET.ROOT={root}")
        found[name] = rows(tmp_path / name)
    assert found["turned"]["coronacases_004"]["dice"] == upright["sick_4"]["dice"]
    assert found["as they lie"]["coronacases_004"]["dice"] != upright["sick_4"]["dice"]
    assert found["turned"]["sick_5"]["dice"] == found["as they lie"]["sick_5"]["dice"] == upright["sick_5"]["dice"]
    assert "2 crop(s) of the published code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "TEST"], "DATASET.SPLIT.TEST names no list"),
        (["--model-path", "none.pth"], "none.pth: no such file"),
        (["IMAGE.WINDOW=[-1000,250]"], r"with the window \(-1250.0, 250.0\), IMAGE.WINDOW is \(-1000.0, 250.0\); crop"),
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


@pytest.mark.fault("own figures, DICOM SEGs, exported networks")
def test_figures_and_tables_of_others_are_not_replaced(config, model, tmp_path, capsys):
    output = tmp_path / "results"
    figure, table = output / "figures" / "sick_4.png", output / "metrics.csv"
    figure.parent.mkdir(parents=True)
    figure.write_text("for the paper")
    arguments = ["--config-path", str(config), "--model-path", str(model), "--output", str(output), "--quiet"]
    assert run(lambda: test.main([*arguments, "--save-vis"])) == 1
    assert f"{figure}: was not written by this command, and is not replaced" in capsys.readouterr().out
    assert figure.read_text() == "for the paper"
    assert not (output / "masks" / "sick_4.nii.gz").exists()
    assert test.main(arguments) == 0  # without figures there is nothing to replace
    table.write_text("of another study")
    assert run(lambda: test.main(arguments)) == 1
    assert f"{table}: was changed since this command wrote it" in capsys.readouterr().err
    assert table.read_text() == "of another study"


@pytest.mark.fault("another model or threshold")
def test_a_folder_has_the_results_of_one_model(config, cohort, model, tmp_path, capsys):
    output = tmp_path / "results"
    arguments = ["--config-path", str(config), "--output", str(output), "--quiet", "--device", "cpu", "--no-report"]
    assert test.main([*arguments, "--model-path", str(model), "--split", "VALIDH"]) == 0
    torch.manual_seed(2)
    other = tmp_path / "other.pth"
    save_segmenter(other, Segmenter(2), SegmenterFacts(trained_on=TRAINED_ON, iteration=0))
    assert run(lambda: test.main([*arguments, "--model-path", str(other)])) == 1
    assert f"{output}: holds 1 result(s) of another model or threshold, the first that of well_2" in (
        capsys.readouterr().err
    )
    assert [path.name for path in (output / "masks").iterdir()] == ["well_2.nii.gz"]
    assert test.main([*arguments, "--model-path", str(other), "--split", "VALIDH"]) == 0  # replaces all
    raw = ["--lungs", "threshold", "--quiet", "--device", "cpu", "--model-path", str(other), "--output", str(output)]
    assert run(lambda: predict.main([str(cohort / "images"), *raw])) == 1
    assert "summary.json: was not written by this command" in capsys.readouterr().err


def test_what_is_done_is_not_done_again_and_parts_are_joined(config, model, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole", tmp_path / "out"
    results_of(config, model, "--split", "VALID", "VALIDH", "--output", str(whole))
    for part in ("1/2", "2/2"):
        results_of(config, model, "--split", "VALID", "VALIDH", "--output", str(output), "--part", part)
    for name in ("metrics.csv", "summary.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    monkeypatch.setattr(testing.Tester, "test", lambda *_: pytest.fail("nothing is left"))
    results_of(config, model, "--split", "VALID", "VALIDH", "--output", str(output))
    assert (output / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_the_threshold_is_a_choice(config, model, tmp_path):
    output = results_of(config, model, "--threshold", "0.45", "--output", str(tmp_path / "out")) and tmp_path / "out"
    probability, mask = (read(output / kind / "sick_4.nii.gz") for kind in ("probabilities", "masks"))
    np.testing.assert_array_equal(mask > 0, probability > 0.45)
    assert mask.sum() > (probability > 0.5).sum()


@pytest.mark.fault("scans that a segmenter was trained on")
def test_scans_that_the_model_has_seen_are_refused_unless_that_is_allowed(config, cohort, model, monkeypatch, capsys):
    (checksum,) = contents_of(cohort, ["sick_5"]).values()
    loaded = checkpoint.load_segmenter

    def trained(*arguments):
        segmenter, facts = loaded(*arguments)
        return segmenter, facts.model_copy(update={"seen": [checksum]})

    monkeypatch.setattr(checkpoint, "load_segmenter", trained)
    arguments = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu"]
    assert run(lambda: test.main(arguments)) == 1
    assert "was trained on, or chosen by, 1 of these scans: sick_5; test other scans" in capsys.readouterr().err
    assert not (model.parent / "test").exists()
    assert test.main([*arguments, "--allow-seen"]) == 0
    assert json.loads((model.parent / "test" / "summary.json").read_text())["seen"] == ["sick_5"]
    assert test.main([*arguments, "--split", "VALIDH", "--output", str(model.parent / "other")]) == 0


def test_a_scan_in_two_splits_is_refused(config, model, capsys):
    arguments = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu"]
    more = ["--split", "VALID", "TEST", "DATASET.SPLIT.TEST=valid_id_L"]
    assert run(lambda: test.main([*arguments, *more])) == 1
    assert "sick_4 is listed in both VALID and TEST" in capsys.readouterr().err


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


def test_two_processes_write_the_files_of_one(config, model, raw, tmp_path):
    arguments = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", "--save-vis"]
    written, printed = [], []
    for count in (1, 2):
        output = tmp_path / str(count)
        # Splits of two scans and of one: a process has nothing to do.
        more = ["--output", str(output), *with_raw(raw)]
        logs = tmp_path / f"log {count}"
        ended = on_processes(count, logs, noting_who_indexes, test.main, [*arguments, *more], logs)
        assert [path.name for path in logs.glob("indexed *")] == ["indexed 0"]
        assert [(e.code, e.err) for e in ended] == [(0, "")] * count
        assert all(e.out == "" for e in ended[1:])
        printed.append(ended[0].out.replace(str(output), ""))
        files = [p for p in output.rglob("*") if p.is_file() and p.name not in OF_A_RUN and "ledger" not in p.parts]
        written.append({p.relative_to(output): p.read_bytes() for p in files})
    assert printed[0] == printed[1]
    assert len(written[0]) == 4 * 3 + 4  # figure, mask, probabilities and view of each scan
    # Where arrays lie in memory differs from process to process, and with it, now and then, the last bit of a float.
    probabilities = [{name for name in files if name.parent.name == "probabilities"} for files in written]
    assert len(probabilities[0]) == 3
    for name in probabilities[0]:
        one, two = (pixels(tmp_path / str(count) / name) for count in (1, 2))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
        del written[0][name], written[1][name]
    assert written[0] == written[1]


@pytest.fixture
def raw(cohort, tmp_path):
    """Raw scans of the cohort's held-out crops, at twice their resolution and turned, with labels drawn on them."""
    folder = tmp_path / "raw"
    for case_id in ("sick_4", "sick_5", "well_2"):
        crop = sitk.ReadImage(str(cohort / "images" / f"{case_id}.nii.gz"))
        spacing = [mm / 2 for mm in crop.GetSpacing()]
        start = (3, 2, 1)  # voxels of the scan before the box
        scan = sitk.Image([2 * n - 1 + 5 for n in crop.GetSize()], sitk.sitkInt16)
        scan.SetSpacing(spacing)
        scan.SetOrigin([o - mm * n for o, mm, n in zip(crop.GetOrigin(), spacing, start, strict=True)])
        turned = sitk.DICOMOrient(scan, "RAI")
        (folder / "ct").mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(turned, str(folder / "ct" / f"{case_id}.nrrd"))
        if case_id.startswith("sick"):
            lesion = sitk.ReadImage(str(cohort / "lesion" / f"{case_id}.nii.gz"))
            drawn = sitk.Resample(lesion, turned, sitk.Transform(), sitk.sitkNearestNeighbor)
            (folder / "labels").mkdir(exist_ok=True)
            sitk.WriteImage(drawn, str(folder / "labels" / f"{case_id}_label.nrrd"))
    return folder


def with_raw(raw, *arguments):
    return ["--images", str(raw / "ct"), "--labels", str(raw / "labels"), "--split", "VALID", "VALIDH", *arguments]


def test_scores_at_the_scans_own_resolution_are_those_of_the_masks_that_are_pasted_back(
    config, cohort, model, raw, tmp_path, capsys
):
    output = results_of(config, model, *with_raw(raw))
    printed = capsys.readouterr().out
    arguments = ["--images", str(raw / "ct"), "--masks", str(output / "probabilities")]
    assert post_processing.main([*arguments, "--output", str(tmp_path / "full"), "--quiet"]) == 0
    with (output / "metrics_raw.csv").open(newline="", encoding="utf-8") as file:
        table = {row["id"]: row for row in csv.DictReader(file)}
    assert list(table) == ["sick_4", "sick_5", "well_2"]
    assert list(table["sick_4"]) == list(rows(output)["sick_4"])
    voxel_ml = 2.0 * 1.5 * 6.0 / 8 / 1000
    dices = []
    for case_id, row in table.items():
        mask = read(tmp_path / "full" / f"{case_id}.nrrd") > 0
        assert float(row["predicted_ml"]) == pytest.approx(mask.sum() * voxel_ml, rel=1e-4)
        # Twice the resolution and half the voxel at the ends: nearly as much lung as in the crop.
        crop_percent = float(rows(output)[case_id]["predicted_percent_of_lung"])
        assert float(row["predicted_percent_of_lung"]) == pytest.approx(crop_percent, rel=0.2)
        if case_id == "well_2":
            assert (row["kind"], row["dice"], row["false_positive_ml"]) == ("no lesion", "", row["predicted_ml"])
            assert int(row["false_positive_lesions"]) == ndimage.label(mask, np.ones((3, 3, 3)))[1]
            continue
        truth = read(raw / "labels" / f"{case_id}_label.nrrd") > 0
        dices.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        assert float(row["dice"]) == pytest.approx(dices[-1], rel=1e-4)
        assert float(row["true_ml"]) == pytest.approx(truth.sum() * voxel_ml, rel=1e-4)
        error = (int(mask.sum()) - int(truth.sum())) * voxel_ml
        assert float(row["volume_error_ml"]) == pytest.approx(error, rel=1e-4)
        assert float(row["hd95_mm"]) > 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["raw"]["lesion"]["dice"]["mean"] == pytest.approx(np.mean(dices))
    assert summary["raw"]["failed"] == {}
    crops, own = printed.split("at the scans' own resolution")
    assert f"{100 * np.mean(dices):5.1f} ± {100 * np.std(dices):.1f} %" in own
    assert crops.startswith("at the resolution of the crops")


def test_raw_scans_that_are_missing_or_do_not_fit_are_named_and_the_rest_is_done(config, model, raw, capsys):
    (raw / "labels" / "sick_4_label.nrrd").unlink()
    moved = sitk.ReadImage(str(raw / "ct" / "well_2.nrrd"))
    moved.SetOrigin([mm + 0.4 for mm in moved.GetOrigin()])
    sitk.WriteImage(moved, str(raw / "ct" / "well_2.nrrd"))
    command = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", *with_raw(raw)]
    assert test.main(command) == 1
    captured = capsys.readouterr()
    output = model.parent / "test"
    assert set(rows(output)) == {"sick_4", "sick_5", "well_2"}
    summary = json.loads((output / "summary.json").read_text())
    assert summary["raw"]["lesion"]["scans"] == 1
    assert list(summary["raw"]["failed"]) == ["sick_4", "well_2"]
    assert "failed: sick_4: sick_4: no label of this name" in captured.out
    assert re.search(r"failed: well_2: \S*.*well_2.nii.gz: does not lie on \S*well_2.nrrd", captured.out)
    assert len(captured.err.splitlines()) == 2
    shutil.copy(raw / "labels" / "sick_5_label.nrrd", raw / "labels" / "well_2_label.nrrd")
    (raw / "ct" / "sick_5.nrrd").unlink()
    assert test.main(command) == 1
    captured = capsys.readouterr()
    assert "failed: sick_5: sick_5: no raw scan of this name" in captured.out
    assert "no scan was scored" in captured.out
    assert (output / "metrics_raw.csv").read_text().splitlines()[0].startswith("id,split,kind,dice")


def test_a_label_on_another_grid_is_named(config, model, raw, capsys):
    path = raw / "labels" / "sick_4_label.nrrd"
    label = sitk.ReadImage(str(path))
    sitk.WriteImage(label[1:], str(path))
    command = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", *with_raw(raw)]
    assert test.main(command) == 1
    assert f"failed: sick_4: {path}: its size" in capsys.readouterr().out


def test_healthy_and_unknown_scans_need_no_raw_labels(config, model, raw):
    output = results_of(config, model, "--images", str(raw / "ct"), "--split", "VALIDH")
    assert json.loads((output / "summary.json").read_text())["raw"]["no_lesion"]["scans"] == 1
    more = ["--split", "VALIDWL", "DATASET.SPLIT.VALIDWL=valid_id_L"]
    output = results_of(config, model, "--images", str(raw / "ct"), *more)
    assert json.loads((output / "summary.json").read_text())["raw"]["unknown"]["scans"] == 2


def test_a_wider_tolerance_gives_a_higher_surface_dice(config, model):
    values = []
    for tolerance in ("0", "3", "1000"):
        output = results_of(config, model, "--surface-tolerance", tolerance)
        values.append(float(rows(output)["sick_4"]["surface_dice"]))
        summary = json.loads((output / "summary.json").read_text())
        assert summary["lesion"]["surface_dice"]["tolerance_mm"] == float(tolerance)
    assert values[0] < values[1] < values[2] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--images", "ct"],
        ["--labels", "labels"],
        ["--surface-tolerance", "-1"],
        ["--surface-tolerance", "nan"],
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(config, model, arguments):
    with pytest.raises(SystemExit) as stopped:
        results_of(config, model, *arguments)
    assert stopped.value.code == 2
