"""Which labels of a public set are lesion in a cohort: scores compare only between equal choices."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets.public import SETS
from datasets.public.sets import PublicSet
from utils.errors import CohortError


def report_path(root: Path, public_set: PublicSet) -> Path:
    """Path of the report on a set in a cohort folder."""
    return root / f"public_{public_set.name}.json"


def read_rules(path: Path) -> dict[str, Any] | None:
    """The rules that the crops of a set were made with; None if there is no report.

    Args:
        path: the report.

    Raises:
        CohortError: it is no report of ``python -m datasets.public``.
    """
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["rules"])
    except (ValueError, KeyError, TypeError):
        raise CohortError(f"{path}: not a report of this command; remove it, or choose another --output") from None


def lesion_protocols(root: Path, ids: Iterable[str]) -> list[str]:
    """Which labels count as lesion, one line per public set with a scan among these.

    The published test counts every label above 0.

    Args:
        root: cohort folder.
        ids: ids of scans.

    Raises:
        CohortError: the report on a set is damaged.
    """
    ids = list(ids)
    lines = []
    for public_set in SETS.values():
        if not any(case_id.startswith(f"{public_set.name}_") for case_id in ids):
            continue
        rules = read_rules(report_path(root, public_set))
        if rules is None or "lesion_labels" not in rules:
            continue
        counted, published = set(rules["lesion_labels"]), public_set.lesion.known - {0}
        line = f"{public_set.title}: lesion is {_labels(counted)}"
        lines.append(
            f"{line}, as in the published test"
            if counted == published
            else f"{line}; the published test counts {_labels(published)}, so its Dice does not compare"
        )
    return lines


def _labels(values: Iterable[int]) -> str:
    values = [str(value) for value in sorted(values)]
    return f"label{'s' if len(values) > 1 else ''} {' '.join(values)}"
