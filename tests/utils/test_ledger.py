import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from configs.settings import read_settings
from utils import distributed, ledger
from utils.errors import FolderError, VolumeError
from utils.ledger import Ledger, Recipe, git_revision, project_version, recording, results_in

ROOT = Path(__file__).parents[2]
OPTIONS = {"size": [4, 8, 8], "lungs": "threshold"}


@pytest.fixture
def made(tmp_path):
    """A folder with the result of the scan ``a``, and its input."""
    scan = tmp_path / "scans" / "a.nii"
    scan.parent.mkdir()
    scan.write_text("scan")
    folder = tmp_path / "out"
    path = folder / "masks" / "a.nii"
    results = Ledger(folder, "masks")
    with results.writing("a", [path], Recipe({"scan": [scan]}, OPTIONS)) as facts:
        path.parent.mkdir()
        path.write_text("mask")
        facts["ml"] = 3.5
    return results, path, scan


def test_what_differs_from_the_entry_is_said(made, monkeypatch):
    results, path, scan = made
    sources = {"scan": [scan]}
    assert results.entry("a").facts == {"ml": 3.5}
    assert results.difference("a", Recipe(sources, OPTIONS)) is None
    assert results.difference("b", Recipe(sources, OPTIONS)) == "not there"
    assert results.difference("a", Recipe(sources, {**OPTIONS, "lungs": "lungmask R231"})) == "other lungs"
    assert results.difference("a", Recipe(sources, {**OPTIONS, "new": 1})) == "other new"
    assert results.difference("a", Recipe({**sources, "label": [scan]}, OPTIONS)) == "other label"
    assert results.difference("a", Recipe({}, OPTIONS)) == "without scan"
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "project_version", lambda: "99.0.0")
        assert results.difference("a", Recipe(sources, OPTIONS)) == f"made by version {project_version()}"
    path.unlink()
    assert results.difference("a", Recipe(sources, OPTIONS)) == "masks/a.nii is missing"


@pytest.mark.fault("results of a replaced scan")
def test_the_content_of_a_source_counts_and_not_its_date(made, tmp_path):
    results, _, scan = made
    status = scan.stat()
    os.utime(scan, ns=(1, 1))
    assert results.difference("a", Recipe({"scan": [scan]}, OPTIONS)) is None
    scan.write_text("scam")  # as long, and with the same date
    os.utime(scan, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert results.difference("a", Recipe({"scan": [scan]}, OPTIONS)) == "other scan"
    scan.write_text("scan")
    moved = tmp_path / "moved" / "a.nii"
    moved.parent.mkdir()
    scan.rename(moved)
    assert results.difference("a", Recipe({"scan": [moved]}, OPTIONS)) is None


def test_a_change_in_the_middle_of_a_large_source_is_found(tmp_path):
    scan, results = tmp_path / "a.nii", Ledger(tmp_path / "out", "masks")
    scan.write_bytes(bytes(16 * 2**20))
    with results.writing("a", [], Recipe({"scan": [scan]}, OPTIONS)):
        pass
    with scan.open("r+b") as file:
        file.seek(5 * 2**20)
        file.write(b"x")
    assert results.difference("a", Recipe({"scan": [scan]}, OPTIONS)) == "other scan"


@pytest.mark.fault("two scans of one name, from two folders")
def test_another_scan_of_the_same_name_is_refused_while_the_first_is_there(made, tmp_path):
    results, _, scan = made
    other = tmp_path / "site_b" / "a.nii"
    other.parent.mkdir()
    other.write_text("another patient")
    with pytest.raises(FolderError, match=r"a: \S+ has the result of \S+scans/a.nii, \S+site_b/a.nii is another scan"):
        results.left({"a": Recipe({"scan": [other]}, OPTIONS)})
    assert results.left({"a": Recipe({"scan": [other]}, OPTIONS)}, overwrite=True) == ["a"]
    scan.unlink()
    assert results.left({"a": Recipe({"scan": [other]}, OPTIONS)}) == ["a"]


@pytest.mark.fault("own masks where results are written")
def test_only_own_files_that_nobody_changed_are_replaced(made):
    results, path, _ = made
    with results.writing("a", [path], Recipe({}, OPTIONS)):
        path.write_text("its own")
    other = path.with_name("b.nii")
    for case_id, mine, reason in (
        ("a", path, r"a\.nii: was changed since this command wrote it, and is not replaced"),
        ("b", other, r"b\.nii: was not written by this command, and is not replaced; move it"),
    ):
        mine.write_text("an expert's")
        with pytest.raises(FolderError, match=reason), results.writing(case_id, [mine], Recipe({}, OPTIONS)):
            pytest.fail("wrote over it")
        assert mine.read_text() == "an expert's"


def test_files_that_are_not_written_again_are_removed(made):
    results, path, _ = made
    new = path.with_suffix(".nrrd")
    with results.writing("a", [new], Recipe({}, OPTIONS)):
        new.write_text("mask")
    assert not path.exists()
    new.write_text("corrected by hand")
    with pytest.raises(FolderError), results.writing("a", [path], Recipe({}, OPTIONS)):
        pytest.fail("would remove it")
    assert new.read_text() == "corrected by hand"


def test_a_killed_command_leaves_what_the_next_one_may_replace(made):
    results, path, _ = made
    new = path.with_name("new.nii")
    with suppress(KeyboardInterrupt), results.writing("new", [new], Recipe({}, OPTIONS)):
        new.write_text("half of the results")
        raise KeyboardInterrupt
    assert results.difference("new", Recipe({}, OPTIONS)) == "unfinished"
    with results.writing("new", [new], Recipe({}, OPTIONS)):
        new.write_text("all of them")
    assert results.difference("new", Recipe({}, OPTIONS)) is None


def test_damaged_entries_are_none(made):
    results, path, _ = made
    entry = results.folder / "ledger" / "masks" / "a.json"
    whole = json.loads(entry.read_text())
    for text in ("", "[]", '{"files": 3}', json.dumps({**whole, "files": None}), json.dumps({**whole, "facts": 3})):
        entry.write_text(text)
        assert results.entries() == {}
        with pytest.raises(FolderError), results.writing("a", [path], Recipe({}, OPTIONS)):
            pytest.fail("wrote over it")


def test_results_of_scans_that_are_gone_go_unless_they_were_corrected(made, tmp_path, caplog, monkeypatch):
    results, path, scan = made
    elsewhere = tmp_path / "elsewhere"
    results.remove_gone([scan.parent], {}, lambda case_id: True)  # it is there, and just not read this time
    scan.unlink()
    results.remove_gone([elsewhere], {}, lambda case_id: True)
    results.remove_gone([scan.parent], {}, lambda case_id: False)  # of another part
    with monkeypatch.context() as patch:  # a folder that may not be looked into
        patch.setattr(ledger.os, "lstat", Mock(side_effect=PermissionError(13, "Permission denied")))
        results.remove_gone([scan.parent], {}, lambda case_id: True)
    assert path.exists()
    mask = path.read_text()
    path.write_text("corrected by hand")
    results.remove_gone([scan.parent], {}, lambda case_id: True)
    assert path.read_text() == "corrected by hand"
    assert "a.nii: was changed since this command wrote it" in caplog.text
    path.write_text(mask)
    results.remove_gone([scan.parent], {}, lambda case_id: True)
    assert not path.exists()
    assert results.entries() == {}
    assert "removed the results of 1 scan(s) that are not in the input any more, the first a" in caplog.text


def read_runs(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "ledger" / "runs").glob("*.json"))]


def test_a_run_says_what_made_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "--config-path", "my config.yaml"])
    settings = read_settings(None, ["EXP.SEED=7"])
    assert not results_in(tmp_path)
    with recording(tmp_path, device=torch.device("cpu"), settings=settings, seed=7, model=tmp_path / "S.pth"):
        assert read_runs(tmp_path)[0]["outcome"] == "running"
    assert results_in(tmp_path) == {tmp_path / "ledger"}
    (record,) = read_runs(tmp_path)
    assert record["command"] == "train.py --config-path 'my config.yaml'"
    assert record["outcome"] == "finished"
    now = datetime.now().astimezone()
    assert now - timedelta(seconds=60) < datetime.fromisoformat(record["started"]) <= now
    assert record["versions"]["torch"] == version("torch").split("+")[0]
    assert (record["device"], record["threads"], record["processes"]) == ("cpu", torch.get_num_threads(), 1)
    assert record["seed"] == record["settings"]["EXP"]["SEED"] == 7
    assert record["model"] == str(tmp_path / "S.pth")
    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in json.dumps(record)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (VolumeError("scan.nii: cut short"), "failed: scan.nii: cut short"),
        (ZeroDivisionError("a secret"), "failed: ZeroDivisionError"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(143), "stopped"),
    ],
)
def test_what_ends_a_run_is_entered_and_passed_on(error, outcome, tmp_path):
    with pytest.raises(type(error)), recording(tmp_path):
        raise error
    assert read_runs(tmp_path)[-1]["outcome"] == outcome


def test_earlier_runs_stay(tmp_path, monkeypatch):
    for seed in (1, 2):
        with recording(tmp_path, seed=seed):
            pass
    monkeypatch.setattr(distributed, "rank", lambda: 1)  # others enter nothing
    with recording(tmp_path, seed=3):
        pass
    assert [run["seed"] for run in read_runs(tmp_path)] == [1, 2]


def test_the_revision_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    def revision(root):
        monkeypatch.setattr(ledger, "ROOT", root)
        return git_revision.__wrapped__()

    assert revision(tmp_path) is None
    (tmp_path / "file").write_text("1")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    clean = revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert revision(tmp_path) == f"{clean}-modified"
    (tmp_path / "copy").mkdir()
    assert revision(tmp_path / "copy") is None
