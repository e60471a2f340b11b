"""Triton kernels for channels-last maps: instance norm with LeakyReLU, and trilinear upsampling by two.

A map is a tensor of (batch, channels, depth, height, width) with the channels innermost in memory, or a range of
channels of such a tensor. Its voxels are `stride` elements apart; `stride` is a compile-time constant, since Triton can
then prove that rows are aligned and load several elements at once. All sums are accumulated in float32.

With the environment variable TRITON_INTERPRET=1 the kernels run on the CPU, which is how the tests check them.
"""

# ruff: noqa: ANN001, ANN202 - Triton compiles the arguments of kernels for the types that they are called with

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
"""Elements that one program of a kernel handles at a time."""

_PROGRAMS = 1024
"""Programs among which a reduction over all volumes is divided: several per multiprocessor."""

_MOST_PARTS = 256
"""Largest number of partial results per volume, which a single program combines."""


@triton.jit
def _offsets(voxel, channel, stride: tl.constexpr):
    return voxel[:, None] * stride + channel[None, :]


@triton.jit
def _moments_kernel(
    y, means, squares, voxels, stride: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of one part of a volume. Grid: (parts, batch)."""
    part, volume = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BC)
    valid = channel < C
    y += volume * voxels * stride
    mean, square, count = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32), 0.0
    for tile in range(TILES):
        voxel = (part * TILES + tile) * BV + tl.arange(0, BV)
        inside = (voxel < voxels)[:, None]
        x = tl.load(y + _offsets(voxel, channel, stride), mask=inside & valid[None, :], other=0.0).to(tl.float32)
        new = tl.sum((voxel < voxels).to(tl.float32), 0)
        new_mean = tl.sum(x, 0) / tl.maximum(new, 1.0)
        deviation = tl.where(inside, x - new_mean[None, :], 0.0)
        # Chan's update: exact for any number of voxels, no cancellation as with E[x^2] - E[x]^2.
        total = tl.maximum(count + new, 1.0)
        delta = new_mean - mean
        mean += delta * (new / total)
        square += tl.sum(deviation * deviation, 0) + delta * delta * (count * new / total)
        count += new
    to = (volume * tl.num_programs(0) + part) * C + channel
    tl.store(means + to, mean, mask=valid)
    tl.store(squares + to, square, mask=valid)


@triton.jit
def _merge_moments_kernel(
    means, squares, mean_out, scale_out, voxels, part_voxels, parts, eps, C: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """Combine the parts to the mean and 1 / sqrt(variance + eps) of a block of channels. Grid: (batch, blocks)."""
    volume = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    part = tl.arange(0, BP)
    valid = (part < parts)[:, None] & (channel < C)[None, :]
    at = (volume * parts + part[:, None]) * C + channel[None, :]
    mean = tl.load(means + at, mask=valid, other=0.0)
    square = tl.load(squares + at, mask=valid, other=0.0)
    count = tl.minimum(tl.maximum(voxels - part * part_voxels, 0), part_voxels).to(tl.float32)[:, None]
    merged = tl.sum(mean * count, 0) / voxels
    deviation = tl.where(valid, mean - merged[None, :], 0.0)
    variance = tl.sum(square + deviation * deviation * count, 0) / voxels
    tl.store(mean_out + volume * C + channel, merged, mask=channel < C)
    tl.store(scale_out + volume * C + channel, 1.0 / tl.sqrt(variance + eps), mask=channel < C)


@triton.jit
def _normalise_kernel(
    y, mean, scale, out, voxels, slope, stride: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr
):
    """LeakyReLU((y - mean) * scale). Grid: (tiles, batch)."""
    volume = tl.program_id(1).to(tl.int64)
    voxel, channel = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, BC)
    valid = channel < C
    inside = (voxel < voxels)[:, None] & valid[None, :]
    m = tl.load(mean + volume * C + channel, mask=valid, other=0.0)[None, :]
    s = tl.load(scale + volume * C + channel, mask=valid, other=0.0)[None, :]
    x = tl.load(y + volume * voxels * stride + _offsets(voxel, channel, stride), mask=inside, other=0.0)
    h = (x.to(tl.float32) - m) * s
    h = tl.where(h > 0, h, h * slope)
    tl.store(out + volume * voxels * C + _offsets(voxel, channel, C), h.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums_kernel(
    y, g, mean, scale, sums, products, voxels, slope, y_stride: tl.constexpr, g_stride: tl.constexpr, C: tl.constexpr,
    BC: tl.constexpr, BV: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sums of g' and g' h over one part of a volume; h = (y - mean) * scale, g' = g LeakyReLU'(h).

    Grid: (parts, batch).
    """
    part, volume = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BC)
    valid = channel < C
    m = tl.load(mean + volume * C + channel, mask=valid, other=0.0)[None, :]
    s = tl.load(scale + volume * C + channel, mask=valid, other=0.0)[None, :]
    y += volume * voxels * y_stride
    g += volume * voxels * g_stride
    total, product = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for tile in range(TILES):
        voxel = (part * TILES + tile) * BV + tl.arange(0, BV)
        inside = (voxel < voxels)[:, None] & valid[None, :]
        h = (tl.load(y + _offsets(voxel, channel, y_stride), mask=inside, other=0.0).to(tl.float32) - m) * s
        d = tl.load(g + _offsets(voxel, channel, g_stride), mask=inside, other=0.0).to(tl.float32)
        d = tl.where(h > 0, d, d * slope)
        total += tl.sum(d, 0)
        product += tl.sum(d * h, 0)
    to = (volume * tl.num_programs(0) + part) * C + channel
    tl.store(sums + to, total, mask=valid)
    tl.store(products + to, product, mask=valid)


@triton.jit
def _merge_sums_kernel(
    sums, products, mean_sum, mean_product, voxels, parts, C: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr
):
    """Combine the parts to means over the voxels for a block of channels. Grid: (batch, blocks)."""
    volume = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    part = tl.arange(0, BP)
    valid = (part < parts)[:, None] & (channel < C)[None, :]
    at = (volume * parts + part[:, None]) * C + channel[None, :]
    to = volume * C + channel
    tl.store(mean_sum + to, tl.sum(tl.load(sums + at, mask=valid, other=0.0), 0) / voxels, mask=channel < C)
    tl.store(mean_product + to, tl.sum(tl.load(products + at, mask=valid, other=0.0), 0) / voxels, mask=channel < C)


@triton.jit
def _input_gradient_kernel(
    y, g, mean, scale, mean_sum, mean_product, out, voxels, slope, y_stride: tl.constexpr, g_stride: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Input gradient: scale * (g' - mean(g') - h mean(g' h)). Grid: (tiles, batch)."""
    volume = tl.program_id(1).to(tl.int64)
    voxel, channel = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, BC)
    valid = channel < C
    inside = (voxel < voxels)[:, None] & valid[None, :]
    at = volume * C + channel
    m = tl.load(mean + at, mask=valid, other=0.0)[None, :]
    s = tl.load(scale + at, mask=valid, other=0.0)[None, :]
    a = tl.load(mean_sum + at, mask=valid, other=0.0)[None, :]
    b = tl.load(mean_product + at, mask=valid, other=0.0)[None, :]
    x = tl.load(y + volume * voxels * y_stride + _offsets(voxel, channel, y_stride), mask=inside, other=0.0)
    d = tl.load(g + volume * voxels * g_stride + _offsets(voxel, channel, g_stride), mask=inside, other=0.0)
    h = (x.to(tl.float32) - m) * s
    d = d.to(tl.float32)
    d = s * (tl.where(h > 0, d, d * slope) - a - h * b)
    tl.store(out + volume * voxels * C + _offsets(voxel, channel, C), d.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _neighbour(o, size, S: tl.constexpr, upper: tl.constexpr):
    """Input index and weight of the lower or upper neighbour of output `o` along one axis."""
    if S == 1:
        return o, 1.0 + 0.0 * o
    else:
        # Output o lies at (o + 0.5) / 2 - 0.5 in the input: a quarter below or above an input voxel.
        low = (o + 1) // 2 - 1
        share = tl.where(o % 2 == 0, 0.75, 0.25)
        if upper:
            return tl.minimum(low + 1, size - 1), share
        else:
            return tl.maximum(low, 0), 1.0 - share


@triton.jit
def _upsample_kernel(
    x, out, D, H, W, voxels, stride: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
):  # fmt: skip
    """Trilinear upsampling; D, H, W are the size of x, `voxels` the number of voxels of out. Grid: (tiles, batch)."""
    volume = tl.program_id(1).to(tl.int64)
    voxel, channel = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, BC)
    inside = (voxel < voxels)[:, None] & (channel < C)[None, :]
    ow, oh, od = voxel % (W * SW), (voxel // (W * SW)) % (H * SH), voxel // (W * SW * H * SH)
    x += volume * D * H * W * stride
    total = tl.zeros([BV, BC], tl.float32)
    for i in tl.static_range(SD):
        d, wd = _neighbour(od, D, SD, i)
        for j in tl.static_range(SH):
            h, wh = _neighbour(oh, H, SH, j)
            for k in tl.static_range(SW):
                w, ww = _neighbour(ow, W, SW, k)
                value = tl.load(x + _offsets((d * H + h) * W + w, channel, stride), mask=inside, other=0.0)
                total += (wd * wh * ww)[:, None] * value.to(tl.float32)
    tl.store(out + volume * voxels * C + _offsets(voxel, channel, C), total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _target(i, size, S: tl.constexpr, which: tl.constexpr):
    """Output index that input `i` contributes to along one axis, its weight, and whether that output exists."""
    if S == 1:
        return i, 1.0 + 0.0 * i, i >= 0
    else:
        o = 2 * i - 1 + which
        if which == 0 or which == 3:
            weight = 0.25 + 0.0 * i
        elif which == 1:  # the first output is the first input alone
            weight = tl.where(i == 0, 1.0, 0.75)
        else:  # and the last output the last input
            weight = tl.where(i == size - 1, 1.0, 0.75)
        return o, weight, (o >= 0) & (o < 2 * size)


@triton.jit
def _upsample_gradient_kernel(
    g, out, D, H, W, voxels, stride: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
):  # fmt: skip
    """Gradient of trilinear upsampling, gathered without atomics; D, H, W and `voxels` are of out, the small map.

    Grid: (tiles, batch).
    """
    volume = tl.program_id(1).to(tl.int64)
    voxel, channel = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, BC)
    inside = (voxel < voxels)[:, None] & (channel < C)[None, :]
    w, h, d = voxel % W, (voxel // W) % H, voxel // (W * H)
    g += volume * voxels * (SD * SH * SW) * stride
    total = tl.zeros([BV, BC], tl.float32)
    for i in tl.static_range(3 * SD - 2):
        od, wd, hasd = _target(d, D, SD, i)
        for j in tl.static_range(3 * SH - 2):
            oh, wh, hash_ = _target(h, H, SH, j)
            for k in tl.static_range(3 * SW - 2):
                ow, ww, hasw = _target(w, W, SW, k)
                at = _offsets((od * (H * SH) + oh) * (W * SW) + ow, channel, stride)
                value = tl.load(g + at, mask=inside & (hasd & hash_ & hasw)[:, None], other=0.0)
                total += (wd * wh * ww)[:, None] * value.to(tl.float32)
    tl.store(out + volume * voxels * C + _offsets(voxel, channel, C), total.to(out.dtype.element_ty), mask=inside)


def voxel_stride(x: Tensor) -> int | None:
    """Number of elements between neighbouring voxels of a map, or None if the tensor is not a map."""
    _, channels, depth, height, width = x.shape
    stride = next((s for size, s in zip(x.shape[:1:-1], x.stride()[:1:-1], strict=True) if size > 1), channels)
    expected = (depth * height * width * stride, 1, height * width * stride, width * stride, stride)
    fits = all(size == 1 or s == e for size, s, e in zip(x.shape, x.stride(), expected, strict=True))
    return stride if fits and stride >= channels else None


def _as_map(x: Tensor) -> tuple[Tensor, int]:
    stride = voxel_stride(x)
    if stride is None:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        stride = x.shape[1]
    return x, stride


def _new_map(shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def _tile(channels: int, share: int = 1) -> tuple[int, int]:
    """Channels and voxels of a tile."""
    wide = max(triton.next_power_of_2(channels), 8)
    return wide, max(_TILE // wide // share, 8)


class _Parts:
    """How a reduction over the voxels of each volume is divided into parts of whole tiles."""

    def __init__(self, batch: int, voxels: int, tile: int) -> None:
        tiles = triton.cdiv(voxels, tile)
        self.tiles = max(triton.cdiv(tiles * batch, _PROGRAMS), triton.cdiv(tiles, _MOST_PARTS))
        self.count = triton.cdiv(tiles, self.tiles)
        self.voxels = self.tiles * tile
        self.block = triton.next_power_of_2(self.count)


_MERGED = 32
"""Channels that one program combines."""


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let Triton launch kernels on the device of a function's first tensor, not on the current one."""

    @wraps(function)
    def launched(ctx, x: Tensor, *more: Any) -> Any:
        with torch.cuda.device_of(x):
            return function(ctx, x, *more)

    return launched


class NormActivation(torch.autograd.Function):
    """LeakyReLU of the instance norm of a map; slope 0 is ReLU."""

    @staticmethod
    @_on_its_device
    def forward(ctx, y: Tensor, slope: float, eps: float) -> Tensor:
        """See the class."""
        y, stride = _as_map(y)
        n, c, *size = y.shape
        voxels = size[0] * size[1] * size[2]
        bc, bv = _tile(c)
        parts = _Parts(n, voxels, bv)
        partial = torch.empty(2, n, parts.count, c, device=y.device)
        mean, scale = torch.empty(2, n, c, device=y.device)
        _moments_kernel[(parts.count, n)](
            y, partial[0], partial[1], voxels, stride, C=c, BC=bc, BV=bv, TILES=parts.tiles
        )
        _merge_moments_kernel[(n, triton.cdiv(c, _MERGED))](
            partial[0], partial[1], mean, scale, voxels, parts.voxels, parts.count, eps, C=c, BC=_MERGED, BP=parts.block
        )
        out = _new_map(y.shape, y)
        _normalise_kernel[(triton.cdiv(voxels, bv), n)](y, mean, scale, out, voxels, slope, stride, C=c, BC=bc, BV=bv)
        ctx.save_for_backward(y, mean, scale)
        ctx.slope = slope
        return out

    @staticmethod
    @_on_its_device
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the map."""
        y, mean, scale = ctx.saved_tensors
        (y, y_stride), (g, g_stride) = _as_map(y), _as_map(g)
        n, c, *size = y.shape
        voxels = size[0] * size[1] * size[2]
        bc, bv = _tile(c)
        parts = _Parts(n, voxels, bv)
        partial = torch.empty(2, n, parts.count, c, device=y.device)
        means = torch.empty(2, n, c, device=y.device)
        _gradient_sums_kernel[(parts.count, n)](
            y, g, mean, scale, partial[0], partial[1], voxels, ctx.slope, y_stride, g_stride, C=c, BC=bc, BV=bv,
            TILES=parts.tiles,
        )  # fmt: skip
        _merge_sums_kernel[(n, triton.cdiv(c, _MERGED))](
            partial[0], partial[1], means[0], means[1], voxels, parts.count, C=c, BC=_MERGED, BP=parts.block
        )
        out = _new_map(y.shape, y)
        _input_gradient_kernel[(triton.cdiv(voxels, bv), n)](
            y, g, mean, scale, means[0], means[1], out, voxels, ctx.slope, y_stride, g_stride, C=c, BC=bc, BV=bv
        )
        return out, None, None


class Upsample(torch.autograd.Function):
    """Trilinear upsampling of a map by 1 or 2 along each axis (align_corners=False); its gradient is deterministic."""

    @staticmethod
    @_on_its_device
    def forward(ctx, x: Tensor, scale: tuple[int, int, int]) -> Tensor:
        """See the class."""
        x, stride = _as_map(x)
        n, c, *size = x.shape
        out = _new_map((n, c, *(s * factor for s, factor in zip(size, scale, strict=True))), x)
        voxels = out[0, 0].numel()
        bc, bv = _tile(c)
        _upsample_kernel[(triton.cdiv(voxels, bv), n)](
            x, out, *size, voxels, stride, C=c, BC=bc, BV=bv, SD=scale[0], SH=scale[1], SW=scale[2]
        )
        ctx.shape, ctx.scale = x.shape, scale
        return out

    @staticmethod
    @_on_its_device
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        """Gradient of the small map."""
        g, stride = _as_map(g)
        n, c, *size = ctx.shape
        out = _new_map(ctx.shape, g)
        voxels = size[0] * size[1] * size[2]
        bc, bv = _tile(c, share=4)
        sd, sh, sw = ctx.scale
        _upsample_gradient_kernel[(triton.cdiv(voxels, bv), n)](
            g, out, *size, voxels, stride, C=c, BC=bc, BV=bv, SD=sd, SH=sh, SW=sw
        )
        return out, None
