import io
import re
import shutil
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

import lungCrop
import post_processing
import predict
import test
from datasets import lungmask_model
from datasets.cohort import checksum_of_voxels
from datasets.crop import CROP_SIZE
from datasets.lungs import segment_by_threshold
from evaluation import lesion_segmenter
from evaluation.burden import NOTICE
from evaluation.lesion_segmenter import LesionSegmenter
from models import engine
from models.checkpoint import SegmenterInput
from tests import reference
from tests.outputs import same_files, save_model, summary, table
from tests.several import noting_who_indexes, on_processes
from tests.utils.test_files import holder
from tests.volumes import changed_slice, geometry, pixels, write, write_dicom
from utils.cli import run

SIZE = (8, 32, 32)
OF_ALL_NETWORKS = (16, 64, 64)
"""The smallest crops that a config may have."""
IDS = ["diseased_000", "diseased_001", "healthy_000"]


@pytest.fixture
def scans(phantoms, tmp_path):
    return shutil.copytree(phantoms / "ct", tmp_path / "scans")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "segmenter.pth", SIZE)


def predicted(scans, model, output, *arguments, lungs="threshold", report=False):
    inputs = scans if isinstance(scans, list) else [scans]
    command = [*inputs, "--model-path", model, "--output", output, "--lungs", lungs, "--device", "cpu", "--quiet"]
    return predict.main([str(word) for word in (*command, *([] if report else ["--no-report"]), *arguments)])


@pytest.mark.fault("a given lung mask that is flipped")
def test_lungs_without_gas_are_refused_unless_they_are_expected(phantoms, model, output, tmp_path, capsys):
    ct, lungs = (sitk.ReadImage(str(phantoms / name / "diseased_000.nii.gz")) for name in ("ct", "lung"))
    white = sitk.Mask(ct, lungs == 0, outsideValue=30)
    path = write(tmp_path / "scans" / "diseased_000.nii.gz", white)
    assert predicted(path, model, output, lungs=phantoms / "lung") == 1
    assert "0% of the lungs have -1200 to -300 HU (median 30)" in capsys.readouterr().err
    assert predicted(path, model, output, "--airless-lungs", lungs=phantoms / "lung") == 0
    assert (output / "masks" / "diseased_000.nii.gz").is_file()


def rows(output):
    return table(output / "summary.csv")


@pytest.fixture(scope="module")
def some_broken(phantoms, tmp_path_factory):
    folder = shutil.copytree(phantoms / "ct", tmp_path_factory.mktemp("raw") / "scans")
    (folder / "a_broken.nii.gz").write_bytes(b"no gzip")
    write(folder / "water.nii.gz", np.zeros((8, 16, 16), np.int16))
    return folder


@pytest.fixture(scope="module")
def whole(some_broken, model, tmp_path_factory):
    output, printed = tmp_path_factory.mktemp("whole") / "out", io.StringIO()
    with redirect_stdout(printed):
        assert predicted(some_broken, model, output, report=True) == 1
    return output, printed.getvalue()


def as_dicom(folder, image):
    place = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return write_dicom(folder, (pixels(image) + 1024).astype(np.int16), **place)


def mixed_scans(phantoms, folder):
    """The phantoms as three types of file, in three orientations: NIfTI, NRRD and DICOM."""
    images = [sitk.ReadImage(str(phantoms / "ct" / f"{case_id}.nii.gz")) for case_id in IDS]
    write(folder / "one.nii.gz", sitk.DICOMOrient(images[0], "RAI"))
    write(folder / "two.nrrd", sitk.DICOMOrient(images[1], "PIR"))
    as_dicom(folder / "three", sitk.DICOMOrient(images[2], "RPI"))
    return {"one": "one.nii.gz", "two": "two.nrrd", "three": "three.nii.gz"}


def test_masks_are_those_of_the_three_scripts_byte_for_byte(phantoms, tmp_path):
    raw, cohort = tmp_path / "raw", tmp_path / "cohort"
    names = mixed_scans(phantoms, raw)
    model = save_model(tmp_path / "segmenter.pth", OF_ALL_NETWORKS, window=(-1000.0, 400.0))
    crop = ["--lungs", "threshold", "--size", *map(str, OF_ALL_NETWORKS), "--window", "-1000", "400", "--quiet"]
    assert lungCrop.main([str(raw), "--output", str(cohort), *crop]) == 0
    (cohort / "id_txt").mkdir()
    (cohort / "id_txt" / "raw.txt").write_text("\n".join(names))
    config = Path(__file__).parents[1] / "configs" / "demo.yaml"
    command = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", "--split"]
    results = ["VALIDWL", f"DATASET.ROOT={cohort}", "DATASET.SPLIT.VALIDWL=raw", "--output", str(tmp_path / "tested")]
    assert test.main([*command, *results, "IMAGE.WINDOW=[-1000, 400]"]) == 0
    paste = ["--images", str(raw), "--masks", str(tmp_path / "tested" / "probabilities"), "--quiet"]
    assert post_processing.main([*paste, "--output", str(tmp_path / "three steps")]) == 0

    output = tmp_path / "one step"
    assert predicted(raw, model, output, "--save-probabilities") == 0
    assert sorted(path.name for path in (output / "masks").iterdir()) == sorted(names.values())
    for case_id, name in names.items():
        one, three = output / "masks" / name, tmp_path / "three steps" / name
        assert one.read_bytes() == three.read_bytes()
        assert geometry(one) == geometry(three)
        mask, probabilities = pixels(one), pixels(output / "probabilities" / name)
        assert 0 < mask.sum() < mask.size
        np.testing.assert_array_equal(probabilities > 0.5, mask > 0)
        assert probabilities.dtype == np.float32
        voxel_ml = np.prod(sitk.ReadImage(str(one)).GetSpacing()) / 1000
        assert float(rows(output)[case_id]["lesion_ml"]) == pytest.approx(mask.sum() * voxel_ml, rel=1e-5)


def test_the_summary_is_of_all_scans_by_whatever_path_they_came(phantoms, scans, model, output, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copy(scans / "healthy_000.nii.gz", tmp_path / "b")
    inputs = [scans / f"{IDS[0]}.nii.gz", scans / f"{IDS[1]}.nii.gz", tmp_path / "b"]
    assert predicted(inputs, model, output, lungs=phantoms / "lung") == 0
    found, whole = rows(output), summary(output)
    assert list(found) == [row["id"] for row in whole["rows"]] == IDS
    for case_id, row in found.items():
        mask, lung = (pixels(folder / f"{case_id}.nii.gz") > 0 for folder in (output / "masks", phantoms / "lung"))
        voxel_ml = np.prod(sitk.ReadImage(str(scans / f"{case_id}.nii.gz")).GetSpacing()) / 1000
        assert float(row["lung_ml"]) == pytest.approx(lung.sum() * voxel_ml, rel=1e-5)
        assert float(row["lesion_percent_of_lung"]) == pytest.approx(100 * mask[lung].mean(), rel=1e-5)
    assert whole["notice"] == NOTICE
    mean = np.mean([float(row["lesion_ml"]) for row in found.values()])
    assert whole["lesion_ml"]["mean"] == pytest.approx(mean, rel=1e-5)
    assert sum(whole["severity"].values()) == whole["scans"] == 3


def test_scans_of_the_same_model_and_options_are_skipped(scans, model, output, tmp_path, monkeypatch):
    masks = [output / "masks" / f"{case_id}.nii.gz" for case_id in IDS[:2]]
    (scans / f"{IDS[2]}.nii.gz").unlink()

    def redone(*arguments, model=model, **options):
        before = [path.stat().st_mtime_ns if path.exists() else 0 for path in masks]
        assert predicted(scans, model, output, *arguments, **options) == 0
        return [path.stat().st_mtime_ns != old for path, old in zip(masks, before, strict=True)]

    monkeypatch.setattr(lungmask_model, "load_lungmask", lambda *_, **__: segment_by_threshold)
    assert redone(lungs="lungmask") == [True] * 2
    monkeypatch.setattr(lungmask_model, "load_lungmask", lambda *_, **__: pytest.fail("not needed"))
    assert redone(lungs="lungmask") == [False] * 2
    assert redone() == [True] * 2
    # Another path to the same weights is the same model.
    assert redone(model=shutil.copy(model, tmp_path / "copy.pth")) == [False] * 2
    assert redone("--overwrite") == [True] * 2
    assert redone("--save-probabilities") == [True] * 2
    # What a report shows is kept only where there is one.
    assert not (output / "report.html").exists()
    assert redone(report=True) == [True] * 2
    assert (output / "report.html").is_file()
    masks[1].unlink()
    assert redone() == [False, True]
    assert redone("--threshold", "0.45") == [True] * 2
    assert sorted(rows(output)) == IDS[:2]


@pytest.mark.fault("another model or threshold")
def test_a_folder_has_the_masks_of_one_model(scans, model, output, tmp_path, capsys):
    assert predicted(scans / "healthy_000.nii.gz", model, output) == 0
    other = save_model(tmp_path / "other.pth", SIZE, seed=2)
    assert run(lambda: predicted(scans / "diseased_000.nii.gz", other, output)) == 1
    assert f"{output}: holds 1 result(s) of another model or threshold" in capsys.readouterr().err
    assert list(rows(output)) == ["healthy_000"]
    assert predicted(scans / "healthy_000.nii.gz", other, output) == 0  # nothing else is here
    assert predicted(scans / "diseased_000.nii.gz", model, output, "--overwrite") == 0
    assert [path.name for path in (output / "masks").iterdir()] == ["diseased_000.nii.gz"]


@pytest.mark.fault("scans that were removed or renamed")
def test_the_summary_is_of_the_input_and_other_masks_are_named(scans, model, output, capsys):
    assert predicted(scans, model, output) == 0
    (scans / "healthy_000.nii.gz").unlink()
    (scans / "diseased_001.nii.gz").rename(scans / "patient_b.nii.gz")
    capsys.readouterr()
    assert predicted(scans, model, output) == 0
    assert list(rows(output)) == ["diseased_000", "patient_b"]
    assert summary(output)["scans"] == 2
    err = capsys.readouterr().err
    assert "2 scan(s) that are not in this input, and are not counted: diseased_001, healthy_000" in err


@pytest.mark.fault("parts of a task")
def test_parts_write_beside_each_other_and_the_last_one_joins_them(some_broken, whole, model, output, capsys):
    with holder(output, (9, 9)):  # another part is at work
        codes = [predicted(some_broken, model, output, "--part", f"{part}/3", report=True) for part in (1, 2, 3)]
        assert 1 in codes
        assert run(lambda: predicted(some_broken, model, output)) == 1
    same_files(output, whole[0])
    (output / "summary.csv").unlink()
    assert predicted(some_broken, model, output, "--part", "1/1") == 1  # nothing is left but the broken ones
    assert sorted(rows(output)) == IDS


@pytest.mark.fault("scans that a segmenter was trained on")
def test_scans_that_the_model_has_seen_are_marked(scans, output, tmp_path, capsys):
    seen = [checksum_of_voxels(sitk.ReadImage(str(scans / "diseased_001.nii.gz")))]
    assert predicted(scans, save_model(tmp_path / "segmenter.pth", SIZE, seen=seen), output) == 0
    assert [row["seen"] for row in rows(output).values()] == ["", "yes", ""]
    assert summary(output)["seen"] == 1
    assert "was trained on, or chosen by, 1 scan(s), the first diseased_001" in capsys.readouterr().err


def test_bad_scans_are_named_and_the_others_are_done_and_in_the_report(some_broken, whole, model, tmp_path):
    output, out = whole
    assert "3 of 5 scans have a mask" in out
    assert NOTICE in out
    for case_id, reason in (("a_broken", "cut short"), ("water", "not HU")):
        assert reason in next(line for line in out.splitlines() if line.startswith(f"failed: {case_id}: "))
        assert reason in summary(output)["failed"][case_id]
    assert sorted(rows(output)) == IDS
    page = (output / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in (*IDS, NOTICE))
    # A scan that failed and is gone has failed no more.
    output, few = tmp_path / "out", tmp_path / "few"
    few.mkdir()
    for name in ("a_broken", "healthy_000"):
        shutil.copy(some_broken / f"{name}.nii.gz", few)
    assert predicted(few, model, output) == 1
    (few / "a_broken.nii.gz").unlink()
    assert predicted(few, model, output) == 0
    assert summary(output)["failed"] == {}


def test_dicom_in_dicom_seg_out(phantoms, model, output, tmp_path, capsys):
    raw, path, mask = tmp_path / "raw", output / "dicom_seg" / "three.dcm", output / "masks" / "three.nii.gz"
    mixed_scans(phantoms, raw)
    # A second series, shorter: the warning that names both is wanted once.
    study = {"StudyInstanceUID": pydicom.dcmread(next((raw / "three").iterdir())).StudyInstanceUID}
    write_dicom(raw / "three", np.zeros((3, 48, 48), np.int16), name="b", SeriesDescription="Scout", **study)

    def redone(*arguments):
        before = mask.stat().st_mtime_ns if mask.exists() else 0
        assert predicted(raw, model, output, "--dicom-seg", *arguments) == 0
        return mask.stat().st_mtime_ns != before

    assert redone()
    err = capsys.readouterr().err
    assert "2 scan(s) are no DICOM series and get no DICOM SEG, the first one" in err
    assert err.count("takes the series") == 1
    assert [path.name for path in (output / "dicom_seg").iterdir()] == ["three.dcm"]
    data = pydicom.dcmread(path)
    assert data.pixel_array.sum() == pixels(mask).sum()
    assert int(data.NumberOfFrames) == pixels(mask).any((1, 2)).sum()
    assert summary(output)["made_by"]["model"].startswith(data.DeviceSerialNumber)

    for name in ("one.nii.gz", "two.nrrd"):
        (raw / name).unlink()
    assert not redone()
    path.unlink()
    assert redone()
    assert path.is_file()
    # Without lesion there is none, and that is done.
    nothing = ["--threshold", "0.99", "--overwrite"]
    assert redone(*nothing)
    assert not path.exists()
    row = rows(output)["three"]
    assert (row["lesion_ml"], row["lesion_mean_hu"], row["severity"]) == ("0", "", "CT-0")
    assert not redone(*nothing[:2])


def test_a_dicom_seg_that_cannot_be_made_does_not_cost_the_mask(phantoms, model, output, tmp_path, capsys, ends):
    scan = as_dicom(tmp_path / "three", sitk.ReadImage(str(phantoms / "ct" / f"{IDS[0]}.nii.gz")))
    changed_slice(path := next(scan.iterdir()), FrameOfReferenceUID=None)
    assert predicted(scan, model, output, "--dicom-seg") == 1
    out = capsys.readouterr().out
    assert f"failed: three: mask written, DICOM SEG not: {path}: has no valid FrameOfReferenceUID" in out
    assert not (output / "dicom_seg").exists()
    ends(0, lambda: predicted(scan, model, output), "1 had it before")


@pytest.mark.fault("weights that do not say which crops")
def test_a_published_segmenter_has_the_published_defaults_and_a_warning(tmp_path, caplog):
    path = tmp_path / "checkpointU_1.pth"
    torch.save(reference.published_state(reference.load("segmenter_base4")), path)
    assert LesionSegmenter(path).trained_on == SegmenterInput(
        size=CROP_SIZE, window=(-1250, 250), normalization="minmax"
    )
    assert "does not say which crops it takes: size=(40, 160, 160) window=(-1250.0, 250.0) norm" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-path", "none.pth"], "none.pth: no such file"),
        (["--output", "scans/out"], "scans/out: is, or lies in, the folder of the scans"),
        (["--lungs", "nowhere"], "nowhere: no such folder"),
        (["--device", "tpu"], "--device tpu"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_before_any_scan_is_read(
    scans, model, tmp_path, monkeypatch, arguments, message, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lesion_segmenter, "prepare_scan", lambda *_: pytest.fail("not read yet"))
    command = ["scans", "--model-path", str(model), "--output", "out", "--lungs", "threshold", "--device", "cpu"]
    before = sorted(tmp_path.rglob("*"))
    assert run(lambda: predict.main([*command, "--quiet", *arguments])) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(message, error)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [["--threshold", "1"], ["--size", "16", "30", "32"], ["--window", "250", "-1250"], ["--grey-window", "1", "0"]],
)
def test_impossible_options_are_usage_errors(scans, model, output, arguments):
    with pytest.raises(SystemExit, match="2"):
        predicted(scans, model, output, *arguments)


def test_results_are_never_written_over_scans_or_lung_masks(phantoms, scans, model, output, ends):
    masks = shutil.copytree(phantoms / "lung", output / "masks")
    before = {path: path.read_bytes() for path in masks.iterdir()}
    ends(1, lambda: predicted(scans, model, output, lungs=masks), "lies where the results would be written")
    assert {path: path.read_bytes() for path in masks.iterdir()} == before


def test_two_processes_write_the_files_of_one_and_tell_of_every_scan_that_failed(some_broken, whole, model, tmp_path):
    output, logs = tmp_path / "out", tmp_path / "log"
    command = [str(some_broken), "--model-path", str(model), "--output", str(output), "--lungs", "threshold"]
    ended = on_processes(2, logs, noting_who_indexes, predict.main, [*command, "--device", "cpu", "--quiet"], logs)
    assert [path.name for path in logs.glob("indexed *")] == ["indexed 0"]
    assert [e.code for e in ended] == [1, 1]
    assert ended[1].out == ended[1].err == ""
    assert ended[0].out.replace(str(output), "") == whole[1].replace(str(whole[0]), "")
    same_files(output, whole[0])


def test_another_precision_is_predicted_again_and_what_computed_is_on_record(scans, model, output, monkeypatch):
    scan, way = scans / f"{IDS[0]}.nii.gz", f"segmenter by OpenVINO {version('openvino')} in float32"
    mask = output / "masks" / f"{IDS[0]}.nii.gz"
    assert predicted(scan, model, output, report=True) == 0
    assert summary(output)["computed_by"] == {way: 1}
    assert way in (output / "report.html").read_text(encoding="utf-8")
    before = mask.stat().st_mtime_ns
    assert predicted(scan, model, output, "--precision", "fp32") == 0
    assert mask.stat().st_mtime_ns == before
    assert predicted(scan, model, output, "--precision", "bf16") == 0
    bfloat16 = way.replace("float32", "bfloat16") if engine._has_bfloat16() else way  # by this CPU
    assert summary(output)["computed_by"] == {bfloat16: 1}
    assert summary(output)["made_by"]["precision"] == "bf16"
    monkeypatch.setattr(engine, "_openvino", lambda: None)
    assert predicted(scan, model, output, "--overwrite") == 0
    assert summary(output)["computed_by"] == {f"segmenter by PyTorch {version('torch')} in float32": 1}
    assert "precision" not in summary(output)["made_by"]
