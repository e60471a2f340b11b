from benchmarks.weak_supervision.plots import rows_to_compare


def test_the_first_row_of_each_group_with_a_result_is_shown():
    first, second = [{"seed": 0}], [{"seed": 1}]
    assert rows_to_compare({}) == ("s-1", "gasnet-1", "s-40")
    assert rows_to_compare({"s-10": first, "s-40": first}) == ("s-1", "gasnet-1", "s-40")
    assert rows_to_compare({"s-10": first, "s-40": second}) == ("s-1", "gasnet-1", "s-10")
    assert rows_to_compare({"gasnet-1": first, "s-1": second}) == ("s-1", "gasnet-1", "s-40")
