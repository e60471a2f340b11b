import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PRINTS = """
import logging
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


def run_with(redirection, path, *words, environment=()):
    """Run a small command in a shell with a redirection."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", PRINTS, str(path), *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, **dict(environment)})
    return result.returncode, result.stdout, result.stderr.decode()


@pytest.mark.fault("standard output or error that is closed")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_nothing(tmp_path, redirection):
    code, out, err = run_with(redirection, tmp_path / "file")
    assert code == 0
    assert (tmp_path / "file").read_text() == "done"
    assert (b"2 " in out) == (">&-" not in redirection.replace("2>&-", ""))
    assert "Traceback" not in err


def test_a_full_disk_behind_standard_output_is_one_line_after_the_work(tmp_path):
    code, _, err = run_with(">/dev/full", tmp_path / "file")
    assert code == 1
    assert (tmp_path / "file").read_text() == "done"
    assert err.splitlines() == [
        "warning: a warning",
        "error: standard output: No space left on device; results are in their files, but not all lines were printed",
    ]


def test_a_full_disk_behind_standard_error_costs_nothing(tmp_path):
    code, out, _ = run_with("2>/dev/full", tmp_path / "file")
    assert (code, out.startswith(b"2 ")) == (0, True)


@pytest.mark.fault("a terminal that knows ASCII only")
def test_characters_that_the_encoding_lacks_are_escaped(tmp_path):
    code, out, _ = run_with("", tmp_path / "file", environment={"PYTHONIOENCODING": "ascii"}.items())
    assert (code, out) == (0, b"2 \\xb1 1 in \\u809a\n")
    code, out, _ = run_with(
        "", tmp_path / "file", os.fsdecode(b"\xff"), environment={"PYTHONIOENCODING": "utf-8"}.items()
    )
    assert (code, out) == (0, "2 ± 1 in 肚 \\udcff\n".encode())


@pytest.mark.fault("no temporary folder that can be written")
def test_no_temporary_folder(tmp_path):
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
