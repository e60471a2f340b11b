"""The report on a public set: what was found, is missing or odd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.public.find import Found
from datasets.public.lists import natural

_MOST_LINES = 20


def report_of(
    title: str, download: Path, found: Found, lists: Mapping[str, Sequence[str]], rules: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as it is written to JSON; lists contain only scans that did not fail."""
    whole = {name: [case_id for case_id in ids if case_id in found.scans] for name, ids in lists.items()}
    listed = {case_id for ids in whole.values() for case_id in ids}
    return {
        "set": title,
        "download": str(download.absolute()),
        "rules": dict(rules),
        "files": {row: {"found": number, "expected": wanted} for row, (number, wanted) in found.counts.items()},
        "odd": found.odd,
        "failed": found.failed,
        "lists": {name: ids for name, ids in whole.items() if ids},
        "in_no_list": sorted((set(found.scans) - listed), key=natural),
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The report for the screen; long parts are cut."""
    lines = ["files found:"]
    for row, numbers in report["files"].items():
        differs = "" if numbers["found"] == numbers["expected"] else f", the set has {numbers['expected']}"
        lines.append(f"  {row:24} {numbers['found']:5}{differs}")
    lines += _shortened("odd", report["odd"])
    lines.append("lists:")
    lines += [f"  {name:24} {len(ids):5}" for name, ids in report["lists"].items()]
    lines += _shortened("in no list, because their patient has a labelled scan", report["in_no_list"])
    return "\n".join(lines)


def _shortened(title: str, findings: Sequence[str]) -> list[str]:
    if not findings:
        return []
    more = [f"  ... and {len(findings) - _MOST_LINES} more"] if len(findings) > _MOST_LINES else []
    return [f"{title}:", *(f"  {finding}" for finding in findings[:_MOST_LINES]), *more]
