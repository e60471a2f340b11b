"""Which labels of a public set are lesion in a cohort: scores compare only between equal choices."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

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


def lesion_note(public_set: PublicSet, counted: Collection[int]) -> str:
    """Which labels count as lesion, beside those of the published test, which counts every label above 0."""
    published = public_set.lesion.known - {0}
    line = f"{public_set.title}: lesion is {_labels(counted)}"
    if set(counted) == published:
        return f"{line}, as in the published test"
    return f"{line}; the published test counts {_labels(published)}, so its Dice does not compare"


def _labels(values: Iterable[int]) -> str:
    values = [str(value) for value in sorted(values)]
    return f"label{'s' if len(values) > 1 else ''} {' '.join(values)}"
