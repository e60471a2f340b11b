import pytest
import torch

from models import Discriminator, Generator, Segmenter
from models.layers import InstanceNorm, ThroughSlices, autocast, computes_bfloat16, describe_precision, place
from tests import reference

CPU = torch.device("cpu")
LAST = torch.channels_last_3d


def normalised(x):
    """Instance norm by its definition."""
    mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "offset"),
    [((1, 20, 32, 96, 96), 2.0), ((3, 5, 4, 6, 8), 2.0), ((2, 16, 16, 64, 64), 100.0), ((2, 7, 3, 5, 11), 0.0)],
)
def test_instance_norm_in_channels_last_agrees_with_float64_and_stays_there(shape, offset, threads):
    torch.set_num_threads(threads)  # the fixture of all tests sets it back
    torch.manual_seed(0)
    # The mean drifts through the volume, as it does at the edges of a body.
    x = 3 * torch.randn(shape) + offset + torch.linspace(-5, 5, shape[-1])
    weights = torch.randn(shape).to(memory_format=LAST)
    exact = x.double().requires_grad_()
    expected = normalised(exact)
    (expected * weights.double()).sum().backward()
    last = x.to(memory_format=LAST).requires_grad_()
    found = InstanceNorm(shape[1])(last)
    assert found.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    (found * weights).sum().backward()
    assert last.grad.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(last.grad.double(), exact.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_gradients_of_instance_norm_do_not_depend_on_their_layout(layout, batch_size):
    torch.manual_seed(0)
    x, gradient = torch.randn(2, batch_size, 3, 4, 5, 6)
    exact = x.double().requires_grad_()
    normalised(exact).backward(gradient.double())
    for kind in (torch.contiguous_format, LAST):
        volume = x.clone().to(memory_format=layout).requires_grad_()
        InstanceNorm(3)(volume).backward(gradient.to(memory_format=kind))
        torch.testing.assert_close(volume.grad.double(), exact.grad, rtol=0, atol=1e-5)


def test_instance_norm_of_half_precision_has_statistics_in_single():
    torch.manual_seed(0)
    # A mean of 100 in bfloat16 is wrong by up to 0.25, as many standard deviations.
    x = (100 + torch.randn(2, 3, 4, 16, 16)).bfloat16()
    found = InstanceNorm(3)(x.to(memory_format=LAST))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), normalised(x.double()), rtol=2**-8, atol=1e-3)


def test_a_network_with_the_instance_norm_of_pytorch_stays_contiguous():
    network = place(torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.InstanceNorm3d(4)), CPU)
    assert network[0].weight.is_contiguous()


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


@pytest.mark.skipif(not computes_bfloat16(CPU), reason="no AMX here; findings/bfloat16_gradient.sh says what happens")
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
    layer = ThroughSlices(4, 6).to(memory_format=layout)
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


@pytest.mark.parametrize(
    ("has", "precision", "expected"),
    [
        ({}, "bf16", False),
        ({"avx512_bf16": True}, "bf16", False),
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16", True),
        ({"amx_bf16": True}, "fp32", False),
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_has_amx(monkeypatch, has, precision, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    a = torch.ones(2, 2)
    for limited in (False, True):  # oneDNN without AMX computes as if there were none
        if limited:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
        with autocast(CPU, precision):
            assert (a @ a).dtype == (torch.bfloat16 if expected and not limited else torch.float32)
        kind = "bfloat16" if expected and not limited else "float32"
        assert describe_precision(CPU, precision).startswith(f"computing in {kind} on cpu")
