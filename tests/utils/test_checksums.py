import hashlib
import re
import subprocess

import pytest

from utils.checksums import check_listed, sha256, write_checksums
from utils.errors import CheckpointError

# NIST's example of one block.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_checksum_of_a_known_message(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == ABC


def test_the_list_is_what_sha256sum_reads(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "a file ä.txt").write_text("ä")
    (tmp_path / ".lock").write_text("hidden")
    (tmp_path / "folder").mkdir()
    write_checksums(tmp_path)
    write_checksums(tmp_path)  # the list is not in the list
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{hashlib.sha256('ä'.encode()).hexdigest()}  a file ä.txt", f"{ABC}  abc"]
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", [f"{ABC}  abc", f"{ABC} *abc", f"{ABC.upper()}  ./abc\r", f"{'0' * 64}  other"])
def test_a_file_that_is_as_listed_or_not_listed_passes(tmp_path, line):
    (tmp_path / "abc").write_bytes(b"abc")
    check_listed(tmp_path / "abc")
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    check_listed(tmp_path / "abc")


def test_a_file_that_differs_from_its_checksum_is_one_line(tmp_path):
    (tmp_path / "abc").write_bytes(b"abd")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  other\n{ABC}  abc\n")
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'abc'}: is not the file")) as caught:
        check_listed(tmp_path / "abc")
    assert "\n" not in str(caught.value)
