"""Report page of a cohort: a table of cases, slices with outlined lesions, and plots.

views = [encode_case(case) for case in cases]
write_case_report(Path("report.html"), "Test", columns, views, {"model": "segmenter_best.pth"})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reports.page import MINUS, write_page
from reports.plots import cohort_plots
from reports.views import ReportCase, View, encode_case

__all__ = ["Column", "ReportCase", "View", "encode_case", "write_case_report"]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: key in the values of a `View`.
        title: heading.
        unit: unit, shown beside the heading.
        digits: decimal places.
        help: explanation, one sentence.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 1
    help: str = ""


def write_case_report(
    path: Path, title: str, columns: Sequence[Column], views: Sequence[View], facts: Mapping[str, str]
) -> None:
    """Write the page of a cohort atomically.

    The first column is always the id; columns that are empty for all cases are left out.

    Args:
        path: path of the page.
        title: heading of the page.
        columns: columns of the table, in order.
        views: cases, in their initial order.
        facts: value by name for the footer: model, device, versions.

    Raises:
        OSError: it cannot be written.
    """
    given = {column.key: column for column in columns}
    used = [given.get("id", Column("id", "Case"))]
    used += [c for c in columns if c.key != "id" and any(view["values"].get(c.key) is not None for view in views)]
    numeric = {c.key: not any(isinstance(view["values"].get(c.key), str) for view in views) for c in used[1:]}
    headings = [{**asdict(column), "numeric": numeric.get(column.key, False)} for column in used]
    rows = [
        [_cell(column, view["id"] if column.key == "id" else view["values"].get(column.key)) for column in used]
        for view in views
    ]
    write_page(
        path,
        "cases.html",
        ("cases.js",),
        title=title,
        summary="1 case" if len(views) == 1 else f"{len(views)} cases",
        columns=headings,
        helps=[column for column in headings if column["help"]],
        rows=rows,
        first=first_to_show(views),
        figures=cohort_plots([view["values"] for view in views]),
        cases=[{key: part for key, part in view.items() if key != "values"} for view in views],
        facts=facts,
    )


def first_to_show(views: Sequence[View]) -> int:
    """Index of the case with the median Dice, the lower one of two; 0 if no case has one."""
    dice = [(view["values"].get("dice"), number) for number, view in enumerate(views)]
    known = sorted((value, number) for value, number in dice if value is not None)
    return known[(len(known) - 1) // 2][1] if known else 0


def _cell(column: Column, value: str | float | None) -> dict[str, object]:
    """Text and sort value of a cell."""
    if value is None:
        return {"text": "\N{EN DASH}", "value": "", "numeric": True}
    if isinstance(value, str):
        return {"text": value, "value": value, "numeric": False}
    digits = 0 if isinstance(value, int) else column.digits
    return {"text": f"{value:.{digits}f}".replace("-", MINUS), "value": repr(value), "numeric": True}
