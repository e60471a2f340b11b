import pytest
import torch
from torch.nn.functional import instance_norm

from models import Discriminator, Generator, Segmenter
from models.cpu_workarounds import InstanceNormWithoutRelayout, ThroughSlicesWithoutSlowLoop
from models.layers import place
from tests import reference

CPU = torch.device("cpu")
LAST = torch.channels_last_3d


@pytest.mark.parametrize("batch_size", [1, 3])
def test_instance_norm_in_channels_last_is_the_usual_one_and_stays_there(batch_size):
    torch.manual_seed(0)
    x = (3 * torch.randn(batch_size, 5, 4, 6, 8) + 2).requires_grad_()
    weights = torch.randn_like(x)
    last = x.detach().to(memory_format=LAST).requires_grad_()
    expected, found = instance_norm(x), InstanceNormWithoutRelayout(5)(last)
    assert found.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(last.grad, x.grad, rtol=0, atol=1e-5)


def test_instance_norm_of_half_precision_has_statistics_in_single():
    torch.manual_seed(0)
    # A mean of 100 in bfloat16 is wrong by up to 0.25, as many standard deviations.
    x = (100 + torch.randn(2, 3, 4, 16, 16)).bfloat16()
    exact = x.double()
    exact = (exact - exact.mean((2, 3, 4), keepdim=True)) / exact.std((2, 3, 4), keepdim=True, correction=0)
    found = InstanceNormWithoutRelayout(3)(x.to(memory_format=LAST))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("make", [Segmenter, Generator, lambda width: Discriminator(width, (16, 64, 64))])
def test_networks_agree_in_both_layouts(make):
    torch.manual_seed(0)
    plain, last = (place(make(4), CPU, channels_last=last).eval() for last in (False, True))
    last.load_state_dict(plain.state_dict())
    x = reference.wave((2, 1, 16, 64, 64), 0.4)
    expected = plain(x)
    torch.testing.assert_close(last(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    # In single precision, rounding moves activations across the kinks of LeakyReLU, and gradients jump there.
    results = []
    for network in (plain.double(), last.double()):
        x = x.detach().double().requires_grad_()
        network(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in network.parameters())])
    for found, gradient in zip(*results, strict=True):
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-9 * gradient.abs().max().item() + 1e-9)


def test_the_cpu_has_channels_last_unless_told_otherwise():
    for choice, expected in ((None, True), (True, True), (False, False)):
        placed = place(Segmenter(4), CPU, choice).encode1[0][0].weight
        assert placed.is_contiguous(memory_format=LAST) is expected
        assert placed.is_contiguous() is not expected


@pytest.mark.parametrize("slices", [16, 32])
@pytest.mark.parametrize("make", [Segmenter, Generator, lambda width: Discriminator(width, (16, 64, 64))])
def test_gradients_in_mixed_precision_point_where_those_in_single_do(make, slices):
    torch.manual_seed(0)
    network = place(make(4), CPU).eval()
    if isinstance(network, Discriminator):
        network = place(Discriminator(4, (slices, 64, 64)), CPU).eval()
    x = reference.wave((2, 1, slices, 64, 64), 0.4)
    gradients = []
    for mixed in (False, True, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            output = network(x)
        (output.float() * reference.wave(tuple(output.shape), 0.8)).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    names = [name for name, _ in network.named_parameters()]
    for name, single, half, again in zip(names, *gradients, strict=True):
        assert torch.equal(half, again), name
        if single.ndim > 1:  # a bias before a norm has no gradient but rounding
            assert torch.cosine_similarity(single.flatten(), half.flatten(), dim=0) > 0.8, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_a_convolution_through_the_slices_is_the_same_with_one_thread_and_with_several(layout):
    torch.manual_seed(0)
    layer = ThroughSlicesWithoutSlowLoop(4, 6).to(memory_format=layout)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)  # the fixture of all tests sets it back
        x = reference.wave((2, 4, 5, 8, 10), 0.3).to(memory_format=layout).requires_grad_()
        layer.zero_grad()
        found = layer(x)
        (found * reference.wave(found.shape, 0.9)).sum().backward()
        results.append((found, x.grad, layer.weight.grad))
    assert results[0][0].is_contiguous(memory_format=layout)
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(one, several, rtol=1e-5, atol=1e-5)
    assert set(layer.state_dict()) == {"weight"}
