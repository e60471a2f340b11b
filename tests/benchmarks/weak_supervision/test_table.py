import json

import pytest

from benchmarks.weak_supervision import plots, table
from benchmarks.weak_supervision.table import aggregate, as_markdown, read_results, targets
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


def test_a_row_over_its_seeds_by_hand():
    row = aggregate(
        [
            result("s-1", 0, 0.2, 0.1, 0.3, (10, 4), 0.5, 50),
            result("s-1", 1, 0.4, 0.3, 0.5, (20, 8), 0.6, 100),
            result("s-1", 2, 0.6, 0.2, 0.4, (0, 0), 0.7, 150),
        ]
    )
    assert row.seeds == 3
    assert row.dice == pytest.approx(0.4)
    assert row.dice_lowest == 0.2
    assert row.dice_sd_seeds == pytest.approx((0.08 / 3) ** 0.5)  # deviations -0.2, 0 and 0.2
    assert row.dice_sd_scans == pytest.approx(0.2)
    assert row.sensitivity == pytest.approx(0.4)
    assert (row.false_positive_ml, row.false_positive_sd_scans) == (10, 4)
    assert row.valid_dice == pytest.approx(0.6)
    assert row.best_iteration == (50, 100, 150)


def test_the_targets_by_hand():
    rows = {
        "s-1": aggregate([result("s-1", 0, 0.30, 0)]),
        "gasnet-1": aggregate([result("gasnet-1", 0, 0.5, 0), result("gasnet-1", 1, 0.7, 0, false_positive=(12, 0))]),
        "s-10": aggregate([result("s-10", 0, 0.61, 0)]),
        "s-40": aggregate([result("s-40", 0, 0.63, 0)]),
    }
    found = {what: (value, holds) for what, value, holds in targets(rows)}
    assert found == {
        "GASNet(1) at least 0.30 above S(1)": ("+0.300", True),
        "no seed of GASNet(1) below S(1)": ("lowest 0.500, S(1) 0.300", True),
        "GASNet(1) at least S(10)": ("0.600 against 0.610", False),
        "GASNet(1) at least 0.95 of S(40)": ("0.95", True),
        "false positives of GASNet(1) no more than those of S(40)": ("11 against 10 ml", False),
    }
    assert targets({"s-1": rows["s-1"]}) == []


def test_the_table_in_markdown():
    text = as_markdown({"s-1": aggregate([result("s-1", 0, 0.25, 0.125)])})
    assert text.splitlines()[-1] == "| S, 1 label | 1 | 0.250 | - | 0.125 | 0.500 | 10 ± 2 | 0.600 | 50 |"
    assert "Targets" not in text


def test_results_are_read_in_the_order_of_the_rows_and_a_damaged_one_is_named(tmp_path):
    with pytest.raises(GasnetError, match="no results; run python -m"):
        read_results(tmp_path)
    (tmp_path / "results").mkdir()
    for name, seed in (("s-40", 1), ("s-40", 0), ("s-1", 0)):
        path = tmp_path / "results" / f"{name}_seed_{seed}.json"
        path.write_text(json.dumps(result(name, seed, 0.5, 0)))
    found = read_results(tmp_path)
    assert {name: [r["seed"] for r in results] for name, results in found.items()} == {"s-1": [0], "s-40": [0, 1]}
    assert list(found) == ["s-1", "s-40"]
    path.write_text("[1")
    with pytest.raises(GasnetError, match=r"s-1_seed_0\.json: not a result"):
        read_results(tmp_path)
    assert table.MARGIN == 0.30


def test_scans_to_show_are_chosen_by_their_volume():
    rows = [{"id": f"l{n}", "kind": "lesion", "true_ml": 100 - n} for n in range(11)]
    rows += [{"id": "h0", "kind": "no lesion", "true_ml": 0}, {"id": "h1", "kind": "no lesion", "true_ml": 0}]
    assert plots.scans_to_show(rows) == ["l9", "l5", "l1", "h0"]
