"""CovidSeg (A): 20 voxel-labelled CTs.

Ten are from Coronacases, in HU; ten from Radiopaedia, as grey values. The download has one of two layouts.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from datasets.public.sets import CT, LESION, LUNG, PublicSet, labels

_CORONACASES = re.compile(r"coronacases(?:_org)?_(\d+)")
_RADIOPAEDIA = re.compile(r"radiopaedia(?:[-_].*)?[-_](\d+)_(\d+)_(\d+)(?:-dcm)?")
_BOTH = "lung and infection mask"


def _case(name: str) -> str | None:
    """``coronacases_001`` or ``radiopaedia_10_85902_1``, from short and long names.

    In ``radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm`` three numbers identify the scan: the Radiopaedia case (10),
    the study (85902) and the series (1). The short names of the masks contain nothing else.
    """
    if match := _CORONACASES.fullmatch(name):
        return f"coronacases_{int(match[1]):03d}"
    if match := _RADIOPAEDIA.fullmatch(name):
        return "radiopaedia_{}_{}_{}".format(*(int(number) for number in match.groups()))
    return None


def _from_radiopaedia(case: str) -> bool:
    return case.startswith("radiopaedia")


def _group(case: str, kinds: Collection[str]) -> str:
    return "A_sub2" if _from_radiopaedia(case) else "A_sub1"


def _row(kind: str, case: str) -> str:
    return f"CTs of {case.split('_')[0]}" if kind == CT else f"{kind}s"


def _patient(case: str) -> str:
    """A Radiopaedia case is one patient, with one or more studies.

    radiopaedia_10_85902_1 and _3 are one patient, and so, by their case, are 29_86490_1 and 29_86491_1.
    """
    return case.rsplit("_", 2)[0] if _from_radiopaedia(case) else case


def _label_note(case: str) -> str | None:
    if not _from_radiopaedia(case):
        return None
    return "the labelled scan is from Radiopaedia, like those of B; file names do not tell whether they share patients"


COVIDSEG = PublicSet(
    name="covidseg",
    title="CovidSeg (A)",
    letter="A",
    cts="ct_scans/ or COVID-19-CT-Seg_20cases/",
    folders={
        "ctscans": CT,
        "covid19ctseg20cases": CT,
        "lungmask": LUNG,
        "infectionmask": LESION,
        "lungandinfectionmask": _BOTH,
    },
    case=_case,
    group=_group,
    tests=("A_sub1", "A_sub2"),
    expected={
        "CTs of coronacases": 10,
        "CTs of radiopaedia": 10,
        "lung masks": 20,
        "lesion masks": 20,
        "lung and infection masks": 20,
    },
    lesion=labels({1}, {0, 1}),
    lung=labels({1, 2}, {0, 1, 2}),
    shared={_BOTH: {LUNG: labels({1, 2, 3}, {0, 1, 2, 3}), LESION: labels({3}, {0, 1, 2, 3})}},
    row=_row,
    patient=_patient,
    grey=_from_radiopaedia,
    label="covidseg_coronacases_001",
    label_note=_label_note,
)
"""Lung masks: 1 and 2 the lungs. Lesion masks: 1 infection. Masks of both: 1 and 2 the lungs, 3 the infection."""
