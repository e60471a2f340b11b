import json

import numpy as np
import pytest

from benchmarks.weak_supervision.table import (
    CLAIMS,
    as_markdown,
    claim_row,
    dice_matrix,
    interval,
    main,
    read_results,
    row_of,
)
from utils.errors import GasnetError


def result(row, seed, dice, false_positive=10.0, valid=0.6, iteration=50, threshold=0.5):
    scans = [{"id": f"t{n}", "kind": "lesion", "dice": value} for n, value in enumerate(dice)]
    return {
        "row": row,
        "seed": seed,
        "best_iteration": iteration,
        "valid_dice": valid,
        "test": {
            "threshold": threshold,
            "no_lesion": {"false_positive_ml": {"mean": false_positive, "std": 1.0}},
            "rows": [*scans, {"id": "h0", "kind": "no lesion"}],
        },
    }


def test_a_row_of_the_table_by_hand():
    results = [result("s-1", 0, (0.1, 0.3), 4, 0.5, 50, 0.3), result("s-1", 1, (0.5, 0.7), 8, 0.7, 100, 0.42)]
    cells = list(row_of("S", results).values())
    # Means 0.2 and 0.6: their deviation is 0.2; resampling reaches from one seed's lower scan to the other's higher.
    assert cells == ["S", "2", "0.400", "0.100 to 0.700", "0.200", "6", "0.30, 0.42", "0.600", "50, 100"]


def test_scans_are_paired_by_their_id():
    first, second = result("s-1", 0, (0.1, 0.9)), result("s-1", 1, (0.2, 0.8))
    second["test"]["rows"].reverse()
    np.testing.assert_array_equal(dice_matrix([first, second], [0, 1]), [[0.1, 0.9], [0.2, 0.8]])
    second["test"]["rows"].pop()
    with pytest.raises(GasnetError, match="s-1: seeds were tested on different scans"):
        dice_matrix([first, second], [0, 1])


def test_intervals_are_those_of_the_normal_distribution_where_it_holds():
    rng = np.random.default_rng(1)
    scans = rng.normal(0.5, 0.2, size=(1, 400))
    low, high = interval(lambda mean: mean, scans)
    error = 1.96 * scans.std() / 20
    assert (low, high) == pytest.approx((scans.mean() - error, scans.mean() + error), abs=2e-3)
    # A difference of paired rows varies less than either of them.
    low, high = interval(np.subtract, scans + 0.1, scans)
    assert low == pytest.approx(high) == pytest.approx(0.1)


def test_claims_compare_the_seeds_that_all_rows_have():
    found = {
        "s-1": [result("s-1", seed, (0.2, 0.4)) for seed in (0, 1, 2)],
        "gasnet-1": [result("gasnet-1", seed, (0.5, 0.7)) for seed in (0, 1, 2, 3)],
        "s-40": [result("s-40", seed, (0.6, 0.8)) for seed in (0, 1, 2)],
        "no-adversarial": [result("no-adversarial", 0, (0.4, 0.6))],
    }
    gap, without_d = (list(claim_row(claim, found).values())[1:] for claim in CLAIMS)
    assert gap == ["0.75", "0.75 to 0.75", "0.75, 0.75, 0.75", "0.5, interval above 0.25", "yes"]
    assert without_d == ["0.10", "0.10 to 0.10", "0.10", "0.03, interval above 0", "open: 1 of 3 seeds"]
    found["no-adversarial"] += [result("no-adversarial", k, dice) for k, dice in ((1, (0.3, 0.5)), (2, (0.5, 0.7)))]
    assert claim_row(CLAIMS[1], found)["met"] == "no"  # not in every seed
    text = as_markdown(found)
    assert text.index("**S alone**") < text.index("**GASNet**") < text.index("**Claims**")


def test_results_are_read_in_table_order_and_a_damaged_one_is_named(tmp_path, capsys):
    with pytest.raises(GasnetError, match="no results; run python -m"):
        read_results(tmp_path)
    (tmp_path / "results").mkdir()
    for name, seed in (("s-40", 1), ("s-40", 0), ("s-1", 0)):
        path = tmp_path / "results" / f"{name}_seed_{seed}.json"
        path.write_text(json.dumps(result(name, seed, (0.5,))))
    found = read_results(tmp_path)
    assert {name: [r["seed"] for r in results] for name, results in found.items()} == {"s-1": [0], "s-40": [0, 1]}
    assert list(found) == ["s-1", "s-40"]
    # Results of rows that no longer exist are ignored.
    (tmp_path / "results" / "gone_seed_0.json").write_text(json.dumps(result("gone", 0, (0.5,))))
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "table.md").read_text().strip() == capsys.readouterr().out.strip() == as_markdown(found).strip()
    path.write_text("[1")
    with pytest.raises(GasnetError, match=r"s-1_seed_0\.json: not a result of this benchmark"):
        read_results(tmp_path)
