"""The ways of finding lungs that a command can choose by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from utils.files import sha256

if TYPE_CHECKING:
    import numpy as np
    import SimpleITK as sitk
    import torch

FindLungs: TypeAlias = "Callable[[sitk.Image], np.ndarray]"
"""From a CT in HU to lung labels, uint8 (z, y, x): 0 outside, 1 right, 2 left."""


@dataclass(frozen=True)
class Lungs:
    """Where lung masks come from.

    Attributes:
        source: key of `LUNG_FINDERS`, or a folder of lung masks.
        model: model of lungmask.
        weights: file with the weights of that model; None downloads them on first use.
        precision: of its network, ``auto``, ``fp32`` or ``bf16``, see `models.engine.precision_of_lungs`.
    """

    source: str = "lungmask"
    model: str = "R231"
    weights: Path | None = None
    precision: str = "auto"

    @property
    def folder(self) -> Path | None:
        """The folder of given lung masks; None if lungs are found by a method."""
        return None if self.source in LUNG_FINDERS else Path(self.source)

    @property
    def on_gpu(self) -> bool:
        """Whether finding lungs can use a GPU."""
        return self.folder is None and LUNG_FINDERS[self.source].on_gpu

    @property
    def name(self) -> str:
        """What results call this source."""
        return str(self.folder.resolve()) if self.folder else LUNG_FINDERS[self.source].name(self)

    def fingerprint(self, device: torch.device) -> str:
        """The name, with the checksum of given weights and any precision but float32: they give other results."""
        if self.source != "lungmask":
            return self.name
        from models.engine import precision_of_lungs

        given = self.weights is not None and self.weights.is_file()
        name, precision = self.name, precision_of_lungs(self.precision, device)
        name = f"lungmask {sha256(self.weights)}" if given else name
        return name if precision == "fp32" else f"{name} {precision}"

    def finder(self, device: torch.device) -> FindLungs:
        """Make the function that finds lungs.

        Args:
            device: to run networks on.

        Raises:
            ValueError: lung masks are given.
            VolumeError: the weights of lungmask are not available.
        """
        if self.folder is not None:
            raise ValueError(f"lung masks are given in {self.folder}")
        return LUNG_FINDERS[self.source].make(self, device)


@dataclass(frozen=True)
class LungFinder:
    """One way of finding lungs.

    Attributes:
        make: makes the function, from the choice and the device.
        name: what results call it.
        on_gpu: whether it can use a GPU.
    """

    make: Callable[[Lungs, torch.device], FindLungs]
    name: Callable[[Lungs], str]
    on_gpu: bool = False


def _lungmask(lungs: Lungs, device: torch.device) -> FindLungs:
    from datasets.lungmask_model import load_lungmask

    return load_lungmask(lungs.model, lungs.weights, device, lungs.precision)


def _threshold(lungs: Lungs, device: torch.device) -> FindLungs:
    from datasets.lungs import segment_by_threshold

    return segment_by_threshold


LUNG_FINDERS = {
    "lungmask": LungFinder(
        make=_lungmask,
        name=lambda lungs: f"lungmask {lungs.model}",
        on_gpu=True,
    ),
    "threshold": LungFinder(make=_threshold, name=lambda lungs: "threshold"),
}
"""All ways of finding lungs, by the name that ``--lungs`` takes."""
