import errno
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.volumes import write_volume
from models.checkpoint import save
from tests.volumes import image_of, touched
from utils import files
from utils.errors import FolderError, GasnetError
from utils.files import atomic_write, lock_folder, write_text


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert (temporary.parent, temporary.name[0], temporary.suffix) == (path.parent, ".", ".txt")
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "before: ä\n")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half" * (1 // 0))
    assert path.read_text(encoding="utf-8") == "before: ä\n"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "file.txt"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("a loss of power")
def test_a_file_is_on_the_disk_before_it_takes_its_place_and_its_folder_after(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    synced = []

    def fsync(descriptor):
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "new")
    assert synced == [(f".{os.getpid()}.partial.file.txt", "old"), (tmp_path.name, "new")]


def write(path, seed):
    """A checkpoint, a volume or a text of some 400 kB by the name of the file."""
    values = np.random.default_rng(seed).normal(size=(20, 64, 64)).astype(np.float32)
    if path.suffix == ".pth":
        save({"weights": torch.from_numpy(values), "iteration": seed}, path)
    elif path.suffix == ".txt":
        write_text(path, str(values.tolist()))
    else:
        write_volume(image_of(values), path)


def message_of_write(path, limit=None):
    """What goes wrong where files end at `limit` bytes, as on a full disk, or for a user who may not write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    elif os.geteuid() == 0:  # root may always write
        os.setegid(65534)
        os.seteuid(65534)
    try:
        write(path, 1)
    except (GasnetError, OSError) as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def child():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda *call: pool.submit(*call).result(timeout=60)


NAMES = ["state.pth", "scan.nii.gz", "scan.nii", "scan.mha", "scan.nrrd", "settings.txt"]


@pytest.mark.fault("a save that fails: full")
@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_in_the_middle_of_a_save_leaves_the_old_file(child, tmp_path, name):
    path = tmp_path / name
    write(path, 0)
    before = path.read_bytes()
    for limit in (0, 100, 4096, len(before) // 2, len(before) - 100):
        message = child(message_of_write, path, limit)
        assert message is not None, limit
        assert str(path) in message
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("a save that fails: full")
def test_a_folder_without_rights_leaves_the_old_files(child):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in NAMES]
        for path in paths:
            write(path, 0)
        before = [path.read_bytes() for path in paths]
        Path(folder).chmod(0o555)
        for path in paths:
            message = child(message_of_write, path)
            assert str(path) in message
        assert [path.read_bytes() for path in paths] == before
        Path(folder).chmod(0o755)
        assert sorted(Path(folder).iterdir()) == sorted(paths)


HOLD = """
import sys
from pathlib import Path
from utils.files import lock_folder
with lock_folder(Path(sys.argv[1]), part=eval(sys.argv[2])):
    print(flush=True)
    sys.stdin.read()
"""


def holder(folder, part=None):
    """Another process that holds a folder, or a part of the work on it, once it does."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(part)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


@pytest.mark.fault("two runs on one folder")
def test_a_folder_has_one_writer_until_that_ends_or_is_killed(tmp_path):
    folder = tmp_path / "new" / "folder"
    with holder(folder) as first:
        writer = f"{folder}: process {first.pid} on {os.uname().nodename} is writing here; wait for its end"
        with pytest.raises(FolderError, match=re.escape(writer)), lock_folder(folder):
            pass
        first.kill()
    with lock_folder(folder):
        pass


def test_parts_keep_out_the_whole_and_themselves_and_not_each_other(tmp_path):
    def is_free(part):
        try:
            with lock_folder(tmp_path, part=part):
                return True
        except FolderError:
            return False

    with holder(tmp_path, (1, 2)):
        assert [is_free(part) for part in ((2, 2), (1, 2), None)] == [True, False, False]
    with holder(tmp_path):
        assert not is_free((1, 2))


@pytest.mark.fault("a mount that cannot flush")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO, errno.ENOSPC])
def test_a_mount_that_cannot_sync_is_written_to_and_a_disk_that_fails_is_an_error(tmp_path, monkeypatch, code):
    def fsync(_):
        raise OSError(code, os.strerror(code))

    path = tmp_path / "file.txt"
    monkeypatch.setattr(os, "fsync", fsync)
    if code in (errno.EIO, errno.ENOSPC):
        with pytest.raises(OSError, match=r"file\.txt"):
            write_text(path, "lost")
        assert not path.exists()
    else:
        write_text(path, "text")
        assert path.read_text() == "text"


@pytest.mark.fault("what a kill leaves")
def test_what_was_left_half_written_is_removed_where_the_command_writes_and_nowhere_else(tmp_path):
    left = [".123.partial.a.pth", "masks/.4.partial.b.nii.gz", "ledger/runs/.6.partial.r.json"]
    kept = ["test/.5.partial.c.csv", ".partial.d", "e.partial.f"]
    with holder(tmp_path):
        touched(tmp_path, *left, *kept)
        with pytest.raises(FolderError), lock_folder(tmp_path, "masks"):
            pass
        assert all((tmp_path / name).exists() for name in left)
    with lock_folder(tmp_path, "masks", "nowhere"):
        assert not any((tmp_path / name).exists() for name in left)
        assert all((tmp_path / name).exists() for name in kept)


@pytest.mark.fault("a file system without")
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    left = tmp_path / ".123.partial.a.pth"
    left.touch()
    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    with lock_folder(tmp_path):
        write_text(tmp_path / "file.txt", "text")
    assert f"{tmp_path}: cannot be locked (No locks available)" in caplog.text
    assert left.exists()  # it may be another run's
