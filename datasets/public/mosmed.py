"""MosMed (C, D): COVID19_1110 with 1110 CTs, 50 of them voxel-labelled. CT-0 has no findings, CT-1 to CT-4 have."""

from __future__ import annotations

import re
from collections.abc import Collection

from datasets.public.sets import LESION, PublicSet, labels


def _case(name: str) -> str | None:
    match = re.fullmatch(r"study_(\d{1,6})(?:_mask)?", name)
    return f"study_{int(match[1]):04d}" if match else None


def _group(case: str, kinds: Collection[str]) -> str:
    return "D_healthy" if "CT-0" in kinds else "C" if LESION in kinds else "D_diseased"


def _row(kind: str, case: str) -> str:
    return f"CTs in {kind}" if kind.startswith("CT-") else f"{kind}s"


MOSMED = PublicSet(
    name="mosmed",
    title="MosMed (C, D)",
    letter="C",
    cts="studies/CT-0/ to studies/CT-4/",
    folders={**{f"ct{grade}": f"CT-{grade}" for grade in range(5)}, "masks": LESION, "mask": LESION},
    case=_case,
    group=_group,
    tests=("C",),
    expected={
        "CTs in CT-0": 254,
        "CTs in CT-1": 684,
        "CTs in CT-2": 125,
        "CTs in CT-3": 45,
        "CTs in CT-4": 2,
        "lesion masks": 50,
    },
    lesion=labels({1}, {0, 1}),
    lung=None,
    training={"validh": ("D_healthy", "D_valid_healthy"), "validwl": ("D_diseased", "D_valid_diseased")},
    healthy=("D_healthy",),
    row=_row,
    missing_lesions_note=(
        "lesion masks are missing: scans of C without theirs are taken for D, and a model that is trained on them must "
        "not be tested on them"
    ),
)
"""Lesion masks: 1 ground glass and consolidation."""
