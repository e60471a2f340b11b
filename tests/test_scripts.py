"""The shell scripts, run with a stub of Python that prints its arguments."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELL = shutil.which("dash") or "sh"


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts in a folder with spaces, with a complete environment for users (not for tests)."""
    root = tmp_path / "a folder with spaces"
    for name in (
        "train.sh",
        "test.sh",
        "requirements.txt",
        "requirements-dev.txt",
        "scripts/environment.sh",
        "scripts/config.sh",
        "tests/run.sh",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho\n')
    python.chmod(0o755)
    mark_as_installed(root, "requirements")
    return root


def mark_as_installed(root, name):
    with (root / f"{name}.txt").open() as file:
        sums = subprocess.run(["cksum"], stdin=file, capture_output=True, check=True).stdout
    (root / ".venv" / f"{name}.cksum").write_bytes(sums)


def called(script, *arguments, cwd, **environment):
    done = subprocess.run(
        [SHELL, str(script), *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


def test_train_takes_a_config_and_hands_on_everything_else(project, tmp_path):
    code, out, err = called(project / "train.sh", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert out == f"<{project}/train.py><--config-path><{project}/configs/Gan.yaml><--is-validation>\n"
    _, out, _ = called(project / "train.sh", "my config.yaml", "EXP.ID=a b", "--resume", cwd=tmp_path)
    assert out == f"<{project}/train.py><--config-path><my config.yaml><--is-validation><EXP.ID=a b><--resume>\n"
    _, out, _ = called(project / "train.sh", "SOLVER.BATCH_SIZE=2", cwd=tmp_path)
    assert out.endswith("<--is-validation><SOLVER.BATCH_SIZE=2>\n")


def test_test_takes_a_config_and_a_model(project, tmp_path):
    _, out, _ = called(project / "test.sh", cwd=tmp_path)
    assert out == f"<{project}/test.py><--config-path><{project}/configs/Gan.yaml>\n"
    _, out, _ = called(project / "test.sh", "c.yaml", "a model.pth", "--save-vis", cwd=tmp_path)
    assert out == f"<{project}/test.py><--config-path><c.yaml><--model-path><a model.pth><--save-vis>\n"
    _, out, _ = called(project / "test.sh", "a model.pth", cwd=tmp_path)
    assert out.endswith("Gan.yaml><--model-path><a model.pth>\n")
    (tmp_path / "a release").mkdir()
    _, out, _ = called(project / "test.sh", "a release", "--save-vis", cwd=tmp_path)
    assert out.endswith("Gan.yaml><--model-path><a release><--save-vis>\n")


def test_run_checks_style_and_runs_the_tests_from_the_projects_folder(project, tmp_path):
    mark_as_installed(project, "requirements-dev")
    code, out, _ = called(project / "tests" / "run.sh", "-k", "a b", cwd=tmp_path)
    assert code == 0
    assert out.splitlines() == [
        "<-m><ruff><check><.>",
        "<-m><ruff><format><--check><.>",
        "<-m><pytest><-n><auto><--dist><loadfile><--no-loadscope-reorder><-k><a b>",
    ]


def test_a_missing_python_is_one_line(project, tmp_path):
    shutil.rmtree(project / ".venv")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("cksum", "cmp", "dirname", "sh"):
        (programs / name).symlink_to(shutil.which(name))
    shell = shutil.which(SHELL)
    done = subprocess.run(
        [shell, str(project / "train.sh")], cwd=tmp_path, env={"PATH": str(programs)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python 3.11 to 3.13 not found")
    assert not (project / ".venv").exists()


def test_changed_requirements_are_installed_again(project, tmp_path):
    with (project / "requirements.txt").open("a") as file:
        file.write("another-package\n")
    code, out, err = called(project / "train.sh", cwd=tmp_path)
    assert code == 0
    assert "installing requirements.txt" in err
    assert f"<-m><pip><install><--quiet><--disable-pip-version-check><-r><{project}/requirements.txt>" in out
    _, _, err = called(project / "train.sh", cwd=tmp_path)
    assert err == ""


def installed_by(out, project):
    """The requirement files that a script installed, by name."""
    prefix = f"<-m><pip><install><--quiet><--disable-pip-version-check><-r><{project}/"
    return [line.removeprefix(prefix).rstrip(">") for line in out.splitlines() if line.startswith(prefix)]


def test_only_the_tests_install_what_tests_need(project, tmp_path):
    _, out, err = called(project / "train.sh", cwd=tmp_path)
    assert (installed_by(out, project), err) == ([], "")
    _, out, _ = called(project / "tests" / "run.sh", cwd=tmp_path)
    assert installed_by(out, project) == ["requirements-dev.txt"]
    for script in ("tests/run.sh", "train.sh", "test.sh", "tests/run.sh"):  # back and forth: both stay installed
        _, out, err = called(project / script, cwd=tmp_path)
        assert (installed_by(out, project), err) == ([], "")


def test_the_environment_alone_with_and_without_what_tests_need(project, tmp_path):
    environment = project / "scripts" / "environment.sh"
    assert called(environment, cwd=tmp_path) == (0, "", "")
    code, out, _ = called(environment, "--dev", cwd=tmp_path)
    assert (code, installed_by(out, project)) == (0, ["requirements-dev.txt"])
    assert called(environment, "--dev", cwd=tmp_path) == (0, "", "")
    assert called(environment, "--developer", cwd=tmp_path)[0] == 2


def test_new_requirements_of_users_are_checked_against_those_of_the_tests(project, tmp_path):
    mark_as_installed(project, "requirements-dev")
    with (project / "requirements.txt").open("a") as file:
        file.write("another-package\n")
    _, out, _ = called(project / "train.sh", cwd=tmp_path)
    assert installed_by(out, project) == ["requirements.txt"]
    _, out, _ = called(project / "tests" / "run.sh", cwd=tmp_path)
    assert installed_by(out, project) == ["requirements-dev.txt"]


def test_changed_requirements_of_the_tests_are_installed_again(project, tmp_path):
    mark_as_installed(project, "requirements-dev")
    with (project / "requirements-dev.txt").open("a") as file:
        file.write("another-package\n")
    _, out, _ = called(project / "train.sh", cwd=tmp_path)
    assert installed_by(out, project) == []
    _, out, _ = called(project / "tests" / "run.sh", cwd=tmp_path)
    assert installed_by(out, project) == ["requirements-dev.txt"]


def test_a_failing_installation_is_an_error_and_tried_again(project, tmp_path):
    (project / ".venv" / "requirements.cksum").unlink()
    (project / ".venv" / "bin" / "python").write_text('#!/bin/sh\n[ "$3" = --version ]\n')
    for _ in range(2):
        code, _, err = called(project / "train.sh", cwd=tmp_path)
        assert code == 1
        assert "error: pip could not install" in err


def test_an_environment_without_pip_is_made_anew(project, tmp_path):
    (project / ".venv" / "requirements.cksum").unlink()
    (project / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    base = tmp_path / "base"
    base.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "<%s>" "$@" >&2\n[ "$1" = -c ]\n')
    base.chmod(0o755)
    code, _, err = called(project / "train.sh", cwd=tmp_path, PYTHON=str(base))
    assert f"<-m><venv><--clear><{project}/.venv>" in err
    assert code == 1
    assert "python3-venv" in err
