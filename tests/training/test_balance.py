import math
import re

import pytest

from training.balance import DiscriminatorBalance

WINDOW = 10


def entry(healthy, synthetic):
    """A log entry by the probabilities of the right answer."""
    return {"discriminator/healthy": -math.log(healthy), "discriminator/synthetic": -math.log(synthetic)}


def said(entries):
    """What was said, by the number of the entry."""
    balance = DiscriminatorBalance()
    return {number: message for number, e in enumerate(entries, start=1) if (message := balance.add(e))}


WINS, FAIR, CHANCE, ALWAYS_HEALTHY = entry(0.98, 0.97), entry(0.7, 0.6), entry(0.5, 0.5), entry(0.99, 0.01)


@pytest.mark.parametrize("bad", [WINS, CHANCE, ALWAYS_HEALTHY])
def test_nothing_is_said_before_the_window_is_full(bad):
    assert said([bad] * (WINDOW - 1)) == {}
    assert list(said([bad] * WINDOW)) == [WINDOW]


@pytest.mark.fault("D wins, or collapses")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (WINS, "wins, for 10 log entries now: it is right with probability 0.980 on healthy and 0.970 on synthetic"),
        (CHANCE, "has collapsed, .* 0.500 on healthy and 0.500"),
        (ALWAYS_HEALTHY, "has collapsed, .* 0.990 on healthy and 0.010"),
    ],
)
def test_a_warning_has_numbers_and_says_what_to_do(bad, message):
    warning = said([bad] * WINDOW)[WINDOW]
    assert re.search(message, warning)
    assert "SOLVER.OPTIMIZER.D.LR" in warning
    assert "\n" not in warning


@pytest.mark.fault("D wins, or collapses")
def test_it_is_said_once_and_again_only_after_it_has_ended():
    messages = said([WINS] * 30 + [FAIR] * 3 + [WINS] * 15 + [FAIR])
    assert list(messages) == [10, 31, 43, 49]
    assert "wins no longer: it is right with probability 0.700" in messages[31]


def test_one_entry_between_starts_the_window_anew():
    assert said(([WINS] * (WINDOW - 1) + [FAIR]) * 5) == {}
    assert said(([CHANCE] * (WINDOW - 1) + [FAIR]) * 5) == {}


def test_collapse_ends_and_a_win_may_follow():
    messages = said([CHANCE] * 10 + [WINS] * 10)
    assert list(messages) == [10, 11, 20]
    assert "has collapsed no longer" in messages[11]
    assert "wins" in messages[20]


@pytest.mark.parametrize("e", [FAIR, entry(0.99, 0.94), entry(0.94, 0.99), entry(0.52, 0.51), entry(0.9, 0.3)])
def test_a_fair_fight_is_passed_over(e):
    assert said([e] * 100) == {}


def test_entries_without_a_step_of_d_do_not_count():
    other = {"joint/adversarial": 1.0}
    assert list(said([WINS, other] * WINDOW)) == [2 * WINDOW - 1]


def test_of_two_heads_the_mean_counts():
    # Each head is right with probability 0.96 to 0.98: their sums alone would say 0.92 to 0.96.
    entry = {f"discriminator/{kind}": -math.log(0.96) - math.log(0.98) for kind in ("healthy", "synthetic")}
    one, two = DiscriminatorBalance(1, window=1), DiscriminatorBalance(2, window=1)
    assert one.add(entry) is None
    assert "the discriminator wins" in two.add(entry)
    assert "probability 0.970 on healthy" in DiscriminatorBalance(2, window=1).add(entry)
