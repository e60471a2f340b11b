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

LUNG_FINDERS = ("lungmask", "threshold")
"""All ways of finding lungs, as ``--lungs`` takes them."""


@dataclass(frozen=True)
class Lungs:
    """Where lung masks come from."""

    source: str = "lungmask"  # one of `LUNG_FINDERS`, or a folder of lung masks
    model: str = "R231"  # of lungmask
    weights: Path | None = None  # file with the weights of that model; None downloads them on first use
    precision: str = "auto"  # of its network: auto, fp32 or bf16, see `models.engine.precision_of_lungs`

    @property
    def folder(self) -> Path | None:
        """The folder of given lung masks; None if lungs are found by a method."""
        return None if self.source in LUNG_FINDERS else Path(self.source)

    @property
    def on_gpu(self) -> bool:
        """Whether finding lungs can use a GPU."""
        return self.source == "lungmask"

    @property
    def name(self) -> str:
        """What results call this source."""
        if self.folder is not None:
            return str(self.folder.resolve())
        return f"lungmask {self.model}" if self.source == "lungmask" else self.source

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
        """Make the function that finds lungs, with networks on a device.

        Raises:
            ValueError: lung masks are given.
            VolumeError: the weights of lungmask are not available.
        """
        if self.folder is not None:
            raise ValueError(f"lung masks are given in {self.folder}")
        if self.source == "threshold":
            from datasets.lungs import segment_by_threshold

            return segment_by_threshold
        from datasets.lungmask_model import load_lungmask

        return load_lungmask(self.model, self.weights, device, self.precision)
