import io
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from utils import distributed
from utils.cli import add_part, new_parser, run, start_logging
from utils.distributed import choose_device
from utils.errors import GasnetError, VolumeError
from utils.progress import is_in_part

ROOT = Path(__file__).parents[2]


def raising(error):
    raise error


@pytest.mark.fault("no GPU, a bad device")
@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (lambda: raising(VolumeError("scan.nii: cut short")), 1, "error: scan.nii: cut short\n"),
        (
            lambda: raising(OSError(28, "No space left on device", "out/x.csv")),
            1,
            "error: out/x.csv: No space left on device; check the path, its rights and the disk\n",
        ),
        (lambda: raising(KeyboardInterrupt()), 130, "interrupted\n"),
        (
            lambda: raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")),
            1,
            "error: CUDA out of memory; use --device cpu or, in training, a smaller SOLVER.BATCH_SIZE\n",
        ),
    ],
)
def test_errors_become_one_line_and_an_exit_code(outcome, code, message, capsys):
    assert run(outcome) == code
    assert capsys.readouterr().err == message


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("kind", "environment", "coloured"),
    [
        (Terminal, {}, True),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colours_are_for_terminals(kind, environment, coloured, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    assert run(lambda: raising(VolumeError("scan.nii: cut short"))) == 1
    start_logging(quiet=False)
    logging.getLogger("anything").warning("a")
    error, warning = ("\x1b[31merror\x1b[0m", "\x1b[33mwarning\x1b[0m") if coloured else ("error", "warning")
    assert stream.getvalue() == f"{error}: scan.nii: cut short\n{warning}: a\n"


def test_every_command_tells_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        new_parser("Does things.").parse_args(["--version"])
    assert ended.value.code == 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"GASNet {version}\n"


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.mark.fault("no GPU, a bad device")
def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(GasnetError, match=r"--device cuda:2: 2 CUDA device\(s\) here; use --device cpu"):
        choose_device("cuda:2")
    for name in ("gpu", "meta", ""):
        with pytest.raises(GasnetError, match=f"--device {name}: "):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


def test_each_of_several_processes_takes_a_cuda_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for local_rank in ("0", "1"):
        monkeypatch.setattr(distributed, "local_rank", lambda number=local_rank: int(number))
        for name in ("auto", "cuda"):
            assert choose_device(name) == torch.device(f"cuda:{local_rank}")
        assert choose_device("cpu") == torch.device("cpu")
        with pytest.raises(GasnetError, match="--device cuda:1: not for several processes; use --device cuda"):
            choose_device("cuda:1")
    monkeypatch.setattr(distributed, "local_rank", lambda: 2)
    with pytest.raises(GasnetError, match=r"2 CUDA device\(s\) here for more processes; start fewer"):
        choose_device("auto")


@pytest.mark.parametrize(("quiet", "expected"), [(False, "info: a\nwarning: b\n"), (True, "warning: b\n")])
def test_quiet_leaves_warnings(quiet, expected, capsys):
    start_logging(quiet)
    logging.getLogger("anything").info("a")
    logging.getLogger("anything").warning("b")
    assert capsys.readouterr().err == expected


PRINTS = """
import logging
import os
import subprocess
from pathlib import Path
import sys
from utils.cli import run, start_logging

def main():
    start_logging(quiet=False)
    logging.getLogger().warning("a warning")
    print("2 \\u00b1 1 in \\u809a", *sys.argv[2:])
    Path(sys.argv[1]).write_text("done")
    return 0

raise SystemExit(run(main))
"""


def run_with(redirection, path, *words, **environment):
    """Run a small command in a shell with a redirection."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", PRINTS, str(path), *words]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONUNBUFFERED": "", **environment}
    )
    return result.returncode, result.stdout, result.stderr.decode()


@pytest.mark.fault("standard output or error that is closed")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_cost_nothing(tmp_path, redirection):
    code, _, err = run_with(redirection, tmp_path / "file")
    assert code == 0
    assert (tmp_path / "file").read_text() == "done"
    assert "Traceback" not in err


def test_a_full_disk_behind_standard_output_is_one_line_after_the_work(tmp_path):
    code, _, err = run_with(">/dev/full", tmp_path / "file")
    assert code == 1
    assert (tmp_path / "file").read_text() == "done"
    assert err.splitlines() == [
        "warning: a warning",
        "error: standard output: No space left on device; results are in their files, but not all lines were printed",
    ]


@pytest.mark.fault("a terminal that knows ASCII only")
def test_characters_that_the_encoding_lacks_are_escaped(tmp_path):
    code, out, _ = run_with("", tmp_path / "file", PYTHONIOENCODING="ascii")
    assert (code, out) == (0, b"2 \\xb1 1 in \\u809a\n")
    code, out, _ = run_with("", tmp_path / "file", os.fsdecode(b"\xff"), PYTHONIOENCODING="utf-8")
    assert (code, out) == (0, "2 ± 1 in 肚 \\udcff\n".encode())


@pytest.mark.fault("no temporary folder that can be written")
def test_no_temporary_folder():
    hidden = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nonexistent']; import utils"
    result = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == (
        "error: No usable temporary directory found in ['/nonexistent']; set TMPDIR to a writable folder\n"
    )


@pytest.mark.fault("a user id without a name or a home")
def test_a_user_without_a_name():
    nameless = "import os, pwd, getpass; pwd.getpwuid = {}.__getitem__; import training.run; print(getpass.getuser())"
    environment = {k: v for k, v in os.environ.items() if k not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    result = subprocess.run([sys.executable, "-c", nameless], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (0, f"{os.getuid()}\n")


def test_a_scan_is_of_one_part_whatever_other_scans_there_are():
    ids = [f"scan_{k}" for k in range(100)]
    parts = [[case_id for case_id in ids if is_in_part(case_id, (k, 3))] for k in (1, 2, 3)]
    assert sorted(case_id for part in parts for case_id in part) == sorted(ids)
    assert min(map(len, parts)) > 20
    assert all(is_in_part(case_id, None) for case_id in ids)
    assert is_in_part("Mu\u0308ller", (1, 7)) == is_in_part("M\u00fcller", (1, 7))


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3"])
def test_an_impossible_part_is_a_usage_error(text, capsys):
    parser = new_parser("Does things.")
    add_part(parser)
    assert parser.parse_args(["--part", "2/3"]).part == (2, 3)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--part", text])
    assert ended.value.code == 2
