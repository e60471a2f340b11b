from benchmarks.weak_supervision.plots import rows_to_compare


def test_of_the_rows_with_many_labels_the_first_with_a_result_is_shown():
    ten, forty = {"s-10": [{"seed": 0}]}, {"s-40": [{"seed": 0}]}
    assert rows_to_compare({**ten, **forty}) == ("s-1", "gasnet-1", "s-40")
    assert rows_to_compare({**ten, "s-40": [{"seed": 1}]}) == ("s-1", "gasnet-1", "s-10")
    assert rows_to_compare({}) == ("s-1", "gasnet-1", "s-40")
