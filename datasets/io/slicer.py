"""Segmentations of 3D Slicer (``.seg.nrrd``), laid onto the grid of their CT.

Slicer cuts a segmentation to the extent of its segments, and stores overlapping segments in layers of a fourth
dimension. The header names the segments, their layers and label values:
https://slicer.readthedocs.io/en/latest/user_guide/modules/segmentations.html
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import SimpleITK as sitk

from datasets.geometry import part_onto
from datasets.io.grid import Grid, check_grid
from utils.errors import VolumeError, one_line

log = logging.getLogger(__name__)

EXTENSION = ".seg.nrrd"

_LESION = re.compile(r"lesion|infect|covid|opaci|ggo|ground.?glass|consolid|pneumon|tumou?r|nodule", re.IGNORECASE)
_LUNG = re.compile(r"lung", re.IGNORECASE)


@dataclass(frozen=True)
class Segment:
    """One segment of a segmentation.

    Attributes:
        name: as shown in Slicer.
        layer: index along the fourth dimension.
        value: its label in that layer.
    """

    name: str
    layer: int
    value: int


def is_segmentation(path: Path) -> bool:
    """Whether a file is a segmentation of Slicer, by its name."""
    return path.name.lower().endswith(EXTENSION)


def read_segmentation(
    path: Path, reference_name: object, reference: sitk.Image, max_voxels: int, names: Collection[str] | None = None
) -> np.ndarray:
    """Read a segmentation onto the grid of its CT.

    Of several segments, those in `names` are read or, without names, those whose name says lesion, or all if each says
    lung. A file that names no segments is a mask in which every value above 0 counts.

    Args:
        path: the ``.seg.nrrd`` file.
        reference_name: the CT, for error messages.
        reference: the CT, or its geometry.
        max_voxels: most voxels that are read.
        names: names of segments; None chooses by name.

    Returns:
        uint8 (z, y, x) on `reference`, 0 or 1.

    Raises:
        VolumeError: the file is damaged, does not lie on the voxels of the CT, or it is not clear which segments count.
    """
    try:
        with path.open("rb") as file:
            header = nrrd.read_header(file)
            grid, layers = _grid_of(header)
            check_grid(path, grid, max_voxels)
            data = nrrd.read_data(header, file, str(path))
    except VolumeError:
        raise
    except Exception as error:  # a damaged header makes the reader raise whatever it comes across
        raise VolumeError(f"{path}: not a readable segmentation ({one_line(error)}); export it again") from None
    layered = data if layers else data[None]  # (layer, x, y, z)
    chosen = _chosen(path, segments_of(header), names)
    inside = np.zeros(layered.shape[1:], np.uint8) if chosen else (layered > 0).any(0).astype(np.uint8)
    for segment in chosen:
        if segment.layer >= len(layered):
            raise VolumeError(f"{path}: its segment {segment.name} is in a layer that is missing; export it again")
        inside |= (layered[segment.layer] == segment.value).astype(np.uint8)
    return part_onto(path, grid.image(inside.transpose()), reference_name, reference)


def segments_of(header: dict[str, Any]) -> list[Segment]:
    """The segments that a header names, in their order."""
    numbers = sorted({int(m[1]) for key in header if (m := re.match(r"Segment(\d+)_", key))})
    return [
        Segment(
            str(header.get(f"Segment{n}_Name", header.get(f"Segment{n}_ID", n))),
            int(header.get(f"Segment{n}_Layer", 0)),
            int(header.get(f"Segment{n}_LabelValue", 1)),
        )
        for n in numbers
    ]


def _grid_of(header: dict[str, Any]) -> tuple[Grid, bool]:
    """The grid of a segmentation in LPS, and whether its first axis is of layers."""
    directions = np.array(header["space directions"], float)
    layers = len(header["sizes"]) == 4
    axes = directions[1:] if layers else directions
    signs = _to_lps(str(header.get("space", "left-posterior-superior")))
    axes, origin = axes * signs, np.array(header["space origin"], float) * signs
    spacing = np.linalg.norm(axes, axis=1)
    direction = (axes / spacing[:, None]).T
    size = tuple(int(n) for n in header["sizes"][-3:])
    return Grid(size, tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist())), layers


def _to_lps(space: str) -> np.ndarray:
    """Signs that turn the axes of a NRRD space, in words or letters, into LPS."""
    words = space.lower().split("-") if "-" in space else list(space.lower())
    return np.array([1.0 if word[0] in "lps" else -1.0 for word in words])


def _chosen(path: Path, segments: list[Segment], names: Collection[str] | None) -> list[Segment]:
    known = ", ".join(segment.name for segment in segments) or "none"
    if names is not None:
        wanted = {name.lower() for name in names}
        chosen = [segment for segment in segments if segment.name.lower() in wanted]
        if len(chosen) < len(wanted):
            raise VolumeError(f"{path}: has no segment of some of these names: {', '.join(names)}; it has {known}")
        return chosen
    if len(segments) < 2:
        return segments
    chosen = [s for s in segments if _LESION.search(s.name)] or (
        [s for s in segments if _LUNG.search(s.name)] if all(_LUNG.search(s.name) for s in segments) else []
    )
    if not chosen:
        raise VolumeError(f"{path}: has the segments {known}; name those that count with --segments")
    if len(chosen) < len(segments):
        log.warning("%s: reads %s of its segments %s", path, ", ".join(s.name for s in chosen), known)
    return chosen
