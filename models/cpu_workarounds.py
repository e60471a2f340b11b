"""Layers that avoid slow or faulty code paths of PyTorch on CPUs.

Each computes the same as the layer it replaces, and has the same entries in its state dict.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d


class InstanceNormWithoutRelayout(nn.InstanceNorm3d):
    """Instance norm without parameters or running statistics that keeps a channels-last volume channels-last.

    PyTorch's instance norm converts such a volume to the contiguous layout and returns it in that layout. Batch norm
    of one volume at a time is equivalent, and keeps the layout.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        # Without weight and bias, batch norm would compute the statistics of a bfloat16 volume in bfloat16.
        self.register_buffer("_one", torch.ones(channels), persistent=False)
        self.register_buffer("_zero", torch.zeros(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each volume to mean 0 and variance 1, (batch, channels, depth, height, width)."""
        if x.is_contiguous():
            return super().forward(x)
        volumes = [batch_norm(volume, None, None, self._one, self._zero, training=True) for volume in x.split(1)]
        return torch.cat(volumes) if len(volumes) > 1 else volumes[0]


class Conv3dWithoutShallowBf16(nn.Conv3d):
    """A convolution that computes volumes of two slices in float32 on the CPU, also under autocast.

    For these, oneDNN 3.10 returns wrong gradients of bfloat16 weights of three slices.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `Conv3d`."""
        if x.shape[2] == 2 and x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class ThroughSlicesWithoutSlowLoop(nn.Conv3d):
    """A convolution of (n, 1, 1) voxels that a single CPU thread computes as a 2D convolution of (n, 1) pixels.

    For (n, 1, 1), PyTorch on a single thread falls back to a loop that is six times slower. Viewing each slice as one
    long row needs no copy; results differ by rounding only.

    Args:
        inputs: input channels.
        outputs: output channels.
        slices: n, odd.
    """

    def __init__(self, inputs: int, outputs: int, slices: int = 3) -> None:
        super().__init__(inputs, outputs, (slices, 1, 1), padding=(slices // 2, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As `Conv3d`."""
        if x.device.type == "cpu" and torch.get_num_threads() == 1 and not torch.compiler.is_compiling():
            rows = conv2d(x.flatten(3), self.weight.squeeze(4), padding=self.padding[:2])
            return rows.unflatten(3, x.shape[3:])
        return super().forward(x)
