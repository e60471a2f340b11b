import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from datasets.lungs import segment_by_threshold
from models import Segmenter
from models.checkpoint import SegmenterFacts, SegmenterInput, save_segmenter
from tests.volumes import geometry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def environment_for(folder):
    """Environment variables under which `python` is the interpreter of the tests; a link to it is kept in a folder."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}


def project_in(folder):
    """Link the project into a folder, so that commands run as in the project's but write nothing there."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "demo", "data", "output", "example"):
            (folder / path.name).symlink_to(path)
    return environment_for(folder)


def code_blocks(page, language="sh"):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_steps_in_the_docs_run_as_they_stand_there(tmp_path):
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    commands = re.search(r"runs this block -->\n```sh\n(.*?)```", page, re.DOTALL).group(1)
    environment = project_in(tmp_path)
    done = subprocess.run(
        ["sh", "-euc", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    example = tmp_path / "example"
    assert len(list((example / "data" / "images").iterdir())) == 6
    assert (example / "output").is_dir()
    assert len(list((example / "masks").glob("*.nii.gz"))) == 1
    assert (example / "test" / "metrics.csv").is_file()


def test_the_readme_segments_a_scan_in_python(tmp_path, monkeypatch, phantoms):
    scan = next((phantoms / "ct").glob("diseased_*"))
    shutil.copy(scan, tmp_path / "scan.nii.gz")
    small = SegmenterInput(size=(16, 32, 32), window=(-1250.0, 250.0), normalization="minmax")
    save_segmenter(tmp_path / "segmenter_best.pth", Segmenter(2), SegmenterFacts(trained_on=small))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "datasets.lungmask_model.load_lungmask", lambda *_, **__: segment_by_threshold
    )  # needs no weights
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


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


class Parsed(Exception):
    """The options of a command were understood."""


def python_commands(page):
    """The arguments after `python` of every command on a page."""
    for block in code_blocks(page):
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_options_of_every_command_exist(page, monkeypatch):
    def parse(method):
        def parse_only(parser, *arguments, **named):
            method(parser, *arguments, **named)
            raise Parsed

        return parse_only

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, parse(getattr(argparse.ArgumentParser, name)))
    for words in python_commands(page):
        if words[0] == "-c" or words[:2] == ["-m", "pytest"]:
            continue
        with pytest.raises(Parsed):
            started(words, monkeypatch)


SCRIPTS = ("lungCrop.py", "train.py", "test.py", "post_processing.py", "predict.py", "export.py")


@pytest.mark.parametrize(
    "command",
    [
        *SCRIPTS,
        "datasets.phantom",
        "datasets.scans",
        "datasets.make_splits",
        "datasets.public",
        "benchmarks.weak_supervision.cohort",
        "benchmarks.weak_supervision.public",
        "benchmarks.patients",
        "benchmarks.pretrain",
        "benchmarks.weak_supervision.run",
        "benchmarks.weak_supervision.table",
        "reports.training",
        "tests.fuzz_volumes",
        "tests.kill_everything",
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
