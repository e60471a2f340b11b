"""The discriminator D: is this volume healthy?"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from models.layers import InstanceNorm, check_input, normalise

SLOPE = 0.1
MULTIPLES = (16, 32, 32)


def _in_plane(channels: int) -> nn.Sequential:
    convolution = spectral_norm(nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1)))
    return nn.Sequential(convolution, *normalise(channels, SLOPE))


def _down(inputs: int, outputs: int) -> nn.Sequential:
    convolution = spectral_norm(nn.Conv3d(inputs, outputs, 4, stride=2, padding=1))
    return nn.Sequential(convolution, *normalise(outputs, SLOPE))


class Discriminator(nn.Module):
    """Strided convolutions with spectral normalisation, and one or two heads.

    With one head, a linear layer maps the lowest features to a logit, as in the last published code and the paper's
    figure. With two, as in the published code that ran, the lowest features are first reduced to one channel: a linear
    layer maps it to a logit, and a second 1x1x1 convolution maps the features to patch logits.

    The linear layer ties the network to one input size.

    Args:
        width: channels of the first level, doubled at each lower level; 32 as published.
        input_size: depth, height, width; depth a multiple of 16, height and width of 32.
        heads: 1 or 2.

    Raises:
        ValueError: the number of heads or the input size is not supported, or the input size is too small for the
            lowest instance norm.
    """

    def __init__(self, width: int = 32, input_size: tuple[int, int, int] = (32, 160, 160), heads: int = 1) -> None:
        super().__init__()
        lowest = [n // m for n, m in zip(input_size, MULTIPLES, strict=True)]
        if any(n % m for n, m in zip(input_size, MULTIPLES, strict=True)) or prod(lowest) < 2:
            raise ValueError(
                f"the discriminator takes an input size with depth a multiple of {MULTIPLES[0]}, height and width "
                f"of {MULTIPLES[1]}, above {MULTIPLES}; got {tuple(input_size)}"
            )
        if heads not in (1, 2):
            raise ValueError(f"the discriminator has 1 or 2 heads, got {heads}")
        self.width = width
        self.input_size = tuple(input_size)
        self.heads = heads
        # The first layer has spectral but no instance normalisation.
        self.first = nn.Sequential(
            spectral_norm(nn.Conv3d(1, width, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        self.plane1 = _in_plane(width)
        self.down2 = _down(width, 2 * width)
        self.plane2 = _in_plane(2 * width)
        self.down3 = _down(2 * width, 4 * width)
        self.plane3 = _in_plane(4 * width)
        self.down4 = _down(4 * width, 8 * width)
        if heads == 1:
            self.plane4 = _in_plane(8 * width)
        self.down5 = _down(8 * width, 16 * width)
        if heads == 1:
            self.judge = nn.Linear(16 * width * prod(lowest), 1)
        else:
            self.squeeze = nn.Sequential(nn.Conv3d(16 * width, 1, 1), InstanceNorm(1))
            self.judge = nn.Linear(prod(lowest), 1)
            self.judge_patches = nn.Conv3d(16 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Classify volumes: logits below 0 mean healthy, above 0 anything else.

        Args:
            x: volumes in [-1, 1], (batch, 1, *input_size).

        Returns:
            One logit per volume, (batch, 1); with two heads, a pair of these and the patch logits,
            (batch, 1, depth / 16, height / 32, width / 32).

        Raises:
            ValueError: the shape does not fit.
        """
        check_input(x, "discriminator", MULTIPLES)
        if tuple(x.shape[2:]) != self.input_size:
            raise ValueError(
                f"this discriminator was built for volumes of {self.input_size}, got {tuple(x.shape[2:])}; "
                "build one with this input_size"
            )
        with parametrize.cached():
            # The largest singular values need float32, also where the convolutions do not.
            with torch.autocast(x.device.type, enabled=False):
                for module in self.modules():
                    if parametrize.is_parametrized(module):
                        _ = module.weight
            x = self.plane1(self.first(x))
            x = self.plane2(self.down2(x))
            x = self.plane3(self.down3(x))
            x = self.down4(x)
            if self.heads == 1:
                return self.judge(self.down5(self.plane4(x)).flatten(1))
            x = self.down5(x)
            return self.judge(self.squeeze(x).flatten(1)), self.judge_patches(x)
