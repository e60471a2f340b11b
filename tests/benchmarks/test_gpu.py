import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.speed import gpu_sections
from benchmarks.speed.gpu_sections import SWITCHES, Section, switched

SCRIPT = Path(gpu_sections.__file__).parents[1] / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", list(sys.path))
        spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def section(tmp_path):
    return Section("trial", torch.device("cpu"), True, time.monotonic() + 60, tmp_path / "rows.jsonl")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_trial_runs_every_section_from_end_to_end(gpu, tmp_path, capsys):
    assert gpu.main(["--toy", "--output", str(tmp_path)]) == 0
    rows = read(tmp_path / "toy_part_1.jsonl") + read(tmp_path / "toy_part_2.jsonl")
    noted = {row["section"] for row in rows}
    assert noted == {function.__name__ for sections in gpu_sections.PARTS.values() for function, _ in sections}
    assert not [row for row in rows if "error" in row]
    assert all(row["passed"] for row in rows if "passed" in row)
    ways = {row["way"] for row in rows if row["section"] == "baselines"}
    assert {"published", "ours, eager", "ours, fast path"} <= ways
    parity = {row["precision"]: row for row in rows if row["section"] == "parity"}
    assert parity["fp32"]["steps"] == 12
    assert parity["fp32"]["first_step_relative"] < 1e-4
    assert parity["fp32"]["worst_relative"] < 0.1
    assert "fast path not used" not in capsys.readouterr().err
    text = (tmp_path / "toy.md").read_text()
    assert text.startswith("# A trial at a small size on the CPU: not a measurement")
    assert "Targets" not in text
    assert all(f"## {name}" in text for name in noted)


def test_a_section_that_fails_is_noted_and_the_others_go_on(gpu, tmp_path, monkeypatch, capsys):
    def first(section):
        section.note(found=1)
        raise RuntimeError("no\nluck")

    def second(section):
        section.note(found=2)

    monkeypatch.setattr(gpu, "PARTS", {1: ((first, 0.5), (second, 0.5))})
    assert gpu.main(["--toy", "--part", "1", "--output", str(tmp_path)]) == 1
    assert read(tmp_path / "toy_part_1.jsonl") == [
        {"section": "first", "found": 1},
        {"section": "first", "error": "RuntimeError: no luck"},
        {"section": "second", "found": 2},
    ]
    assert "RuntimeError" in capsys.readouterr().err


def test_targets_are_taken_from_what_was_measured_and_nothing_else(gpu):
    rows = [
        {"section": "baselines", "way": "published", "joint_s": 0.6, "discriminator_s": 0.66, "memory_gib": 18.0},
        {"section": "baselines", "way": "ours, fast path", "joint_s": 0.1, "discriminator_s": 0.066, "memory_gib": 9.0},
        {"section": "inference", "way": "eager", "volumes_per_s": 900.0},
        {"section": "inference", "way": "fast", "volumes_per_s": 300.0},
        {"section": "inference", "way": "fast", "volumes_per_s": 500.0},
        {"section": "parity", "precision": "fp32", "worst_relative": 2e-4},
    ]
    assert gpu.found_targets(rows) == {
        "S and G, times the published way": pytest.approx(6),
        "S and G, ms": 100,
        "D, times the published way": pytest.approx(10),
        "D, ms": pytest.approx(66),
        "S alone, volumes per second": 500,
        "memory at batch 4, GiB": 9,
        "losses of 12 steps in fp32, worst relative difference": 2e-4,
    }
    text = gpu.report(rows)
    assert "| share of time that waits for batches | 0.05 | 0.01 | not measured |" in text
    assert "| S and G, ms | 110 | 60 | 100 |" in text
    assert gpu.found_targets([]) == {}


def test_switches_are_on_or_off_by_name():
    assert switched("PHASES") == [f"SPEED.{name}={str(name == 'PHASES').lower()}" for name in SWITCHES]


def test_a_section_times_at_least_three_calls_unless_it_is_a_trial(section):
    assert len(section.seconds(lambda: None, 10)) == 1
    section.toy = False
    assert len(section.seconds(lambda: None, 0.0)) == 3
