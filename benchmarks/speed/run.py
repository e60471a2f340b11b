"""Measures our ways against the published ones on one device.

Writes benchmarks/results/DEVICE.json and a table for the eye, DEVICE.md; with --only, DEVICE_PART.json and so on.

Examples:
    python benchmarks/run.py --device cpu
    python benchmarks/run.py --device cuda --only training,segmenter
    python benchmarks/run.py --device cpu --quick --output /tmp/results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# As a script, Python looks for modules in this folder; the project is the one above.
ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.speed.measure import environment, write_results  # noqa: E402
from utils.cli import add_device, choose_device, new_parser, run, start_logging  # noqa: E402
from utils.files import write_text  # noqa: E402

PARTS = ("training", "roofline", "segmenter", "cohort", "preparation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions")
    parser.add_argument("--only", metavar="PART,...", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    start_logging(quiet=False)
    device = choose_device(options.device)
    parts = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"argument --only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")

    name = "_".join([device.type, *(parts if options.only else [])])
    command = " ".join(["python benchmarks/run.py", *(sys.argv[1:] if arguments is None else arguments)])
    tables: dict[str, Sequence[Mapping[str, Any]]] = {}
    for part in parts:
        rows = import_module(f"benchmarks.speed.{part}").rows
        tables[part] = rows(options.quick) if part == "preparation" else rows(device, options.quick)
        print(f"\n## {part}\n\n{as_markdown(tables[part])}", flush=True)
        # Part by part: what was measured stays, whatever comes.
        write_results(options.output / f"{name}.json", command, device, tables)
        sections = [f"## {part}\n\n{as_markdown(rows)}\n" for part, rows in tables.items()]
        found = "\n".join(f"- {key}: {value}" for key, value in environment(device).items())
        write_text(options.output / f"{name}.md", "\n".join([f"# `{command}`\n\n{found}\n", *sections]))
    return 0


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one table, ranges left out; columns are those of the first row and whatever later ones add."""
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list)))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(run(main))
