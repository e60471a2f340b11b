import numpy as np
import pytest

from evaluation.metrics import as_table, count_lesions, score_scan, summarise
from tests import reference


def scores_of(truths, predictions):
    lung = np.ones(truths.shape[1:], bool)
    return [
        score_scan(f"case{i}", "VALID", prediction, truth, lung, spacing=(1, 2, 5))
        for i, (truth, prediction) in enumerate(zip(truths, predictions, strict=True))
    ]


def test_agreement_with_the_reference_numbers():
    arrays = reference.load("metrics")
    summary = summarise(scores_of(arrays["truth"], arrays["prediction"]))
    assert summary["lesion"]["scans"] == 3
    found = {name: summary["pooled"][name] for name in ("iou_lesion", "iou_background")}
    for name in ("dice", "sensitivity", "specificity"):
        found |= {f"{name}_{of}": summary["lesion"][name][of] for of in ("mean", "std")}
    assert found == pytest.approx({name: float(arrays[name]) for name in found}, abs=1e-9)


def test_a_scan_without_lesion_is_scored_by_what_was_found_in_it():
    arrays = reference.load("metrics")
    scores = scores_of(arrays["truth"], arrays["prediction"])
    row = next(score for score in scores if score["kind"] == "no lesion")
    assert row["dice"] is None
    assert row["false_positive_ml"] == pytest.approx(18 * 0.01)  # 18 voxels are predicted in it
    of_volume = {"mean": pytest.approx(0.18), "std": 0}
    assert summarise(scores)["no_lesion"] == {
        "scans": 1, "scans_with_prediction": 1, "false_positive_ml": of_volume
    }  # fmt: skip
    both = summarise([detailed(voxels((1, 1, 1), (5, 5, 5)), voxels()), detailed(voxels(), voxels())])
    assert both["no_lesion"]["false_positive_lesions"] == {"mean": 1, "std": 1}


def test_one_scan_by_hand():
    truth = np.zeros((2, 2, 5), bool)
    prediction = truth.copy()
    lung = np.ones_like(truth)
    lung[1] = False
    truth[0, 0, :4] = True  # TP 3, FN 1
    prediction[0, 0, 1:5] = True  # FP 1
    prediction[0, 1, 0] = True  # FP 2; TN 20 - 6
    row = score_scan("a", "VALID", prediction, truth, lung, spacing=(5, 10, 10))
    assert row["voxels"] == [3, 2, 1, 14]
    expected = {"dice": 6 / 9, "sensitivity": 3 / 4, "specificity": 14 / 16, "iou": 3 / 6, "predicted_ml": 2.5}
    expected |= {"true_ml": 2.0, "predicted_percent_of_lung": 50, "true_percent_of_lung": 40}
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def detailed(prediction, truth, spacing=(5.0, 1.0, 1.0)):
    return score_scan("a", "VALID", prediction, truth, np.ones(prediction.shape, bool), spacing, tolerance_mm=3)


def voxels(*indices):
    mask = np.zeros((8, 10, 10), bool)
    for index in indices:
        mask[index] = True
    return mask


LESIONS = "lesions", "lesions_found", "false_positive_lesions"
RATIOS = "hd95_mm", "surface_dice", "volume_error_percent", "lesion_sensitivity", "lesion_f1"


@pytest.mark.parametrize(
    ("prediction", "truth", "volume_error_ml", "lesions", "ratios"),
    [
        ([], [], 0, (0, 0, 0), (None, None, None, None, None)),
        ([(1, 1, 1), (5, 5, 5)], [], 0.01, (0, 0, 2), (None, None, None, None, None)),
        ([], [(1, 1, 1), (5, 5, 5)], -0.01, (2, 0, 0), (None, 0, -100, 0, 0)),
    ],
    ids=["both empty", "truth empty", "prediction empty"],
)
def test_what_empty_masks_score(prediction, truth, volume_error_ml, lesions, ratios):
    row = detailed(voxels(*prediction), voxels(*truth))
    assert row["volume_error_ml"] == volume_error_ml
    assert tuple(row[name] for name in LESIONS) == lesions
    assert tuple(row[name] for name in RATIOS) == ratios


def test_details_of_a_scan_by_hand():
    row = detailed(voxels((1, 1, 1), (2, 6, 6), (2, 6, 7)), voxels((1, 1, 1), (5, 5, 5)))
    assert (row["volume_error_ml"], row["volume_error_percent"]) == (0.005, 50)
    assert tuple(row[name] for name in LESIONS) == (2, 1, 1)
    assert (row["lesion_sensitivity"], row["lesion_f1"]) == (0.5, 0.5)
    assert row["surface_dice"] == pytest.approx(2 / 5)


def test_an_undefined_hd95_is_counted_and_not_averaged():
    truth = voxels((1, 1, 1))
    summary = summarise([detailed(voxels((3, 1, 1)), truth), detailed(voxels(), truth), detailed(truth, truth)])
    assert summary["lesion"]["hd95_mm"] == {"scans": 2, "undefined": 1, "mean": pytest.approx(5), "std": 5}
    assert summary["lesion"]["surface_dice"]["mean"] == pytest.approx(1 / 3)
    assert (summary["lesion"]["lesions"], summary["lesion"]["lesions_found"]) == (3, 1)
    assert "hd95_mm                  5.0 ± 5.0 mm  (scans 2, undefined 1)" in as_table(summary)
    nowhere = summarise([detailed(voxels(), truth)])
    assert nowhere["lesion"]["hd95_mm"] == {"scans": 0, "undefined": 1, "mean": None, "std": None}
    assert "hd95_mm                    -  (scans 0, undefined 1)" in as_table(nowhere)


BAR, ENDS = voxels((1, 1, slice(2, 8))), voxels((1, 1, 2), (1, 1, 7))


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (voxels(), voxels((1, 1, 1), (2, 2, 2)), (1, 0, 0)),  # corners connect
        (voxels((1, 1, 1), (2, 2, 2)), voxels(), (0, 0, 1)),
        (voxels((1, 1, 2)), voxels((1, 1, 1)), (1, 0, 1)),  # touching is not overlapping
        (BAR, ENDS, (2, 2, 0)),  # one prediction may find several lesions
        (ENDS, BAR, (1, 1, 0)),  # and several may lie on one
        # Of three lesions the first is found, by one that overlaps it; two false positives.
        (
            voxels((1, 1, 2), (1, 1, 3), (3, 3, 8), (5, 8, 1)),
            voxels((1, 1, 1), (1, 1, 2), (1, 5, 5), (4, 8, 8)),
            (3, 1, 2),
        ),
    ],
)
def test_which_lesions_are_found(prediction, truth, expected):
    assert tuple(count_lesions(prediction, truth)[name] for name in LESIONS) == expected
