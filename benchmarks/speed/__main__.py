"""Measures the speed of this implementation against the published one, and against other programs, on one device.

All ways of doing one thing run in turn, so that other load on the machine affects them alike: read the ratios. Writes
OUTPUT/DEVICE.json and a readable table OUTPUT/DEVICE.md; with --only, DEVICE_PART.json and DEVICE_PART.md.

Examples:
    python -m benchmarks.speed --device cpu
    python -m benchmarks.speed --device cuda --only training,segmenter
    python -m benchmarks.speed --device cpu --quick --output /tmp/results
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import as_json, as_table
from benchmarks.speed import networks, peers
from utils.cli import add_device, new_parser, run, start_logging
from utils.distributed import choose_device, keep_freed_memory
from utils.files import write_text
from utils.ledger import environment

RESULTS = Path(__file__).resolve().parents[1] / "results"

PARTS = {
    "training": networks.training,
    "segmenter": networks.segmenter,
    "preparation": peers.preparation,
    "lungs": peers.lungs,
    "reading": peers.reading,
}
"""Functions that return what to compare by title: functions by name, the baseline first."""


def alternate(
    ways: Mapping[str, Callable[[], Any]], repetitions: int, synchronise: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each call of several functions that run in turn, by name, after one call of each that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + repetitions):
        for name, way in ways.items():
            synchronise()
            start = time.perf_counter()
            way()
            synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(what: str, seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Table rows of ways that were timed with `alternate`: median, range, and ratio to the first."""
    baseline = statistics.median(next(iter(seconds.values())))
    return [
        {
            "what": what,
            "way": name,
            "median_s": statistics.median(found),
            "ratio": baseline / statistics.median(found),
            "lowest_s": min(found),
            "highest_s": max(found),
            "repetitions": len(found),
        }
        for name, found in seconds.items()
    ]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


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
    if device.type == "cpu":
        keep_freed_memory()

    name = "_".join([device.type, *(parts if options.only else [])])
    command = " ".join(["python -m benchmarks.speed", *(sys.argv[1:] if arguments is None else arguments)])
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    told, tables = {"processor": _processor(), **environment(device)}, {}
    sections = ["\n".join([f"# `{command}`\n", *(f"- {key}: {value}" for key, value in told.items()), ""])]
    for part in parts:
        tables[part] = []
        for what, ways in PARTS[part](device, options.quick):
            tables[part] += compare(what, alternate(ways, 2 if options.quick else 5, wait))
        rounded = [{key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()} for row in tables[part]]
        sections.append(f"## {part}\n\n{as_table(rounded)}")
        print(f"\n{sections[-1]}", flush=True)
        # Write after each part: finished measurements survive a later failure.
        write_text(options.output / f"{name}.json", as_json({"command": command, "environment": told, **tables}))
        write_text(options.output / f"{name}.md", "\n".join(sections))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
