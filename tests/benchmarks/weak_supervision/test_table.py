import json
from pathlib import Path

import pytest

from benchmarks.weak_supervision import plots, table
from benchmarks.weak_supervision.table import aggregate, as_markdown, read_results
from utils.errors import GasnetError


def result(row, seed, dice, sd, sensitivity=0.5, false_positive=(10.0, 2.0), valid=0.6, iteration=50):
    return {
        "row": row,
        "seed": seed,
        "best_iteration": iteration,
        "valid_dice": valid,
        "test": {
            "lesion": {"dice": {"mean": dice, "std": sd}, "sensitivity": {"mean": sensitivity, "std": 0.0}},
            "no_lesion": {"false_positive_ml": dict(zip(("mean", "std"), false_positive, strict=True))},
        },
    }


def test_aggregation_over_seeds_by_hand():
    row = aggregate(
        [
            result("s-1", 0, 0.2, 0.1, 0.3, (10, 4), 0.5, 50),
            result("s-1", 1, 0.4, 0.3, 0.5, (20, 8), 0.6, 100),
            result("s-1", 2, 0.6, 0.2, 0.4, (0, 0), 0.7, 150),
        ]
    )
    assert row.seeds == 3
    assert row.dice == pytest.approx(0.4)
    assert row.dice_sd_seeds == pytest.approx((0.08 / 3) ** 0.5)  # deviations -0.2, 0 and 0.2
    assert row.dice_sd_scans == pytest.approx(0.2)
    assert row.sensitivity == pytest.approx(0.4)
    assert (row.false_positive_ml, row.false_positive_sd_scans) == (10, 4)
    assert row.valid_dice == pytest.approx(0.6)
    assert row.best_iteration == (50, 100, 150)


def test_the_table_in_markdown():
    text = as_markdown({"s-1": aggregate([result("s-1", 0, 0.25, 0.125)])})
    assert text.splitlines()[-1] == "| S, 1 label | 1 | 0.250 | - | 0.125 | 0.500 | 10 ± 2 | 0.600 | 50 |"


def test_results_are_read_in_table_order_and_a_damaged_one_is_named(tmp_path):
    with pytest.raises(GasnetError, match="no results; run python -m"):
        read_results(tmp_path)
    (tmp_path / "results").mkdir()
    for name, seed in (("s-40", 1), ("s-40", 0), ("s-1", 0)):
        path = tmp_path / "results" / f"{name}_seed_{seed}.json"
        path.write_text(json.dumps(result(name, seed, 0.5, 0)))
    found = read_results(tmp_path)
    assert {name: [r["seed"] for r in results] for name, results in found.items()} == {"s-1": [0], "s-40": [0, 1]}
    assert list(found) == ["s-1", "s-40"]
    # Results of rows that no longer exist are ignored.
    (tmp_path / "results" / "gone_seed_0.json").write_text(json.dumps(result("gone", 0, 0.5, 0)))
    assert list(read_results(tmp_path)) == ["s-1", "s-40"]
    path.write_text("[1")
    with pytest.raises(GasnetError, match=r"s-1_seed_0\.json: not a result of this benchmark"):
        read_results(tmp_path)


def test_shown_scans_are_selected_by_lesion_volume():
    rows = [{"id": f"l{n}", "kind": "lesion", "true_ml": 100 - n} for n in range(11)]
    rows += [{"id": "h0", "kind": "no lesion", "true_ml": 0}, {"id": "h1", "kind": "no lesion", "true_ml": 0}]
    assert plots.scans_to_show(rows) == ["l9", "l5", "l1", "h0"]


def test_the_tracked_results_give_the_published_table(tmp_path):
    benchmarks = Path(table.__file__).parents[1]
    (tmp_path / "results").symlink_to(benchmarks / "results" / "weak_supervision" / "small")
    found = as_markdown({name: aggregate(results) for name, results in read_results(tmp_path).items()})
    readme = (benchmarks / "weak_supervision" / "README.md").read_text().splitlines()
    assert len(found.splitlines()) > 20
    assert [line for line in found.splitlines() if line.startswith("| ") and line not in readme] == []
