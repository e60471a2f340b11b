"""What is one series: the one place that decides which slices are one volume, and which volumes are one study.

Headers are evidence, not proof. A SeriesInstanceUID is one series, wherever its files lie and however its patient is
spelled, unless other evidence contradicts it: places or InstanceNumbers taken twice, two acquisitions that alternate,
other sizes and orientations. What contradicts is told apart by patient, folder, acquisition and kernel; without UIDs,
by folder first. Every conclusion that a reader might not expect is a note. A volume has one orientation, slices stacked
at right angles and at even distances, none missing, double or damaged.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from datasets.dicom import SAME_DIRECTION, Other, Slice, short_hash, value_in

_UNEVEN = 0.1
"""Largest distance of a slice from an evenly spaced grid, as a share of the distance between slices."""

_TILT = 2e-3
"""Largest sideways shift from slice to slice, as a share of their distance: a tenth of a degree of gantry tilt."""

_SAME_SPACING = 1e-3
"""Relative difference of pixel spacings within a series."""

_OWN_VOLUME = 4
"""Fewest slices that are a volume of their own among slices of other sizes, orientations, acquisitions or UIDs."""

NOT_HU = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
"""RescaleTypes that are no HU, as of spectral CTs: densities, iodine, effective atomic number, percent."""

_SKIPS = 1.5
"""Acquisitions alternate if the slices of each are on average this many times as far apart as those of all."""

Geometry = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]
"""Size, spacing, origin and direction, as `datasets.geometry.blank` takes them."""


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in order along its third axis."""

    slices: tuple[Slice, ...]  # the slices; in the order of their files if there is a problem
    geometry: Geometry | None  # None if there is a problem
    # what its scan is known by: study, patient, and the folder where UIDs do not tell scans apart
    study: tuple[str, str, Path | None]
    notes: tuple[str, ...] = ()  # what was concluded that a reader might not expect
    problem: str | None = None  # why it cannot be read; one line that names the folder or file

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
    def uid(self) -> str:
        """SeriesInstanceUID or, without one, a name made of number, description and folder."""
        first = self.first
        return first.series or f"without UID {short_hash(first.number, first.description, str(self.folder))}"

    @property
    def step_mm(self) -> float:
        """Distance between slices in mm; the median if it is uneven, 0 for one slice."""
        steps = np.diff(np.sort(_heights(self.slices)[1]))
        return float(np.median(steps)) if len(steps) else 0.0

    @property
    def extent_mm(self) -> float:
        """Length along the normal in mm, slice thickness included."""
        return float(np.ptp(_heights(self.slices)[1])) + max(self.first.thickness, self.step_mm)

    @property
    def label(self) -> str:
        """UID, number, description, kernel, acquisition, number of slices, for messages."""
        first = self.first
        parts = [f"number {first.number or '-'}", first.description or "no description"]
        parts += [f"kernel {first.kernel}"] if first.kernel else []
        parts += [f"acquisition {first.acquisition}"] if first.acquisition else []
        return f"{self.uid} ({', '.join(parts)}, {len(self.slices)} slices)"


def common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all files."""
    return Path(os.path.commonpath({path.parent for path in files}))


def studies_of(series: Iterable[Series]) -> dict[tuple[str, str, Path | None, str], list[Series]]:
    """Series by study, patient, folder and, where all series of a UID have one and they differ, date.

    A series that names no patient belongs to the only one of its study.
    """
    series = list(series)
    said: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for one in series:
        said[one.study[0]].add((one.study[1], one.first.date))
    studies: dict[tuple[str, str, Path | None, str], list[Series]] = defaultdict(list)
    for one in series:
        uid, patient, folder = one.study
        patients, dates = ({*values} for values in zip(*said[uid], strict=True))
        named, date = patients - {""}, one.first.date if len(dates) > 1 and "" not in dates else ""
        studies[uid, next(iter(named)) if not patient and len(named) == 1 else patient, folder, date].append(one)
    return dict(studies)


def group_series(slices: Sequence[Slice], others: Sequence[Other]) -> list[Series]:
    """Group slices into volumes, order each, and find its problems.

    Args:
        slices: of any number of patients and studies.
        others: files beside them that are no slices; those that are damaged may be missing from a series.
    """
    by_uid: dict[Any, list[Slice]] = defaultdict(list)
    for one in sorted(slices, key=lambda s: (s.path, s.frame or 0)):
        by_uid[one.series or (one.path.parent, one.number, one.description)].append(one)
    found = []
    for members in _with_uid_per_slice(by_uid):
        found += _volumes(*members)
    lone = [series.first for series in found if len(series.slices) == 1]
    lone += [other.like for other in others if other.like is not None]
    by_folder: dict[Path, list[Other]] = defaultdict(list)
    for other in others:
        by_folder[other.path.parent].append(other)
    alike: dict[Any, list[Slice]] = defaultdict(list)
    for series in found:
        alike[_names(series.first)] += (series.first, series.slices[-1])  # also in other folders and studies
    return [_complete(series, by_folder, lone, alike[_names(series.first)]) for series in found]


# ----------------------------------------------------------------------------------- what belongs together


def _with_uid_per_slice(by_uid: dict[Any, list[Slice]]) -> Iterable[tuple[list[Slice], list[str]]]:
    """The slices of each UID, with notes; slices with a UID each that stack evenly are one series."""
    single = [members[0] for members in by_uid.values() if len(members) == 1 and members[0].frame is None]
    of_study = Counter(one.study for one in single)
    alike: dict[Any, list[Slice]] = defaultdict(list)
    for one in single:
        study = one.study if of_study[one.study] > 1 else one.path.parent
        alike[study, one.patient_id, one.description, one.size, one.image_type[:3]].append(one)
    merged = [part for group in alike.values() for part in _split(group, _same_shape) if len(part) >= _OWN_VOLUME]
    in_merged = {id(one) for part in merged for one in part}
    for part in merged:
        yield part, [f"{len(part)} slices with a SeriesInstanceUID each are read as one series"]
    for members in by_uid.values():
        if id(members[0]) not in in_merged:
            yield members, []


def _volumes(slices: list[Slice], notes: list[str]) -> list[Series]:
    """The volumes among the slices of one UID; slices that cannot be told apart are one volume with a problem."""
    found = _volumes_apart(*_without_copies(slices, notes))
    if all(one.problem is None for one in found):
        return found
    # Copies may have a UID of their own. Slices of air are alike in two scans, so all must be in order without them.
    others = _volumes_apart(*_without_copies(slices, notes, by_uid=False))
    return others if all(one.problem is None for one in others) else found


def _volumes_apart(slices: list[Slice], notes: list[str]) -> list[Series]:
    if not _taken_twice(slices):
        return _volumes_of_scan(slices, notes)
    said = "one SeriesInstanceUID in {} {} with the same places or InstanceNumbers: one scan per {}"
    patients = _by(slices, lambda s: s.patient_id)
    if len(patients) > 1:
        notes = [*notes, said.format(len(patients), "patients", "patient")]
        return [one for part in patients for one in _volumes(part, notes)]
    folders = _by(slices, lambda s: s.path.parent)
    notes_of_folders = [*notes, said.format(len(folders), "folders", "folder")]
    by_folder = [(part[0].path.parent, one) for part in folders for one in _volumes_of_scan(part, notes_of_folders)]
    if len(folders) > 1 and all(one.problem is None for _, one in by_folder):
        return [replace(one, study=(*one.study[:2], folder)) for folder, one in by_folder]
    return _volumes_of_scan(slices, notes)


def _volumes_of_scan(slices: list[Slice], notes: list[str]) -> list[Series]:
    shapes = _split(slices, _same_shape)
    if len(shapes) > 1 and min(map(len, shapes)) < _OWN_VOLUME:
        usual = max(shapes, key=len)[0]
        odd = next(s for s in slices if not _same_shape(usual, s))
        problem = f"{odd.path}: has another size, spacing or orientation than {usual.name}; move it out of the folder"
        return [Series(tuple(slices), None, _study_of(slices), tuple(notes), problem)]
    found = []
    for shape in shapes:
        parts, said = _acquisitions(shape)
        found += [_ordered(part, notes + said) for part in parts]
    alone = len(found) == 1
    return [one if one.problem else replace(one, notes=(*one.notes, *_missing(one, alone))) for one in found]


def _study_of(slices: Sequence[Slice]) -> tuple[str, str, Path | None]:
    first = slices[0]
    # Without a study's UID, its folder separates it from others.
    return first.study, first.patient_id or first.person[0], None if first.study else common_folder([first.path])


def _taken_twice(slices: Sequence[Slice]) -> bool:
    """Whether slices share a place or an InstanceNumber."""
    numbers = [s.place_in_series for s in slices if s.place_in_series and s.frame is None]
    return len(set(numbers)) < len(numbers) or any(_overlap(shape) for shape in _split(slices, _same_shape))


def _by(slices: Sequence[Slice], key: Callable[[Slice], Any]) -> list[list[Slice]]:
    parts: dict[Any, list[Slice]] = defaultdict(list)
    for one in slices:
        parts[key(one)].append(one)
    return list(parts.values())


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
        and (a.spacing == b.spacing or np.allclose(a.spacing, b.spacing, rtol=_SAME_SPACING, atol=0))
        and (a.rows is b.rows or np.allclose(a.rows, b.rows, rtol=0, atol=SAME_DIRECTION))
    )


def _without_copies(slices: list[Slice], notes: list[str], by_uid: bool = True) -> tuple[list[Slice], list[str]]:
    """Keep one of several slices with the same patient, geometry, scaling, pixels and, by default, UID, and say so."""
    seen: dict[Any, Slice] = {}
    kept = []
    for one in slices:
        geometry = one.position.tobytes(), one.rows.tobytes(), one.spacing, one.size, one.frame
        uid = (one.instance or id(one)) if by_uid else None
        twin = seen.setdefault((one.patient_id, one.person, geometry, one.rescale, uid), one)
        pixels = None if twin is one else value_in(one.path, "PixelData")
        if pixels is None or pixels != value_in(twin.path, "PixelData"):
            kept.append(one)
    copies = len(slices) - len(kept)
    return kept, [*notes, f"exact copies of slices passed over: {copies}"] if copies else notes


def _acquisitions(slices: list[Slice]) -> tuple[list[list[Slice]], list[str]]:
    """Tell apart the volumes among slices of one shape, and say so.

    Slices at the same places differ by acquisition, kernel, temporal position, description, image type or, without
    UIDs, by the pattern of their names; or one volume was acquired, or is numbered, after the other. Slices at places
    of their own may still be of two acquisitions that alternate.
    """
    by_order = (lambda s: s.acquired, _later_in_time(slices), _later_in_number(slices))
    if not _overlap(slices):
        for key in (lambda s: s.acquisition, *by_order):
            parts = _by(slices, key)
            if len(parts) > 1 and all(_skips(part, slices) for part in parts):
                return parts, [f"{len(parts)} acquisitions whose slices alternate are volumes of their own"]
        return [slices], []
    keys = [
        lambda s: s.acquisition,
        lambda s: s.kernel,
        lambda s: s.temporal,
        lambda s: s.description,
        lambda s: (s.acquisition, s.kernel),
        lambda s: (s.acquisition, s.kernel, s.temporal, s.image_type),
    ]
    if not slices[0].series:
        keys.append(lambda s: re.sub(r"\d+", "#", s.path.name))
    for key in keys:
        parts = _by(slices, key)
        if len(parts) > 1 and not any(_overlap(part) for part in parts):
            return parts, []
    for key in by_order:
        parts = _by(slices, key)
        if len(parts) > 1 and all(map(_is_volume, parts)):
            return parts, [f"{len(parts)} volumes at the same places are told apart by their order"]
    return [slices], []


def _is_volume(part: list[Slice]) -> bool:
    return len(part) >= _OWN_VOLUME and _ordered(part, []).problem is None


def _skips(part: list[Slice], slices: Sequence[Slice]) -> bool:
    """Whether a part of the slices of one shape is a volume whose slices lie between those of the others."""
    if not _is_volume(part):
        return False
    own, whole = (np.ptp(_heights(some)[1]) / (len(some) - 1) for some in (part, slices))
    return bool(own > _SKIPS * whole)


def _later_in_time(slices: Sequence[Slice]) -> Callable[[Slice], bool]:
    """Whether a slice was acquired after the longest pause."""
    times = {s.acquired: float(s.acquired) for s in slices if re.fullmatch(r"\d+(\.\d+)?", s.acquired)}
    order = sorted(set(times.values()))
    if len(order) < 2 * _OWN_VOLUME:
        return lambda s: True
    pause = int(np.argmax(np.diff(order)))
    return lambda s: times.get(s.acquired, 0.0) > order[pause]


def _later_in_number(slices: Sequence[Slice]) -> Callable[[Slice], bool]:
    """Whether the InstanceNumber of a slice is in the upper half."""
    numbers = {s.place_in_series: int(s.place_in_series) for s in slices if s.place_in_series.isdecimal()}
    middle = float(np.median(list(numbers.values()))) if numbers else 0.0
    return lambda s: numbers.get(s.place_in_series, 0) > middle


def _heights(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Unit normal of the slices, and their positions along it in mm."""
    normal = np.cross(slices[0].rows[:3], slices[0].rows[3:])
    normal = normal / np.linalg.norm(normal)
    return normal, np.array([s.position @ normal for s in slices])


def _overlap(slices: Sequence[Slice]) -> bool:
    """Whether two slices lie at the same place."""
    steps = np.diff(np.sort(_heights(slices)[1]))
    apart = steps[steps > 1e-6]
    return bool(len(steps)) and (not len(apart) or bool((steps <= _UNEVEN * np.median(apart)).any()))


# --------------------------------------------------------------------------------- whether it is complete


def _ordered(slices: list[Slice], notes: Sequence[str]) -> Series:
    """Order slices along their normal, and check that they are one complete volume."""
    study = _study_of(slices)
    normal, heights = _heights(slices)
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[k] for k in order], heights[order]
    folder = common_folder([s.path for s in slices])
    if problem := _rescale_problem(slices) or _step_problem(slices, heights, normal, folder):
        return Series(tuple(slices), None, study, tuple(notes), f"{folder}: {problem}")
    first = slices[0]
    row = first.rows[:3] / np.linalg.norm(first.rows[:3])
    column = np.cross(normal, row)  # at right angles exactly
    step = float((heights[-1] - heights[0]) / (len(slices) - 1))
    direction = (np.stack([row, column, normal], axis=1) + 0.0).ravel()
    size, spacing = (*first.size, len(slices)), (*first.spacing, step)
    geometry = size, spacing, tuple(first.position.tolist()), tuple(direction.tolist())
    return Series(tuple(slices), geometry, study, tuple(notes))


def _missing(series: Series, alone: bool) -> list[str]:
    """What the headers say about slices that are not there; InstanceNumbers left out may be of volumes beside it."""
    slices, stated, thick = series.slices, max(s.of_acquisition for s in series.slices), series.first.thickness
    numbers = sorted(int(s.place_in_series) for s in slices if s.place_in_series.isdecimal())
    steps = set(np.diff(numbers).tolist()) if alone and len(numbers) == len(slices) else set()
    if stated > len(slices):
        evidence = f", but {stated} were acquired (ImagesInAcquisition)"
    elif len(steps) == 1 and min(steps) > 1 and not series.step_mm < 1.01 * thick:  # slices that touch are complete
        evidence = f" in steps of {min(steps)}, {series.step_mm:g} mm apart" + f" and {thick:g} mm thick" * (thick > 0)
    else:
        return []
    found = f", InstanceNumbers {numbers[0]} to {numbers[-1]}" if numbers else ""
    return [f"holds {len(slices)} slices{found}{evidence}; is the copy complete?"]


def _rescale_problem(slices: Sequence[Slice]) -> str | None:
    """Slope and intercept must be in all slices or in none, and give HU."""
    if (quantity := slices[0].quantity) in NOT_HU:
        return f"its values are {quantity} (RescaleType), not HU; leave the series out"
    for index, name in enumerate(("RescaleSlope", "RescaleIntercept")):
        without = [s.name for s in slices if s.rescale[index] is None]
        if 0 < len(without) < len(slices):
            names = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
            return f"{len(without)} of {len(slices)} slices have no {name} ({names}): not HU; export the series again"
    return None


def _step_problem(slices: Sequence[Slice], heights: np.ndarray, normal: np.ndarray, folder: Path) -> str | None:
    """Why slices are not evenly spaced at right angles."""
    if len(slices) < 2:
        return "its series has one slice; expected a volume of several slices"

    def named(k: int) -> str:
        return str((slices[k].path.parent / slices[k].name).relative_to(folder))

    steps = np.diff(heights)
    usual = float(np.median(steps))
    count = np.arange(len(slices))
    step, start = np.polyfit(count, heights, 1)  # positions may be rounded
    uneven = np.abs(heights - (start + step * count)).max() > _UNEVEN * step
    k = int(np.abs(np.diff(steps, prepend=steps[0])).argmax())
    parts = steps[:k], steps[k + 1 :]
    even = all(len(part) >= _OWN_VOLUME - 1 and np.ptp(part) < _UNEVEN * part.min() for part in parts)
    if uneven and even and np.ptp(np.delete(steps, k)) > _UNEVEN * usual:
        return (
            f"its slices are {steps[0]:g} mm apart up to {named(k)}, {steps[-1]:g} mm from there on; resample the "
            "series, or keep one of the parts in a folder of its own"
        )
    for k in np.flatnonzero(steps <= _UNEVEN * usual):
        return f"{named(k)} and {named(k + 1)} lie at the same place; remove one of them"
    numbers = [s.place_in_series for s in slices]
    counts = Counter(number for number in numbers if number)
    twice = sum(count > 1 for count in counts.values()) > len(counts) / 2 > 1
    for k in range(len(slices) - 1) if twice else ():
        if numbers[k] and numbers[k] == numbers[k + 1]:
            return (
                f"{named(k)} and {named(k + 1)} are neighbours and have the same InstanceNumber {numbers[k]}; are two "
                "scans mixed? Put each into a folder of its own"
            )
    if uneven:
        k = int(np.abs(steps - usual).argmax())
        return (
            f"its slices are not evenly spaced: {steps[k]:g} mm between {named(k)} and {named(k + 1)}, {usual:g} mm "
            "elsewhere; one is missing or damaged: export the series again"
        )
    positions = np.array([s.position for s in slices])
    drift = (positions - positions[0]) - np.outer(heights - heights[0], normal)
    sideways = np.linalg.norm(drift[-1]) / (heights[-1] - heights[0])
    wobble = np.linalg.norm(drift - np.outer(count, drift[-1] / (len(slices) - 1)), axis=1).max()
    if sideways > _TILT:
        advice = "convert the series with dcm2niix and take the file that ends in _Tilt (or _Tilt_Eq)"
        if slices[0].unsigned_16_bits:
            advice = "resample the series onto a straight grid; dcm2niix straightens none of 16 unsigned bits"
        angle = np.degrees(np.arctan(sideways))
        return f"its slices are shifted sideways, as by a gantry tilt of {angle:.1f} degrees; {advice}"
    if wobble > _UNEVEN * step:
        return "its slices are shifted sideways by different distances; export the series again"
    return None


def _complete(
    series: Series, others: Mapping[Path, Sequence[Other]], lone: Sequence[Slice], alike: Sequence[Slice]
) -> Series:
    """A series has a problem if what lies beside it may be one of its slices, or continue it.

    That is a damaged file, another object with its UID, a single slice that continues it and has lost its UIDs, or the
    ends of the series with its names (`alike`), if one begins where it ends.
    """
    problem = None
    for other in chain.from_iterable(others.get(folder, ()) for folder in {s.path.parent for s in series.slices}):
        if problem is not None:
            break
        if other.damaged:
            problem = f"{other.path}: {other.kind}"
        elif series.problem is None and other.like is not None and other.like.series == series.first.series != "":
            problem = f"{other.path}: belongs to the series but is no slice of a CT ({other.kind})"
    if problem is series.problem is None:
        _, spacing, _, direction = series.geometry
        step = np.reshape(direction, (3, 3))[:, 2] * spacing[2]
        ends = _corner_and_centre(series.first) - step, _corner_and_centre(series.slices[-1]) + step

        def is_next(one: Slice) -> bool:
            away = [np.linalg.norm(_corner_and_centre(one) - end, axis=1).min() for end in ends]
            return min(away) < _UNEVEN * spacing[2]

        missed = [*filter(is_next, (*lone, *alike)), *(one for one in lone if _fills_a_number(one, series))]
        for one in missed[:1]:
            problem = f"{one.path}: continues the series of {series.first.name}, but as another series, object or size"
    if problem is None:
        return series
    return replace(series, geometry=None, problem=f"{problem}; copy it again, or move it out of the folder")


def _fills_a_number(lone: Slice, series: Series) -> bool:
    """Whether a slice beside a series has all of its names but the UID, its shape, and an InstanceNumber it lacks."""
    first, numbers = series.first, {"", *(s.place_in_series for s in series.slices)}
    alike = lone.path.parent == first.path.parent and _names(lone) == _names(first) and _same_shape(lone, first)
    return alike and lone.place_in_series not in numbers


def _names(one: Slice) -> tuple[Any, ...]:
    """What names a series but its UID: its patient or, without one, its folder; number, description, ..."""
    return one.patient_id or one.path.parent, one.number, one.description, one.kernel, one.acquisition


def _corner_and_centre(one: Slice) -> np.ndarray:
    """Where the first pixel and the middle of a slice lie, (2, 3)."""
    half = (np.array(one.size) - 1) * one.spacing / 2
    return one.position + np.outer((0, 1), half @ one.rows.reshape(2, 3))
