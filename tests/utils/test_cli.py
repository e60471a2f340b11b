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
        (lambda: raising(OSError(28, "No space", "x.csv")), 1, "error: x.csv: No space; check the path, "),
        (lambda: raising(KeyboardInterrupt()), 130, "interrupted\n"),
        (lambda: raising(torch.OutOfMemoryError("CUDA out of memory. Tried ...")), 1, "error: CUDA out of memory; "),
    ],
)
def test_errors_become_one_line_and_an_exit_code(outcome, code, message, capsys):
    assert run(outcome) == code
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert len(err.splitlines()) == (1 if message else 0)
    with pytest.raises(ZeroDivisionError):  # bugs keep their traceback
        run(lambda: 1 // 0)


def test_every_command_tells_its_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        new_parser("Does things.").parse_args(["--version"])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"GASNet {version}\n"


@pytest.mark.fault("no GPU, a bad device")
def test_devices(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(GasnetError, match=r"--device cuda:2: 2 CUDA device\(s\) here; use --device cpu"):
        choose_device("cuda:2")
    for name in ("gpu", "meta", ""):
        with pytest.raises(GasnetError, match=f"--device {name}: "):
            choose_device(name)


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


def test_standard_error_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert run(lambda: int(sys.stderr.isatty())) == 0
    assert run(lambda: raising(VolumeError("scan.nii: cut short"))) == 1


@pytest.mark.fault("a terminal that knows ASCII only")
def test_characters_that_the_encoding_lacks_are_escaped():
    prints = r"from utils.cli import run; run(lambda: print('2 \u00b1 1', '\udcff'))"
    for encoding, shown in (("ascii", b"2 \\xb1 1 \\udcff\n"), ("utf-8", b"2 \xc2\xb1 1 \\udcff\n")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", prints], cwd=ROOT, capture_output=True, env=environment)
        assert (done.returncode, done.stdout) == (0, shown)


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
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--part", text])
