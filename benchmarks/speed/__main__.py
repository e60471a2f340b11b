"""Measures the speed of this implementation against the published one on one device.

Writes benchmarks/results/DEVICE.json and a readable table DEVICE.md; with --only, DEVICE_PART.json and DEVICE_PART.md.

Examples:
    python -m benchmarks.speed --device cpu
    python -m benchmarks.speed --device cuda --only training,segmenter
    python -m benchmarks.speed --device cpu --quick --output /tmp/results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import environment, write_results
from utils.cli import add_device, new_parser, run, start_logging
from utils.distributed import choose_device
from utils.files import write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"

PARTS = {
    "training": "iteration_speed",
    "segmenter": "inference_speed",
    "cohort": "reading_speed",
    "preparation": "preparation_speed",
}
"""Modules by the name of the table that they measure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.speed")
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions")
    parser.add_argument("--only", metavar="PART,...", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    start_logging(quiet=False)
    device = choose_device(options.device)
    parts = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"argument --only: unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")

    name = "_".join([device.type, *(parts if options.only else [])])
    command = " ".join(["python -m benchmarks.speed", *(sys.argv[1:] if arguments is None else arguments)])
    tables: dict[str, Sequence[Mapping[str, Any]]] = {}
    for part in parts:
        tables[part] = import_module(f"benchmarks.speed.{PARTS[part]}").rows(device, options.quick)
        print(f"\n## {part}\n\n{as_markdown(tables[part])}", flush=True)
        # Write after each part: finished measurements survive a later failure.
        write_results(options.output / f"{name}.json", command, device, tables)
        sections = [f"## {part}\n\n{as_markdown(rows)}\n" for part, rows in tables.items()]
        found = "\n".join(f"- {key}: {value}" for key, value in environment(device).items())
        write_text(options.output / f"{name}.md", "\n".join([f"# `{command}`\n\n{found}\n", *sections]))
    return 0


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a Markdown table; lists (ranges) are left out, columns are the union over all rows."""
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list)))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(run(main))
