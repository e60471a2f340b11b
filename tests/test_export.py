import json
import math
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml

import export
import test
from models import Discriminator, Generator, Segmenter, load_published
from models.checkpoint import (
    SegmenterFacts,
    SegmenterInput,
    Training,
    load,
    load_generator,
    load_segmenter,
    load_weights,
    read_segmenter,
    save,
    save_segmenter,
)
from models.objectives import Networks
from tests import reference
from training import release as export_module
from training.states import save_state
from utils.checksums import write_checksums
from utils.cli import run
from utils.errors import CheckpointError, GasnetError

TRAINED_ON = SegmenterInput(size=(20, 64, 64), window=(-1000.0, 400.0), normalization="window")
TRAINING = Training(
    cohort="covid",
    scans={"LABELED": 1, "VALID": 2},
    settings="EXP: {ID: mine}\nDATASET: {ROOT: covid}\n",
    device="CPU",
    versions={},
)
NOWHERE = SegmenterInput(size=(4, 4, 4), window=(0.0, 1.0), normalization="minmax")


@pytest.fixture(scope="session")
def run_file(tmp_path_factory):
    """The best segmenter of a run, with the weights of the reference numbers and everything known about it."""
    segmenter = Segmenter(4)
    load_published(segmenter, reference.published_state(reference.load("segmenter_base4")))
    path = tmp_path_factory.mktemp("run") / "segmenter_best.pth"
    save_segmenter(
        path, segmenter, SegmenterFacts(trained_on=TRAINED_ON, iteration=1234, valid_dice=0.5, training=TRAINING)
    )
    return path


@pytest.fixture(scope="session")
def released(run_file, tmp_path_factory):
    """The release of that run."""
    folder = tmp_path_factory.mktemp("handed on") / "release"
    torch.set_num_threads(1)
    assert export.main([str(run_file.parent), "--release", str(folder), "--licence", "CC0", "--quiet"]) == 0
    return folder


def run_onnx(folder, volume):
    session = onnxruntime.InferenceSession(folder / "segmenter.onnx", providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"volume": volume.numpy()})[0]


def run_torch_export(folder, volume):
    with torch.no_grad():
        return torch.export.load(folder / "segmenter.pt2").module()(volume).numpy()


RUN = {"onnx": run_onnx, "torch_export": run_torch_export}


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_exported_files_give_the_published_numbers(released, form):
    arrays = reference.load("segmenter_base4")
    volume = reference.wave(tuple(arrays["input_shape"]), float(arrays["input_phase"]))
    found = RUN[form](released, volume)
    assert found.shape == arrays["output"].shape
    np.testing.assert_allclose(found, arrays["output"], atol=2e-5)


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_exported_files_agree_with_the_segmenter_at_any_size(run_file, released, form):
    segmenter, _ = load_segmenter(run_file, NOWHERE)
    for batch, *size in ((1, 8, 8, 8), (1, 16, 64, 64), (3, 24, 32, 40), (2, 40, 32, 32)):
        volume = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(5)) * 2 - 1
        with torch.no_grad():
            expected = torch.sigmoid(segmenter(volume)).numpy()
        assert expected.std() > 1e-3  # says something
        np.testing.assert_allclose(RUN[form](released, volume), expected, atol=2e-5)


def test_an_onnx_file_is_one_valid_file_that_says_what_it_takes(released):
    model = onnx.load(released / "segmenter.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert all(weights.data_location == onnx.TensorProto.DEFAULT for weights in model.graph.initializer)
    shapes = [
        [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 1, "depth", "height", "width"]] * 2
    # Upsampling and instance norm are operators, so that runtimes are fast; voxel edges, not centres, are aligned.
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("InstanceNormalization"), kinds.count("Resize"), kinds[-1]) == (15, 2, "Sigmoid")
    for node in model.graph.node:
        if node.op_type == "Resize":
            given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            assert (given["mode"], given["coordinate_transformation_mode"]) in (
                (b"linear", b"half_pixel"),
                (b"linear", b"pytorch_half_pixel"),
            )
    check_metadata({entry.key: entry.value for entry in model.metadata_props})


def test_metadata_of_a_published_checkpoint():
    told = export_module.metadata(SegmenterFacts())
    found = [told[key] for key in ("crop_size", "window_hu", "normalization", "iteration", "valid_dice")]
    assert found == ["[40, 160, 160]", "[-1250.0, 250.0]", "minmax", "null", "null"]
    assert told["input_known_from"].startswith("the published code")


def check_metadata(told):
    assert "not a medical device" in told["notice"]
    assert json.loads(told["crop_size"]) == [20, 64, 64]
    assert json.loads(told["window_hu"]) == [-1000, 400]
    assert told["normalization"] == "window"
    assert told["input_known_from"] == "the checkpoint"
    assert (json.loads(told["iteration"]), json.loads(told["valid_dice"])) == (1234, 0.5)
    assert f'version = "{told["gasnet_version"]}"' in (Path(export.__file__).parent / "pyproject.toml").read_text()


def test_a_file_of_torch_export_says_what_it_takes(released):
    extra = {"metadata.json": ""}
    program = torch.export.load(released / "segmenter.pt2", extra_files=extra)
    check_metadata(json.loads(extra["metadata.json"]))
    with pytest.raises((AssertionError, RuntimeError)):
        program.module()(torch.zeros(1, 1, 18, 32, 32))  # no multiple of 4


def test_exported_files_tell_nothing_of_the_machine_that_made_them(released):
    root = str(Path(export.__file__).parent)
    contents = [path.read_bytes() for path in released.iterdir()]
    for name in ("segmenter.pt2", "segmenter.pth"):
        with zipfile.ZipFile(released / name) as archive:
            contents += [archive.read(entry) for entry in archive.namelist()]
            contents.append(" ".join(archive.namelist()).encode())
            assert name == "segmenter.pth" or not any("partial" in entry for entry in archive.namelist())
    for secret in (root, "site-packages", str(released.parent)):
        assert not any(secret.encode() in content for content in contents), secret


def test_a_release_holds_what_one_needs_and_no_more(released, run_file):
    names = {"segmenter.pth", "segmenter.onnx", "segmenter.pt2", "model_card.md", "settings.yaml", "SHA256SUMS"}
    assert {path.name for path in released.iterdir()} == names
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=released, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == len(names) - 1
    original, facts = read_segmenter(run_file)
    segmenter, kept = read_segmenter(released)
    assert kept == facts == SegmenterFacts(trained_on=TRAINED_ON, iteration=1234, valid_dice=0.5, training=TRAINING)
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), segmenter.parameters(), strict=True))
    assert "optimizers" not in load(released / "segmenter.pth")
    assert yaml.safe_load((released / "settings.yaml").read_text())["EXP"]["ID"] == "mine"
    card = (released / "model_card.md").read_text()
    assert "Weights: CC0;" in card
    assert "--config-path FOLDER/settings.yaml --model-path FOLDER/segmenter.pth" in card
    for name in ("segmenter.onnx", "segmenter.pt2"):
        assert re.search(rf"\| `{name}` \| .*differ by at most [\d.e-]+ from", card)


def test_a_release_with_a_state_brings_all_networks_in_half_precision(run_file, tmp_path, quick):
    torch.manual_seed(0)
    networks = Networks(Segmenter(2), Generator(2), Discriminator(2, (16, 64, 64)))
    weights = {name: network.state_dict() for name, network in networks._asdict().items()}
    state = save_state(tmp_path / "run", {"networks": weights, "settings": "DATASET: {ROOT: /secret}"}, 7)
    folder = tmp_path / "release"
    assert export.main([str(run_file), "--release", str(folder), "--state", str(state), "--quiet"]) == 0
    path = folder / "networks.pth"
    assert "networks.pth" in (folder / "SHA256SUMS").read_text()
    assert "are in `networks.pth`" in (folder / "model_card.md").read_text()
    assert b"/secret" not in path.read_bytes()
    assert path.stat().st_size < 0.65 * state.stat().st_size
    assert load(path)["iteration"] == 7
    taken = Networks(Segmenter(2), Generator(2), Discriminator(2, (16, 64, 64)))
    for network, original in zip(taken, networks, strict=True):
        load_weights(network, path)
        for a, b in zip(network.parameters(), original.parameters(), strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=2**-11, atol=2**-25)  # half of the last of ten binary places
    torch.testing.assert_close(load_generator(path).state_dict(), taken.generator.state_dict())


def test_a_state_that_cannot_go_along_is_one_line_and_no_release(run_file, tmp_path, quick, capsys):
    large = {"networks": {n: {"w": torch.full((1,), 1e5)} for n in ("segmenter", "generator", "discriminator")}}
    for state, message in (
        (run_file, "not a training state; take a state_*.pth"),
        (save_state(tmp_path / "run", large, 3), "has weights beyond the range of half precision"),
        (tmp_path / "state_1.pth", "no such file"),
    ):
        arguments = [str(run_file), "--release", str(tmp_path / "release"), "--state", str(state)]
        assert run(lambda arguments=arguments: export.main(arguments)) == 1
        err = capsys.readouterr().err
        assert f"error: {state}: " in err
        assert message in err
    assert not (tmp_path / "release").exists()


def test_the_example_in_the_card_of_a_release_runs(released, monkeypatch):
    card = (released / "model_card.md").read_text()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1).splitlines()
    monkeypatch.chdir(released)
    x = torch.rand(1, 1, 16, 32, 32) * 2 - 1
    results = []
    for line, given in zip(lines, (x.numpy(), x), strict=True):
        names = {"onnxruntime": onnxruntime, "torch": torch, "x": given}
        exec(line, names)
        results.append(np.asarray(names["probability"].tolist()))
    np.testing.assert_allclose(results[0], results[1], atol=2e-5)


def test_test_takes_a_release(config, cohort, run_file, released, tmp_path, capsys):
    arguments = ["--config-path", str(config), "--quiet", "--device", "cpu"]
    for name, model in (("a", run_file), ("b", released / "segmenter.pth")):
        folder = shutil.copytree(model.parent, tmp_path / f"model {name}")
        content = load(model)
        content["input"]["window"] = (-1250.0, 250.0)  # that of the cohort
        save(content, folder / model.name)
        write_checksums(folder)
        assert test.main([*arguments, "--model-path", str(folder), "--output", str(tmp_path / name)]) == 0
    tables = {(tmp_path / name / "metrics.csv").read_text() for name in "ab"}
    assert len(tables) == 1
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["model"] == str(folder / "segmenter.pth")
    with pytest.raises(CheckpointError, match=r"was trained on crops with the window \(-1000.0, 400.0\)"):
        test.main([*arguments, "--model-path", str(released), "--output", str(tmp_path / "c")])


def test_a_folder_that_is_not_empty_is_left_alone(run_file, tmp_path, capsys):
    (tmp_path / "file.txt").write_text("precious")
    assert run(lambda: export.main([str(run_file), "--release", str(tmp_path)])) == 1
    assert f"error: {tmp_path}: is not an empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.fixture
def quick(monkeypatch):
    """Nothing is really exported: a file says what network it would be."""
    monkeypatch.setattr(export_module, "export_program", lambda segmenter: None)
    for form in export_module.SUFFIXES:
        monkeypatch.setitem(export_module.WRITERS, form, lambda program, facts, path, form=form: path.write_text(form))
    monkeypatch.setattr(export_module, "runner", lambda path, form: lambda volume: torch.full_like(volume, torch.nan))
    monkeypatch.setattr(export_module, "largest_difference", lambda segmenter, exported, shapes: 0.0)


def test_a_release_of_a_published_checkpoint_says_only_what_is_known(tmp_path, quick, capsys):
    path, folder = tmp_path / "checkpointU_1000.pth", tmp_path / "release"
    save(reference.published_state(reference.load("segmenter_base4")), path)
    assert export.main([str(path), "--release", str(folder), "--format", "torch_export"]) == 0
    assert "does not say its input" in capsys.readouterr().err
    assert {p.name for p in folder.iterdir()} == {"segmenter.pth", "segmenter.pt2", "model_card.md", "SHA256SUMS"}
    card = (folder / "model_card.md").read_text()
    assert "Settings: unknown." in card
    assert "segmenter.pt2" in card
    assert "segmenter.onnx" not in card
    segmenter, trained_on = load_segmenter(folder, NOWHERE)
    assert trained_on == SegmenterInput(size=(40, 160, 160), window=(-1250.0, 250.0), normalization="minmax")
    assert segmenter.width == 4


@pytest.mark.fault("own figures, DICOM SEGs, exported networks")
def test_only_files_that_it_exported_are_replaced(run_file, tmp_path, quick, capsys):
    (tmp_path / "segmenter.onnx").write_text("of another network")
    assert run(lambda: export.main([str(run_file), "--output", str(tmp_path), "--quiet"])) == 1
    assert f"{tmp_path / 'segmenter.onnx'}: was not written by this command, and is not" in capsys.readouterr().err
    assert (tmp_path / "segmenter.onnx").read_text() == "of another network"
    assert not (tmp_path / "segmenter.pt2").exists()
    mine = ["--output", str(tmp_path / "mine.onnx"), "--quiet"]
    assert export.main([str(run_file), *mine]) == export.main([str(run_file), *mine]) == 0
    (tmp_path / "mine.onnx").write_text("quantised")
    assert export.main([str(run_file), "--output", str(tmp_path / "other.onnx"), "--quiet"]) == 0
    assert run(lambda: export.main([str(run_file), *mine])) == 1
    assert "mine.onnx: was changed since this command wrote it" in capsys.readouterr().err
    assert (tmp_path / "mine.onnx").read_text() == "quantised"


def test_where_files_go_and_what_they_are(run_file, tmp_path, quick, capsys):
    for output, formats, names in (
        ("both", [], {"segmenter.onnx", "segmenter.pt2"}),
        ("one", ["--format", "torch_export"], {"segmenter.pt2"}),
        ("two", ["--format", "torch_export", "onnx", "onnx"], {"segmenter.onnx", "segmenter.pt2"}),
        ("file/mine.onnx", [], {"mine.onnx"}),
        ("file2/mine.pt2", ["--format", "torch_export"], {"mine.pt2"}),
    ):
        assert export.main([str(run_file), "--output", str(tmp_path / output), *formats, "--quiet"]) == 0
        folder = tmp_path / output.split("/")[0]
        of_a_run = (".lock", ".results", "manifest.json")
        files = {p.name: p.read_text() for p in folder.iterdir() if p.name not in of_a_run}
        assert set(files) == names
        assert all(text == ("onnx" if name.endswith("onnx") else "torch_export") for name, text in files.items())
        assert json.loads((folder / "manifest.json").read_text())["runs"][-1]["model"] == str(run_file)
        assert all(f"{name}: 0.0 MiB; on random input" in capsys.readouterr().out for name in list(names)[:1])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--output", "a", "--release", "b"],
        ["--output", "a.onnx", "--format", "torch_export"],
        ["--output", "a.pt2", "--format", "torch_export", "onnx"],
        ["--output", "a", "--format", "torchscript"],
        ["--output", "a", "--licence", "MIT"],
        ["--output", "a", "--state", "state_0000001.pth"],
    ],
)
def test_arguments_that_contradict_each_other(run_file, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        export.main([str(run_file), *arguments])
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("difference", [2e-3, math.nan])
@pytest.mark.parametrize("where", ["--output", "--release"])
def test_a_file_that_does_not_agree_is_not_kept(run_file, tmp_path, quick, monkeypatch, capsys, difference, where):
    monkeypatch.setattr(export_module, "largest_difference", lambda segmenter, exported, shapes: difference)
    assert run(lambda: export.main([str(run_file), where, str(tmp_path / "out"), "--quiet"])) == 1
    assert "segmenter.onnx: probabilities differ by up to" in capsys.readouterr().err
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left <= {".lock", "manifest.json", "export.json"}  # the last says that none is finished
    assert (tmp_path / "out").exists() == (where == "--output")


def test_the_largest_difference_is_over_all_shapes_and_sees_nan():
    torch.manual_seed(0)
    segmenter = Segmenter(2)
    shapes = ((1, 1, 16, 32, 32), (2, 1, 8, 32, 32))

    def off(amount):
        def exported(volume):
            assert -1 <= volume.min() < -0.9
            assert 0.9 < volume.max() <= 1
            found = segmenter(volume).sigmoid()
            found[-1, 0, 0, 0, 0] += amount * len(volume)
            return found

        return exported

    assert export_module.largest_difference(segmenter, off(0.0), shapes) == 0
    assert export_module.largest_difference(segmenter, off(0.25), shapes) == pytest.approx(0.5)
    assert math.isnan(export_module.largest_difference(segmenter, off(math.nan), shapes))


def test_without_onnxruntime_the_file_is_checked_and_that_is_said(run_file, released, tmp_path, monkeypatch, capsys):
    found = export_module.importlib.util.find_spec
    monkeypatch.setattr(
        export_module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    exported = (released / "segmenter.onnx").read_bytes()
    assert export_module.runner(released / "segmenter.onnx", "onnx") is None
    monkeypatch.setattr(export_module, "export_program", lambda segmenter: None)
    monkeypatch.setitem(export_module.WRITERS, "onnx", lambda program, facts, path: path.write_bytes(exported))
    assert export.main([str(run_file), "--output", str(tmp_path / "s.onnx"), "--quiet"]) == 0
    assert "s.onnx: 0.1 MiB; checked with onnx.checker only" in capsys.readouterr().out


def test_without_onnx_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GasnetError, match=r"--format onnx: needs onnx and onnxscript; pip install -r requirements"):
        export_module.write_onnx(None, SegmenterFacts(), tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()


def test_what_is_no_segmenter_to_export_is_one_line(tmp_path, capsys):
    state = save_state(tmp_path, {"networks": {n: {} for n in ("segmenter", "generator", "discriminator")}}, 3)
    for model, message in (
        (state, "a state to resume training from; take segmenter_best.pth or segmenter_last.pth"),
        (tmp_path, "neither a release (segmenter.pth) nor a run with validation"),
        (tmp_path / "none.pth", "no such file"),
    ):
        assert run(lambda model=model: export.main([str(model), "--output", str(tmp_path / "out")])) == 1
        err = capsys.readouterr().err
        assert f"error: {model}: " in err
        assert message in err
    assert not (tmp_path / "out").exists()
