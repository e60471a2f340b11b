import copy

import pytest
import torch

from configs.settings import SpeedSettings
from models import Discriminator, Generator, Segmenter
from models.fast import networks as module
from models.fast.networks import FastPath, accelerate, accelerate_checked, restore

ALL = FastPath(phases_from=0)
PATHS = {
    "all": ALL,
    "planes": FastPath(True, False, False, False),
    "padded channels": FastPath(False, True, False, False),
    "phases": FastPath(False, False, True, False, phases_from=0),
    "fused": FastPath(False, False, False, True),
    "phases of large maps": FastPath(phases_from=5000),
}
NETWORKS = {
    "segmenter": (lambda: Segmenter(5), (2, 1, 8, 16, 12)),
    "segmenter, odd halves": (lambda: Segmenter(13), (1, 1, 4, 8, 8)),  # 2 * 16 channels padded, and 26 padded to 32
    "generator": (lambda: Generator(3), (1, 1, 32, 32, 64)),
    "discriminator": (lambda: Discriminator(3, (16, 64, 64)), (2, 1, 16, 64, 64)),
    "discriminator, two heads": (lambda: Discriminator(2, (16, 64, 64), heads=2), (2, 1, 16, 64, 64)),
}


def run(network, x):
    """Output, and gradients of the input and of all parameters, by name."""
    network.zero_grad()
    x = x.clone().requires_grad_()
    y = network(x)
    y = torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y
    torch.manual_seed(9)
    y.backward(torch.randn(y.shape, dtype=y.dtype))
    return {"output": y.detach(), "input": x.grad} | {name: p.grad for name, p in network.named_parameters()}


def differences(found, expected):
    # A bias before an instance norm has a gradient of nothing but rounding.
    return {
        name: ((found[name] - value).norm() / value.norm()).item() if value.norm() > 1e-8 else found[name].norm().item()
        for name, value in expected.items()
    }


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_plain_network(network, path):
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    plain, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    fast = accelerate(copy.deepcopy(plain), PATHS[path])
    found = differences(run(fast, x), run(plain, x))
    assert max(found.values()) < 1e-9
    assert fast.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("network", ["segmenter", "generator", "discriminator"])
def test_in_bfloat16_they_are_as_close_to_float64_as_autocast_is(network):
    torch.manual_seed(1)
    make = {
        "segmenter": lambda: (Segmenter(20), (1, 1, 8, 32, 32)),
        "generator": lambda: (Generator(8), (1, 1, 32, 64, 64)),
        "discriminator": lambda: (Discriminator(8, (32, 64, 64)), (2, 1, 32, 64, 64)),
    }[network]
    plain, shape = make()
    plain, x = plain.eval(), torch.randn(shape)
    exact = run(copy.deepcopy(plain).double(), x.double())
    errors = []
    for candidate in (accelerate(copy.deepcopy(plain), ALL), plain):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = run(candidate, x)
        errors.append(differences({name: value.double() for name, value in results.items()}, exact))
    ours, eager = errors
    weights = [name for name in exact if exact[name].norm() > 1e-8]
    assert sum(ours[name] for name in weights) < 1.2 * sum(eager[name] for name in weights)
    assert ours["output"] < 1.2 * eager["output"]


def test_the_published_segmenter_computes_with_padded_channels_and_without_biases_before_norms(monkeypatch):
    calls = []
    convolve = module.convolve
    monkeypatch.setattr(
        module, "convolve", lambda x, w, *more: calls.append((x.shape, w.shape, more)) or convolve(x, w, *more)
    )
    with torch.no_grad():
        accelerate(Segmenter(20), FastPath(phases_from=16 * 16 * 16))(torch.zeros(1, 1, 16, 16, 16))
    shapes = [(tuple(x[1:2]), tuple(w)) for x, w, _ in calls]
    assert shapes[0] == ((8,), (24, 8, 3, 3, 3))
    assert shapes[1] == ((24,), (24, 24, 1, 3, 3))
    assert ((48,), (24, 48, 1, 3, 3)) in shapes
    assert shapes[-1] == ((24,), (8, 24, 3, 3, 3))
    assert [more[0] is None for *_, more in calls] == [True] * (len(calls) - 1) + [False]
    # up1 is computed by phases, up2 is not.
    assert len(calls) == 26 - 1


def test_copies_are_accelerated_and_restored_networks_are_not():
    torch.manual_seed(0)
    plain, x = Segmenter(5).eval(), torch.randn(1, 1, 4, 8, 8)
    fast = accelerate(copy.deepcopy(plain), ALL)
    twin = copy.deepcopy(fast)
    assert all(m.forward.__self__ is m for m in twin.modules() if "forward" in vars(m))
    with torch.no_grad():
        twin.predict.bias += 1
        assert torch.allclose(twin(x), fast(x) + 1, atol=1e-5)
        assert torch.equal(restore(fast)(x), plain(x))


def test_a_network_is_replaced_only_if_it_computes_the_same(monkeypatch, caplog):
    torch.manual_seed(0)
    network = Segmenter(5)
    before = copy.deepcopy(network.state_dict())
    assert accelerate_checked(network, ALL)
    assert "forward" in vars(network.predict)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    for width in (2, 20):
        assert accelerate_checked(Segmenter(width), ALL)
    assert accelerate_checked(Generator(2), ALL)
    for heads in (1, 2):
        assert accelerate_checked(Discriminator(2, (16, 32, 64), heads), ALL)
    plain = module.pad_channels
    for broken, reason in (
        (lambda *a: 1.01 * plain(*a), "differs by"),
        (lambda *a: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *a: float("nan") * plain(*a), "differs by inf, its gradient by inf"),
    ):
        network = Segmenter(5)
        monkeypatch.setattr(module, "pad_channels", broken)
        assert not accelerate_checked(network, ALL)
        assert "forward" not in vars(network.predict)
        assert caplog.messages[-1].startswith(f"Segmenter: fast path not used ({reason}")


def test_settings_choose_the_path():
    assert not FastPath.of(SpeedSettings())
    assert FastPath.of(SpeedSettings(planes=True)) == FastPath(True, False, False, False)
    assert FastPath.of(SpeedSettings(phases=True, fused=True)) == FastPath(False, False, True, True)
