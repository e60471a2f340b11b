import json

import pytest

from benchmarks.speed import run
from benchmarks.speed.processes import process, requests


def test_a_part_is_measured_printed_and_written(tmp_path, capsys):
    assert run.main(["--device", "cpu", "--quick", "--only", "cohort", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "cpu_cohort.json").read_text())
    assert results["command"] == f"python benchmarks/run.py --device cpu --quick --only cohort --output {tmp_path}"
    assert results["environment"]["device"] == "cpu"
    disk, page_cache = results["cohort"]
    assert (disk["baseline"], page_cache["baseline"]) == ("disk", "page cache")
    assert disk["ratio"] > 1
    assert disk["ours_volumes_per_s"] == pytest.approx(6 / disk["ours_s"])
    assert run.as_markdown(results["cohort"]) in (tmp_path / "cpu_cohort.md").read_text()
    assert run.as_markdown(results["cohort"]) in capsys.readouterr().out


def test_a_part_that_there_is_not_is_named(capsys):
    with pytest.raises(SystemExit):
        run.main(["--device", "cpu", "--only", "cohort,speed"])
    assert "--only: speed is none of training, roofline, segmenter, cohort, preparation" in capsys.readouterr().err


def test_tables_as_markdown():
    rows = [{"what": "a", "ratio": 1 / 3, "range": [1, 2]}, {"what": "b", "ratio": 2.0, "more": 7}]
    assert run.as_markdown(rows).splitlines() == [
        "| what | ratio | more |",
        "| --- | --- | --- |",
        "| a | 0.3333 |  |",
        "| b | 2 | 7 |",
    ]


def double(connection, offset):
    for number in requests(connection):
        connection.send(2 * number + offset)


def fail(connection):
    raise RuntimeError("not today")


def test_a_process_answers_until_the_block_ends_and_one_that_fails_is_noticed():
    with process(double, 1) as ask:
        assert [ask(1), ask(5)] == [3, 11]
    with pytest.raises(EOFError), process(fail):
        pass
