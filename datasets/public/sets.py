"""What describes a public data set: the layout of its download, the meaning of its labels, and its lists."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets.scan import Scan
from datasets.volumes import volume_id

CT, LUNG, LESION = "CT", "lung mask", "lesion mask"
"""Kinds of files. Other kinds of CTs begin with ``CT``, such as ``CT-0``."""

GREY_WINDOW = (-1250.0, 250.0)
"""HU that became 0 and 255 in scans that are distributed as grey values."""


@dataclass(frozen=True)
class Labels:
    """The labels of a kind of mask.

    Attributes:
        counted: labels that are lung, or lesion.
        known: labels that may occur; others are reported.
    """

    counted: frozenset[int]
    known: frozenset[int]


ALL_LABELS = frozenset(range(256))


def labels(counted: Collection[int], known: Collection[int] = ALL_LABELS) -> Labels:
    """Make `Labels` of any collections; by default all labels may occur."""
    return Labels(frozenset(counted), frozenset(known))


@dataclass(frozen=True)
class Mask:
    """A mask file and its labels."""

    path: Path
    labels: Labels


@dataclass(frozen=True)
class PublicScan:
    """A scan of a public set.

    Attributes:
        id: id, unique over all sets.
        group: its list, unless it is labelled or held out.
        patient: equal for scans of the same patient.
        ct: the CT.
        lesion: lesion mask; None if the set has none for this scan.
        lung: lung mask; None if lungs are to be found.
        grey: whether the CT is distributed as grey values 0..255.
    """

    id: str
    group: str
    patient: str
    ct: Scan
    lesion: Mask | None = None
    lung: Mask | None = None
    grey: bool = False


def _never(case: str) -> bool:
    return False


def _no_note(case: str) -> None:
    return None


def _itself(case: str) -> str:
    return case


@dataclass(frozen=True)
class PublicSet:
    """A public set. A case is the name of a scan within its set.

    Attributes:
        name: name on the command line; also the prefix of the scans' ids.
        title: the paper's name.
        letter: the paper's letter of the voxel-labelled scans.
        cts: folders of the CTs, for messages.
        folders: kind of file by folder name; names are lower case, letters and digits only.
        case: case of a file name without extension, the same for all spellings; None for files of other origin.
        group: group of a case, given the kinds of its files.
        tests: groups of voxel-labelled scans, which are tested on.
        expected: number of files in the complete set, by row of the table of counts.
        lesion: labels of lesion masks.
        lung: labels of lung masks; None if the set has none.
        training: by option that holds scans out (``validh``, ``validwl``): the group it holds out from, and the list
            they go to.
        healthy: groups without findings.
        shared: masks for both lungs and lesions, used where a mask is missing: labels by kind of mask, by kind of file.
        row: row of the table of counts, given kind of file and case.
        patient: patient of a case.
        grey: whether a case is distributed as grey values.
        label: id of the default labelled scan.
        label_note: remark on a labelled case, or None.
        missing_lesions_note: remark if lesion masks are missing.
    """

    name: str
    title: str
    letter: str
    cts: str
    folders: Mapping[str, str]
    case: Callable[[str], str | None]
    group: Callable[[str, Collection[str]], str]
    tests: tuple[str, ...]
    expected: Mapping[str, int]
    lesion: Labels
    lung: Labels | None
    training: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    healthy: tuple[str, ...] = ()
    shared: Mapping[str, Mapping[str, Labels]] = field(default_factory=dict)
    row: Callable[[str, str], str] = lambda kind, case: f"{kind}s"
    patient: Callable[[str], str] = _itself
    grey: Callable[[str], bool] = _never
    label: str | None = None
    label_note: Callable[[str], str | None] = _no_note
    missing_lesions_note: str | None = None

    def id_of(self, name: str) -> str | None:
        """Id of the scan of a file, by its name with or without extension or the set's name; None if there is none."""
        name = volume_id(Path(name)).lower()
        case = self.case(name.removeprefix(f"{self.name}_"))
        return None if case is None else f"{self.name}_{case}"

    def case_of(self, case_id: str) -> str:
        """Case of a scan's id."""
        return case_id.removeprefix(f"{self.name}_")

    def patient_of(self, case_id: str) -> str:
        """Patient of a scan's id."""
        return f"{self.name}_{self.patient(self.case_of(case_id))}"

    @property
    def held_out(self) -> Mapping[str, tuple[tuple[str, ...], str]]:
        """Groups and list by option that holds scans out, in the order in which they are drawn."""
        from_tests = {"valid": (self.tests, f"{self.letter}_valid")}
        return from_tests | {option: ((group,), name) for option, (group, name) in self.training.items()}
