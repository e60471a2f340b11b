import copy

import pytest
import torch

from configs.settings import OptimizerSettings
from models import Discriminator, Segmenter
from models.layers import place
from training import optimise
from training.flat_step import FlatOptimizer, flat_guarded_step

CPU = torch.device("cpu")
CASES = {
    "Adam": (lambda: Segmenter(3), "exp_avg_sq"),
    "RMSprop": (lambda: Discriminator(2, (16, 64, 64)), "square_avg"),
}


def pair(name, channels_last):
    """A network with its optimiser, and a copy of both."""
    torch.manual_seed(0)
    settings = OptimizerSettings(name=name, lr=1e-3, weight_decay=1e-3)
    network = place(CASES[name][0](), CPU, channels_last)
    twin = copy.deepcopy(network)
    return [(each, optimise._build(list(each.parameters()), settings)) for each in (network, twin)]


def same_states(a, b):
    return all(
        torch.equal(value, other["state"][number][key])
        for other in (b.state_dict(),)
        for number, state in a.state_dict()["state"].items()
        for key, value in state.items()
    )


def draw_gradients(*networks):
    """The same random gradients for several networks; those that are there are added to."""
    for parameters in zip(*(network.parameters() for network in networks), strict=True):
        gradient = torch.randn_like(parameters[0])
        for p in parameters:
            p.grad = gradient.clone() if p.grad is None else p.grad.add_(gradient)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_step_is_the_same_bit_for_bit(name, channels_last):
    (plain, optimizer), (network, own) = pair(name, channels_last)
    flat = FlatOptimizer(own)
    layouts = [p.stride() for p in network.parameters()]
    for spoilt in ("gradient", None, None, "loss", "state"):
        optimizer.zero_grad()
        flat.zero_grad()
        draw_gradients(plain, network)
        if spoilt == "gradient":
            for each in (plain, network):
                list(each.parameters())[1].grad.view(-1)[:1] = float("nan")
        if spoilt == "state":
            for each, its in ((plain, optimizer), (network, own)):
                weight = list(each.parameters())[2]
                its.state[weight][CASES[name][1]][(0,) * weight.ndim] = float("inf")
        total = torch.tensor(float("inf") if spoilt == "loss" else 1.0)
        before = copy.deepcopy(network.state_dict())
        expected, found = optimise.guarded_step([optimizer], total), flat_guarded_step([flat], total)
        # A gradient or state that is not finite makes weights and states so.
        assert found.tolist() == [spoilt != "loss", spoilt != "gradient", spoilt not in ("state", "gradient")]
        assert torch.equal(found, expected)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))
        assert same_states(optimizer, own)
        if spoilt:
            assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert [p.stride() for p in network.parameters()] == layouts
    assert own.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    assert own.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_step_goes_on_from_loaded_states():
    (plain, optimizer), (network, own) = pair("Adam", channels_last=False)
    for _ in range(2):
        draw_gradients(plain)
        optimise.guarded_step([optimizer], torch.tensor(1.0))
        optimizer.zero_grad()
    network.load_state_dict(plain.state_dict())
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    flat = FlatOptimizer(own)
    flat.zero_grad()
    draw_gradients(plain, network)
    optimise.guarded_step([optimizer], torch.tensor(1.0))
    flat_guarded_step([flat], torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))
    assert same_states(optimizer, own)


def test_backward_adds_to_the_flat_gradient():
    (network, own), _ = pair("Adam", channels_last=True)
    flat = FlatOptimizer(own)
    for _ in range(2):
        flat.zero_grad()
        network(torch.rand(1, 1, 4, 8, 8)).square().sum().backward()
        assert flat.gradient.norm() > 0
        together = torch.cat([p.grad.flatten() for p in network.parameters()])
        torch.testing.assert_close(flat.gradient.norm(), together.norm())
        assert next(iter(network.parameters())).grad.data_ptr() == flat.gradient.data_ptr()
