import io
import json
import re
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

import post_processing
import test
from configs.settings import read_settings
from datasets.cohort import contents_of
from evaluation import testing
from models import Segmenter, load_published
from models.checkpoint import load_segmenter
from tests.conftest import write_config
from tests.outputs import save_model, summary, table
from tests.reference import load, published_state
from tests.volumes import dice, geometry, pixels, write
from utils.cli import run

SIZE = (20, 64, 64)


@pytest.fixture(scope="module")
def config(cohort, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"), cohort)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A segmenter whose predictions are neither empty nor full: bright voxels are lesion."""
    return save_model(tmp_path_factory.mktemp("run") / "segmenter_best.pth", SIZE)


def rows(folder):
    return table(folder / "metrics.csv")


def arguments_of(config, model, output, *more):
    known = ["--config-path", config, "--model-path", model, "--output", output, "--quiet", "--device", "cpu"]
    return [str(word) for word in (*known, *more)]


def results_of(config, model, output, *more):
    assert test.main(arguments_of(config, model, output, *more)) == 0
    return output


@pytest.fixture(scope="module")
def raw(cohort, tmp_path_factory):
    """Raw scans of the cohort's held-out crops, at twice their resolution and turned, with labels drawn on them."""
    folder = tmp_path_factory.mktemp("raw")
    for case_id in ("sick_4", "sick_5", "well_2"):
        crop = sitk.ReadImage(str(cohort / "images" / f"{case_id}.nii.gz"))
        spacing = [mm / 2 for mm in crop.GetSpacing()]
        start = (3, 2, 1)  # voxels of the scan before the box
        scan = sitk.Image([2 * n - 1 + 5 for n in crop.GetSize()], sitk.sitkInt16)
        scan.SetSpacing(spacing)
        scan.SetOrigin([o - mm * n for o, mm, n in zip(crop.GetOrigin(), spacing, start, strict=True)])
        turned = sitk.DICOMOrient(scan, "RAI")
        write(folder / "ct" / f"{case_id}.nrrd", turned)
        if case_id.startswith("sick"):
            lesion = sitk.ReadImage(str(cohort / "lesion" / f"{case_id}.nii.gz"))
            drawn = sitk.Resample(lesion, turned, sitk.Transform(), sitk.sitkNearestNeighbor)
            write(folder / "labels" / f"{case_id}_label.nrrd", drawn)
    return folder


def with_raw(raw):
    # --split takes the setting behind it, too.
    splits = ["--split", "VALID", "VALIDH", "DATASET.SPLIT.VALIDH=valid_id_H"]
    return ["--images", raw / "ct", "--labels", raw / "labels", "--save-vis", *splits]


@pytest.fixture(scope="module")
def tested(config, model, raw, tmp_path_factory):
    """Results with figures, a report and scores on the raw scans, and what was printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        output = results_of(config, model, tmp_path_factory.mktemp("tested"), *with_raw(raw))
    return output, printed.getvalue()


def checked(row, mask, truth, voxel_ml):
    """Check a scan's scores against its mask and the true lesion, None if it has none; return the Dice."""
    predicted = mask.sum() * voxel_ml
    assert predicted > 0
    assert float(row["predicted_ml"]) == pytest.approx(predicted, rel=1e-4)
    if truth is None:
        assert (row["kind"], row["dice"], float(row["true_ml"])) == ("no lesion", "", 0)
        assert row["false_positive_ml"] == row["predicted_ml"]
        assert int(row["false_positive_lesions"]) == ndimage.label(mask, np.ones((3, 3, 3)))[1]
        return None
    expected = {"dice": dice(mask, truth), "true_ml": truth.sum() * voxel_ml}
    expected["volume_error_ml"] = predicted - expected["true_ml"]
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-4), name
    assert float(row["hd95_mm"]) > 0
    assert row["false_positive_ml"] == ""
    return expected["dice"]


def test_masks_probabilities_and_scores_agree(tested, cohort):
    output, printed = tested
    assert list(rows(output)) == ["sick_4", "sick_5", "well_2"]
    dices = []
    for case_id, row in rows(output).items():
        name = f"{case_id}.nii.gz"
        for kind in ("probabilities", "masks"):
            assert geometry(output / kind / name) == geometry(cohort / "images" / name)
        lung, probability = pixels(cohort / "lung" / name) > 0, pixels(output / "probabilities" / name)
        mask = pixels(output / "masks" / name) > 0
        assert np.array_equal(mask, probability > 0.5)
        assert not mask[~lung].any()
        assert probability[lung].min() > 0
        truth = pixels(cohort / "lesion" / name) > 0 if case_id.startswith("sick") else None
        assert row["split"] == ("VALIDH" if truth is None else "VALID")
        assert float(row["predicted_percent_of_lung"]) == pytest.approx(100 * mask.sum() / lung.sum(), rel=1e-4)
        dices.append(checked(row, mask, truth, voxel_ml=2.0 * 1.5 * 6.0 / 1000))
    found, dices = summary(output), dices[:2]
    assert (found["lesion"]["scans"], found["no_lesion"]["scans"]) == (2, 1)
    assert found["lesion"]["dice"]["mean"] == pytest.approx(np.mean(dices))
    assert found["lesion"]["dice"]["std"] == pytest.approx(np.std(dices))
    assert f"{100 * np.mean(dices):5.1f} ± {100 * np.std(dices):.1f} %" in printed


@pytest.mark.parametrize("normalization", ["minmax", "window"])
def test_the_prediction_is_that_of_the_segmenter_with_the_input_it_was_trained_on(
    config, cohort, tmp_path, normalization
):
    image = pixels(cohort / "images" / "sick_4.nii.gz")
    if normalization == "minmax":  # of a published checkpoint, which does not say
        state, path, segmenter = published_state(load("segmenter_base4")), tmp_path / "checkpointU_1.pth", Segmenter(4)
        torch.save(state, path)
        load_published(segmenter, state)
        scaled = (image - image.min()) / (image.max() - image.min()) * 2 - 1
    else:
        path = save_model(tmp_path / "segmenter.pth", SIZE, normalization="window")
        segmenter, _ = load_segmenter(path)
        scaled = image / 255 * 2 - 1
    output = results_of(config, path, tmp_path / "out")
    with torch.no_grad():
        expected = segmenter(torch.from_numpy(scaled)[None, None]).sigmoid()[0, 0].numpy()
    expected = expected * pixels(cohort / "lung" / "sick_4.nii.gz")
    np.testing.assert_allclose(pixels(output / "probabilities" / "sick_4.nii.gz"), expected, atol=1e-4)


def test_figures_show_input_probability_prediction_and_truth(tested, config, model, tmp_path, monkeypatch):
    drawn, save = {}, testing.save_case_figure

    def keep(columns, *rest):
        drawn[rest[-1].name.split(".")[-2]] = columns
        save(columns, *rest)

    assert sorted(p.name for p in (tested[0] / "figures").iterdir()) == ["sick_4.png", "sick_5.png", "well_2.png"]
    monkeypatch.setattr(testing, "save_case_figure", keep)
    results_of(config, model, tmp_path / "out", "--save-vis")
    assert sorted(drawn) == ["sick_4", "sick_5"]
    columns = drawn["sick_4"]
    assert list(columns) == ["input", "M", "predicted", "true"]
    for volume in columns.values():
        assert volume.shape == (20, 64, 64)
        assert 0 <= volume.min() <= volume.max() <= 1


def test_the_best_model_of_the_run_is_the_default(config, ends):
    run_folder = read_settings(config).exp.folder
    arguments = ["--config-path", str(config), "--quiet", "--device", "cpu", "--split", "VALIDH"]
    ends(1, lambda: test.main(arguments), f"{run_folder / 'segmenter_best.pth'}: no such file")
    save_model(run_folder / "segmenter_best.pth", SIZE)
    assert test.main(arguments) == 0
    assert (run_folder / "test" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "TEST"], "DATASET.SPLIT.TEST names no list"),
        (["--model-path", "none.pth"], "none.pth: no such file"),
        (["IMAGE.WINDOW=[-1000,250]"], r"with the window \(-1250.0, 250.0\), IMAGE.WINDOW is \(-1000.0, 250.0\); crop"),
        (["IMAGE.SIZE=[16,64,64]"], r"was trained on crops of \(20, 64, 64\), IMAGE.SIZE is \(16, 64, 64\)"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_1(config, model, arguments, message, tmp_path, capsys):
    assert run(lambda: test.main(arguments_of(config, model, tmp_path / "out", *arguments))) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--split", "VALDI"], ["--threshold", "1"], ["--images", "ct"]),
        *(["--labels", "labels"], ["--surface-tolerance", "-1"], ["--surface-tolerance", "nan"]),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(config, model, tmp_path, arguments):
    with pytest.raises(SystemExit, match="2"):
        test.main(arguments_of(config, model, tmp_path / "out", *arguments))


@pytest.mark.fault("own figures, DICOM SEGs, exported networks")
def test_figures_of_others_are_not_replaced(config, model, tmp_path, capsys):
    output = tmp_path / "results"
    figure = output / "figures" / "well_2.png"
    figure.parent.mkdir(parents=True)
    figure.write_text("for the paper")
    arguments = arguments_of(config, model, output, "--split", "VALIDH")
    assert run(lambda: test.main([*arguments, "--save-vis"])) == 1
    assert f"{figure}: was not written by this command, and is not replaced" in capsys.readouterr().out
    assert figure.read_text() == "for the paper"
    assert not (output / "masks" / "well_2.nii.gz").exists()
    assert test.main(arguments) == 0  # without figures there is nothing to replace


def test_what_is_done_is_not_done_again_and_parts_are_joined(tested, config, model, raw, tmp_path, monkeypatch):
    for part in ("1/2", "2/2"):
        output = results_of(config, model, tmp_path / "out", *with_raw(raw), "--part", part)
    for name in ("metrics.csv", "metrics_raw.csv", "summary.json"):
        assert (output / name).read_bytes() == (tested[0] / name).read_bytes()
    monkeypatch.setattr(testing.Tester, "test", lambda *_: pytest.fail("nothing is left"))
    results_of(config, model, output, *with_raw(raw))
    assert (output / "metrics.csv").read_bytes() == (tested[0] / "metrics.csv").read_bytes()


def test_threshold_tolerance_and_report_are_a_choice(config, model, tmp_path):
    options = ["--threshold", "0.45", "--no-report", "--surface-tolerance", "1000"]
    output = results_of(config, model, tmp_path / "out", *options)
    surface = summary(output)["lesion"]["surface_dice"]
    assert (surface["tolerance_mm"], surface["mean"]) == (1000, 1)
    probability, mask = (pixels(output / kind / "sick_4.nii.gz") for kind in ("probabilities", "masks"))
    np.testing.assert_array_equal(mask > 0, probability > 0.45)
    assert mask.sum() > (probability > 0.5).sum()
    assert not (output / "report.html").exists()


@pytest.mark.fault("scans that a segmenter was trained on")
def test_scans_that_the_model_has_seen_are_refused_unless_that_is_allowed(config, cohort, tmp_path, capsys):
    output, seen = tmp_path / "out", contents_of(cohort, ["sick_5"]).values()
    path = save_model(tmp_path / "segmenter.pth", SIZE, seen=seen)
    assert run(lambda: test.main(arguments_of(config, path, output))) == 1
    assert "was trained on, or chosen by, 1 of these scans: sick_5; test other scans" in capsys.readouterr().err
    assert not output.exists()
    assert summary(results_of(config, path, output, "--allow-seen"))["seen"] == ["sick_5"]
    results_of(config, path, tmp_path / "other", "--split", "VALIDH")


def test_the_page_shows_every_scan_with_its_scores(tested):
    page = (tested[0] / "report.html").read_text(encoding="utf-8")
    shown = [
        re.findall(r'data-value="[^"]*">(?:<button type="button">)?([^<]*)<', row) for row in page.split("<tr data-")
    ]
    expected = [
        [case_id, f"{float(row['dice']):.3f}" if row["dice"] else "\N{EN DASH}"]
        + [f"{float(row[name]):.1f}" for name in ("predicted_ml", "true_ml")]
        for case_id, row in rows(tested[0]).items()
    ]
    assert [cells[:4] for cells in shown[1:]] == expected
    cases = [json.loads(text) for text in re.findall(r'id="case-\d">(.*?)</script>', page)]
    assert [case["truth"] for case in cases] == [True, True, True]
    assert [plane["size"] for plane in cases[0]["planes"]] == [[64, 64], [64, 20]]


def test_scores_at_the_scans_own_resolution_are_those_of_the_masks_that_are_pasted_back(tested, raw, tmp_path):
    output, printed = tested
    arguments = ["--images", str(raw / "ct"), "--masks", str(output / "probabilities")]
    assert post_processing.main([*arguments, "--output", str(tmp_path / "full"), "--quiet"]) == 0
    found = table(output / "metrics_raw.csv")
    assert list(found) == ["sick_4", "sick_5", "well_2"]
    assert list(found["sick_4"]) == list(rows(output)["sick_4"])
    dices = []
    for case_id, row in found.items():
        truth = pixels(raw / "labels" / f"{case_id}_label.nrrd") > 0 if case_id.startswith("sick") else None
        mask = pixels(tmp_path / "full" / f"{case_id}.nrrd") > 0
        dices.append(checked(row, mask, truth, voxel_ml=2.0 * 1.5 * 6.0 / 8 / 1000))
        # Twice the resolution and half the voxel at the ends: nearly as much lung as in the crop.
        crop_percent = float(rows(output)[case_id]["predicted_percent_of_lung"])
        assert float(row["predicted_percent_of_lung"]) == pytest.approx(crop_percent, rel=0.2)
    dices = dices[:2]
    assert summary(output)["raw"]["lesion"]["dice"]["mean"] == pytest.approx(np.mean(dices))
    assert summary(output)["raw"]["failed"] == {}
    own = printed.split("at the scans' own resolution")[1]
    assert f"{100 * np.mean(dices):5.1f} ± {100 * np.std(dices):.1f} %" in own


def test_raw_scans_that_are_missing_or_do_not_fit_are_named_and_the_rest_is_done(config, model, raw, tmp_path, capsys):
    copy, output = shutil.copytree(raw, tmp_path / "raw"), tmp_path / "out"
    (copy / "labels" / "sick_4_label.nrrd").unlink()
    moved = sitk.ReadImage(str(copy / "ct" / "well_2.nrrd"))
    moved.SetOrigin([mm + 0.4 for mm in moved.GetOrigin()])
    write(copy / "ct" / "well_2.nrrd", moved)
    arguments = arguments_of(config, model, output, *with_raw(copy))
    assert test.main(arguments) == 1
    first = capsys.readouterr().out
    assert test.main(arguments) == 1
    out = capsys.readouterr().out
    assert out == first
    assert set(rows(output)) == {"sick_4", "sick_5", "well_2"}
    assert summary(output)["raw"]["lesion"]["scans"] == 1
    assert "failed: sick_4: sick_4: no label of this name" in out
    assert re.search(r"failed: well_2: .*well_2.nii.gz: does not lie on ", out)
    label = sitk.ReadImage(str(copy / "labels" / "sick_5_label.nrrd"))
    write(copy / "labels" / "sick_4_label.nrrd", label[1:])
    (copy / "ct" / "sick_5.nrrd").unlink()
    assert test.main(arguments) == 1
    out = capsys.readouterr().out
    assert f"failed: sick_4: {copy / 'labels' / 'sick_4_label.nrrd'}: its size" in out
    assert "failed: sick_5: sick_5: no raw scan of this name" in out


@pytest.mark.fault("a test on raw scans whose other segments")
def test_the_scores_on_raw_scans_are_those_of_the_segments_asked_for(config, model, raw, tmp_path):
    copy, output = shutil.copytree(raw, tmp_path / "raw"), tmp_path / "out"
    for path in (copy / "labels").iterdir():
        label = sitk.ReadImage(str(path))
        array = pixels(label)
        array[: len(array) // 2] *= 2
        both = sitk.GetImageFromArray(array)
        both.CopyInformation(label)
        for value, name in ((1, "GGO"), (2, "Consolidation")):
            both.SetMetaData(f"Segment{value}_Name", name)
            both.SetMetaData(f"Segment{value}_LabelValue", str(value))
        sitk.WriteImage(both, str(path.with_name(path.name.replace("_label", ".seg"))))
        path.unlink()
    voxel_ml = 2.0 * 1.5 * 6.0 / 8 / 1000
    for value, name in ((1, "GGO"), (2, "Consolidation")):
        results_of(config, model, output, *with_raw(copy), "--segments", name)
        found = table(output / "metrics_raw.csv")
        for case_id in ("sick_4", "sick_5"):
            voxels = (pixels(copy / "labels" / f"{case_id}.seg.nrrd") == value).sum()
            assert float(found[case_id]["true_ml"]) == pytest.approx(voxels * voxel_ml, abs=1e-3)


def test_healthy_and_unknown_scans_need_no_raw_labels(config, model, raw, tmp_path):
    splits = ["--split", "VALIDH", "VALIDWL", "DATASET.SPLIT.VALIDWL=valid_id_L"]
    output = results_of(config, model, tmp_path / "out", "--images", raw / "ct", *splits)
    found = summary(output)["raw"]
    assert (found["no_lesion"]["scans"], found["unknown"]["scans"]) == (1, 2)
    row = rows(output)["sick_4"]
    assert (row["kind"], row["dice"], row["true_ml"]) == ("unknown", "", "")
    assert float(row["predicted_ml"]) > 0
