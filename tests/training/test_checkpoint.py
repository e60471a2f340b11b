import os
import pickle
import zipfile

import pytest
import torch

from errors import CheckpointError
from models import Discriminator, Generator, Segmenter
from tests import reference
from training import checkpoint
from training.checkpoint import (
    SegmenterInput,
    find_states,
    load,
    load_generator,
    load_latest_state,
    load_segmenter,
    load_weights,
    save,
    save_segmenter,
    save_state,
)

TRAINED_ON = SegmenterInput((16, 64, 64), (-1250.0, 250.0), "window")
OTHER = SegmenterInput((40, 160, 160), (-1250.0, 250.0), "minmax")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_segmenter_file_is_enough_to_use_it(tmp_path):
    segmenter = Segmenter(3)
    save_segmenter(tmp_path / "s.pth", segmenter, TRAINED_ON, iteration=7, valid_dice=0.5)
    loaded, trained_on = load_segmenter(tmp_path / "s.pth", OTHER)
    assert loaded.width == 3
    assert equal(loaded, segmenter)
    assert trained_on == TRAINED_ON
    content = load(tmp_path / "s.pth")
    assert (content["iteration"], content["valid_dice"], content["version"]) == (7, 0.5, 1)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_checkpoints_load_with_their_own_width(tmp_path, prefix):
    for name, load_published_file in (
        ("segmenter_base4", lambda p: load_segmenter(p, OTHER)[0]),
        ("generator_base4", load_generator),
    ):
        state = {prefix + key: value for key, value in reference.published_state(reference.load(name)).items()}
        torch.save(state, tmp_path / f"{name}.pth")
        network = load_published_file(tmp_path / f"{name}.pth")
        assert network.width == 4
        assert torch.equal(next(network.parameters()), next(iter(state.values())))


def test_a_training_state_gives_each_network(tmp_path):
    networks = {"segmenter": Segmenter(2), "generator": Generator(2), "discriminator": Discriminator(2, (16, 64, 64))}
    path = save_state(tmp_path, {"networks": {name: n.state_dict() for name, n in networks.items()}}, 3)
    assert equal(load_segmenter(path, OTHER)[0], networks["segmenter"])
    assert equal(load_generator(path), networks["generator"])
    for name, fresh in (("segmenter", Segmenter(2)), ("discriminator", Discriminator(2, (16, 64, 64)))):
        load_weights(fresh, path)
        assert equal(fresh, networks[name])


def test_weights_that_do_not_fit_are_one_line(tmp_path):
    save_segmenter(tmp_path / "s.pth", Segmenter(3), TRAINED_ON, 0, None)
    for network, message in ((Segmenter(2), "does not fit"), (Generator(2), "holds a segmenter alone")):
        with pytest.raises(CheckpointError, match=rf"s\.pth: {message}") as caught:
            load_weights(network, tmp_path / "s.pth")
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="not the weights of a generator"):
        load_generator(tmp_path / "s.pth")
    save({"anything": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not the weights of a segmenter; its first entry is anything"):
        load_segmenter(tmp_path / "other.pth", OTHER)


def damaged_files(path):
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        # A byte in the middle of the largest tensor: torch.load alone reads it without a word.
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    flipped = bytearray(content)
    flipped[largest.header_offset + 200 + largest.file_size // 2] ^= 0xFF
    return {
        "half": content[: len(content) // 2],
        "empty": b"",
        "text": b"this is not a checkpoint\n",
        "flipped": bytes(flipped),
        "pickle": pickle.dumps([1, 2]),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("damage", ["half", "empty", "text", "flipped", "pickle"])
def test_a_damaged_checkpoint_is_noticed(tmp_path, damage):
    save_segmenter(tmp_path / "good.pth", Segmenter(4), TRAINED_ON, 0, None)
    path = tmp_path / "bad.pth"
    path.write_bytes(damaged_files(tmp_path / "good.pth")[damage])
    with pytest.raises(CheckpointError, match=r"bad\.pth: ") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_would_run_something_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"weights": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="never run"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_a_missing_file_and_a_newer_version_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "none.pth")
    save({"format": checkpoint.STATE_FORMAT, "version": 99}, tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match="has version 99, this code reads 1"):
        load(tmp_path / "new.pth")


def test_a_save_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "s.pth"
    save({"value": 1}, path)

    def full_disk(content, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save({"value": 2}, path)
    assert load(path)["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s.pth"]


def test_the_last_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    for iteration in (5, 100, 20, 3_000_000):
        save_state(tmp_path, {}, iteration)
    assert [p.name for p in find_states(tmp_path)] == ["state_3000000.pth", "state_0000100.pth"]
    assert load_latest_state(tmp_path)["iteration"] == 3_000_000
    find_states(tmp_path)[0].write_bytes(b"")
    assert load_latest_state(tmp_path)["iteration"] == 100
    assert "state_3000000.pth" in caplog.text
    with pytest.raises(CheckpointError, match="no training state to resume from"):
        load_latest_state(tmp_path / "empty")
