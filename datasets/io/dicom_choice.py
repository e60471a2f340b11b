"""Which series of a study is taken."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.io.dicom_series import Series, extent_mm, group_series, step_mm, studies_of
from datasets.io.dicom_slices import Other, Slice, is_dicom_file, read_slices
from utils.errors import VolumeError
from utils.files import visible_files

log = logging.getLogger(__name__)

AXIAL, LUNGS_MM, THIN_MM = 0.8, 200.0, 5.0
"""Cosine to the patient's axis from which a series is axial; length that covers the lungs; limit of a thin slice."""


@dataclass(frozen=True)
class Choice:
    """The series taken from a study.

    Attributes:
        series: the series that is taken; None if the choice is not clear.
        reason: the rule that decided.
        passed_over: the other series, each with its reason.
        problem: why there is no choice.
    """

    series: Series | None
    reason: str
    passed_over: tuple[tuple[Series, str], ...] = ()
    problem: str | None = None

    @property
    def note(self) -> str | None:
        """Which series was taken by which rule, if a rule and not the user chose it from several."""
        if not self.passed_over or self.reason.startswith("--series"):
            return None
        others = "; ".join(series.label for series, _ in self.passed_over)
        return f"takes the series {self.series.label} ({self.reason}); --series picks another of: {others}"


def kernel_kind(kernel: str) -> str:
    """Whether a reconstruction kernel is ``soft`` or ``sharp``; ``unknown`` otherwise.

    By the vendors' naming: Siemens B/Br/Bf/Bl/I and a number (sharp from 50 on), Canon FC and a number (sharp from 30
    on), GE by words, Philips by letters.
    """
    name = kernel.upper().replace("\\", " ")
    if match := re.search(r"\b(?:[BIHQDJ][FRLVSPI]?)(\d{2})", name):
        return "sharp" if int(match[1]) >= 50 else "soft"
    if match := re.search(r"\bFC(\d{2})", name):
        return "sharp" if int(match[1]) >= 30 else "soft"
    if re.search(r"LUNG|BONE|EDGE|SHARP|\b(?:L|D|E|YB|YC|YD)\b", name):
        return "sharp"
    if re.search(r"STANDARD|SOFT|SMOOTH|DETAIL|\b(?:A|B|C|YA)\b", name):
        return "soft"
    return "unknown"


RULES: tuple[tuple[str, Callable[[Series], Any]], ...] = (
    ("original before derived", lambda s: s.first.image_type[:2] in ((), ("ORIGINAL", "PRIMARY"))),
    ("axial before others", lambda s: abs(np.cross(s.first.rows[:3], s.first.rows[3:])[2]) >= AXIAL),
    (f"covers {LUNGS_MM:g} mm, the length of lungs", lambda s: extent_mm(s) >= LUNGS_MM),
    (f"slices less than {THIN_MM:g} mm apart", lambda s: step_mm(s) < THIN_MM),
    ("soft kernel before others, sharp last", lambda s: {"soft": 2, "unknown": 1}.get(kernel_kind(s.first.kernel), 0)),
    ("most slices", lambda s: len(s.slices)),
)
"""How the series of a study are compared, in this order; the first rule that tells two apart decides.

Soft kernels come first because edge enhancement changes the HU of ground glass, on which segmenters rely; lung kernels
are used if there is no other.
"""


def matches(series: Series, choice: str) -> int:
    """How well a series fits ``--series``: 3 by UID, 2 by number, acquisition or kernel, 1 by text, 0 not at all."""
    first = series.first
    if choice == first.series:
        return 3
    if choice in (first.number, f"acquisition {first.acquisition}", first.acquisition) or (
        first.kernel and choice.lower() == first.kernel.lower()
    ):
        return 2
    return int(choice.lower() in f"{first.description}\n{first.kernel}".lower())


def choose_series(candidates: Sequence[Series], choice: str | None) -> Choice:
    """Choose the series of one study.

    Args:
        candidates: the volumes of the study.
        choice: SeriesInstanceUID, SeriesNumber, AcquisitionNumber, kernel or part of the SeriesDescription.
    """
    left, reason = list(candidates), "the only series"
    if choice is not None:
        fit = max(matches(series, choice) for series in candidates)
        if not fit:
            names = "; ".join(series.label for series in candidates)
            return Choice(None, "", (), f"no series {choice!r}; it holds {names}")
        left, reason = [s for s in candidates if matches(s, choice) == fit], f"--series {choice}"
    passed = [(series, reason) for series in candidates if series not in left]
    for rule, key in RULES:
        if len(left) == 1:
            break
        best = max(key(series) for series in left)
        worse = [series for series in left if key(series) != best]
        if worse:
            passed += [(series, rule) for series in worse]
            left, reason = [series for series in left if key(series) == best], rule
    if len(left) > 1:
        names = "; ".join(series.label for series in left)
        problem = f"several series of {len(left[0].slices)} slices that no rule tells apart: {names}; "
        problem += "pick one with --series"
        return Choice(None, "", tuple((series, problem) for series in left), problem)
    return Choice(left[0], reason, tuple(passed))


def find_series(folder: Path, choice: str | None = None) -> Series:
    """The CT series in a folder, at any depth.

    Args:
        folder: folder of one patient and study.
        choice: as for `choose_series`.

    Raises:
        VolumeError: there is no CT series, more than one study, no clear choice, or the series is not complete.
    """
    files = visible_files(folder)
    with warnings.catch_warnings(action="ignore"):
        found = [one for path in files if is_dicom_file(path) for one in read_slices(path)]
    slices, others = ([one for one in found if isinstance(one, kind)] for kind in (Slice, Other))
    studies = studies_of(group_series(slices, others))
    if not studies:
        damaged = next((other for other in others if other.damaged), None)
        if damaged is not None:
            raise VolumeError(f"{damaged.path}: {damaged.kind}; copy it again")
        raise VolumeError(f"{folder}: holds no CT series; expected a folder of DICOM slices, or a CT file")
    if len(studies) > 1:
        names = "; ".join(volumes[0].label for volumes in studies.values())
        raise VolumeError(f"{folder}: holds {len(studies)} studies: {names}; name the folder of one of them")
    chosen = choose_series(next(iter(studies.values())), choice)
    if chosen.series is None:
        raise VolumeError(f"{folder}: {chosen.problem}")
    if chosen.note:
        log.warning("%s: %s", folder, chosen.note)
    return chosen.series
