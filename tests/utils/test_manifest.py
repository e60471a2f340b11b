import json
import subprocess
import sys
import tomllib
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from configs.settings import read_settings
from utils import distributed, manifest
from utils.errors import FolderError, VolumeError
from utils.manifest import environment, git_revision, project_version, read_manifest, recording

ROOT = Path(__file__).parents[2]


def test_a_record_says_what_made_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "--config-path", "my config.yaml"])
    settings = read_settings(None, ["EXP.SEED=7"])
    before = datetime.now().astimezone().replace(microsecond=0)
    with recording(tmp_path, device=torch.device("cpu"), settings=settings, model=tmp_path / "S.pth"):
        assert read_manifest(tmp_path)[0]["outcome"] == "running"
    (record,) = read_manifest(tmp_path)
    assert record["command"] == "train.py --config-path 'my config.yaml'"
    assert record["outcome"] == "finished"
    assert before <= datetime.fromisoformat(record["started"]) <= datetime.fromisoformat(record["ended"])
    assert 0 <= record["seconds"] < 60
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] == version("torch").split("+")[0]
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (record["device"], record["threads"], record["processes"]) == ("cpu", torch.get_num_threads(), 1)
    assert record["seed"] == record["settings"]["EXP"]["SEED"] == 7
    assert record["settings"]["SOLVER"]["BATCH_SIZE"] == 4
    assert record["model"] == str(tmp_path / "S.pth")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (VolumeError("scan.nii: cut short"), "failed: scan.nii: cut short"),
        (ZeroDivisionError("a secret"), "failed: ZeroDivisionError"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(143), "stopped"),
    ],
)
def test_what_ends_a_run_is_recorded_and_passed_on(error, outcome, tmp_path):
    with pytest.raises(type(error)), recording(tmp_path):
        raise error
    assert read_manifest(tmp_path)[-1]["outcome"] == outcome


def test_earlier_runs_stay_and_a_damaged_manifest_is_begun_anew(tmp_path, caplog):
    for seed in (1, 2):
        with recording(tmp_path, seed=seed):
            pass
    assert [record["seed"] for record in read_manifest(tmp_path)] == [1, 2]
    path = tmp_path / "manifest.json"
    whole = path.read_text()
    for damaged in (whole[:-20], whole.replace("[\n", "[3,\n", 1), whole[:60] + "\xff", ""):
        path.write_text(damaged, encoding="latin-1")
        with recording(tmp_path, seed=3):
            pass
        assert [record["seed"] for record in read_manifest(tmp_path)] == [3]
        assert str(path) in caplog.text
        caplog.clear()


@pytest.mark.parametrize("content", ["[]", '{"runs": [3]}', "\xff", '{"name": "some extension"}'])
def test_the_manifest_of_another_program_is_not_replaced(content, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(FolderError, match=r"manifest\.json: of another program"), recording(tmp_path):
        raise AssertionError
    assert path.read_text() == content


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with recording(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_that_of_the_project():
    assert project_version() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert environment()["gasnet"] == project_version()


def test_the_revision_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    git_revision.cache_clear()
    assert git_revision() is None
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    git_revision.cache_clear()
    clean = git_revision()
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    git_revision.cache_clear()
    assert git_revision() == f"{clean}-modified"
    inside = tmp_path / "copy"
    inside.mkdir()
    monkeypatch.setattr(manifest, "ROOT", inside)
    git_revision.cache_clear()
    assert git_revision() is None
    git_revision.cache_clear()


def test_names_of_hosts_and_users_stay_out(tmp_path):
    with recording(tmp_path, device=torch.device("cpu")):
        pass
    text = json.dumps(read_manifest(tmp_path))
    import socket

    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in text
