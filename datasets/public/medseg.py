"""MedSeg (B): 9 voxel-labelled CTs."""

from __future__ import annotations

import re

from datasets.public.sets import CT, LESION, LUNG, PublicSet, labels


def _case(name: str) -> str | None:
    return str(int(name)) if re.fullmatch(r"\d{1,4}", name) else None


MEDSEG = PublicSet(
    name="medseg",
    title="MedSeg (B)",
    letter="B",
    cts="rp_im/",
    folders={"rpim": CT, "rplungmsk": LUNG, "rpmsk": LESION},
    case=_case,
    group=lambda case, kinds: "B",
    tests=("B",),
    expected={"CTs": 9, "lung masks": 9, "lesion masks": 9},
    lesion=labels({1, 2}, {0, 1, 2, 3}),
    lung=labels({1, 2}, {0, 1, 2, 3}),
)
"""Lesion masks: 1 ground glass, 2 consolidation, 3 pleural effusion. Lung masks: 1 right, 2 left, 3 artefact."""
