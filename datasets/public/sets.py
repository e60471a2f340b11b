"""The public data sets as tables: names of files and folders, meaning of labels, groups of scans.

| set | scans | ids | lists |
|---|---|---|---|
| CovidSeg (A) | 20, all labelled | covidseg_coronacases_001, covidseg_radiopaedia_10_85902_1 | A_sub1, A_sub2 |
| MedSeg (B) | 9, all labelled | medseg_1 | B |
| MosMed (C, D) | 1110, 50 labelled | mosmed_study_0255 | C, D_healthy, D_diseased |

To add a set, describe it here and add it to `SETS`.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

CT, LUNG, LESION = "CT", "lung mask", "lesion mask"
"""Kinds of files. Other kinds of CTs begin with ``CT``, such as ``CT-0``."""

GREY_WINDOW = (-1250.0, 250.0)
"""HU that became 0 and 255 in scans that are distributed as grey values."""

HELD_OUT = {"valid": "", "validh": "_healthy", "validwl": "_diseased"}
"""End of the list's name by option that holds scans out: of voxel-labelled scans, healthy ones, and diseased ones."""


@dataclass(frozen=True)
class Labels:
    """The labels of a kind of mask: those that are lung, or lesion, and those that may occur; others are refused."""

    counted: Set[int]
    known: Set[int] = frozenset(range(256))


@dataclass(frozen=True)
class Names:
    """How the files of some of a set's scans are called, and what follows from that."""

    pattern: str  # of the whole name, in lower case and without extension; its groups are numbers
    case: str  # format of the scan's name with these numbers, the same for all spellings
    group: str  # of the scans, unless one of their files decides it (`PublicSet.group_of_kind`)
    patient: str | None = None  # format of the patient with the numbers; by default every scan is a patient
    grey: bool = False  # whether these CTs are distributed as grey values 0..255
    label_note: str | None = None  # remark if such a scan is the labelled one


@dataclass(frozen=True)
class Case:
    """A scan of a set, as its name tells: its id (set and name), how it is called, and its patient."""

    id: str
    names: Names
    patient: str


@dataclass(frozen=True)
class PublicSet:
    """A public set.

    Groups of scans have the option that holds their scans out, see `HELD_OUT`: those of ``valid`` need a lesion mask
    and are tested on, those of ``validh`` must have none. Of the kinds of masks, the first that a scan has is taken.
    """

    name: str  # on the command line; also the prefix of the scans' ids
    title: str  # the paper's name
    folders: Mapping[str, str]  # kind of file by folder name; case, spaces and punctuation do not matter
    names: tuple[Names, ...]  # how files are called
    groups: Mapping[str, str]  # option by group
    expected: Mapping[str, int]  # number of files in the complete set, by row of the table of counts
    masks: Mapping[str, Mapping[str, Labels]]  # kind of mask file to what it is read as: lungs, lesions, or both
    group_of_kind: Mapping[str, str] = field(default_factory=dict)  # group of scans with a file of this kind
    label: str | None = None  # id of the default labelled scan
    missing_lesions_note: str | None = None  # remark if lesion masks are missing

    @property
    def lung(self) -> Labels | None:
        """Labels of its lung masks; None if it has none."""
        return self.masks.get(LUNG, {}).get(LUNG)

    @property
    def lesion(self) -> Labels:
        """Labels of its lesion masks."""
        return self.masks[LESION][LESION]

    def case(self, name: str) -> Case | None:
        """The scan of a file name, with or without extension, or of an id; None if it is no name of the set."""
        from datasets.volumes import volume_id

        name = volume_id(Path(name)).lower().removeprefix(f"{self.name}_")
        for names in self.names:
            if match := re.fullmatch(names.pattern, name):
                numbers = [int(number) for number in match.groups()]
                forms = (names.case, names.patient or names.case)
                case_id, patient = (f"{self.name}_{form.format(*numbers)}" for form in forms)
                return Case(case_id, names, patient)
        return None

    def kind(self, path: Path) -> str | None:
        """Kind of a file, by the nearest folder above it that has a name of the set; None if none has."""
        kinds = {_plain(name): kind for name, kind in self.folders.items()}
        return next((kinds[_plain(name)] for name in reversed(path.parts[:-1]) if _plain(name) in kinds), None)

    def row(self, kind: str, case: Case) -> str:
        """Row of a file in the table of counts."""
        if kind == CT and len(self.names) > 1:
            return f"CTs of {case.names.case.split('_')[0]}"
        return f"CTs in {kind}" if kind.startswith("CT-") else f"{kind}s"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BOTH = "lung and infection mask"

COVIDSEG = PublicSet(
    name="covidseg",
    title="CovidSeg (A)",
    # The download has one of two layouts.
    folders={
        "ct_scans": CT,
        "COVID-19-CT-Seg_20cases": CT,
        "lung_mask": LUNG,
        "infection_mask": LESION,
        "lung_and_infection_mask": _BOTH,
    },
    names=(
        Names(r"coronacases(?:_org)?_(\d+)", "coronacases_{:03d}", "A_sub1"),
        # In radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm three numbers identify the scan: the Radiopaedia case
        # (10), the study (85902) and the series (1). The short names of the masks contain nothing else. A Radiopaedia
        # case is one patient: 10_85902_1 and _3, and by their case also 29_86490_1 and 29_86491_1.
        Names(
            r"radiopaedia(?:[-_].*)?[-_](\d+)_(\d+)_(\d+)(?:-dcm)?",
            "radiopaedia_{}_{}_{}",
            "A_sub2",
            patient="radiopaedia_{}",
            grey=True,
            label_note="the labelled scan is from Radiopaedia, like those of B; file names do not tell whether they "
            "share patients",
        ),
    ),
    groups={"A_sub1": "valid", "A_sub2": "valid"},
    expected={
        "CTs of coronacases": 10,
        "CTs of radiopaedia": 10,
        "lung masks": 20,
        "lesion masks": 20,
        "lung and infection masks": 20,
    },
    # Lungs are 1 and 2, the infection is 1; in masks of both, it is 3.
    masks={
        LUNG: {LUNG: Labels({1, 2}, {0, 1, 2})},
        LESION: {LESION: Labels({1}, {0, 1})},
        _BOTH: {LUNG: Labels({1, 2, 3}, {0, 1, 2, 3}), LESION: Labels({3}, {0, 1, 2, 3})},
    },
    label="covidseg_coronacases_001",
)
"""20 voxel-labelled CTs: ten from Coronacases, in HU, and ten from Radiopaedia, as grey values."""

MEDSEG = PublicSet(
    name="medseg",
    title="MedSeg (B)",
    folders={"rp_im": CT, "rp_lung_msk": LUNG, "rp_msk": LESION},
    names=(Names(r"(\d{1,4})", "{}", "B"),),
    groups={"B": "valid"},
    expected={"CTs": 9, "lung masks": 9, "lesion masks": 9},
    # Lungs: 1 right, 2 left, 3 artefact. Lesions: 1 ground glass, 2 consolidation, 3 pleural effusion.
    masks={
        LUNG: {LUNG: Labels({1, 2}, {0, 1, 2, 3})},
        LESION: {LESION: Labels({1, 2}, {0, 1, 2, 3})},
    },
)
"""9 voxel-labelled CTs."""

MOSMED = PublicSet(
    name="mosmed",
    title="MosMed (C, D)",
    folders={**{f"CT-{grade}": f"CT-{grade}" for grade in range(5)}, "masks": LESION, "mask": LESION},
    names=(Names(r"study_(\d{1,6})(?:_mask)?", "study_{:04d}", "D_diseased"),),
    groups={"C": "valid", "D_healthy": "validh", "D_diseased": "validwl"},
    group_of_kind={"CT-0": "D_healthy", LESION: "C"},
    expected={
        "CTs in CT-0": 254,
        "CTs in CT-1": 684,
        "CTs in CT-2": 125,
        "CTs in CT-3": 45,
        "CTs in CT-4": 2,
        "lesion masks": 50,
    },
    masks={LESION: {LESION: Labels({1}, {0, 1})}},
    missing_lesions_note="lesion masks are missing: scans of C without theirs are taken for D, and a model that is "
    "trained on them must not be tested on them",
)
"""1110 CTs, 50 of them voxel-labelled (1, ground glass and consolidation). CT-0 has no findings, CT-1 to CT-4 have."""

SETS = {public_set.name: public_set for public_set in (COVIDSEG, MEDSEG, MOSMED)}
"""All sets by name."""
