"""Aggregates the results of the runs into tables: OUTPUT/table.md, also printed.

Dice is the mean over test scans with lesions, at the threshold chosen on validation; false positives are the volume
predicted in healthy test scans. Intervals are percentile bootstraps over scans and seeds. Rows without a finished run
are left out; every row states its seeds.

Examples:
  python -m benchmarks.weak_supervision.table output/weak
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import as_table
from benchmarks.weak_supervision.rows import ROWS
from utils.cli import new_parser, run
from utils.errors import GasnetError
from utils.files import write_text

Array = np.ndarray
Results = Sequence[Mapping[str, Any]]

GROUPS = {"alone": "S alone", "gasnet": "GASNet"}
"""Section titles of the table."""

FEWEST_SEEDS = 3
"""Seeds without which a claim is neither shown nor refuted; it must be positive in each."""

_DRAWS = 2000


@dataclass(frozen=True)
class Claim:
    """A claim about rows, with the numbers that would show it."""

    title: str  # shown in the table
    rows: tuple[str, ...]  # that it compares
    value: Callable[..., Array]  # of their mean Dice
    target: float  # smallest value that shows it
    above: float  # what the lower end of the interval must exceed


CLAIMS = (
    Claim(
        "GASNet closes half of the gap between 1 and 40 labels",
        ("s-1", "gasnet-1", "s-40"),
        lambda one, gasnet, many: (gasnet - one) / (many - one),
        target=0.5,
        above=0.25,
    ),
    Claim("GASNet is better than without D", ("gasnet-1", "no-adversarial"), np.subtract, target=0.03, above=0),
)


def dice_matrix(results: Results, seeds: Sequence[int]) -> Array:
    """Dice of the test scans with lesions, (seeds, scans).

    Raises:
        GasnetError: two results are of different scans.
    """
    by_seed = {
        result["seed"]: {row["id"]: row["dice"] for row in result["test"]["rows"] if row["kind"] == "lesion"}
        for result in results
    }
    ids = list(by_seed[seeds[0]])
    if any(set(by_seed[seed]) != set(ids) for seed in seeds):
        raise GasnetError(f"results of {results[0]['row']}: seeds were tested on different scans; run them again")
    return np.array([[by_seed[seed][case_id] for case_id in ids] for seed in seeds])


def interval(value: Callable[..., Array], *matrices: Array) -> tuple[float, float]:
    """95 % interval of a function of the mean Dice of some rows: a percentile bootstrap over scans and over seeds.

    Args:
        value: function of one mean per matrix, vectorised.
        matrices: Dice, (seeds, scans), with the same seeds and scans, which are drawn together.
    """
    rng = np.random.default_rng(0)
    seeds, scans = matrices[0].shape
    picked = rng.integers(seeds, size=(_DRAWS, seeds, 1)), rng.integers(scans, size=(_DRAWS, 1, scans))
    found = value(*(matrix[picked].mean(axis=(1, 2)) for matrix in matrices))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


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


def seeds_of(*rows: Results) -> list[int]:
    """Seeds that all rows have."""
    return sorted(set.intersection(*({result["seed"] for result in results} for results in rows)))


def row_of(title: str, results: Results) -> dict[str, str]:
    """A row of the table."""
    seeds = seeds_of(results)
    matrix = dice_matrix(results, seeds)
    found = [result["test"]["no_lesion"]["false_positive_ml"]["mean"] for result in results]
    return {
        "row": title,
        "seeds": f"{len(seeds)}",
        "test Dice": f"{matrix.mean():.3f}",
        "95 % interval": "{:.3f} to {:.3f}".format(*interval(lambda mean: mean, matrix)),
        "SD over seeds": f"{matrix.mean(axis=1).std():.3f}" if len(seeds) > 1 else "-",
        "false positives in healthy scans, ml": f"{np.mean(found):.0f}",
        "thresholds": ", ".join(f"{result['test']['threshold']:.2f}" for result in results),
        "validation Dice": f"{np.mean([result['valid_dice'] for result in results]):.3f}",
        "best iteration": ", ".join(str(result["best_iteration"]) for result in results),
    }


def claim_row(claim: Claim, found: Mapping[str, Results]) -> dict[str, str] | None:
    """A row of the table of claims, or None if a row of the claim has no results."""
    if any(name not in found for name in claim.rows):
        return None
    rows = [found[name] for name in claim.rows]
    if not (seeds := seeds_of(*rows)):
        return None
    matrices = [dice_matrix(results, seeds) for results in rows]
    value = float(claim.value(*(matrix.mean() for matrix in matrices)))
    low, high = interval(claim.value, *matrices)
    by_seed = claim.value(*(matrix.mean(axis=1) for matrix in matrices))
    shown = value >= claim.target and low > claim.above and min(by_seed) > 0
    return {
        "claim": claim.title,
        "value": f"{value:.2f}",
        "95 % interval": f"{low:.2f} to {high:.2f}",
        "per seed": ", ".join(f"{one:.2f}" for one in by_seed),
        "target": f"{claim.target:g}, interval above {claim.above:g}",
        "met": f"open: {len(seeds)} of {FEWEST_SEEDS} seeds" if len(seeds) < FEWEST_SEEDS else "yes" if shown else "no",
    }


def as_markdown(found: Mapping[str, Results]) -> str:
    """The tables: rows by section, then the claims."""
    parts = {
        title: [row_of(ROWS[name].title, results) for name, results in found.items() if ROWS[name].group == group]
        for group, title in GROUPS.items()
    }
    parts["Claims"] = [row for claim in CLAIMS if (row := claim_row(claim, found))]
    return "\n".join(f"**{title}**\n\n{as_table(rows)}" for title, rows in parts.items() if rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.table")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="results folder of the benchmark")
    options = parser.parse_args(arguments)
    table = as_markdown(read_results(options.output))
    write_text(options.output / "table.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
