import json

import pytest

from benchmarks.speed import __main__ as command


def test_a_part_is_measured_printed_and_written(tmp_path, capsys):
    assert command.main(["--device", "cpu", "--quick", "--only", "cohort", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "cpu_cohort.json").read_text())
    assert results["command"] == f"python -m benchmarks.speed --device cpu --quick --only cohort --output {tmp_path}"
    assert results["environment"]["device"] == "cpu"
    disk, page_cache = results["cohort"]
    assert (disk["baseline"], page_cache["baseline"]) == ("disk", "page cache")
    assert disk["ratio"] > 1
    assert disk["ours_volumes_per_s"] == pytest.approx(6 / disk["ours_s"])
    assert command.as_markdown(results["cohort"]) in (tmp_path / "cpu_cohort.md").read_text()
    assert command.as_markdown(results["cohort"]) in capsys.readouterr().out


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--only", "cohort,speed"])
    assert "--only: unknown part speed; choose from training, segmenter, cohort, preparation" in capsys.readouterr().err


def test_tables_as_markdown():
    rows = [{"what": "a", "ratio": 1 / 3, "range": [1, 2]}, {"what": "b", "ratio": 2.0, "more": 7}]
    assert command.as_markdown(rows).splitlines() == [
        "| what | ratio | more |",
        "| --- | --- | --- |",
        "| a | 0.3333 |  |",
        "| b | 2 | 7 |",
    ]
