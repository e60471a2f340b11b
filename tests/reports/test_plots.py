import re

import numpy as np
import pytest

from reports.cases import agreement, cohort_plots


def titles(plots):
    return [re.search(r'aria-label="([^".]*)', plot.svg).group(1) for plot in plots]


def test_bland_altman_by_hand():
    # Mean 1/3; the deviations -7/3, 11/3, -4/3 have squares of 186/9, over two 10.333.
    half = 1.96 * 10.3333333**0.5
    assert agreement(np.array([-2.0, 4.0, -1.0])) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half))
    assert agreement(np.array([2.0])) == (2, None, None)


def test_the_plots_of_a_test_say_in_words_what_they_show():
    rows = [
        {"dice": 0.5, "predicted_ml": 10.0, "true_ml": 12.0},
        {"dice": 0.7, "predicted_ml": 22.0, "true_ml": 18.0},
        {"dice": 0.9, "predicted_ml": 30.0, "true_ml": 31.0},
        {"dice": None, "predicted_ml": 5.0, "true_ml": 0.0},  # without lesion: no part of the agreement
        {"dice": None, "predicted_ml": 7.0, "true_ml": None},
    ]
    plots = cohort_plots(rows)
    assert titles(plots) == ["Dice", "Lesion volume", "Agreement of volumes (Bland-Altman)"]
    assert plots[0].caption == "3 scans with lesion: mean 0.700 ± 0.163, median 0.700 (quartiles 0.600 and 0.800)."
    for text in ("Predicted, 5 scans: mean 14.8 ± 9.6 ml", "True, 4 scans"):
        assert text in plots[1].caption
    for text in ("3 scans with lesion", "by +0.3 ml on average", "\N{MINUS SIGN}6.0 to +6.6 ml"):
        assert text in plots[2].caption
    of_prediction = cohort_plots([{"lesion_ml": 3 * p, "lesion_percent_of_lung": p} for p in (60.0, 0.0, 5.0)])
    assert titles(of_prediction) == ["Lesion volume", "Lesion in percent of the lung"]


@pytest.mark.parametrize("rows", [[], [{}], [{"dice": None}], [{"dice": float("nan")}], [{"id": "a", "kind": "b"}]])
def test_nothing_to_plot_is_no_plot(rows):
    assert cohort_plots(rows) == []


def test_a_single_scan_and_volumes_far_apart_are_plotted():
    assert len(cohort_plots([{"dice": 1.0, "predicted_ml": 0.0, "true_ml": 3.0}])) == 3
    far = np.geomspace(0.5, 5000, 12)
    assert len(cohort_plots([{"lesion_ml": float(v), "lesion_percent_of_lung": 0.0} for v in far])) == 2
