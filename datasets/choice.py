"""Which series of a study is taken."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.dicom import read_hu
from datasets.geometry import located
from datasets.lungs import segment_by_threshold
from datasets.series import NOT_HU, Series
from utils.errors import VolumeError

AXIAL, LUNGS_MM, THIN_MM, SHORT_MM = 0.8, 200.0, 5.0, 50.0
"""Cosine to the patient's axis from which a series is axial; length that covers the lungs; limits of a thin slice and
of a short series, such as one place at several times (bolus tracking)."""

_SAME_PLACE_MM = 30.0
"""Series whose ends differ by less show the same part of the body."""

_CUT = 0.4
"""An end of a series cuts through a lung if it shows this share of its largest area."""

_CHEST = re.compile(r"chest|thora|hrct|brust|torax|\btap\b|\bcap\b", re.IGNORECASE)
_LUNG = re.compile(r"lung|pulm|poumon", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"abd|pelvi|liver|leber|kidney|renal|bowel|\bhead\b|skull|brain|\bneck|spine|\bknee|\bhip\b|\blegs?\b|extrem|sinus",
    re.IGNORECASE,
)
_PROJECTION = re.compile(r"(?<![a-z])(mip|minip|m(ax|in|ean)_ip|vrt)(?![a-z])|intensity.?projection", re.IGNORECASE)
_INSPIRATION, _EXPIRATION = (
    re.compile(r"\b(insp|einatm)", re.IGNORECASE),
    re.compile(r"\b(exs?pir|exp\b|ausatm)", re.IGNORECASE),
)


@dataclass(frozen=True)
class Choice:
    """The series taken from a study."""

    series: Series | None  # None if the choice is not clear
    reason: str = ""  # the rule that decided
    passed_over: tuple[tuple[Series, str], ...] = ()  # the other series, each with its reason
    problem: str | None = None  # why there is no choice

    @property
    def note(self) -> str | None:
        """Which series was taken by which rule, if a rule and not the user chose it from several."""
        if not self.passed_over or self.reason.startswith("--series"):
            return None
        labels = labels_of([self.series, *(series for series, _ in self.passed_over)])
        return f"takes the series {labels[0]} ({self.reason}); --series picks another of: {'; '.join(labels[1:])}"


def kernel_kind(kernel: str) -> str:
    """Whether a reconstruction kernel is ``soft`` or ``sharp``, by the vendors' naming; ``unknown`` otherwise."""
    name = kernel.upper().replace("\\", " ")
    for numbered, sharp_from in ((r"\b(?:[BIHQDJ][FRLVSPI]?)(\d{2})", 50), (r"\bFC(\d{2})", 30)):  # Siemens, Canon
        if match := re.search(numbered, name):
            return "sharp" if int(match[1]) >= sharp_from else "soft"
    if re.search(r"LUNG|BONE|EDGE|SHARP|\b(?:L|D|E|YB|YC|YD)\b", name):  # GE has words, Philips letters
        return "sharp"
    return "soft" if re.search(r"STANDARD|SOFT|SMOOTH|DETAIL|\b(?:A|B|C|YA)\b", name) else "unknown"


def shows_chest(series: Series) -> int:
    """Whether description, protocol or BodyPartExamined say chest (1), another part of the body (-1) or nothing (0)."""
    for text in series.first.shows:  # the last is BodyPartExamined, which consoles often fill in by themselves
        if _CHEST.search(text):
            return 1
        if _LUNG.search(text):  # a part of the chest, but as often the kernel
            return 0
        if _ELSEWHERE.search(text):
            return -1
    return 0


def breath(series: Series) -> int:
    """Inspiration (1), expiration (-1) or not said (0)."""
    text = series.first.shows[0]
    return 1 if _INSPIRATION.search(text) else -1 if _EXPIRATION.search(text) else 0


def whole_lungs(series: Series) -> int:
    """Number of lungs that thresholds find in a series and that neither its first nor its last slice cuts through."""
    if series.problem is not None:
        return 0
    try:
        lungs = segment_by_threshold(located(read_hu(series.slices), *series.geometry[1:]))
    except VolumeError:
        return 0
    areas = [np.count_nonzero(lungs == label, axis=(1, 2)) for label in (1, 2)]
    return sum(bool(area.any()) and area[[0, -1]].max() < _CUT * area.max() for area in areas)


def _are_one_ct(one: Series, other: Series) -> bool:
    """Whether two series are copies, as sent twice under different UIDs."""
    if one.geometry is None or one.geometry != other.geometry:
        return False
    try:
        return np.array_equal(read_hu(one.slices), read_hu(other.slices))
    except VolumeError:
        return False


RULES: tuple[tuple[str, Callable[[Series], Any]], ...] = (
    ("in HU", lambda s: s.first.quantity not in NOT_HU),
    ("no projection", lambda s: not _PROJECTION.search(" ".join((s.first.description, *s.first.image_type)))),
    (f"longer than {SHORT_MM:g} mm", lambda s: s.extent_mm > SHORT_MM),
    ("not another part of the body", lambda s: shows_chest(s) >= 0),
    ("original before derived", lambda s: s.first.image_type[:2] in ((), ("ORIGINAL", "PRIMARY"))),
    ("axial before others", lambda s: abs(np.cross(s.first.rows[:3], s.first.rows[3:])[2]) >= AXIAL),
    ("inspiration before expiration", breath),
    (f"covers {LUNGS_MM:g} mm, the length of lungs", lambda s: s.extent_mm >= LUNGS_MM),
    (f"slices less than {THIN_MM:g} mm apart", lambda s: s.step_mm < THIN_MM),
    ("soft kernel before others, sharp last", lambda s: {"soft": 2, "unknown": 1}.get(kernel_kind(s.first.kernel), 0)),
    ("named as chest", shows_chest),
    ("shows both lungs whole", whole_lungs),
    ("most slices", lambda s: len(s.slices)),
)
"""How the series of a study are compared, in this order; the first rule that tells two apart decides.

Soft kernels come first because edge enhancement changes the HU of ground glass, on which segmenters rely; lung kernels
are used if there is no other. Lungs are looked for only in series that no earlier rule tells apart, and that show
different parts of the body without a word about it.
"""


def labels_of(candidates: Sequence[Series]) -> list[str]:
    """What messages call series; those of one name are numbered, so that ``--series`` can pick each."""
    labels = [series.label for series in candidates]
    return [
        f"{label} #{labels[:k].count(label) + 1}" if labels.count(label) > 1 else label
        for k, label in enumerate(labels)
    ]


def matches(series: Series, label: str, choice: str) -> int:
    """How well a series fits ``--series``: 3 by UID or label, 2 by number, acquisition or kernel, 1 by text, or 0."""
    first = series.first
    if choice in (series.uid, label, label.rpartition(" ")[2]):
        return 3
    if choice in (first.number, f"acquisition {first.acquisition}", first.acquisition) or (
        first.kernel and choice.lower() == first.kernel.lower()
    ):
        return 2
    return int(choice.lower() in f"{first.description}\n{first.kernel}".lower())


def choose_series(candidates: Sequence[Series], choice: str | None) -> Choice:
    """Choose the series of one study: by `RULES`, among those that fit ``--series`` (see `matches`) if it is given."""
    candidates = sorted(candidates, key=lambda series: series.files[0])
    left, reason = candidates, "the only series"
    if choice is not None:
        fits = [matches(*pair, choice) for pair in zip(candidates, labels_of(candidates), strict=True)]
        if not max(fits):
            return Choice(None, problem=f"no series {choice!r}; it holds {'; '.join(labels_of(candidates))}")
        left = [series for series, fit in zip(candidates, fits, strict=True) if fit == max(fits)]
        reason = f"--series {choice}"
    passed = [(series, reason) for series in candidates if series not in left]
    for rule, key in RULES:
        if len(left) == 1:
            break
        ends = np.array([sorted(one.slices[k].position[2] for k in (0, -1)) for one in left])
        if key is whole_lungs and (any(map(shows_chest, left)) or (np.ptp(ends, axis=0) <= _SAME_PLACE_MM).all()):
            continue
        values = [key(series) for series in left]
        worse = [series for series, value in zip(left, values, strict=True) if value != max(values)]
        if worse:
            passed += [(series, rule) for series in worse]
            left, reason = [series for series in left if series not in worse], rule
    if len(left) > 1 and all(_are_one_ct(left[0], other) for other in left[1:]):
        passed, left = passed + [(copy, "a copy") for copy in left[1:]], left[:1]
        reason = "the first of equal ones" if reason == "the only series" else reason
    if len(left) > 1:
        names = [name for series, name in zip(candidates, labels_of(candidates), strict=True) if series in left]
        problem = f"several series of {len(left[0].slices)} slices that no rule tells apart: {'; '.join(names)}"
        return Choice(None, problem=f"{problem}; pick one with --series")
    return Choice(left[0], reason, tuple(passed))
