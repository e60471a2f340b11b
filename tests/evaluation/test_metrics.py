import numpy as np
import pytest

from evaluation.metrics import as_table, count_voxels, score_scan, summarise
from tests import reference


def scores_of(truths, predictions):
    lung = np.ones(truths.shape[1:], bool)
    return [
        score_scan(f"case{i}", "VALID", prediction, truth, lung, voxel_ml=0.01)
        for i, (truth, prediction) in enumerate(zip(truths, predictions, strict=True))
    ]


def test_agreement_with_the_reference_numbers():
    arrays = reference.load("metrics")
    summary = summarise(scores_of(arrays["truth"], arrays["prediction"]))
    assert summary["lesion"]["scans"] == 3
    for name in ("dice", "sensitivity", "specificity"):
        assert summary["lesion"][name]["mean"] == pytest.approx(float(arrays[f"{name}_mean"]), abs=1e-9)
        assert summary["lesion"][name]["std"] == pytest.approx(float(arrays[f"{name}_std"]), abs=1e-9)
    assert summary["pooled"]["iou_lesion"] == pytest.approx(float(arrays["iou_lesion"]), abs=1e-9)
    assert summary["pooled"]["iou_background"] == pytest.approx(float(arrays["iou_background"]), abs=1e-9)


def test_a_scan_without_lesion_is_scored_by_what_was_found_in_it():
    arrays = reference.load("metrics")
    scores = scores_of(arrays["truth"], arrays["prediction"])
    empty = next(score for score in scores if score.kind == "no lesion")
    row = empty.row()
    assert row["dice"] is None
    assert row["false_positive_ml"] == pytest.approx(18 * 0.01)  # 18 voxels are predicted in it
    summary = summarise(scores)
    assert summary["no_lesion"] == {
        "scans": 1,
        "scans_with_prediction": 1,
        "false_positive_ml": {"mean": pytest.approx(0.18), "std": 0},
    }


def test_one_scan_by_hand():
    truth = np.zeros((2, 2, 5), bool)
    prediction = truth.copy()
    lung = np.ones_like(truth)
    lung[1] = False
    truth[0, 0, :4] = True  # TP 3, FN 1
    prediction[0, 0, 1:5] = True  # FP 1
    prediction[0, 1, 0] = True  # FP 2; TN 20 - 6
    counts = count_voxels(prediction, truth)
    assert (counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative) == (3, 2, 1, 14)
    row = score_scan("a", "VALID", prediction, truth, lung, voxel_ml=0.5).row()
    assert row["dice"] == pytest.approx(6 / 9)
    assert row["sensitivity"] == pytest.approx(3 / 4)
    assert row["specificity"] == pytest.approx(14 / 16)
    assert row["iou"] == pytest.approx(3 / 6)
    assert (row["predicted_ml"], row["true_ml"]) == (2.5, 2.0)
    assert row["predicted_percent_of_lung"] == pytest.approx(50)
    assert row["true_percent_of_lung"] == pytest.approx(40)


def test_a_scan_of_unknown_truth_has_its_volume_only():
    prediction = np.zeros((2, 2, 2), bool)
    prediction[0] = True
    score = score_scan("a", "VALIDWL", prediction, None, np.ones_like(prediction), voxel_ml=1)
    row = score.row()
    assert row["kind"] == "unknown"
    assert {key for key, value in row.items() if value is None} == {
        "dice", "sensitivity", "specificity", "iou", "true_ml", "true_percent_of_lung", "false_positive_ml"
    }  # fmt: skip
    assert summarise([score])["unknown"]["predicted_ml"] == {"mean": 4, "std": 0}
    assert summarise([score])["pooled"] is None


def test_the_table_says_percent_and_millilitres():
    truth = np.zeros((2, 1, 2, 2), bool)
    truth[0, 0, 0] = True
    prediction = truth.copy()
    prediction[1, 0, 0, 0] = True
    table = as_table(summarise(scores_of(truth, prediction)))
    assert "with lesion (1 scans)" in table
    assert "dice                   100.0 ± 0.0 %" in table
    assert "without lesion (1 scans, something found in 1)" in table
    assert "false_positive_ml        0.0 ± 0.0 ml" in table
