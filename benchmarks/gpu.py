"""Measures training and inference on a GPU in two parts of some minutes each.

Part 1: whether the fast path computes the same, and how fast it is beside the published way and with each switch off.
Part 2: tests that need CUDA, NCCL, batches from files, a profile, and the largest batch. Every section has a share of
the time and a process of its own, and writes what it finds at once, to OUTPUT/DEVICE_part_N.jsonl. In the end, tables
of all parts go to OUTPUT/DEVICE.md, beside the targets. With --toy, everything runs at a small size on the CPU: that
tries the script and says nothing about speed.

Examples:
    python benchmarks/gpu.py --part 1 --minutes 6
    python benchmarks/gpu.py --part 2 --output output/gpu
    python benchmarks/gpu.py --toy --output output/gpu_toy
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# A script's folder comes first on Python's path; the project is the folder above.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks.speed.__main__ import RESULTS, as_markdown  # noqa: E402
from benchmarks.speed.gpu_sections import PARTS, Section  # noqa: E402
from utils.cli import choose_device, new_parser, run, start_logging  # noqa: E402
from utils.files import write_text  # noqa: E402

_GRACE_S = 15
"""Seconds after its time in which a section may still end by itself."""

TARGETS = {
    "S and G, times the published way": (6.0, 10.0),
    "S and G, ms": (110.0, 60.0),
    "D, times the published way": (8.0, 12.0),
    "D, ms": (90.0, 50.0),
    "S alone, volumes per second": (400.0, 750.0),
    "share of time that waits for batches": (0.05, 0.01),
    "memory at batch 4, GiB": (12.0, 8.0),
    "losses of 12 steps in fp32, worst relative difference": (1e-3, 1e-3),
    "losses of 12 steps in bf16, worst relative difference": (1e-2, 1e-2),
}
"""What should be reached at least, and at best, at batch 4 on an H100 or H200."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is 1 if a section failed."""
    parser = new_parser(__doc__, "python benchmarks/gpu.py")
    parser.add_argument("--minutes", type=float, default=6, metavar="M", help="time of the part (default 6)")
    parser.add_argument("--part", type=int, choices=list(PARTS), help="default: both, one after the other")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--toy", action="store_true", help="small sizes on the CPU, to try the script")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error("--minutes must be above 0")
    start_logging(quiet=False)
    device = choose_device("cpu" if options.toy else "cuda")
    options.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in [options.part] if options.part else list(PARTS):
        file = options.output / f"{'toy' if options.toy else device.type}_part_{part}.jsonl"
        file.unlink(missing_ok=True)
        end = time.monotonic() + 60 * options.minutes
        for section, share in PARTS[part]:
            deadline = min(end, time.monotonic() + 60 * options.minutes * share)
            own = Section(section.__name__, device, options.toy, deadline, file)
            if not _run_section(section.__name__, part, own):
                failed.append(section.__name__)
    name = "toy" if options.toy else device.type
    rows = [
        json.loads(line)
        for file in sorted(options.output.glob(f"{name}_part_*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    write_text(options.output / f"{name}.md", report(rows, options.toy))
    print(f"tables in {options.output / f'{name}.md'}")
    return 1 if failed else 0


def _run_section(name: str, part: int, section: Section) -> bool:
    """Run a section: in this process if it is a toy, else in one of its own; return whether it ended well."""
    if section.toy:
        return _work(name, part, section)
    process = multiprocessing.get_context("spawn").Process(target=_exit_code, args=(name, part, section))
    process.start()
    process.join(max(section.left(), 1) + _GRACE_S)
    if process.is_alive():
        process.kill()
        section.note(error="out of time")
        return False
    return process.exitcode == 0


def _exit_code(name: str, part: int, section: Section) -> None:
    raise SystemExit(0 if _work(name, part, section) else 1)


def _work(name: str, part: int, section: Section) -> bool:
    work = next(function for function, _ in PARTS[part] if function.__name__ == name)
    torch.backends.cudnn.benchmark = True
    try:
        work(section)
    except Exception as error:
        traceback.print_exc()
        section.note(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])
        return False
    return True


def report(rows: Sequence[Mapping[str, Any]], toy: bool = False) -> str:
    """Format the rows of all sections in Markdown: the targets first, then a table per section.

    Args:
        rows: what the sections noted.
        toy: whether the sizes are those of a trial.
    """
    parts = ["# Speed on a GPU\n" if not toy else "# A trial at a small size on the CPU: not a measurement\n"]
    reached = found_targets(rows)
    lines = [
        {"what": what, "at least": least, "best": best, "found": reached.get(what, "not measured")}
        for what, (least, best) in TARGETS.items()
    ]
    if not toy:
        parts.append(f"## Targets\n\n{as_markdown(lines)}\n")
    for name in dict.fromkeys(row["section"] for row in rows):
        own = [{key: value for key, value in row.items() if key != "section"} for row in rows if row["section"] == name]
        parts.append(f"## {name}\n")
        # Rows with the same columns make a table.
        while own:
            same = [row for row in own if row.keys() == own[0].keys()]
            own = [row for row in own if row.keys() != same[0].keys()]
            parts.append(f"{as_markdown(same)}\n")
    return "\n".join(parts)


def found_targets(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What was measured for the targets; those without a measurement are left out."""

    def first(section: str, key: str, **fits: Any) -> float | None:
        rows_of = (row for row in rows if row["section"] == section and key in row)
        return next((row[key] for row in rows_of if all(row.get(k) == v for k, v in fits.items())), None)

    found: dict[str, float | None] = {}
    for name, key in (("S and G", "joint_s"), ("D", "discriminator_s")):
        published, ours = first("baselines", key, way="published"), first("baselines", key, way="ours, fast path")
        found[f"{name}, ms"] = ours and 1e3 * ours
        found[f"{name}, times the published way"] = published and ours and published / ours
    speeds = [row["volumes_per_s"] for row in rows if row["section"] == "inference" and row.get("way") == "fast"]
    found["S alone, volumes per second"] = max(speeds, default=None)
    found["share of time that waits for batches"] = first("loader", "waiting_share", way="ours, fast path")
    found["memory at batch 4, GiB"] = first("baselines", "memory_gib", way="ours, fast path")
    for precision in ("fp32", "bf16"):
        what = f"losses of 12 steps in {precision}, worst relative difference"
        found[what] = first("parity", "worst_relative", precision=precision)
    return {what: value for what, value in found.items() if value is not None}


if __name__ == "__main__":
    raise SystemExit(run(main))
