"""Replaces operations of the networks by faster ones that compute the same.

The networks stay as models/segmenter.py, generator.py and discriminator.py define them, with the same parameters and
state dicts: `accelerate` gives some of their layers another `forward`. Between layers, maps then are channels-last, may
have additional channels of zeros, and upsampling is left to the convolution that follows it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm, leaky_relu, pad

from configs.settings import SpeedSettings
from models.discriminator import Discriminator
from models.fast.convolutions import (
    LAST,
    Scale,
    UpsampledConvolution,
    convolve,
    fits_phases,
    pad_channels,
    upsample,
)
from models.generator import Generator
from models.segmenter import Segmenter

log = logging.getLogger(__name__)

_ALIGNED = 8
"""Channels are padded to a multiple of it: 16 bytes in bfloat16."""

_CONCATENATED = {
    Segmenter: ("decode2.0.0", "decode1.0.0"),
    Generator: ("decode3.1", "decode2.1", "decode1.1", "predict.1"),
    Discriminator: (),
}
"""Convolutions whose input is two maps, side by side."""

_OUTPUT_TOLERANCE, _GRADIENT_TOLERANCE = 1e-4, 5e-2
"""Relative differences in float32. Gradients of random weights differ by up to 1e-2 between orders of summation, since
voxels next to 0 change sides of LeakyReLU."""

_KERNEL_TOLERANCE = 1e-5
"""Relative difference of a single kernel, output and gradient, in float32."""


@dataclass(frozen=True)
class FastPath:
    """Which operations are replaced.

    Attributes:
        planes: kernels of one slice or one column are computed as 2D convolutions.
        padded_channels: maps get channels of zeros up to a multiple of 8.
        phases: upsampling and the convolution after it are one convolution per phase.
        fused: instance norm with LeakyReLU, and upsampling, as Triton kernels, on CUDA.
        phases_from: voxels of one upsampled volume from which phases are used; smaller maps are upsampled.
    """

    planes: bool = True
    padded_channels: bool = True
    phases: bool = True
    fused: bool = True
    phases_from: int = 200_000

    @classmethod
    def of(cls, speed: SpeedSettings) -> FastPath:
        """The replacements that SPEED asks for."""
        return cls(speed.planes, speed.padded_channels, speed.phases, speed.fused)

    def __bool__(self) -> bool:
        return self.planes or self.padded_channels or self.phases or self.fused

    def width(self, channels: int) -> int:
        """Channels of a map in memory."""
        return -(-channels // _ALIGNED) * _ALIGNED if self.padded_channels else channels


@dataclass(frozen=True)
class _Plan:
    """What a replaced layer needs to know about its neighbours.

    Attributes:
        path: the replacements.
        parts: number of concatenated maps in the input of a convolution.
        scale: upsampling before a convolution, or None.
        normalised: whether an instance norm follows a convolution.
        slope: of the activation after an instance norm; 1 if there is none.
    """

    path: FastPath
    parts: int = 1
    scale: Scale | None = None
    normalised: bool = False
    slope: float = 1.0


class _WithoutBias(torch.autograd.Function):
    """A kernel unchanged; its bias, which the instance norm after it removes again, gets a gradient of 0."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ANN001
        """See the class."""
        ctx.bias = torch.zeros_like(bias)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN001
        """Gradients of kernel and bias."""
        return g, ctx.bias


def _convolution(self: nn.Conv3d, x: Tensor) -> Tensor:
    """Replaces `Conv3d.forward`."""
    plan, path = self.plan, self.plan.path
    outputs, inputs = path.width(self.out_channels), plan.parts * path.width(self.in_channels // plan.parts)
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x = x.to(dtype)
    if x.shape[1] < inputs:  # an image; maps are padded by the convolution that makes them
        x = pad(x, (0,) * 6 + (0, inputs - x.shape[1]))
    x = x.contiguous(memory_format=LAST)
    weight, bias = self.weight, self.bias
    if plan.normalised and bias is not None:
        weight, bias = _WithoutBias.apply(weight, bias), None
    weight = pad_channels(weight, outputs, inputs, plan.parts)
    bias = None if bias is None else pad(bias.to(dtype), (0, outputs - self.out_channels))
    y = None
    if plan.scale is not None:
        voxels = x[0, 0].numel() * plan.scale[0] * plan.scale[1] * plan.scale[2]
        if path.phases and bias is None and voxels >= path.phases_from and fits_phases(x, plan.scale):
            y = UpsampledConvolution.apply(x, weight, plan.scale, path.fused)
        else:
            x = upsample(x, plan.scale, path.fused)
    if y is None:
        y = convolve(x, weight.to(dtype), bias, self.stride, self.padding, path.planes)
    return y[:, :1] if self.out_channels == 1 else y


def _norm(self: nn.InstanceNorm3d, x: Tensor) -> Tensor:
    """Replaces the `forward` of an instance norm; includes the activation after it."""
    if self.plan.path.fused and x.is_cuda:
        from models.fast.kernels import NormActivation

        return NormActivation.apply(x, self.plan.slope, self.eps)
    y = leaky_relu(instance_norm(x, eps=self.eps), self.plan.slope)
    return y.contiguous(memory_format=LAST)


def _activation(self: nn.LeakyReLU | nn.ReLU, x: Tensor) -> Tensor:
    """Replaces the `forward` of an activation without norm: out of place, so that autograd needs no copy."""
    return leaky_relu(x, _slope(self))


def _nothing(self: nn.Module, x: Tensor) -> Tensor:
    """Replaces the `forward` of a layer that another one includes."""
    return x


def _slope(activation: nn.LeakyReLU | nn.ReLU) -> float:
    return activation.negative_slope if isinstance(activation, nn.LeakyReLU) else 0.0


def accelerate(network: nn.Module, path: FastPath) -> nn.Module:
    """Replace operations of a network, in place.

    Args:
        network: a segmenter, generator or discriminator.
        path: which operations.
    """
    concatenated = {network.get_submodule(name) for name in _CONCATENATED[type(network)]}
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            _accelerate_chain(list(module), concatenated, path)
    for child in network.children():
        if isinstance(child, nn.Conv3d):
            _replace(child, _convolution, _Plan(path))
    return network


def _accelerate_chain(layers: list[nn.Module], concatenated: set[nn.Module], path: FastPath) -> None:
    """Replace the layers of one sequence."""
    for before, layer, after in zip([None, *layers], layers, [*layers[1:], None], strict=False):
        if isinstance(layer, nn.Conv3d):
            scale = _scale(before) if isinstance(before, nn.Upsample) else None
            normalised = isinstance(after, nn.InstanceNorm3d)
            _replace(layer, _convolution, _Plan(path, 1 + (layer in concatenated), scale, normalised))
        elif isinstance(layer, nn.InstanceNorm3d):
            _replace(layer, _norm, _Plan(path, slope=1.0 if after is None else _slope(after)))
        elif isinstance(layer, nn.LeakyReLU | nn.ReLU):
            _replace(layer, _nothing if isinstance(before, nn.InstanceNorm3d) else _activation, _Plan(path))
        elif isinstance(layer, nn.Upsample):
            _replace(layer, _nothing, _Plan(path))


def _scale(layer: nn.Upsample) -> Scale:
    factors = layer.scale_factor
    return tuple(int(factor) for factor in (factors if isinstance(factors, tuple) else (factors,) * 3))


def _replace(layer: nn.Module, forward: object, plan: _Plan) -> None:
    layer.plan, layer.forward = plan, MethodType(forward, layer)


def restore(network: nn.Module) -> nn.Module:
    """Undo `accelerate`."""
    for module in network.modules():
        module.__dict__.pop("forward", None)
        module.__dict__.pop("plan", None)
    return network


def accelerate_checked(network: nn.Module, path: FastPath) -> bool:
    """Replace operations of a network if that gives the same output and gradient on this device.

    Compares both ways on a random volume in float32, without TF32, and on CUDA each Triton kernel with PyTorch. If they
    differ or the fast one fails, the network keeps its own operations, and a warning says why.

    Returns:
        Whether operations were replaced.
    """
    device = next(network.parameters()).device
    size = getattr(network, "input_size", (16, 64, 64))
    plain, fast = (copy.deepcopy(network).requires_grad_(False).eval() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(1, 1, *size, generator=generator) * 2 - 1).to(device)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            accelerate(fast, path)
            output, gradient = (_difference(*pair) for pair in zip(_run(fast, x), _run(plain, x), strict=True))
        kernel = _kernels_differ_by(device) if path.fused and device.type == "cuda" else 0.0
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    else:
        if output < _OUTPUT_TOLERANCE and gradient < _GRADIENT_TOLERANCE and kernel < _KERNEL_TOLERANCE:
            accelerate(network, path)
            return True
        reason = f"differs by {output:.1e}, its gradient by {gradient:.1e}, a kernel by {kernel:.1e}"
    log.warning("%s: fast path not used (%s)", type(network).__name__, reason)
    return False


def _kernels_differ_by(device: torch.device, size: tuple[int, int, int] = (6, 20, 20)) -> float:
    """Largest relative difference between a Triton kernel and PyTorch, output and gradient, on a small map."""
    from models.fast.kernels import NormActivation, Upsample

    x = torch.randn(2, 24, *size, generator=torch.Generator().manual_seed(0)).to(device, memory_format=LAST)
    pairs = [
        (lambda x: NormActivation.apply(x, 0.01, 1e-5), lambda x: leaky_relu(instance_norm(x), 0.01)),
        (lambda x: Upsample.apply(x, (2, 2, 2)), lambda x: upsample(x, (2, 2, 2), fused=False)),
    ]
    return max(
        _difference(a, b)
        for ours, reference in pairs
        for a, b in zip(_run(ours, x), _run(reference, x.double()), strict=True)
    )


def _run(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = _as_one(network(x))
    weights = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view(y.shape)
    return y.detach(), torch.autograd.grad(y, x, weights)[0]


def _as_one(y: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y


def _difference(found: Tensor, expected: Tensor) -> float:
    difference = ((found - expected).double().norm() / expected.double().norm()).item()
    return difference if difference == difference else float("inf")
