"""Convolutions that give the same sums as PyTorch's, computed in shapes that suit GPUs.

All maps are (batch, channels, depth, height, width) with the channels innermost in memory. Nothing here depends on the
device; the tests compare everything with PyTorch in float64 on the CPU, gradients included.
"""

# ruff: noqa: ANN001 - the context of an autograd function has no public type

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv3d, interpolate, pad

LAST = torch.channels_last_3d

Scale = tuple[int, int, int]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Scale, padding: Scale, planes: bool) -> Tensor:
    """A 3D convolution; kernels of one slice or one column become 2D convolutions of views.

    A (1, k, k) kernel is a 2D convolution of batch * depth images. A (k, 1, 1) kernel is a (k, 1) convolution of one
    image per volume with depth rows and height * width columns. In channels-last memory both views are free.

    Args:
        x: map in channels-last memory.
        weight: (outputs, inputs, *kernel).
        bias: (outputs,) or None.
        stride: stride along each axis.
        padding: zero padding along each axis.
        planes: use 2D convolutions where possible.
    """
    depth, *plane = weight.shape[2:]
    if planes and depth == 1 and stride[0] == 1 and padding[0] == 0:
        n, c, slices, height, width = x.shape
        images = x.permute(0, 2, 1, 3, 4).reshape(n * slices, c, height, width)
        kernel = weight.squeeze(2).contiguous(memory_format=torch.channels_last)
        y = conv2d(images, kernel, bias, stride[1:], padding[1:])
        return y.unflatten(0, (n, slices)).permute(0, 2, 1, 3, 4)
    if planes and plane == [1, 1] and stride == (1, 1, 1) and padding[1:] == (0, 0):
        kernel = weight.squeeze(4).contiguous(memory_format=torch.channels_last)
        return conv2d(x.flatten(3), kernel, bias, padding=padding[:2]).unflatten(3, x.shape[3:])
    return conv3d(x, weight.contiguous(memory_format=LAST), bias, stride, padding)


def pad_channels(weight: Tensor, outputs: int, inputs: int, parts: int = 1) -> Tensor:
    """A kernel for maps with extra channels of zeros.

    Args:
        weight: (real outputs, real inputs, *kernel).
        outputs: output channels; the additional ones are 0.
        inputs: input channels in total.
        parts: number of equally wide maps that were concatenated to the input, each padded at its end.
    """
    o, i = weight.shape[:2]
    blocks = weight.unflatten(1, (parts, i // parts))
    blocks = pad(blocks, (0,) * 6 + (0, (inputs - i) // parts, 0, 0, 0, outputs - o))
    return blocks.flatten(1, 2)


def upsample(x: Tensor, scale: Scale, fused: bool) -> Tensor:
    """Trilinear upsampling; if `fused`, on CUDA with a gradient that is gathered, and so deterministic."""
    if fused and x.is_cuda:
        from models.fast.kernels import Upsample

        return Upsample.apply(x, scale)
    return interpolate(x, scale_factor=tuple(map(float, scale)), mode="trilinear", align_corners=False)


# Upsampling by two followed by a convolution of three voxels, along one axis: with u the upsampled map,
#     u[2i] = x[i-1]/4 + 3 x[i]/4,    u[2i+1] = 3 x[i]/4 + x[i+1]/4    (x continued by its border),
# an output at 2i + p, p = 0 or 1 (its phase), is a sum of u[2i+p-1], u[2i+p], u[2i+p+1], and so of x[i-1], x[i],
# x[i+1]. _PHASES[p, j, k] is the weight of x[i-1+j] in u[2i+p-1+k]. The convolution continues u by zeros instead, so
# the first and the last output of an axis are different sums, computed separately.
_PHASES = (
    ((0.75, 0.25, 0.0), (0.25, 0.75, 0.75), (0.0, 0.0, 0.25)),
    ((0.25, 0.0, 0.0), (0.75, 0.75, 0.25), (0.0, 0.25, 0.75)),
)
_AXES = (2, 3, 4)


@cache
def _phases(scale: Scale, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`_PHASES` per axis (identity where the axis is not upsampled); cached, since CUDA graphs cannot copy them."""
    two, one = torch.tensor(_PHASES, device=device, dtype=dtype), torch.eye(3, device=device, dtype=dtype)[None]
    return tuple(two if factor == 2 else one for factor in scale)


def phase_kernel(weight: Tensor, scale: Scale) -> Tensor:
    """Kernels of all phases: (outputs, inputs, 3, 3, 3) to (phases * outputs, inputs, 3, 3, 3), phases outermost."""
    maps = _phases(scale, weight.device, weight.dtype)
    kernel = torch.einsum("pxu,qyv,rzw,oiuvw->pqroixyz", *maps, weight)
    return kernel.flatten(0, 3)


def _phase_kernel_gradient(gradient: Tensor, scale: Scale, dtype: torch.dtype) -> Tensor:
    """Gradient of `weight` from that of `phase_kernel(weight)`."""
    maps = _phases(scale, gradient.device, dtype)
    gradient = gradient.to(dtype).unflatten(0, (*scale, -1))
    return torch.einsum("pxu,qyv,rzw,pqroixyz->oiuvw", *maps, gradient)


def _continue_by_border(x: Tensor, scale: Scale) -> Tensor:
    """Repeat the outermost voxels of the upsampled axes."""
    for axis, factor in zip(_AXES, scale, strict=True):
        if factor == 2:
            x = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, x.shape[axis] - 1, 1)], dim=axis)
    return x


def _continue_by_border_gradient(g: Tensor, scale: Scale) -> Tensor:
    """Gradient of `_continue_by_border`; overwrites g."""
    for axis, factor in zip(_AXES, scale, strict=True):
        if factor == 2:
            outer, size = g, g.shape[axis] - 2
            g = g.narrow(axis, 1, size)
            g.narrow(axis, 0, 1).add_(outer.narrow(axis, 0, 1))
            g.narrow(axis, size - 1, 1).add_(outer.narrow(axis, size + 1, 1))
    return g


def _interleave(y: Tensor, scale: Scale) -> Tensor:
    """(N, phases * C, D, H, W) to (N, C, D * scale, ...), in channels-last memory."""
    n, _, d, h, w = y.shape
    y = y.permute(0, 2, 3, 4, 1).unflatten(4, (*scale, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    y = y.reshape(n, d * scale[0], h * scale[1], w * scale[2], -1)
    return y.permute(0, 4, 1, 2, 3)


def _by_phase(y: Tensor, scale: Scale) -> Tensor:
    """(N, C, D * scale, ...) to (N, D, H, W, phase of depth, of height, of width, C), a copy."""
    a, b, c = scale
    y = y.permute(0, 2, 3, 4, 1).unflatten(3, (-1, c)).unflatten(2, (-1, b)).unflatten(1, (-1, a))
    return y.permute(0, 1, 3, 5, 2, 4, 6, 7).clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class _Face:
    """The first or last output along an upsampled axis."""

    axis: int
    last: bool

    def of(self, y: Tensor) -> Tensor:
        """The face of a map, one voxel thick."""
        return y.narrow(self.axis, y.shape[self.axis] - 1 if self.last else 0, 1)

    def slab(self, x: Tensor) -> Tensor:
        """The two voxels of the small map that the face depends on."""
        return x.narrow(self.axis, x.shape[self.axis] - 2 if self.last else 0, 2)

    def convolve(self, slab: Tensor, weight: Tensor, scale: Scale, fused: bool) -> Tensor:
        """The face from its slab: two of the upsampled slab's four voxels and two of the kernel's three."""
        u = upsample(slab, scale, fused).narrow(self.axis, 2 if self.last else 0, 2)
        kernel = weight.narrow(self.axis, 0 if self.last else 1, 2)
        padding = [0 if axis == self.axis else 1 for axis in _AXES]
        return conv3d(u, kernel.contiguous(memory_format=LAST), padding=padding)


def _faces(scale: Scale) -> Iterator[_Face]:
    return (_Face(axis, last) for axis, f in zip(_AXES, scale, strict=True) if f == 2 for last in (False, True))


def fits_phases(x: Tensor, scale: Scale) -> bool:
    """Whether every upsampled axis has the two voxels that faces need."""
    return all(size >= 2 for size, factor in zip(x.shape[2:], scale, strict=True) if factor == 2)


class UpsampledConvolution(torch.autograd.Function):
    """A 3x3x3 convolution (zero padding 1) of a trilinearly upsampled map, without ever making that map.

    Each phase of the output is a convolution of the small map; see `_PHASES`. Multiplications: 27 per input channel,
    output channel and output voxel, as before; memory traffic: that of the small map and the output.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Scale, fused: bool) -> Tensor:
        """See the class. `weight` may be more precise than `x`; `scale` is 1 or 2 per axis; `fused`: see `upsample`."""
        padded = _continue_by_border(x, scale).contiguous(memory_format=LAST)
        ctx.padding = [0 if factor == 2 else 1 for factor in scale]
        with torch.autocast(x.device.type, enabled=False):  # kernels are combined in their own precision
            kernel = phase_kernel(weight, scale).to(x.dtype).contiguous(memory_format=LAST)
            y = _interleave(conv3d(padded, kernel, padding=ctx.padding), scale)
            for face in _faces(scale):
                face.of(y).copy_(face.convolve(face.slab(x), weight.to(x.dtype), scale, fused))
        ctx.save_for_backward(x, weight, padded, kernel)
        ctx.scale, ctx.fused = scale, fused
        return y

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of map and kernel."""
        x, weight, padded, kernel = ctx.saved_tensors
        scale, (need_x, need_weight, *_) = ctx.scale, ctx.needs_input_grad
        inner = _by_phase(g, scale)
        for face in _faces(scale):  # faces do not come from the phases
            place = [slice(None)] * 8
            place[face.axis - 1], place[face.axis + 2] = (-1, 1) if face.last else (0, 0)
            inner[tuple(place)] = 0
        inner = inner.flatten(4).permute(0, 4, 1, 2, 3)
        g_x, g_weight, _ = torch.ops.aten.convolution_backward(
            inner, padded, kernel, None, [1] * 3, ctx.padding, [1] * 3, False, [0] * 3, 1, [need_x, need_weight, False]
        )
        if need_x:
            g_x = _continue_by_border_gradient(g_x, scale).contiguous(memory_format=LAST)
        if need_weight:
            g_weight = _phase_kernel_gradient(g_weight, scale, weight.dtype)
        seen: list[_Face] = []
        for face in _faces(scale):
            g_face = face.of(g).clone()
            for other in seen:  # edges belong to the first of their faces
                if other.axis != face.axis:
                    other.of(g_face).zero_()
            seen.append(face)
            with torch.enable_grad():
                slab = face.slab(x).detach().requires_grad_(need_x)
                own = weight.detach().requires_grad_(need_weight)
                wanted = [tensor for tensor in (slab, own) if tensor.requires_grad]
                y = face.convolve(slab, own.to(x.dtype), scale, ctx.fused)
                found = dict(zip(wanted, torch.autograd.grad(y, wanted, g_face), strict=True))
            if need_x:
                face.slab(g_x).add_(found[slab])
            if need_weight:
                g_weight += found[own]
        return g_x, g_weight, None, None
