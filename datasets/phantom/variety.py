"""What differs between scans besides the anatomy."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.phantom.lesions import LESION_SHARES


@dataclass(frozen=True)
class Variety:
    """Differences between scanners and patients besides the anatomy.

    Attributes:
        shares: share of each lesion kind, in the order of `LESION_KINDS`; they add up to 1.
        sharpness: range of the in-plane sigma of the point spread function, in mm.
        noise: range of the noise SD in HU.
        dependent: maximum density increase in HU of healthy lung at the posterior pleura, as in a supine patient who
            breathes shallowly; it falls off within a centimetre and resembles ground glass.
        gain: maximum relative error of the scanner's HU scale, relative to air.
    """

    shares: tuple[float, ...] = LESION_SHARES
    sharpness: tuple[float, float] = (0.5, 0.8)
    noise: tuple[float, float] = (14.0, 40.0)
    dependent: float = 0.0
    gain: float = 0.0


PLAIN = Variety()
