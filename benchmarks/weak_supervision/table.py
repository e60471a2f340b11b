"""Aggregates the results of the runs into a table: OUTPUT/table.md, also printed.

Dice and sensitivity are means over test scans with lesions at a threshold of 0.5; false positives are the volume
predicted in healthy test scans. Rows without a finished run are left out; every row states its number of seeds.

Examples:
  python -m benchmarks.weak_supervision.table output/weak
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from benchmarks.weak_supervision.rows import ROWS
from utils.cli import new_parser, run
from utils.errors import GasnetError
from utils.files import write_text

GROUPS = {
    "main": "One label and many",
    "labels": "Another labelled scan",
    "ablations": "GASNet, 1 label, one change",
}
"""Section titles of the table."""


@dataclass(frozen=True)
class Aggregate:
    """One row aggregated over its seeds. SD are population standard deviations.

    Attributes:
        seeds: number of finished runs.
        dice: mean over seeds of the mean over test scans with lesions.
        dice_sd_seeds: SD over seeds of the mean over scans.
        dice_sd_scans: mean over seeds of the SD over scans.
        sensitivity: aggregated like `dice`.
        false_positive_ml: mean over seeds of the mean over healthy test scans, in ml.
        false_positive_sd_scans: mean over seeds of the SD over healthy test scans, in ml.
        valid_dice: validation Dice of the kept segmenters, mean over seeds.
        best_iteration: iteration of the kept segmenter, per seed.
    """

    seeds: int
    dice: float
    dice_sd_seeds: float
    dice_sd_scans: float
    sensitivity: float
    false_positive_ml: float
    false_positive_sd_scans: float
    valid_dice: float
    best_iteration: tuple[int, ...]


def aggregate(results: Sequence[Mapping[str, Any]]) -> Aggregate:
    """Aggregate the results of at least one run of a row."""
    lesion = [result["test"]["lesion"] for result in results]
    healthy = [result["test"]["no_lesion"]["false_positive_ml"] for result in results]
    dice = [scores["dice"]["mean"] for scores in lesion]
    return Aggregate(
        seeds=len(results),
        dice=mean(dice),
        dice_sd_seeds=pstdev(dice),
        dice_sd_scans=mean(scores["dice"]["std"] for scores in lesion),
        sensitivity=mean(scores["sensitivity"]["mean"] for scores in lesion),
        false_positive_ml=mean(found["mean"] for found in healthy),
        false_positive_sd_scans=mean(found["std"] for found in healthy),
        valid_dice=mean(result["valid_dice"] for result in results),
        best_iteration=tuple(result["best_iteration"] for result in results),
    )


def read_results(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the results of finished runs by row, in the order of `ROWS`; rows without results are left out.

    Raises:
        GasnetError: there are no results, or a file is not a result.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((output / "results").glob("*_seed_*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(result["row"], []).append(result)
        except (ValueError, KeyError, TypeError):
            raise GasnetError(f"{path}: not a result of this benchmark; remove it and run its row again") from None
    if not found:
        raise GasnetError(f"{output}: no results; run python -m benchmarks.weak_supervision.run --output {output}")
    return {name: found[name] for name in ROWS if name in found}


_COLUMNS = (
    "row",
    "seeds",
    "test Dice",
    "SD over seeds",
    "SD over scans",
    "sensitivity",
    "false positives in healthy scans, ml",
    "validation Dice",
    "best iteration",
)


def _line(title: str, row: Aggregate) -> str:
    cells = (
        title,
        str(row.seeds),
        f"{row.dice:.3f}",
        f"{row.dice_sd_seeds:.3f}" if row.seeds > 1 else "-",
        f"{row.dice_sd_scans:.3f}",
        f"{row.sensitivity:.3f}",
        f"{row.false_positive_ml:.0f} ± {row.false_positive_sd_scans:.0f}",
        f"{row.valid_dice:.3f}",
        ", ".join(map(str, row.best_iteration)),
    )
    return f"| {' | '.join(cells)} |"


def as_markdown(rows: Mapping[str, Aggregate]) -> str:
    """Format the table in Markdown, one section per group of `ROWS`."""
    parts = []
    for group, title in GROUPS.items():
        members = {name: row for name, row in rows.items() if ROWS[name].group == group}
        if members:
            head = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
            parts.append("\n".join([f"**{title}**\n", *head, *(_line(ROWS[n].title, r) for n, r in members.items())]))
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.table")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="results folder of the benchmark")
    options = parser.parse_args(arguments)
    table = as_markdown({name: aggregate(results) for name, results in read_results(options.output).items()})
    write_text(options.output / "table.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
