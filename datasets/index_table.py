"""Prints the index of an archive as a table: every CT below the paths that were named, and everything else found.

Only headers are read, unless which of several series shows the chest is told by their lungs alone. Also writes the
index as CSV.

Examples:
    python -m datasets.scans /archive
    python -m datasets.scans /archive --csv index.csv --series "Lung 1.0"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.scan_options import add_scan_options
from utils.cli import add_quiet, new_parser, start_logging
from utils.files import as_csv, write_text

if TYPE_CHECKING:
    from datasets.scans import Index
    from datasets.series import Series

_COLUMNS = (
    *("scan", "taken", "reason", "patient", "study", "series", "number", "description", "kernel", "slices"),
    *("spacing_mm", "size", "path"),
)


def _rows(index: Index) -> list[dict[str, str]]:
    """The index as rows of `_COLUMNS`: scans first, then passed-over series and other finds."""
    rows = [
        {"scan": scan.id, "taken": "yes", "reason": scan.problem or scan.reason, "path": str(scan.path)}
        | _series_row(scan.series)
        for scan in index.scans.values()
    ]
    rows += [
        {"taken": "no", "reason": item.reason or item.kind, "path": str(item.path)} | _series_row(item.series)
        for item in index.passed_over
    ]
    return rows + [{"taken": "unreadable", "reason": why, "path": path} for path, why in index.unreadable.items()]


def _series_row(series: Series | None) -> dict[str, str]:
    from datasets.dicom import short_hash

    if series is None:
        return {}
    first = series.first
    across, down = first.spacing
    return {
        "patient": short_hash(series.study[1]),
        "study": short_hash(first.study),
        "series": short_hash(series.uid),
        "number": first.number,
        "description": first.description,
        "kernel": first.kernel,
        "slices": str(len(series.slices)),
        "spacing_mm": f"{across:g}x{down:g}x{series.step_mm:g}",
        "size": f"{first.size[0]}x{first.size[1]}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets.scans``."""
    parser = new_parser(__doc__, "python -m datasets.scans")
    parser.add_argument("input", type=Path, nargs="+", metavar="INPUT", help="CT files, or folders of them")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the index as CSV")
    add_scan_options(parser, "series")
    add_quiet(parser)
    options = parser.parse_args(arguments)

    from datasets.scans import index_scans

    start_logging(options.quiet)
    index = index_scans(*options.input, series=options.series, progress=not options.quiet)
    rows = _rows(index)
    if options.csv is not None:
        write_text(options.csv, as_csv(_COLUMNS, rows))
    for row in rows:
        if row.get("slices") or row["taken"] == "yes":
            parts = (row.get("spacing_mm"), row.get("size"), row.get("description"), row.get("reason"))
            taken = row.get("scan") or "passed over"
            print(f"{taken}: {', '.join([*(part for part in parts if part), row['path']])}")
    print(f"{len(index.scans)} scans")
    for line in (*index.summary(), *index.warnings()):
        print(line)
    return 1 if index.unreadable or any(scan.problem for scan in index.scans.values()) else 0
