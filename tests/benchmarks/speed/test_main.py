import json

import pytest
import torch

from benchmarks.speed import __main__ as command
from benchmarks.speed import networks

CPU = torch.device("cpu")


def test_a_part_is_measured_printed_and_written(tmp_path, capsys, monkeypatch):
    calls = []
    ways = {"baseline": lambda: calls.append("a"), "ours": lambda: calls.append("b")}
    monkeypatch.setitem(command.PARTS, "segmenter", lambda device, quick: [("S", ways)])
    assert command.main(["--device", "cpu", "--quick", "--only", "segmenter", "--output", str(tmp_path)]) == 0
    assert "".join(calls) == "ab" * 3  # in turn, the first round untimed
    results = json.loads((tmp_path / "cpu_segmenter.json").read_text())
    assert results["command"] == f"python -m benchmarks.speed --device cpu --quick --only segmenter --output {tmp_path}"
    assert torch.__version__.startswith(results["environment"]["versions"]["torch"])
    assert results["environment"]["processor"]
    assert [(row["what"], row["way"], row["repetitions"]) for row in results["segmenter"]] == [
        ("S", "baseline", 2), ("S", "ours", 2)
    ]  # fmt: skip
    table = "".join(line for line in capsys.readouterr().out.splitlines(keepends=True) if line.startswith("|"))
    assert table.startswith("| what | way | median_s | ratio |")
    assert table in (tmp_path / "cpu_segmenter.md").read_text()


def test_rows_by_hand():
    rows = command.compare("a", {"baseline": [4.0, 2.0, 3.0], "ours": [1.0, 2.0, 1.5]})
    assert [(row["median_s"], row["ratio"], row["lowest_s"], row["highest_s"]) for row in rows] == [
        (3.0, 1.0, 2.0, 4.0), (1.5, 2.0, 1.0, 2.0)
    ]  # fmt: skip


def test_all_ways_compute_the_same_losses(monkeypatch):
    monkeypatch.setattr(
        networks, "_DEMO", ["IMAGE.SIZE=[16, 64, 64]", "IMAGE.SLICES=16", "MODEL.WIDTH={UNET: 2, G: 2, D: 2}"]
    )
    (joint, ways), (discriminate, _) = networks.training(CPU, quick=True)
    assert ("S and G" in joint, "of D" in discriminate) == (True, True)
    found = {}
    for name, way in ways.items():
        training, values = way.__self__, []

        def spy(objective, first, second, *trains, training=training, values=values):
            for network in training.networks:
                network.eval()  # D takes one power iteration a pass in training
            value = objective(training.networks, first, second, training.method, 1)
            values += [value.total.item(), *(term.item() for term in value.terms.values())]

        training.step = spy
        training.joint()
        training.discriminate()
        found[name] = values
    assert set(found) == set(networks.choices(CPU)) >= {"published", "ours", "ours, contiguous"}
    for values in found.values():
        assert values == pytest.approx(found["published"], rel=1e-3)
