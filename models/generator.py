"""The generator G: the same lungs without lesions."""

from torch import Tensor, nn

from models.layers import check_input, concatenate, normalise, upsample


def _encode(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride=2, padding=1), *normalise(outputs, slope=0.01))


def _decode(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(upsample(), nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), *normalise(outputs, slope=0))


class Generator(nn.Module):
    """A U-Net with five levels; the first downsamples in-plane only.

    Args:
        width: channels of the first level, doubled at each lower level; 32 as published.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        in_plane = nn.Conv3d(1, width, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))
        self.encode1 = nn.Sequential(in_plane, *normalise(width, slope=0.01))
        self.encode2 = _encode(width, 2 * width)
        self.encode3 = _encode(2 * width, 4 * width)
        self.encode4 = _encode(4 * width, 8 * width)
        self.encode5 = _encode(8 * width, 16 * width)
        self.decode4 = _decode(16 * width, 8 * width)
        self.decode3 = _decode(16 * width, 4 * width)
        self.decode2 = _decode(8 * width, 2 * width)
        self.decode1 = _decode(4 * width, width)
        self.predict = nn.Sequential(upsample((1, 2, 2)), nn.Conv3d(2 * width, 1, 3, padding=1, bias=False), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Generate a volume in [-1, 1], of the shape of x.

        Args:
            x: volumes in [-1, 1], (batch, 1, depth, height, width); depth a multiple of 16, height and
                width of 32, and more than 16x32x32 voxels, which the lowest instance norm needs.

        Raises:
            ValueError: the shape does not fit.
        """
        check_input(x, "generator", (16, 32, 32))
        e1 = self.encode1(x)
        e2 = self.encode2(e1)
        e3 = self.encode3(e2)
        e4 = self.encode4(e3)
        d4 = self.decode4(self.encode5(e4))
        d3 = self.decode3(concatenate(d4, e4))
        d2 = self.decode2(concatenate(d3, e3))
        d1 = self.decode1(concatenate(d2, e2))
        return self.predict(concatenate(d1, e1))
