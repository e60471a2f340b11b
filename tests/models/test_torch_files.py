import io
import os
import pickle
import random
import zipfile
from contextlib import suppress

import pytest
import torch

from models.checkpoint import read_torch_file
from tests import volumes
from tests.fuzz_volumes import mutated
from tests.outputs import same
from utils.errors import CheckpointError

CONTENT = {"format": "a", "numbers": [1, 2.5, None], "weights": {f"w{k}": torch.arange(40.0) + k for k in range(3)}}
MUTANTS = int(os.environ.get("GASNET_MUTANTS", "300"))  # GASNET_MUTANTS=5000 looks further


def written(path, content=CONTENT, **options):
    torch.save(content, path, **options)
    return path


def refused(path, message="[a-z]"):
    return volumes.refused(path, lambda: read_torch_file(path), message, CheckpointError)


@pytest.mark.fault("flipped bytes, cut")
def test_every_mutant_is_refused_or_loads_as_the_original(tmp_path):
    # Small tensors, so that most places lie in the pickle, the headers and the directory of the archive.
    content = written(tmp_path / "good.pth").read_bytes()
    rng, path, intact = random.Random(0), tmp_path / "mutant.pth", 0
    for number in range(MUTANTS):
        ways = ["header", "header", "anywhere", "anywhere", "cut", "zero"]
        path.write_bytes(mutated(content, rng, ways, head=len(content)))
        with suppress(CheckpointError):
            assert same(read_torch_file(path), CONTENT), number
            intact += 1
            continue
        refused(path)
    print(f"{MUTANTS} mutants: {MUTANTS - intact} refused, {intact} load as the original")
    assert 0 < intact < 0.5 * MUTANTS  # what torch.load does not look at may change; most may not


@pytest.mark.fault("half a file, text, other")
@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_read_and_a_part_of_it_is_refused(tmp_path, legacy):
    path = written(tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert same(read_torch_file(path), CONTENT)
    content = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        refused(path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.fault("a pickle that would")
@pytest.mark.parametrize("kind", ["archive", "legacy", "pickle"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_payload_never_runs(tmp_path, monkeypatch, kind, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, bait = tmp_path / "evil.pth", tmp_path / "bait"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"weights": Payload(bait)}))
    else:
        written(path, {"weights": Payload(bait)}, _use_new_zipfile_serialization=kind == "archive")
    assert "never run" in refused(path)
    assert not bait.exists()
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert bait.exists()  # the payload is a live one


@pytest.mark.fault("zip bombs, archives")
def test_archives_that_unpack_to_more_than_they_are_are_refused(tmp_path):
    path = written(tmp_path / "good.pth", {"w": torch.zeros(2**20)})
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 0.01 * path.stat().st_size
    refused(packed, "compressed or overlap")


@pytest.mark.fault("zip bombs, archives")
def test_an_archive_with_two_directories_is_read_as_what_was_checked(tmp_path):
    # zipfile takes the last directory; what it checked is what torch gets, whatever else lies in the file.
    first, second = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(3)}, first)
    torch.save({"w": torch.ones(3)}, second)
    path = tmp_path / "two.pth"
    path.write_bytes(first.getvalue() + second.getvalue())
    assert torch.equal(read_torch_file(path)["w"], torch.ones(3))


@pytest.mark.fault("NaN or Inf in weights")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_and_inf_are_refused_with_the_name_of_the_entry(tmp_path, bad, dtype):
    weights = torch.zeros(3, 4, dtype=dtype)
    weights[1, 2] = bad
    path = written(tmp_path / "a.pth", {"networks": [{"good": torch.zeros(2), "stem.0.weight": weights}]})
    refused(path, "NaN or Inf in its entry 'stem.0.weight'")


@pytest.mark.fault("zip bombs, archives")
def test_tensors_that_are_more_than_their_bytes_or_not_dense_are_refused(tmp_path):
    for tensor in (
        torch.zeros(1).expand(2**30, 2**10),
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    ):
        refused(written(tmp_path / "a.pth", {"w": tensor}), "'w' is not a plain tensor")


def test_containers_without_end_are_read_to_their_end(tmp_path):
    deep = torch.tensor([float("nan")])
    for _ in range(300):
        deep = [deep, deep]  # 2^300 ways to the tensor
    refused(written(tmp_path / "shared.pth", deep), "NaN or Inf")


@pytest.mark.fault("half a file, text, other")
def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    for content in (b"", b"\n", b"text\n", b"PK\x03\x04", os.urandom(1000), pickle.dumps([1])):
        path.write_bytes(content)
        refused(path)
    refused(tmp_path / "none.pth", "No such file")
    refused(tmp_path, "Is a directory")
