import json

from benchmarks.records import as_json, as_table


def test_records_have_a_line_each():
    content = {"row": "a [b", "rows": [{"id": "x {", "dice": 1 / 3}, {"id": "y ]}"}], "best": [1, 2], "none": []}
    text = as_json(content)
    assert json.loads(text) == content
    lines = [line.strip() for line in text.splitlines()]
    assert '"best": [ 1, 2 ],' in lines
    plain = {"rows": [{"id": "x", "dice": 1 / 3}, {"id": "y"}]}
    lines = [line.strip() for line in as_json(plain).splitlines()]
    assert lines == ["{", '"rows": [', '{ "id": "x", "dice": 0.3333333333333333 },', '{ "id": "y" }', "]", "}"]


def test_a_table_by_hand():
    assert as_table([{"a": 1, "b": None}, {"a": "x", "b": 0.5}]) == "| a | b |\n| --- | --- |\n| 1 |  |\n| x | 0.5 |\n"
