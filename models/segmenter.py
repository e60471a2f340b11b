"""The segmenter S: the probability of lesion at each voxel."""

from torch import Tensor, nn

from models.layers import ThroughSlices, check_input, concatenate, normalise, upsample

SLOPE = 0.01


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """An in-plane convolution followed directly by one through the slices, then normalisation and activation."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False),
        ThroughSlices(outputs, outputs),
        *normalise(outputs, SLOPE),
    )


def _two_separable(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_separable(inputs, outputs), _separable(outputs, outputs))


def _convolution(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=bias), *normalise(outputs, SLOPE))


class Segmenter(nn.Module):
    """A U-Net with three levels, separable convolutions and strided downsampling; each level doubles the channels."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.width = width
        self.stem = _convolution(1, width, bias=True)
        self.encode1 = _two_separable(width, width)
        self.down2 = _convolution(width, 2 * width, stride=2)
        self.encode2 = _two_separable(2 * width, 2 * width)
        self.down3 = _convolution(2 * width, 4 * width, stride=2)
        self.encode3 = _two_separable(4 * width, 4 * width)
        self.up2 = nn.Sequential(upsample(), *_convolution(4 * width, 2 * width))
        self.decode2 = _two_separable(4 * width, 2 * width)
        self.up1 = nn.Sequential(upsample(), *_convolution(2 * width, width))
        self.decode1 = _two_separable(2 * width, width)
        self.predict = nn.Conv3d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of lesion of volumes in [-1, 1], both (batch, 1, depth, height, width).

        Each size is a multiple of 4.

        Raises:
            ValueError: the shape does not fit.
        """
        check_input(x, "segmenter", (4, 4, 4))
        e1 = self.encode1(self.stem(x))
        e2 = self.encode2(self.down2(e1))
        e3 = self.encode3(self.down3(e2))
        d2 = self.decode2(concatenate(self.up2(e3), e2))
        d1 = self.decode1(concatenate(self.up1(d2), e1))
        return self.predict(d1)


def build_segmenter(width: int) -> nn.Module:
    """S with random weights. Any module with forward(volume) -> logits, as `Segmenter.forward`, can be built here."""
    return Segmenter(width)
