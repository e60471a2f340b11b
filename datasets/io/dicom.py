"""Folders of DICOM slices: which of them are one volume, and whether it is whole.

The headers are read with pydicom and must tell one story: one series, one orientation, slices stacked at right angles
and at even distances, none missing, double or damaged.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.misc import is_dicom

from datasets.io.grid import Grid, check_grid
from utils.errors import VolumeError, one_line

log = logging.getLogger(__name__)

_EXTENSIONS = (".dcm", ".dicom", ".ima")
"""Files that claim to be DICOM, and have to be."""

_MULTI_FRAME = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Storage classes of CTs with all slices in one file."""

_UNEVEN = 0.1
"""Largest difference between the distances of slices, as a share of their median."""

_TILT = 2e-3
"""Largest sideways shift from slice to slice, as a share of their distance: a tenth of a degree of gantry tilt."""

_SAME = 1e-4
"""How far direction cosines may differ within a series."""


@dataclass(frozen=True)
class Slice:
    """What the header of a slice says.

    Attributes:
        path: of the file.
        series: SeriesInstanceUID.
        number: SeriesNumber.
        description: SeriesDescription.
        position: of the centre of the first pixel, mm, (3,).
        rows: direction cosines along a row and along a column, (6,).
        spacing: mm from column to column, and from row to row.
        size: columns and rows.
        pixel_bytes: bytes of its pixels where they are not compressed, as its header promises.
        stored_bytes: bytes of pixels that are there.
        compressed: whether they are compressed.
    """

    path: Path
    series: str
    number: str
    description: str
    position: np.ndarray
    rows: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]
    pixel_bytes: int
    stored_bytes: int
    compressed: bool


def find_series(folder: Path, choice: str | None, max_voxels: int) -> tuple[list[Path], Grid]:
    """The slices of a CT series in a folder, in their order, after checking that nothing is missing.

    Of several series, the one with the most slices is taken, and the others are named in a warning.

    Args:
        folder: of the slices; other files may lie beside them.
        choice: SeriesInstanceUID, SeriesNumber or a part of the SeriesDescription of the series to take.
        max_voxels: most voxels that are read.

    Returns:
        Files of the slices, and the grid of the volume.

    Raises:
        VolumeError: there is no CT series, the choice is not clear, or the series is not one whole volume.
    """
    found, others = _read_slices(folder)
    slices = _chosen(folder, found, choice)
    first = slices[0]
    if first.series in others:
        raise VolumeError(
            f"{others[first.series]}: belongs to the series but is no slice of a CT; copy it again if it is damaged, "
            "move it out of the folder if not"
        )
    for other in slices:
        if other.size != first.size or other.spacing != first.spacing:
            raise VolumeError(
                f"{other.path}: {other.size} pixels of {other.spacing} mm, {first.path.name} has {first.size} of "
                f"{first.spacing}; move slices of other kinds out of the folder"
            )
        if not np.allclose(other.rows, first.rows, rtol=0, atol=_SAME):
            raise VolumeError(
                f"{other.path}: is oriented otherwise than {first.path.name}; move scout views out of the folder"
            )
        if not other.compressed and other.stored_bytes < other.pixel_bytes:
            raise VolumeError(
                f"{other.path}: cut short: {other.stored_bytes} of {other.pixel_bytes} bytes of pixels; copy it again"
            )
    row, column = first.rows[:3], first.rows[3:]
    normal = np.cross(row, column)
    slices = sorted(slices, key=lambda s: s.position @ normal)
    step = _step(folder, slices, normal)
    _check_ends(slices, [s for s in found if s.series != first.series], step * normal)
    direction = np.stack([row, column, normal], axis=1)
    grid = Grid(
        (*slices[0].size, len(slices)),
        (*slices[0].spacing, step),
        tuple(slices[0].position.tolist()),
        tuple((direction + 0.0).ravel().tolist()),
    )
    check_grid(folder, grid, max_voxels)
    return [s.path for s in slices], grid


def holds_dicom(folder: Path) -> bool:
    """Whether DICOM files lie in a folder itself, by their extension or their content; hidden ones do not count.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    return any(_is_dicom_file(path) for path in folder.iterdir())


def _is_dicom_file(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file():
        return False
    return path.suffix.lower() in _EXTENSIONS or is_dicom(path)


def _read_slices(folder: Path) -> tuple[list[Slice], dict[str, Path]]:
    """The slices of CTs in a folder, and a file by the series of each other object."""
    slices, others = [], {}
    for path in sorted(folder.iterdir()):
        if not _is_dicom_file(path):
            continue
        try:
            one, series = _read_slice(path)
        except VolumeError:
            raise
        except Exception as error:  # pydicom raises what it comes across
            reason = one_line(error)
            raise VolumeError(f"{path}: damaged, or not DICOM ({reason}); copy the slice again") from None
        if one is None:
            others[series] = path
        else:
            slices.append(one)
    return slices, others


def _read_slice(path: Path) -> tuple[Slice | None, str]:
    """The slice in a file, or None where it holds something else than a slice of a CT, and the series it belongs to."""
    with warnings.catch_warnings(action="ignore"):  # what matters is checked, and is an error
        header = pydicom.dcmread(path)
    if header.get("SOPClassUID") in _MULTI_FRAME:
        raise VolumeError(f"{path}: all slices in one file; export the series as one file a slice, or as NIfTI")
    series = str(header.SeriesInstanceUID)
    if header.Modality != "CT" or "LOCALIZER" in header.get("ImageType", ()) or header.get("SamplesPerPixel", 1) != 1:
        return None, series
    columns, rows = int(header.Columns), int(header.Rows)
    across, down = float(header.PixelSpacing[1]), float(header.PixelSpacing[0])
    axes = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    if not header.SeriesInstanceUID.is_valid or not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=_SAME):
        raise ValueError("its SeriesInstanceUID or ImageOrientationPatient is impossible")
    one = Slice(
        path,
        series,
        str(header.get("SeriesNumber", "")),
        str(header.get("SeriesDescription", "")),
        np.array(header.ImagePositionPatient, float),
        axes.ravel(),
        (across, down),
        (columns, rows),
        columns * rows * int(header.BitsAllocated) // 8,
        len(header.PixelData),
        header.file_meta.TransferSyntaxUID.is_compressed,
    )
    return one, series


def _chosen(folder: Path, slices: Sequence[Slice], choice: str | None) -> list[Slice]:
    series: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        series[one.series].append(one)
    if not series:
        raise VolumeError(f"{folder}: holds no CT series; expected a folder of DICOM slices, or a CT file")
    names = {
        uid: f"{uid} (number {found[0].number or '-'}, {found[0].description or 'no description'}, {len(found)} slices)"
        for uid, found in series.items()
    }
    left = series
    if choice is not None:
        left = {uid: found for uid, found in series.items() if _is_choice(found[0], choice)}
        if not left:
            raise VolumeError(f"{folder}: no series {choice!r}; it holds {'; '.join(names.values())}")
    largest = max(len(found) for found in left.values())
    candidates = [uid for uid, found in left.items() if len(found) == largest]
    if len(candidates) > 1:
        raise VolumeError(
            f"{folder}: several series of {largest} slices: {'; '.join(names[uid] for uid in candidates)}; pick one "
            "with --series"
        )
    if len(left) > 1:
        others = "; ".join(name for uid, name in names.items() if uid != candidates[0])
        log.warning("%s: takes the series %s; --series picks another of: %s", folder, names[candidates[0]], others)
    return series[candidates[0]]


def _is_choice(one: Slice, choice: str) -> bool:
    return choice in (one.series, one.number) or choice.lower() in one.description.lower()


def _step(folder: Path, slices: Sequence[Slice], normal: np.ndarray) -> float:
    """The distance of the slices, in mm, after checking that it is the same throughout."""
    if len(slices) < 2:
        raise VolumeError(f"{folder}: its series has one slice; expected a volume of several slices")
    positions = np.array([s.position for s in slices])
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    for k, step in enumerate(steps):
        pair = f"{slices[k].path.name} and {slices[k + 1].path.name}"
        if step <= _UNEVEN * usual:
            raise VolumeError(f"{folder}: {pair} lie at the same place; remove the copy")
        if abs(step - usual) > _UNEVEN * usual:
            raise VolumeError(
                f"{folder}: its slices are not evenly spaced: {step:g} mm between {pair}, {usual:g} mm elsewhere; "
                "one is missing or damaged: export the series again"
            )
    sideways = np.diff(positions, axis=0) - steps[:, None] * normal
    if np.linalg.norm(sideways, axis=1).max() > _TILT * usual:
        angle = np.degrees(np.arctan(np.linalg.norm(sideways, axis=1).max() / usual))
        raise VolumeError(
            f"{folder}: its slices are shifted sideways, as by a gantry tilt of {angle:.1f} degrees; resample the "
            "series onto a straight grid, for example with dcm2niix"
        )
    return float((positions[-1] - positions[0]) @ normal / (len(slices) - 1))


def _check_ends(slices: Sequence[Slice], others: Sequence[Slice], step: np.ndarray) -> None:
    """A single slice that would go on where the series ends has most likely lost its series."""
    counts = Counter(other.series for other in others)
    ends = slices[0].position - step, slices[-1].position + step
    for other in others:
        fits = other.size == slices[0].size and np.allclose(other.rows, slices[0].rows, rtol=0, atol=_SAME)
        near = any(np.linalg.norm(other.position - end) < _UNEVEN * np.linalg.norm(step) for end in ends)
        if counts[other.series] == 1 and fits and near:
            raise VolumeError(
                f"{other.path}: goes on where the series of {slices[0].path.name} ends, but under another "
                "SeriesInstanceUID; copy it again if it is damaged, move it out of the folder if not"
            )
