"""Layers and helpers that the three networks share."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import conv2d

_BLOCK = 512
"""Voxels that are summed in the precision of the tensor; sums of blocks are added in float64."""

_CHUNK = 2**17
"""Elements per thread that are worked on at a time, so that they stay in its cache."""


def _rows(x: Tensor) -> Tensor:
    """Blocks of voxels, (batch, blocks, voxels, channels): a view of a channels-last volume."""
    batch, channels = x.shape[:2]
    rows = x.permute(0, 2, 3, 4, 1).reshape(batch, -1, channels)
    size = next(n for n in range(min(_BLOCK, rows.shape[1]), 0, -1) if rows.shape[1] % n == 0)
    return rows.view(batch, -1, size, channels)


def _chunks(rows: Tensor) -> Iterator[slice]:
    batch, blocks, size, channels = rows.shape
    step = max(1, _CHUNK * torch.get_num_threads() // (batch * size * channels))
    yield from (slice(start, start + step) for start in range(0, blocks, step))


def _mean(sums: list[Tensor], rows: Tensor) -> Tensor:
    """The mean over all voxels, float64 (batch, 1, 1, channels), from sums of blocks."""
    return torch.cat(sums, dim=1).double().sum(dim=1)[:, None, None] / rows[0, :, :, 0].numel()


class _InstanceNorm(torch.autograd.Function):
    """Instance norm of a channels-last volume: y = (x - mean) r with r = 1 / sqrt(variance + eps), per channel.

    Sums of blocks agree with float64 to single precision, for any number of threads.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> Tensor:
        rows, precise = _rows(x), torch.promote_types(x.dtype, torch.float32)
        # Moments about a value near the mean, which large means do not spoil.
        some = rows.flatten(1, 2)[:, :: max(1, rows.shape[1] * rows.shape[2] // 1024)]
        near = some.to(precise).mean(dim=1)[:, None, None]
        sums, squares = [], []
        for at in _chunks(rows):
            away = rows[:, at] - near
            sums.append(away.sum(dim=2))
            squares.append(away.square_().sum(dim=2))
        away = _mean(sums, rows)
        r = (_mean(squares, rows) - away.square() + eps).rsqrt().to(precise)
        mean = (near + away).to(precise)
        y = torch.empty_like(x, memory_format=torch.channels_last_3d)
        for at in _chunks(rows):
            _rows(y)[:, at] = torch.sub(rows[:, at], mean).mul_(r)
        ctx.save_for_backward(x, mean, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        # dx = r (g - mean(g) - y mean(g y))
        x, mean, r = ctx.saved_tensors
        rows, g = _rows(x), _rows(gradient)
        sums, products = [], []
        for at in _chunks(rows):
            sums.append(g[:, at].sum(dim=2, dtype=r.dtype))
            products.append(torch.sub(rows[:, at], mean).mul_(g[:, at]).sum(dim=2))
        of_g = _mean(sums, g).to(r.dtype)
        of_product = (_mean(products, g) * r.double().square()).to(r.dtype)
        found = torch.empty_like(x, memory_format=torch.channels_last_3d)
        for at in _chunks(rows):
            away = torch.sub(rows[:, at], mean).mul_(of_product)
            _rows(found)[:, at] = torch.sub(g[:, at], of_g).sub_(away).mul_(r)
        return found, None


def _mean_of_means(x: Tensor) -> Tensor:
    """The mean over all voxels, (batch, channels, 1, 1, 1)."""
    return x.mean(dim=4).flatten(2).mean(dim=2)[:, :, None, None, None]


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm without parameters or running statistics that keeps a channels-last volume channels-last.

    PyTorch's own converts such a volume to the contiguous layout, and its batch norm, which does not, is off by 1e-3
    for large volumes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each volume to mean 0 and variance 1, (batch, channels, depth, height, width)."""
        if torch.compiler.is_compiling():
            return super().forward(x)
        if torch.jit.is_tracing():
            # Means of means: OpenVINO adds up all voxels in single precision; at a million, S is off by 1e-3.
            away = x - _mean_of_means(x)
            return away * (_mean_of_means(away.square()) + self.eps).rsqrt()
        if not x.is_contiguous():
            return _InstanceNorm.apply(x, self.eps)
        y = super().forward(x)
        if y.requires_grad:
            # For a batch of 1 with a channels-last gradient, PyTorch's own returns a wrong one.
            y.register_hook(lambda gradient: gradient.contiguous())
        return y


class ThroughSlices(nn.Conv3d):
    """A convolution of (n, 1, 1) voxels that a single CPU thread computes as a 2D convolution of (n, 1) pixels.

    For (n, 1, 1), PyTorch on a single thread falls back to a loop that is six times slower. Viewing each slice as one
    long row needs no copy; results differ by rounding only. n is `slices`, odd.
    """

    def __init__(self, inputs: int, outputs: int, slices: int = 3) -> None:
        super().__init__(inputs, outputs, (slices, 1, 1), padding=(slices // 2, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As `Conv3d`."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if x.device.type == "cpu" and torch.get_num_threads() == 1 and not traced:
            rows = conv2d(x.flatten(3), self.weight.squeeze(4), padding=self.padding[:2])
            return rows.unflatten(3, x.shape[3:])
        return super().forward(x)


def normalise(channels: int, slope: float) -> tuple[nn.Module, nn.Module]:
    """Instance norm without parameters or running statistics, then LeakyReLU (ReLU if `slope` is 0)."""
    activation = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    return InstanceNorm(channels), activation


def upsample(scale: int | tuple[int, int, int] = 2) -> nn.Upsample:
    """Trilinear upsampling that aligns the edges of the volume, not its corner voxels."""
    return nn.Upsample(scale_factor=scale, mode="trilinear", align_corners=False)


def check_input(x: Tensor, network: str, multiples: tuple[int, int, int]) -> None:
    """Check that a batch is (batch, 1, depth, height, width), with sizes that are multiples of these.

    Raises:
        ValueError: the shape does not fit.
    """
    if x.ndim != 5 or x.shape[1] != 1 or any(n % m or n == 0 for n, m in zip(x.shape[2:], multiples, strict=True)):
        depth, height, width = multiples
        raise ValueError(
            f"the {network} takes (batch, 1, depth, height, width) with depth a multiple of {depth}, height of "
            f"{height} and width of {width}; got {tuple(x.shape)}"
        )


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 in hardware: GPUs that have it, and CPUs with AMX.

    CPUs with AVX-512 alone are no faster in it, and PyTorch computes some gradients wrongly there.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16")) and "ONEDNN_MAX_CPU_ISA" not in os.environ


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision for a block of code: bfloat16 where `precision` is ``bf16`` and the device has it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16" and computes_bfloat16(device))


def describe_precision(device: torch.device, precision: str) -> str:
    """What a device computes in, in one line."""
    if precision == "bf16" and computes_bfloat16(device):
        return f"computing in bfloat16 on {device}, losses in float32"
    why = "" if precision == "fp32" else ", which has no bfloat16" if device.type == "cuda" else ", which has no AMX"
    return f"computing in float32 on {device}{why}"


def concatenate(*tensors: Tensor) -> Tensor:
    """Concatenate feature maps along the channels."""
    return torch.cat(tensors, dim=1)


def place(network: nn.Module, device: torch.device, channels_last: bool | None = None) -> nn.Module:
    """Move a network, in place, to a device, and its weights to a memory layout.

    By default, that is channels-last on the CPU, unless the network has PyTorch's own instance norm, whose gradient is
    wrong for a batch of 1 in this layout.
    """
    if channels_last is None:
        channels_last = device.type == "cpu" and not any(type(m) is nn.InstanceNorm3d for m in network.modules())
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return network.to(device, memory_format=layout)
