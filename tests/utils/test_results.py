import json
import os
from contextlib import suppress

import pytest

from utils.errors import FolderError
from utils.results import NO_RECORD, Results, digest_of

OPTIONS = {"size": [4, 8, 8], "lungs": "threshold"}


@pytest.fixture
def made(tmp_path):
    """A folder with the recorded result of the scan ``a``, and its input."""
    scan = tmp_path / "scan.nii"
    scan.write_text("scan")
    folder = tmp_path / "out"
    path = folder / "masks" / "a.nii"
    inputs = {"scan": digest_of([scan])}
    results = Results(folder)
    with results.writing("a", [path], OPTIONS, inputs):
        path.parent.mkdir()
        path.write_text("mask")
    return results, path, scan


def test_what_differs_from_the_record_is_said(made):
    results, path, scan = made
    inputs = {"scan": digest_of([scan])}
    assert results.difference("a", OPTIONS, inputs) is None
    assert results.difference("b", OPTIONS, inputs) == NO_RECORD
    assert results.difference("a", {**OPTIONS, "lungs": "lungmask R231"}, inputs) == "other lungs"
    assert results.difference("a", {**OPTIONS, "new": 1}, inputs) == "other new"
    assert results.difference("a", OPTIONS, {**inputs, "label": "0"}) == "other label"
    os.utime(scan, ns=(1, 1))
    assert results.difference("a", OPTIONS, {"scan": digest_of([scan])}) == "other scan"
    path.unlink()
    assert results.difference("a", OPTIONS, inputs) == "masks/a.nii is missing"


@pytest.mark.fault("own masks where results are written")
def test_only_own_files_that_nobody_changed_are_replaced(made):
    results, path, _ = made
    with results.writing("a", [path], OPTIONS, {}):
        path.write_text("its own")
    path.write_text("corrected by hand")
    changed = r"a\.nii: was changed since this command wrote it, and is not replaced"
    with pytest.raises(FolderError, match=changed), results.writing("a", [path], OPTIONS, {}):
        pytest.fail("wrote over it")
    other = path.with_name("b.nii")
    other.write_text("an expert's")
    foreign = r"b\.nii: was not written by this command, and is not replaced; move it"
    with pytest.raises(FolderError, match=foreign), results.writing("b", [other], OPTIONS, {}):
        pytest.fail("wrote over it")
    assert other.read_text() == "an expert's"


def test_a_killed_command_leaves_what_the_next_one_may_replace(made, tmp_path):
    results, _, _ = made
    new = tmp_path / "out" / "masks" / "new.nii"
    with suppress(KeyboardInterrupt), results.writing("new", [new], OPTIONS, {}):
        new.write_text("half of the results")
        raise KeyboardInterrupt
    assert results.difference("new", OPTIONS, {}) == "unfinished"
    with results.writing("new", [new], OPTIONS, {}):
        new.write_text("all of them")
    assert results.difference("new", OPTIONS, {}) is None


def test_damaged_records_are_none(made):
    results, path, _ = made
    record = results.folder / ".results" / "a.json"
    for text in ("", "[]", '{"files": 3}', json.dumps({"files": None})):
        record.write_text(text)
        assert results.difference("a", OPTIONS, {}) == NO_RECORD
        with pytest.raises(FolderError), results.writing("a", [path], OPTIONS, {}):
            pytest.fail("wrote over it")
