import json

from benchmarks.records import as_json


def test_records_have_a_line_each_and_everything_else_the_line_of_its_key():
    content = {
        "row": "a",
        "test": {"dice": {"mean": 0.5}, "rows": [{"id": "x", "dice": 1 / 3}, {"id": "y"}]},
        "curve": [{"iteration": 1}],
        "best": [1, 2],
        "none": [],
    }
    text = as_json(content)
    assert json.loads(text) == content
    lines = [line.strip() for line in text.splitlines()]
    for line in ('{"id": "x", "dice": 0.3333333333333333},', '{"id": "y"}', '{"iteration": 1}', '"best": [1, 2],'):
        assert line in lines
    assert len(lines) == 15
