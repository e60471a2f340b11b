"""Documents: what their commands and examples do, and that their links lead somewhere; and the container."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from datasets import lungmask_model
from datasets.lungs import segment_by_threshold
from tests.outputs import save_model, summary, table
from tests.volumes import geometry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def environment_for(folder):
    """Environment variables under which `python` is the interpreter of the tests; a link to it is kept in a folder."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


def project_in(folder):
    """Link the project into a folder, so that commands run as in the project's but write nothing there."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "demo", "data", "output", "example"):
            (folder / path.name).symlink_to(path)
    return environment_for(folder)


def code_blocks(page, language="sh"):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def python_commands(block):
    """The arguments after `python` of every command in a block."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("$set", "B").replace("$run", "output/run"), comments=True)
        for start in ("python", "torchrun"):
            if start in words:
                words = words[words.index(start) + 1 :]
                if start == "torchrun":
                    words = words[words.index("--nproc-per-node") + 2 :]
                yield words[: words.index("||")] if "||" in words else words


def started(words, monkeypatch):
    """Run ``python WORDS`` in this process."""
    start = 2 if words[0] == "-m" else 1
    monkeypatch.setattr(sys, "argv", [words[start - 1], *words[start:]])
    if start == 2:
        runpy.run_module(words[1], run_name="__main__")
    else:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def test_the_steps_in_the_docs_run_as_they_stand_there(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    block = re.search(r"runs this block -->\n```sh\n(.*?)```", page, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    codes = []
    for words in python_commands(block):
        with pytest.raises(SystemExit) as ended:
            started([path for word in words for path in sorted(map(str, Path().glob(word))) or [word]], monkeypatch)
        codes.append(ended.value.code)
    assert codes == [0, 0, 0, 0, 0, 1, 0]  # "scans that were not tested have no mask"
    assert len(list(Path("example/data/images").iterdir())) == 6
    assert len(list(Path("example/masks").glob("*.nii.gz"))) == 1
    assert Path("example/test/metrics.csv").is_file()
    assert Path("example/predicted/report.html").is_file()


def test_the_readme_segments_a_scan_in_python(tmp_path, monkeypatch, phantoms):
    scan = next((phantoms / "ct").glob("diseased_*"))
    shutil.copy(scan, tmp_path / "scan.nii.gz")
    save_model(tmp_path / "segmenter_best.pth", (16, 32, 32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lungmask_model, "load_lungmask", lambda *_, **__: segment_by_threshold)  # needs no weights
    (code,) = code_blocks(ROOT / "README.md", "python")
    found = {}
    exec(code, found)
    assert geometry(scan) == geometry(found["mask"])
    assert set(np.unique(sitk.GetArrayFromImage(found["mask"]))) <= {0, 1}


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


class Parsed(Exception):
    """The options of a command were understood."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_options_of_every_command_exist(page, monkeypatch):
    def parse(method):
        def parse_only(parser, *arguments, **named):
            method(parser, *arguments, **named)
            raise Parsed

        return parse_only

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, parse(getattr(argparse.ArgumentParser, name)))
    for words in python_commands("\n".join(code_blocks(page))):
        if words[0] == "-c" or words[:2] == ["-m", "pytest"]:
            continue
        with pytest.raises(Parsed):
            started(words, monkeypatch)


SCRIPTS = ("lungCrop.py", "train.py", "test.py", "post_processing.py", "predict.py", "export.py")


@pytest.mark.parametrize(
    "command",
    [
        *SCRIPTS,
        *(f"datasets.{name}" for name in ("phantom", "scans", "make_splits", "public")),
        *(f"benchmarks.weak_supervision.{name}" for name in ("cohort", "public", "run", "table")),
        *("benchmarks.patients", "benchmarks.pretrain"),
        *("tests.fuzz_volumes", "tests.kill_everything"),
    ],
)
def test_every_command_explains_itself_with_examples_that_it_understands(command, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        started([*([] if command in SCRIPTS else ["-m"]), command, "--help"], monkeypatch)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    _, examples = shown.replace("torchrun --nproc-per-node", "torchrun").split("Examples:")
    options = set(re.findall(r"--[\w-]+", examples.split("positional arguments")[0].split("options:")[0]))
    described = set(re.findall(r"--[\w-]+", shown.split("options:")[1]))
    assert options <= described


LARGE = {
    *("SimpleITK", "cv2", "highdicom", "imgaug", "lungmask", "matplotlib", "nibabel", "numpy", "onnx", "pandas"),
    *("pydantic", "pydicom", "scipy", "skimage", "tensorboard", "torch", "torchvision", "yaml"),
}


@pytest.mark.fault("PYTHONSAFEPATH=1")
@pytest.mark.parametrize("command", [*SCRIPTS, "datasets.scans", "datasets.make_splits", "datasets.public"])
def test_help_is_quick_from_any_folder(command, tmp_path):
    """It imports none of the libraries that take long to import."""
    words, environment = ["-m", command], os.environ
    if command in SCRIPTS:
        words, environment = [str(ROOT / command)], os.environ | {"PYTHONSAFEPATH": "1"}
    line, cwd = [sys.executable, "-X", "importtime", *words, "--help"], tmp_path if command in SCRIPTS else ROOT
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported & LARGE == set()


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    commands = "\n".join(code_blocks(ROOT / "docs" / "tutorial.md"))
    words, environment = ["sh", "-euc", commands], project_in(tmp_path)
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "tutorial"
    predicted = folder / "predicted"
    rows = table(predicted / "summary.csv")
    assert set(rows) == {"diseased_000", "healthy_000"}
    assert geometry(predicted / "masks/healthy_000.nii.gz") == geometry(folder / "raw/ct/healthy_000.nii.gz")
    found = {case_id for case_id, row in rows.items() if float(row["lesion_ml"]) > 0}
    assert {path.stem for path in (predicted / "dicom_seg").glob("*.dcm")} == found & {"diseased_000"}
    for page in (predicted / "report.html", folder / "tested" / "report.html"):
        assert "research" in page.read_text(encoding="utf-8")
    tested = summary(folder / "tested")
    assert tested["lesion"]["scans"] == tested["raw"]["lesion"]["scans"] == 2
    assert (folder / "segmenter.onnx").is_file()


def test_the_image_has_what_it_copies_and_runs_as_a_user_with_few_rights():
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    kinds, steps = [kind for kind, _ in instructions], dict(instructions)
    for kind, rest in instructions:
        assert kind != "COPY" or all((ROOT / source).exists() for source in rest.split()[:-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    minor = int(re.match(r"python:3\.(\d+)-slim$", steps["FROM"])[1])
    lowest, above = map(int, re.match(r">=3\.(\d+),<3\.(\d+)$", project["requires-python"]).groups())
    assert lowest <= minor < above
    assert steps["USER"] != "root"
    assert kinds.index("USER") > max(n for n, kind in enumerate(kinds) if kind == "RUN")
