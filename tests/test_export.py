import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml

import export
from models import Segmenter, load_published
from models.checkpoint import SegmenterFacts, SegmenterInput, Training, load_segmenter, save, save_segmenter
from tests import reference
from training.states import save_state
from utils.cli import run

TRAINED_ON = SegmenterInput(size=(20, 64, 64), window=(-1000.0, 400.0), normalization="window")
SETTINGS = "EXP: {ID: mine}\nDATASET: {ROOT: covid}\n"
TRAINING = Training(cohort="covid", scans={"LABELED": 1, "VALID": 2}, settings=SETTINGS, device="CPU", versions={})
NAMES = ("segmenter.onnx", "segmenter.pt2")


@pytest.fixture(scope="session")
def run_file(tmp_path_factory):
    """The best segmenter of a run, with the weights of the reference numbers and everything known about it."""
    segmenter = Segmenter(4)
    load_published(segmenter, reference.published_state(reference.load("segmenter_base4")))
    path = tmp_path_factory.mktemp("run") / "segmenter_best.pth"
    facts = SegmenterFacts(trained_on=TRAINED_ON, threshold=0.4, iteration=1234, valid_dice=0.5, training=TRAINING)
    save_segmenter(path, segmenter, facts)
    return path


@pytest.fixture(scope="session")
def exported(run_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    files = [str(folder / name) for name in NAMES]
    assert export.main([str(run_file.parent), "--output", *files, "--quiet"]) == 0
    return folder


def run_exported(path, volume):
    if path.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(volume).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"volume": volume.numpy()})[0]


@pytest.mark.parametrize("name", NAMES)
def test_exported_files_give_the_published_numbers_and_agree_with_the_segmenter_at_any_size(run_file, exported, name):
    arrays = reference.load("segmenter_base4")
    volume = reference.wave(tuple(arrays["input_shape"]), float(arrays["input_phase"]))
    np.testing.assert_allclose(run_exported(exported / name, volume), arrays["output"], atol=2e-5)
    segmenter, _ = load_segmenter(run_file)
    for batch, *size in ((1, 8, 8, 8), (3, 24, 32, 40)):
        volume = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(5)) * 2 - 1
        with torch.no_grad():
            expected = torch.sigmoid(segmenter(volume)).numpy()
        assert expected.std() > 1e-3  # says something
        np.testing.assert_allclose(run_exported(exported / name, volume), expected, atol=2e-5)


def test_exported_files_say_what_they_take(exported):
    model = onnx.load(exported / "segmenter.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert all(weights.data_location == onnx.TensorProto.DEFAULT for weights in model.graph.initializer)
    extra = {"metadata.json": ""}
    program = torch.export.load(exported / "segmenter.pt2", extra_files=extra)
    for told in ({entry.key: entry.value for entry in model.metadata_props}, json.loads(extra["metadata.json"])):
        assert "not a medical device" in told["model"]
        facts = json.loads(told["segmenter"])
        assert facts["input"] == {"size": [20, 64, 64], "window": [-1000, 400], "normalization": "window"}
        assert (facts["iteration"], facts["valid_dice"], facts["threshold"]) == (1234, 0.5, 0.4)
        assert f'version = "{told["gasnet_version"]}"' in (Path(export.__file__).parent / "pyproject.toml").read_text()
    with pytest.raises((AssertionError, RuntimeError)):
        program.module()(torch.zeros(1, 1, 18, 32, 32))  # no multiple of 4


def test_exported_files_tell_nothing_of_the_machine_that_made_them(exported):
    contents = [(exported / name).read_bytes() for name in NAMES]
    with zipfile.ZipFile(exported / "segmenter.pt2") as archive:
        contents += [archive.read(entry) for entry in archive.namelist()]
        contents.append(" ".join(archive.namelist()).encode())
    for secret in (str(Path(export.__file__).parent), "site-packages", str(exported.parent), "partial"):
        assert not any(secret.encode() in content for content in contents), secret


def test_without_output_what_is_known_of_the_segmenter_is_printed(run_file, tmp_path, capsys):
    assert export.main([str(run_file)]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert (told["input"]["size"], told["iteration"], told["valid_dice"]) == ([20, 64, 64], 1234, 0.5)
    assert told["training"]["scans"] == {"LABELED": 1, "VALID": 2}
    assert told["training"]["settings"]["EXP"]["ID"] == "mine"
    save(reference.published_state(reference.load("segmenter_base4")), tmp_path / "checkpointU_1.pth")
    assert export.main([str(tmp_path / "checkpointU_1.pth")]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert (told["input"], told["training"]) == (None, None)


@pytest.fixture
def quick(monkeypatch):
    """Files that say what they would be, and give what S gives but for an offset, which this returns."""
    offset = [0.0]

    def write(name):
        def writer(program, told, path):
            path.write_text(name)
            return lambda volume: program(volume).sigmoid() + offset[0]

        return writer

    monkeypatch.setattr(export, "trace", lambda segmenter: segmenter)
    for suffix in export.WRITERS:
        monkeypatch.setitem(export.WRITERS, suffix, write(suffix))
    return offset


@pytest.mark.fault("own figures, DICOM SEGs, exported networks")
def test_only_files_that_it_exported_are_replaced(run_file, tmp_path, quick, capsys):
    output = ["--output", str(tmp_path / "a.onnx"), str(tmp_path / "a.pt2"), "--quiet"]
    (tmp_path / "a.onnx").write_text("of another network")
    assert run(lambda: export.main([str(run_file), *output])) == 1
    assert f"{tmp_path / 'a.onnx'}: was not written by this command, and is not" in capsys.readouterr().err
    assert (tmp_path / "a.onnx").read_text() == "of another network"
    assert not (tmp_path / "a.pt2").exists()
    (tmp_path / "a.onnx").unlink()
    assert export.main([str(run_file), *output]) == export.main([str(run_file), *output]) == 0
    assert [(tmp_path / name).read_text() for name in ("a.onnx", "a.pt2")] == [".onnx", ".pt2"]


@pytest.mark.parametrize("offset", [2e-3, -2e-3, math.nan])
def test_a_file_that_does_not_agree_is_not_kept(run_file, tmp_path, quick, capsys, offset):
    quick[0] = offset
    assert run(lambda: export.main([str(run_file), "--output", str(tmp_path / "out/s.onnx"), "--quiet"])) == 1
    assert "s.onnx: probabilities differ by up to" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


def test_another_file_type_is_a_usage_error(run_file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main([str(run_file), "--output", str(tmp_path / "s.onnx"), str(tmp_path / "s.pt")])
    assert "expected files that end with .onnx or .pt2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_segmenter_to_export_is_one_line(tmp_path, capsys):
    state = save_state(tmp_path, {"networks": {n: {} for n in ("segmenter", "generator", "discriminator")}}, 3)
    for model, message in (
        (state, "a state to resume training from; take the segmenter_"),
        (tmp_path, "has neither segmenter.pth nor"),
        (tmp_path / "none.pth", "no such file"),
    ):
        assert run(lambda model=model: export.main([str(model), "--output", str(tmp_path / "out.onnx")])) == 1
        assert re.search(rf"error: {model}: .*{re.escape(message)}", capsys.readouterr().err)
    assert not (tmp_path / "out.onnx").exists()
