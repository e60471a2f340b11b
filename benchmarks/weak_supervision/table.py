"""The table of the benchmark, from the results of its runs: OUTPUT/table.md, also printed.

Dice and sensitivity are of test scans with lesion, at a threshold of 0.5; false positives are what was found in healthy
test scans. Rows without a finished run are left out, and every row says how many seeds it has.

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
    "labels": "Which scan is labelled",
    "ablations": "GASNet, 1 label, one thing changed",
}
"""Title of each part of the table."""

SHARE_OF_MANY = 0.95
"""Of the Dice with 40 labels that GASNet is to reach with one."""

MARGIN = 0.30
"""Dice by which GASNet with one label is to exceed S with it."""


@dataclass(frozen=True)
class Aggregate:
    """A row over its seeds. SD are population standard deviations.

    Attributes:
        seeds: finished runs.
        dice: mean over the seeds of the mean over the test scans with lesion.
        dice_lowest: of the seeds.
        dice_sd_seeds: SD over the seeds of the mean over the scans.
        dice_sd_scans: mean over the seeds of the SD over the scans.
        sensitivity: as `dice`.
        false_positive_ml: mean over the seeds of the mean over the healthy test scans.
        false_positive_sd_scans: mean over the seeds of the SD over these scans.
        valid_dice: of the segmenters that were kept, on the validation scans with lesion, mean over the seeds.
        best_iteration: after which they were kept, by seed.
    """

    seeds: int
    dice: float
    dice_lowest: float
    dice_sd_seeds: float
    dice_sd_scans: float
    sensitivity: float
    false_positive_ml: float
    false_positive_sd_scans: float
    valid_dice: float
    best_iteration: tuple[int, ...]


def aggregate(results: Sequence[Mapping[str, Any]]) -> Aggregate:
    """A row over its seeds, from the results of its runs, at least one."""
    lesion = [result["test"]["lesion"] for result in results]
    healthy = [result["test"]["no_lesion"]["false_positive_ml"] for result in results]
    dice = [scores["dice"]["mean"] for scores in lesion]
    return Aggregate(
        seeds=len(results),
        dice=mean(dice),
        dice_lowest=min(dice),
        dice_sd_seeds=pstdev(dice),
        dice_sd_scans=mean(scores["dice"]["std"] for scores in lesion),
        sensitivity=mean(scores["sensitivity"]["mean"] for scores in lesion),
        false_positive_ml=mean(found["mean"] for found in healthy),
        false_positive_sd_scans=mean(found["std"] for found in healthy),
        valid_dice=mean(result["valid_dice"] for result in results),
        best_iteration=tuple(result["best_iteration"] for result in results),
    )


def read_results(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Results of the finished runs by row, in the order of `ROWS`; rows without any are left out.

    Raises:
        GasnetError: there is none, or one cannot be read.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((output / "results").glob("*_seed_*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(result["row"], []).append(result)
        except (ValueError, KeyError, TypeError):
            raise GasnetError(f"{path}: not a result of the benchmark; remove it, and run its row again") from None
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
    """The table in Markdown, a part a group of `ROWS`, and how the rows stand against the targets."""
    parts = []
    for group, title in GROUPS.items():
        members = {name: row for name, row in rows.items() if ROWS[name].group == group}
        if members:
            head = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
            parts.append("\n".join([f"**{title}**\n", *head, *(_line(ROWS[n].title, r) for n, r in members.items())]))
    if met := targets(rows):
        lines = [f"| {what} | {found} | {'yes' if holds else 'no'} |" for what, found, holds in met]
        parts.append("\n".join(["**Targets**\n", "| target | found | met |", "|---|---|---|", *lines]))
    return "\n\n".join(parts) + "\n"


def targets(rows: Mapping[str, Aggregate]) -> list[tuple[str, str, bool]]:
    """The targets whose rows are there: what was to be reached, what was found, and whether it was."""
    found = []
    weak, one, ten, many = (rows.get(name) for name in ("gasnet-1", "s-1", "s-10", "s-40"))
    if weak and one:
        gain = weak.dice - one.dice
        found.append((f"GASNet(1) at least {MARGIN:.2f} above S(1)", f"{gain:+.3f}", gain >= MARGIN))
        found.append(
            (
                "no seed of GASNet(1) below S(1)",
                f"lowest {weak.dice_lowest:.3f}, S(1) {one.dice:.3f}",
                weak.dice_lowest >= one.dice,
            )
        )
    if weak and ten:
        found.append(("GASNet(1) at least S(10)", f"{weak.dice:.3f} against {ten.dice:.3f}", weak.dice >= ten.dice))
    if weak and many:
        share = weak.dice / many.dice if many.dice else float("inf")
        found.append((f"GASNet(1) at least {SHARE_OF_MANY} of S(40)", f"{share:.2f}", share >= SHARE_OF_MANY))
        found.append(
            (
                "false positives of GASNet(1) no more than those of S(40)",
                f"{weak.false_positive_ml:.0f} against {many.false_positive_ml:.0f} ml",
                weak.false_positive_ml <= many.false_positive_ml,
            )
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.table")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of the benchmark's results")
    options = parser.parse_args(arguments)
    table = as_markdown({name: aggregate(results) for name, results in read_results(options.output).items()})
    write_text(options.output / "table.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
