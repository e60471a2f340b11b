"""Which slices are one volume, and whether it is complete.

Slices are grouped by what their headers say, wherever the files lie. A volume has one orientation, slices stacked at
right angles and at even distances, none missing, double or damaged.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from datasets.io.dicom_slices import SAME_DIRECTION, Other, Slice
from datasets.io.grid import Grid

_UNEVEN = 0.1
"""Largest distance of a slice from an evenly spaced grid, as a share of the distance between slices."""

_TILT = 2e-3
"""Largest sideways shift from slice to slice, as a share of their distance: a tenth of a degree of gantry tilt."""

_SAME_SPACING = 1e-3
"""Relative difference of pixel spacings within a series."""

_OWN_VOLUME = 4
"""Slices of another size or orientation are a volume of their own from this number on; fewer are refused."""


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in order along its third axis.

    Attributes:
        slices: the slices; in the order of their files if there is a problem.
        grid: geometry; None if there is a problem.
        notes: what was passed over in it, such as copies.
        problem: why it cannot be read; one line that names the folder or file.
    """

    slices: tuple[Slice, ...]
    grid: Grid | None
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def first(self) -> Slice:
        """The first slice."""
        return self.slices[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in order, each once."""
        return tuple(dict.fromkeys(s.path for s in self.slices))

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all files."""
        return common_folder(self.files)

    @property
    def label(self) -> str:
        """Number, description, kernel, acquisition and number of slices, for messages."""
        first = self.first
        parts = [f"number {first.number or '-'}", first.description or "no description"]
        parts += [f"kernel {first.kernel}"] if first.kernel else []
        parts += [f"acquisition {first.acquisition}"] if first.acquisition else []
        return f"{first.series} ({', '.join(parts)}, {len(self.slices)} slices)"


def common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all files."""
    folder = files[0].parent
    while not all(path.is_relative_to(folder) for path in files):
        folder = folder.parent
    return folder


def extent_mm(series: Series) -> float:
    """Length of a series along its normal in mm, slice thickness included."""
    heights = _heights(series.slices)[1]
    return float(heights.max() - heights.min()) + max(series.first.thickness, step_mm(series))


def step_mm(series: Series) -> float:
    """Distance between slices in mm; the median if it is uneven, 0 for one slice."""
    steps = np.diff(np.sort(_heights(series.slices)[1]))
    return float(np.median(steps)) if len(steps) else 0.0


def studies_of(series: Iterable[Series]) -> dict[tuple[str, str], list[Series]]:
    """Series by patient and study."""
    studies: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        studies[one.first.patient, one.first.study].append(one)
    return dict(studies)


def group_series(slices: Sequence[Slice], others: Sequence[Other]) -> list[Series]:
    """Group slices into volumes, order each, and find its problems.

    Args:
        slices: of any number of patients and studies.
        others: DICOM files beside them that are no slices.
    """
    by_uid: dict[tuple[str, str, str], list[Slice]] = defaultdict(list)
    for one in slices:
        by_uid[one.patient, one.study, one.series].append(one)
    damaged: dict[Path, Other] = {}
    strays: dict[str, Other] = {}
    for other in others:
        if other.damaged:
            damaged.setdefault(other.path.parent, other)
        elif other.like is not None:
            strays.setdefault(other.like.series, other)
    found = []
    for (_, _, uid), members in by_uid.items():
        members.sort(key=lambda s: (s.path, s.frame or 0))
        for volume in _volumes(members):
            found.append(_problem_beside(volume, damaged, strays.get(uid)))
    lone = [s.first for s in found if len(s.slices) == 1]
    return _without_lost_slices(found, [*lone, *(other.like for other in others if other.like is not None)])


def _problem_beside(series: Series, damaged: dict[Path, Other], stray: Other | None) -> Series:
    """A series is not complete if a damaged file beside it may belong to it, or another image has its UID."""
    if series.problem is None and stray is not None and stray.path.parent in {s.path.parent for s in series.slices}:
        problem = f"{stray.path}: belongs to the series but is no slice of a CT ({stray.kind}); copy it again if it is "
        return replace(series, problem=problem + "damaged, move it out of the folder if not")
    for folder in {s.path.parent for s in series.slices}:
        if folder in damaged:
            other = damaged[folder]
            return replace(series, problem=f"{other.path}: {other.kind}; copy the slice again")
    return series


def _volumes(slices: list[Slice]) -> list[Series]:
    """The volumes under one SeriesInstanceUID; a series that cannot be split is one volume with a problem."""
    if problem := next((f"{s.path}: {s.problem}" for s in slices if s.problem), None):
        return [Series(tuple(slices), None, (), problem)]
    slices, notes = _without_copies(slices)
    shapes = _split(slices, _same_shape)
    if len(shapes) > 1 and min(map(len, shapes)) < _OWN_VOLUME:
        return [Series(tuple(slices), None, tuple(notes), _shape_problem(slices))]
    return [_ordered(part, notes) for shape in shapes for part in _acquisitions(shape)]


def _split(slices: Sequence[Slice], same: Callable[[Slice, Slice], bool]) -> list[list[Slice]]:
    parts: list[list[Slice]] = []
    for one in slices:
        for part in parts:
            if same(part[0], one):
                part.append(one)
                break
        else:
            parts.append([one])
    return parts


def _same_shape(a: Slice, b: Slice) -> bool:
    return (
        a.size == b.size
        and np.allclose(a.spacing, b.spacing, rtol=_SAME_SPACING, atol=0)
        and np.allclose(a.rows, b.rows, rtol=0, atol=SAME_DIRECTION)
    )


def _shape_problem(slices: Sequence[Slice]) -> str:
    """The first slice that does not fit the majority, in words."""
    usual = max(_split(slices, _same_shape), key=len)[0]
    odd = next(s for s in slices if not _same_shape(usual, s))
    if odd.size != usual.size or not np.allclose(odd.spacing, usual.spacing, rtol=_SAME_SPACING, atol=0):
        return (
            f"{odd.path}: {odd.size} pixels of {odd.spacing} mm, {usual.name} has {usual.size} of {usual.spacing}; "
            "move slices of other kinds out of the folder"
        )
    return f"{odd.path}: is oriented otherwise than {usual.name}; move scout views out of the folder"


def _without_copies(slices: list[Slice]) -> tuple[list[Slice], list[str]]:
    """Keep one of several files with the same SOPInstanceUID and the same pixels."""
    seen: dict[tuple[str, int | None], Slice] = {}
    kept, copies = [], 0
    for one in slices:
        twin = seen.setdefault((one.instance, one.frame), one)
        if twin is one or not one.instance or not _same_content(twin, one):
            kept.append(one)
        else:
            copies += 1
    return kept, [f"{copies} copies of slices passed over"] if copies else []


def _same_content(a: Slice, b: Slice) -> bool:
    if not np.array_equal(a.position, b.position):
        return False
    try:
        pixels = []
        for one in (a, b):
            with warnings.catch_warnings(action="ignore"):
                pixels.append(pydicom.dcmread(one.path, force=True).get("PixelData"))
    except Exception:
        return False
    return pixels[0] is not None and pixels[0] == pixels[1]


def _acquisitions(slices: list[Slice]) -> list[list[Slice]]:
    """Split slices that lie at the same places by acquisition, kernel, temporal position or image type."""
    if not _overlap(slices):
        return [slices]
    for key in (
        lambda s: s.acquisition,
        lambda s: s.kernel,
        lambda s: s.temporal,
        lambda s: (s.acquisition, s.kernel),
        lambda s: (s.acquisition, s.kernel, s.temporal, s.image_type),
    ):
        parts: dict[Any, list[Slice]] = defaultdict(list)
        for one in slices:
            parts[key(one)].append(one)
        if len(parts) > 1 and not any(_overlap(part) for part in parts.values()):
            return list(parts.values())
    return [slices]


def _heights(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Unit normal of the slices, and their positions along it in mm."""
    row, column = slices[0].rows[:3], slices[0].rows[3:]
    normal = np.cross(row, column)
    normal = normal / np.linalg.norm(normal)
    return normal, np.array([s.position @ normal for s in slices])


def _overlap(slices: Sequence[Slice]) -> bool:
    """Whether two slices lie at the same place."""
    steps = np.diff(np.sort(_heights(slices)[1]))
    apart = steps[steps > 1e-6]
    return bool(len(steps)) and (not len(apart) or bool((steps <= _UNEVEN * np.median(apart)).any()))


def _ordered(slices: list[Slice], notes: list[str]) -> Series:
    """Order slices along their normal, and check that they are one complete volume."""
    normal, heights = _heights(slices)
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[k] for k in order], heights[order]
    if problem := _rescale_problem(slices) or _step_problem(slices, heights, normal):
        folder = common_folder([s.path for s in slices])
        return Series(tuple(slices), None, tuple(notes), f"{folder}: {problem}")
    first = slices[0]
    row = first.rows[:3] / np.linalg.norm(first.rows[:3])
    column = np.cross(normal, row)  # at right angles exactly
    step = float((heights[-1] - heights[0]) / (len(slices) - 1))
    grid = Grid(
        (*first.size, len(slices)),
        (*first.spacing, step),
        tuple(first.position.tolist()),
        tuple((np.stack([row, column, normal], axis=1) + 0.0).ravel().tolist()),
    )
    return Series(tuple(slices), grid, tuple(notes))


def _rescale_problem(slices: Sequence[Slice]) -> str | None:
    """Slope and intercept must be in all slices or in none."""
    for index, name in enumerate(("RescaleSlope", "RescaleIntercept")):
        without = [s for s in slices if s.rescale[index] is None]
        if without and len(without) < len(slices):
            names = ", ".join(s.name for s in without[:3]) + (", ..." if len(without) > 3 else "")
            return (
                f"{len(without)} of {len(slices)} slices have no {name} ({names}), so that their values are not HU; "
                "restore it or export the series again"
            )
    return None


def _step_problem(slices: Sequence[Slice], heights: np.ndarray, normal: np.ndarray) -> str | None:
    """Why slices are not evenly spaced at right angles."""
    if len(slices) < 2:
        return "its series has one slice; expected a volume of several slices"
    steps = np.diff(heights)
    usual = float(np.median(steps))
    for k in np.flatnonzero(steps <= _UNEVEN * usual):
        return f"{slices[k].name} and {slices[k + 1].name} lie at the same place; remove one of them"
    numbers = np.arange(len(slices))
    step, start = np.polyfit(numbers, heights, 1)  # positions may be rounded
    off = np.abs(heights - (start + step * numbers))
    if off.max() > _UNEVEN * step:
        k = int(np.abs(steps - usual).argmax())
        return (
            f"its slices are not evenly spaced: {steps[k]:g} mm between {slices[k].name} and {slices[k + 1].name}, "
            f"{usual:g} mm elsewhere; one is missing or damaged: export the series again"
        )
    positions = np.array([s.position for s in slices])
    drift = (positions - positions[0]) - np.outer(heights - heights[0], normal)
    sideways = np.linalg.norm(drift[-1]) / (heights[-1] - heights[0])
    wobble = np.linalg.norm(drift - np.outer(numbers, drift[-1] / (len(slices) - 1)), axis=1).max()
    if sideways > _TILT:
        return (
            f"its slices are shifted sideways, as by a gantry tilt of {np.degrees(np.arctan(sideways)):.1f} degrees; "
            "resample the series onto a straight grid, for example with dcm2niix"
        )
    if wobble > _UNEVEN * step:
        return "its slices are shifted sideways by different distances; export the series again"
    return None


def _without_lost_slices(found: list[Series], lone: list[Slice]) -> list[Series]:
    """A single slice that continues another series has most likely lost its UIDs: neither is complete."""
    result = list(found)
    for number, series in enumerate(found):
        if series.problem is not None:
            continue
        normal = np.reshape(series.grid.direction, (3, 3))[:, 2] * series.grid.spacing[2]
        ends = series.slices[0].position - normal, series.slices[-1].position + normal
        for other in lone:
            near = any(np.linalg.norm(other.position - end) < _UNEVEN * series.grid.spacing[2] for end in ends)
            if near and _same_shape(other, series.first):
                result[number] = replace(
                    series,
                    problem=f"{other.path}: continues the series of {series.first.name}, but as another series or kind "
                    "of object; copy it again if it is damaged, move it out of the folder if not",
                )
    return result
