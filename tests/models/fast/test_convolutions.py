import pytest
import torch
from torch.nn.functional import conv3d, interpolate, pad

from models.fast.convolutions import (
    LAST,
    UpsampledConvolution,
    convolve,
    fits_phases,
    pad_channels,
    phase_kernel,
)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def agree(ours, reference, *inputs):
    """Whether outputs and gradients of two functions agree to 1e-12."""
    results = []
    for function in (ours, reference):
        own = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in inputs]
        y = function(*own)
        torch.manual_seed(9)
        y.backward(torch.randn_like(y, memory_format=torch.contiguous_format))
        results.append([y.detach(), *(tensor.grad for tensor in own)])
    return all(((a - b).norm() <= 1e-12 * b.norm()) and a.shape == b.shape for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kernel", [(1, 3, 3), (1, 4, 4), (3, 1, 1), (5, 1, 1), (3, 3, 3)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_planes_are_the_same_convolution(kernel, stride):
    torch.manual_seed(0)
    padding = tuple((size - 1) // 2 for size in kernel)
    x, bias = random(2, 5, 6, 8, 10).contiguous(memory_format=LAST), random(7)
    assert agree(
        lambda x, w, b: convolve(x, w, b, stride, padding, planes=True),
        lambda x, w, b: conv3d(x, w, b, stride, padding),
        x,
        random(7, 5, *kernel),
        bias,
    )


def test_planes_do_not_copy_their_input():
    x = torch.zeros(2, 8, 4, 6, 6).contiguous(memory_format=LAST)
    images = x.permute(0, 2, 1, 3, 4).reshape(8, 8, 6, 6)
    assert images.data_ptr() == x.flatten(3).data_ptr() == x.data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("parts", [1, 2])
def test_padded_channels_change_nothing(parts):
    torch.manual_seed(0)
    maps = [random(2, 5, 4, 6, 6) for _ in range(parts)]
    weight = random(7, 5 * parts, 3, 3, 3)

    def padded(weight, *maps):
        x = torch.cat([pad(x, (0,) * 6 + (0, 3)) for x in maps], dim=1)
        y = conv3d(x, pad_channels(weight, 8, x.shape[1], parts), padding=1)
        assert not y[:, 7:].any()
        return y[:, :7]

    assert agree(padded, lambda weight, *maps: conv3d(torch.cat(maps, dim=1), weight, padding=1), weight, *maps)


def upsampled(x, weight, scale):
    return conv3d(interpolate(x, scale_factor=scale, mode="trilinear", align_corners=False), weight, padding=1)


@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 4, 2, 3, 2), (1, 2, 8, 4, 4)])
def test_upsampled_convolution_by_phases(scale, shape):
    torch.manual_seed(0)
    x, weight = random(*shape).contiguous(memory_format=LAST), random(5, shape[1], 3, 3, 3)
    assert fits_phases(x, scale)
    assert agree(
        lambda x, w: UpsampledConvolution.apply(x, w, scale, False), lambda x, w: upsampled(x, w, scale), x, weight
    )
    assert UpsampledConvolution.apply(x, weight, scale, False).is_contiguous(memory_format=LAST)


def test_upsampled_convolution_with_one_gradient_alone():
    torch.manual_seed(0)
    x, weight = random(1, 3, 3, 4, 5).contiguous(memory_format=LAST), random(2, 3, 3, 3, 3)
    assert agree(
        lambda x: UpsampledConvolution.apply(x, weight, (2, 2, 2), False), lambda x: upsampled(x, weight, 2), x
    )
    assert agree(lambda w: UpsampledConvolution.apply(x, w, (2, 2, 2), False), lambda w: upsampled(x, w, 2), weight)


def test_the_graph_may_be_kept():
    torch.manual_seed(0)
    x, weight = random(1, 3, 3, 4, 5).requires_grad_(), random(2, 3, 3, 3, 3).requires_grad_()
    y = UpsampledConvolution.apply(x, weight, (2, 2, 2), False)
    g = torch.ones_like(y)
    first = torch.autograd.grad(y, (x, weight), g, retain_graph=True)
    second = torch.autograd.grad(y, (x, weight), g)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (g == 1).all()


def test_phases_by_hand():
    # One axis of a kernel (a, b, c): even outputs are sums of x[i-1], x[i] and x[i+1] with these weights.
    weight = torch.zeros(1, 1, 3, 3, 3, dtype=torch.float64)
    weight[0, 0, 1, 1] = torch.tensor([1.0, 10.0, 100.0])
    even, odd = phase_kernel(weight, (1, 1, 2))[:, 0, 1, 1]
    # u[2i-1] = 3 x[i-1]/4 + x[i]/4, u[2i] = x[i-1]/4 + 3 x[i]/4, u[2i+1] = 3 x[i]/4 + x[i+1]/4
    assert even.tolist() == [0.75 + 2.5, 0.25 + 7.5 + 75, 25]
    assert odd.tolist() == [0.25, 0.75 + 7.5 + 25, 2.5 + 75]


def test_maps_too_thin_for_phases_are_told():
    assert not fits_phases(torch.zeros(1, 1, 1, 4, 4), (2, 2, 2))
    assert fits_phases(torch.zeros(1, 1, 1, 4, 4), (1, 2, 2))
