"""Layers and helpers that the three networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cpu_workarounds import InstanceNormWithoutRelayout


def normalise(channels: int, slope: float) -> tuple[nn.Module, nn.Module]:
    """Instance norm without parameters or running statistics, then LeakyReLU (ReLU if `slope` is 0)."""
    activation = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    return InstanceNormWithoutRelayout(channels), activation


def upsample(scale: int | tuple[int, int, int] = 2) -> nn.Upsample:
    """Trilinear upsampling that aligns the edges of the volume, not its corner voxels."""
    return nn.Upsample(scale_factor=scale, mode="trilinear", align_corners=False)


def check_input(x: Tensor, network: str, multiples: tuple[int, int, int]) -> None:
    """Check the shape of a batch of volumes.

    Args:
        x: (batch, 1, depth, height, width).
        network: name of the network, for the message.
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
    """Concatenate feature maps along the channels."""
    return torch.cat(tensors, dim=1)


def place(network: nn.Module, device: torch.device, channels_last: bool | None = None) -> nn.Module:
    """Move a network to a device, and its weights to a memory layout.

    Args:
        network: changed in place.
        device: target device.
        channels_last: use the channels-last layout. None: on the CPU only.
    """
    if channels_last is None:
        channels_last = device.type == "cpu"
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return network.to(device, memory_format=layout)
