"""Pieces that the three networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm without parameters or running statistics, also in channels last.

    PyTorch's brings a volume that is channels last into the usual layout and leaves it there. Batch norm of one volume
    at a time is the same, and keeps the layout.

    Args:
        channels: of its input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        # Without them, the statistics of a bfloat16 volume would be bfloat16, too.
        self.register_buffer("_one", torch.ones(channels), persistent=False)
        self.register_buffer("_zero", torch.zeros(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Every channel of every volume with mean 0 and variance 1, (batch, channels, depth, height, width)."""
        if x.is_contiguous():
            return super().forward(x)
        volumes = [batch_norm(volume, None, None, self._one, self._zero, training=True) for volume in x.split(1)]
        return torch.cat(volumes) if len(volumes) > 1 else volumes[0]


class Convolution(nn.Conv3d):
    """A convolution that leaves mixed precision where a volume of two slices is on the CPU.

    There, the gradient of bfloat16 weights of three slices is garbage (oneDNN 3.10).
    """

    def forward(self, x: Tensor) -> Tensor:
        """As that of `Conv3d`."""
        if x.shape[2] == 2 and x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class ThroughSlices(nn.Conv3d):
    """A convolution of (n, 1, 1) voxels, which one thread of a CPU computes as one of (n, 1) pixels.

    PyTorch leaves (n, 1, 1) on a single thread to a loop that is six times slower. The plane as one long row is the
    same memory, and the same numbers but for rounding.

    Args:
        inputs: channels of its input.
        outputs: channels of its output.
        slices: n, odd.
    """

    def __init__(self, inputs: int, outputs: int, slices: int = 3) -> None:
        super().__init__(inputs, outputs, (slices, 1, 1), padding=(slices // 2, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As that of `Conv3d`."""
        if x.device.type == "cpu" and torch.get_num_threads() == 1 and not torch.compiler.is_compiling():
            rows = conv2d(x.flatten(3), self.weight.squeeze(4), padding=self.padding[:2])
            return rows.unflatten(3, x.shape[3:])
        return super().forward(x)


def normalise(channels: int, slope: float) -> tuple[nn.Module, nn.Module]:
    """Instance norm without parameters or running statistics, then LeakyReLU (ReLU for slope 0)."""
    activation = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    return InstanceNorm(channels), activation


def upsample(scale: int | tuple[int, int, int] = 2) -> nn.Upsample:
    """Trilinear upsampling with voxel edges, not centres, aligned."""
    return nn.Upsample(scale_factor=scale, mode="trilinear", align_corners=False)


def check_input(x: Tensor, network: str, multiples: tuple[int, int, int]) -> None:
    """Check a batch of volumes before it enters a network.

    Args:
        x: (batch, 1, depth, height, width).
        network: the name in the message.
        multiples: depth, height and width must be multiples of these.

    Raises:
        ValueError: the shape does not fit.
    """
    if x.ndim != 5 or x.shape[1] != 1 or any(n % m or n == 0 for n, m in zip(x.shape[2:], multiples, strict=True)):
        depth, height, width = multiples
        raise ValueError(
            f"the {network} takes (batch, 1, depth, height, width) with depth a multiple of {depth}, height of "
            f"{height} and width of {width}; got {tuple(x.shape)}"
        )


def concatenate(*tensors: Tensor) -> Tensor:
    """Feature maps side by side along the channels."""
    return torch.cat(tensors, dim=1)


def place(network: nn.Module, device: torch.device, channels_last: bool | None = None) -> nn.Module:
    """A network on a device, with its weights laid out as its convolutions are to compute.

    Args:
        network: it is changed in place.
        device: where it goes.
        channels_last: whether the channels are innermost in memory. None: on the CPU only.
    """
    if channels_last is None:
        channels_last = device.type == "cpu"
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return network.to(device, memory_format=layout)
