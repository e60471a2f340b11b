import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def project_in(folder):
    """Links to everything in the project, so that commands run as in its folder and leave nothing there."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "demo", "data", "output", "example"):
            (folder / path.name).symlink_to(path)
    programs = folder / "programs"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}


def test_the_steps_in_the_readme_run_as_they_stand_there(tmp_path):
    commands = re.search(r"runs this block -->\n```sh\n(.*?)```", README, re.DOTALL).group(1)
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


def test_files_and_folders_in_the_readme_exist():
    table = README.split("## Where things are")[1].split("## Results")[0]
    folder = ""
    for cell in re.findall(r"`([\w./]+)`", table):
        if cell.endswith("/"):
            folder = cell
        assert (ROOT / cell).exists() or (ROOT / folder / cell).exists(), cell
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / link.split("#")[0]).exists(), link


@pytest.mark.parametrize(
    "command",
    [
        ["lungCrop.py"],
        ["train.py"],
        ["test.py"],
        ["post_processing.py"],
        ["predict.py"],
        ["export.py"],
        ["-m", "datasets.phantom"],
        ["-m", "datasets.make_splits"],
        ["-m", "datasets.public"],
        ["-m", "benchmarks.weak_supervision.cohort"],
        ["-m", "benchmarks.weak_supervision.realism"],
        ["-m", "benchmarks.weak_supervision.run"],
        ["-m", "benchmarks.weak_supervision.table"],
        ["-m", "benchmarks.weak_supervision.plots"],
        ["-m", "reports.training"],
        ["-m", "tests.fuzz_volumes"],
        ["-m", "tests.kill_everything"],
    ],
)
def test_every_command_explains_itself_with_examples_that_it_understands(command):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    _, examples = done.stdout.replace("torchrun --nproc-per-node", "torchrun").split("Examples:")
    options = set(re.findall(r"--[\w-]+", examples.split("positional arguments")[0].split("options:")[0]))
    described = set(re.findall(r"--[\w-]+", done.stdout.split("options:")[1]))
    assert options <= described
