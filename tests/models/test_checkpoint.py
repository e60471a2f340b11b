import pytest
import torch
from monai.networks.nets import UNet

from models import Discriminator, Generator, Segmenter, checkpoint, objectives
from models.checkpoint import (
    SegmenterFacts,
    SegmenterInput,
    Training,
    load,
    load_segmenter,
    load_weights,
    save,
    save_segmenter,
)
from models.objectives import build_networks
from tests import reference, volumes
from tests.outputs import same
from training.states import find_states, load_latest_state, save_state
from utils.errors import CheckpointError

TRAINED_ON = SegmenterInput(size=(16, 64, 64), window=(-1250.0, 250.0), normalization="window")
OTHER = SegmenterInput(size=(40, 160, 160), window=(-1250.0, 250.0), normalization="minmax")
TRAINING = Training(cohort="covid", scans={"LABELED": 1}, settings="EXP: {ID: a}\n", device="CPU", versions={})
RESUMABLE = {
    "networks": {network: {"w": torch.zeros(2)} for network in ("segmenter", "generator", "discriminator")},
    "optimizers": {"segmenter": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}},
    "random": {"python": (3, (1, 2), None), "torch": torch.zeros(2, dtype=torch.uint8), "cuda": []},
    "position": {"HEALTHY": 4},
    "best_dice": None,
    "skipped": 0,
    "settings": "",
}


def equal(a, b):
    return same(dict(a.state_dict()), dict(b.state_dict()))


def saved(path, segmenter=None, **facts):
    save_segmenter(path, segmenter or Segmenter(2), SegmenterFacts(trained_on=TRAINED_ON, **facts))
    return path


def refused(match, read, *arguments):
    return volumes.refused("", lambda: read(*arguments), match, CheckpointError)


@pytest.mark.fault("`module.` and `_orig_mod.`")
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "_orig_mod.module."])
def test_a_training_state_gives_each_network_also_if_it_was_wrapped(tmp_path, prefix):
    networks = {"segmenter": Segmenter(2), "generator": Generator(2), "discriminator": Discriminator(2, (16, 64, 64))}
    wrapped = {
        name: {prefix + key: tensor for key, tensor in network.state_dict().items()}
        for name, network in networks.items()
    }
    path = save_state(tmp_path, {"networks": wrapped}, 3)
    refused("a state to resume training from; take the segmenter_", load_segmenter, path, OTHER)
    fresh_ones = {"segmenter": Segmenter(2), "generator": Generator(2), "discriminator": Discriminator(2, (16, 64, 64))}
    for name, fresh in fresh_ones.items():
        load_weights(fresh, path)
        assert equal(fresh, networks[name])


@pytest.mark.fault("`module.` and `_orig_mod.`")
def test_a_network_compiled_in_part_loads_but_not_one_that_is_given_twice(tmp_path):
    segmenter = Segmenter(2)
    weights = {key.replace("stem.", "stem._orig_mod."): tensor for key, tensor in segmenter.state_dict().items()}
    save(weights, tmp_path / "parts.pth")
    assert equal(load_segmenter(tmp_path / "parts.pth", OTHER)[0], segmenter)
    save({**weights, **segmenter.state_dict()}, tmp_path / "twice.pth")
    refused(r"twice\.pth: holds the same weights twice", load_segmenter, tmp_path / "twice.pth", OTHER)


@pytest.mark.fault("another architecture, missing")
@pytest.mark.parametrize("change", ["missing", "unknown"])
@pytest.mark.parametrize("name", ["stem.0.weight", "predict.weight"])
def test_weights_of_ours_that_are_missing_or_unknown_are_one_line(tmp_path, change, name):
    state = Segmenter(2).state_dict()
    tensor = state.pop(name) if change == "missing" else state[name]
    save(state if change == "missing" else {**state, "stray.weight": tensor}, tmp_path / "s.pth")
    refused(r"s\.pth: (not the weights|does not fit)", load_weights, Segmenter(2), tmp_path / "s.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_published_checkpoints_load_with_their_own_width(tmp_path, prefix):
    for name, fresh in (("segmenter_base4", Segmenter(4)), ("generator_base4", Generator(4))):
        state = {prefix + key: value for key, value in reference.published_state(reference.load(name)).items()}
        torch.save(state, tmp_path / f"{name}.pth")
        load_weights(fresh, tmp_path / f"{name}.pth")
        assert torch.equal(next(fresh.parameters()), next(iter(state.values())))
    segmenter, facts = load_segmenter(tmp_path / "segmenter_base4.pth")
    assert segmenter.width == facts.width == 4


@pytest.mark.fault("another architecture, missing")
def test_weights_that_do_not_fit_are_one_line(tmp_path):
    path, odd = saved(tmp_path / "s.pth", Segmenter(3)), tmp_path / "odd.pth"
    refused(r"s\.pth: does not fit", load_weights, Segmenter(2), path)
    refused(r"s\.pth: holds a segmenter alone", load_weights, Generator(2), path)
    save({"anything": torch.zeros(1)}, odd)
    refused("not the weights of a segmenter; its first entry is anything", load_segmenter, odd)
    for shape in ((), (4,), (4, 2, 3, 3, 3), (0, 1, 3, 3, 3), (10**6, 1, 1, 1, 1)):
        save({"conv.weight": torch.zeros(shape), "conv1.0.weight": torch.zeros(shape)}, odd)
        refused("not the weights of a", load_segmenter, odd)


MISSING = object()


def changed(content, entry, value):
    """A copy of nested dicts with one entry, a dotted name, changed; MISSING takes it away."""
    first, _, rest = entry.partition(".")
    copy = dict(content)
    if rest:
        copy[first] = changed(copy[first], rest, value)
    elif value is MISSING:
        del copy[first]
    else:
        copy[first] = value
    return copy


WRONG = (MISSING, None, 1, "minimax", [1, 2], (1, -2, 0.5), {"w": "no tensor"})


@pytest.mark.fault("another architecture, missing")
@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *((entry, value) for entry in ("input", "input.size", "input.normalization", "weights") for value in WRONG),
        *(("input.window", value) for value in WRONG),
        *(("width", value) for value in (MISSING, None, "minimax", [1, 2], (1, 2), {"w": "no tensor"})),
        *(("threshold", value) for value in (0, 1, -0.2, 1.5, "0.5", None)),
        *((f"training.{entry}", {"VALID": -1}) for entry in ("cohort", "scans", "settings", "device", "versions")),
    ],
)
def test_entries_of_a_segmenter_that_are_missing_or_wrong_are_named(tmp_path, entry, value):
    path = saved(tmp_path / "s.pth", training=TRAINING)
    load_segmenter(path)
    save(changed(load(path), entry, value), path)
    refused(rf"s\.pth: its entry {entry}.* is missing or wrong", load_segmenter, path)


@pytest.mark.fault("a segmenter alone given")
def test_a_segmenter_alone_cannot_be_resumed_from(tmp_path, caplog):
    saved(tmp_path / "state_0000009.pth")
    refused("no training state to resume from", load_latest_state, tmp_path)
    assert "state_0000009.pth: not a training state" in caplog.text


@pytest.mark.fault("a damaged last state")
@pytest.mark.parametrize("where", ["networks.segmenter", "networks.discriminator", "optimizers.segmenter.state"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_with_nan_in_it_is_passed_over(tmp_path, caplog, where, bad):
    save_state(tmp_path, RESUMABLE, 1)
    key = 0 if where.startswith("optimizers") else "w"
    value = {"exp_avg": torch.tensor([1.0, bad])} if key == 0 else torch.tensor([bad])
    save_state(tmp_path, changed(RESUMABLE, where, {key: value}), 2)
    assert load_latest_state(tmp_path)["iteration"] == 1
    assert "state_0000002.pth: NaN or Inf in its entry" in caplog.text


@pytest.mark.fault("a newer or impossible")
def test_a_missing_file_and_a_newer_version_are_one_line(tmp_path):
    refused("no such file", load, tmp_path / "none.pth")
    for version in (99, 0, -1, True, 1.0, "1", None, [1]):
        save({"format": checkpoint.STATE_FORMAT, "version": version, **RESUMABLE}, tmp_path / "new.pth")
        assert f"has version {version}, this code reads 1" in refused("new.pth", load, tmp_path / "new.pth")


@pytest.mark.fault("a damaged last state")
def test_the_last_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    for iteration in (5, 100, 20, 3_000_000):
        save_state(tmp_path, RESUMABLE, iteration)
    assert [p.name for p in find_states(tmp_path)] == ["state_3000000.pth", "state_0000100.pth"]
    assert load_latest_state(tmp_path)["iteration"] == 3_000_000
    find_states(tmp_path)[0].write_bytes(b"")
    assert load_latest_state(tmp_path)["iteration"] == 100
    assert "state_3000000.pth" in caplog.text
    refused("no training state to resume from", load_latest_state, tmp_path / "empty")


def test_the_file_of_a_segmenter_is_enough_to_use_it_and_says_what_trained_it(tmp_path):
    segmenter = Segmenter(3)
    told = {"threshold": 0.3, "iteration": 7, "valid_dice": 0.5, "training": TRAINING, "seen": ["ab", "cd"]}
    loaded, facts = load_segmenter(saved(tmp_path / "s.pth", segmenter, **told), OTHER)
    assert equal(loaded, segmenter)
    assert facts == SegmenterFacts(trained_on=TRAINED_ON, width=3, **told)


def test_files_that_do_not_say_it_leave_it_unknown(tmp_path):
    content = load(saved(tmp_path / "s.pth"))
    for entry in ("iteration", "valid_dice", "training", "threshold", "seen"):  # as earlier versions wrote it
        del content[entry]
    save(content, tmp_path / "old.pth")
    save(reference.published_state(reference.load("segmenter_base4")), tmp_path / "published.pth")
    for name, trained_on, width in (("s", TRAINED_ON, 2), ("old", TRAINED_ON, 2), ("published", None, 4)):
        _, facts = load_segmenter(tmp_path / f"{name}.pth")
        assert facts == SegmenterFacts(trained_on=trained_on, width=width)


def test_another_network_stands_in_for_the_segmenter(tmp_path, monkeypatch):
    def unet(width):
        return UNet(3, 1, 1, channels=(width, 2 * width), strides=(2,))

    for module in (objectives, checkpoint):
        monkeypatch.setattr(module, "build_segmenter", unet)
    networks = build_networks((4, 2, 2), (16, 64, 64))
    loaded, facts = load_segmenter(saved(tmp_path / "s.pth", networks.segmenter, width=4))
    assert (type(loaded), facts.width) == (UNet, 4)
    assert equal(loaded, networks.segmenter)
    weights = {name: network.state_dict() for name, network in networks._asdict().items()}
    fresh = unet(4)
    load_weights(fresh, save_state(tmp_path, {"networks": weights}, 3))
    assert equal(fresh, networks.segmenter)


def test_a_folder_of_a_release_or_a_run_stands_for_its_segmenter(tmp_path):
    release, run, fresh = Segmenter(2), Segmenter(3), Segmenter(2)
    saved(tmp_path / "segmenter_last.pth", Segmenter(4))
    assert str(tmp_path) in refused(r"has neither segmenter\.pth nor .*; name it", load_segmenter, tmp_path, OTHER)
    saved(tmp_path / "segmenter_best.pth", run)
    assert equal(load_segmenter(tmp_path)[0], run)
    saved(tmp_path / "segmenter.pth", release)
    assert equal(load_segmenter(tmp_path)[0], release)
    load_weights(fresh, tmp_path)
    assert equal(fresh, release)
