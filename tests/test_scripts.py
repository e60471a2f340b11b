"""The shell scripts, run with a stub of Python that prints its arguments."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.volumes import touched

ROOT = Path(__file__).parents[1]
SHELL = shutil.which("dash") or "sh"


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts in a folder with spaces, with a complete environment for users (not for tests)."""
    root = tmp_path / "a folder with spaces"
    names = ("train.sh", "test.sh", "requirements.txt", "requirements-dev.txt", "tests/run.sh", ".venv/bin/python")
    touched(root, *names, "scripts/environment.sh", "scripts/config.sh")
    for name in (*names[:-1], "scripts/environment.sh", "scripts/config.sh"):
        shutil.copy(ROOT / name, root / name)
    python = root / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho\n')
    python.chmod(0o755)
    mark_as_installed(root, "requirements")
    return root


def mark_as_installed(root, name):
    with (root / f"{name}.txt").open() as file:
        sums = subprocess.run(["cksum"], stdin=file, capture_output=True, check=True).stdout
    (root / ".venv" / f"{name}.cksum").write_bytes(sums)


def called(script, *arguments, cwd, **environment):
    command = [shutil.which(SHELL), str(script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "handed_on"),
    [
        (["train.sh"], "{default} --is-validation"),
        (["train.sh", "my c.yaml", "EXP.ID=a b", "--resume"], "my c.yaml --is-validation EXP.ID=a b --resume"),
        (["test.sh"], "{default}"),
        (["test.sh", "c.yaml", "a model.pth", "--save-vis"], "c.yaml --model-path a model.pth --save-vis"),
        (["test.sh", "b.pth"], "{default} --model-path b.pth"),
        (["test.sh", "run"], "{default} --model-path run"),
    ],
)
def test_a_script_takes_a_config_and_a_model_and_hands_on_everything_else(project, tmp_path, command, handed_on):
    (tmp_path / "run").mkdir()
    code, out, err = called(project / command[0], *command[1:], cwd=tmp_path)
    assert (code, err) == (0, "")
    script = project / command[0].replace(".sh", ".py")
    expected = handed_on.format(default=project / "configs" / "Gan.yaml")
    assert out.strip("<>\n").replace("><", " ") == f"{script} --config-path {expected}"


def test_run_checks_style_and_runs_the_tests(project, tmp_path):
    mark_as_installed(project, "requirements-dev")
    code, out, _ = called(project / "tests" / "run.sh", "-k", "a b", cwd=tmp_path)
    assert code == 0
    assert [line.split("><")[1] for line in out.splitlines()] == ["ruff", "ruff", "pytest"]
    assert out.endswith("<-k><a b>\n")


def test_a_missing_python_is_one_line(project, tmp_path):
    shutil.rmtree(project / ".venv")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("cksum", "cmp", "dirname", "sh"):
        (programs / name).symlink_to(shutil.which(name))
    code, _, err = called(project / "train.sh", cwd=tmp_path, PATH=str(programs), PYTHON="")
    assert code == 1
    assert err.startswith("error: Python 3.11 to 3.13 not found")
    assert not (project / ".venv").exists()


def installed_by(script, *arguments, project):
    code, out, err = called(project / script, *arguments, cwd=project.parent)
    prefix = f"<-m><pip><install><--quiet><--disable-pip-version-check><-r><{project}/"
    names = [line.removeprefix(prefix).rstrip(">") for line in out.splitlines() if line.startswith(prefix)]
    assert code == 0
    assert [f"installing {name}" in err for name in names] == [True] * len(names)
    assert bool(err) == bool(names)
    return names


@pytest.mark.parametrize("tests", [["tests/run.sh"], ["scripts/environment.sh", "--dev"]])
def test_requirements_are_installed_when_they_are_needed_first_and_when_they_changed(project, tests):
    def installed():
        return [installed_by(*command, project=project) for command in (["train.sh"], ["test.sh"], tests)]

    users, developers = "requirements.txt", "requirements-dev.txt"
    assert installed() == [[], [], [developers]]  # what tests need for the tests alone
    assert installed() == [[], [], []]  # back and forth: both stay installed
    for changed, expected in ((users, [[users], [], [developers]]), (developers, [[], [], [developers]])):
        with (project / changed).open("a") as file:
            file.write("another-package\n")
        assert installed() == expected
        assert installed() == [[], [], []]


def test_a_failing_installation_is_tried_again_and_an_environment_without_pip_made_anew(project, tmp_path):
    (project / ".venv" / "requirements.cksum").unlink()
    python = project / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\n[ "$3" = --version ]\n')
    for _ in range(2):
        code, _, err = called(project / "train.sh", cwd=tmp_path)
        assert code == 1
        assert "error: pip could not install" in err
    python.write_text("#!/bin/sh\nexit 1\n")
    base = tmp_path / "base"
    base.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "<%s>" "$@" >&2\n[ "$1" = -c ]\n')
    base.chmod(0o755)
    code, _, err = called(project / "train.sh", cwd=tmp_path, PYTHON=str(base))
    assert f"<-m><venv><--clear><{project}/.venv>" in err
    assert code == 1
    assert "python3-venv" in err
