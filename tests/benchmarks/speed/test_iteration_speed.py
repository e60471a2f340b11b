from multiprocessing import Pipe
from statistics import median

import pytest
import torch

from benchmarks.speed import iteration_speed as module
from benchmarks.speed.iteration_speed import PublishedTraining, rows
from benchmarks.speed.reading_speed import read_written_cohort, write_cohort
from configs.settings import read_settings
from models.objectives import discriminator_objective, joint_objective, segmenter_objective
from training.run import TrainingRun

CPU = torch.device("cpu")
TINY = [
    "EXP.ID=recons_origImgToD_genImgToD_perception_MIL",
    "LOSS={MIL_START: 0, PERCEPTION_START: 0}",
    "IMAGE={SIZE: [16, 32, 64], SLICES: 16}",
    "MODEL.WIDTH={UNET: 2, G: 2, D: 2}",
    "SOLVER={BATCH_SIZE: 2, PRECISION: fp32, DISCRIMINATOR_STEPS: 1}",
    "DATALOADER.NUM_WORKERS=0",
]


@pytest.fixture
def _no_anomaly_detection_afterwards():
    yield
    torch.autograd.set_detect_anomaly(False)


@pytest.mark.usefixtures("_no_anomaly_detection_afterwards")
def test_both_ways_minimise_the_same_objectives_on_the_same_batches(tmp_path):
    settings = read_settings(None, [*TINY, f"EXP.OUTPUT_DIR={tmp_path / 'output'}"])
    root = tmp_path / "cohort"
    write_cohort(root, settings.image.size, scans=2)
    ours = TrainingRun(settings, read_written_cohort(root, settings.image.size), CPU, validate=False, progress=False)
    published = PublishedTraining(settings, root, CPU)
    for name in ("segmenter", "generator"):
        getattr(published.networks, name).load_state_dict(getattr(ours.networks, name).state_dict())
    published.networks.discriminator.discriminator.load_state_dict(ours.networks.discriminator.state_dict())

    found = []
    for training in (ours, published):
        for network in training.networks:
            network.eval()  # D takes one power iteration a pass in training
        diseased, healthy, labelled = (training.batch(split) for split in ("WO_LABEL", "HEALTHY", "LABELED"))
        values = [
            joint_objective(training.networks, diseased, healthy, training.method, 1),
            segmenter_objective(training.networks, healthy, labelled, training.method, 1),
            discriminator_objective(training.networks, diseased, healthy, training.method, 1),
        ]
        found.append([term.item() for value in values for term in (value.total, *value.terms.values())])
        training.iteration = 1
        training.minimise(joint_objective, diseased, healthy, trains=("segmenter", "generator"))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    # Only the published way computes gradients that nothing uses.
    assert all(p.grad is None for p in ours.networks.discriminator.parameters())
    assert any(p.grad is not None for p in published.networks.discriminator.parameters())


def test_the_measured_iterations_have_all_terms(tmp_path, monkeypatch):
    settings = read_settings(None, [*TINY, f"EXP.OUTPUT_DIR={tmp_path / 'output'}"])
    root = tmp_path / "cohort"
    write_cohort(root, settings.image.size, scans=2)
    runs = []
    ours = module.WAYS["ours"]
    monkeypatch.setitem(module.WAYS, "ours", lambda *arguments: runs.append(ours(*arguments)) or runs[0])
    here, there = Pipe()
    for t in (*module.PHASES.values(), None):
        here.send(t)
    module.serve(there, "ours", settings, root, CPU)
    assert here.recv() == "ready"
    assert all(seconds > waited > 0 for seconds, waited, _ in (here.recv(), here.recv()))
    names = {name for name in runs[0]._means.take() if "/" in name}
    assert {f"joint/{term}" for term in ("adversarial", "recons", "genImgToD", "MIL", "perception")} <= names
    assert {f"discriminator/{term}" for term in ("synthetic", "healthy", "origImgToD", "genImgToD")} <= names


def test_rows_are_measured_in_separate_processes(monkeypatch):
    monkeypatch.setattr(module, "cases", lambda device, quick: {"tiny": TINY})
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # without bf16, which would be a third process
    table = rows(CPU, quick=True)
    phases = [f"tiny: {phase} iteration" for phase in ("generator+segmenter", "discriminator", "average")]
    assert [(row["ours"], row["what"]) for row in table] == [("ours", phase) for phase in phases]
    both, steps, average = table
    assert both["ours_volumes_per_s"] == pytest.approx((3 * 2 + 1) / both["ours_s"])
    assert steps["ours_volumes_per_s"] == pytest.approx(4 / steps["ours_s"])
    assert average["ours_volumes_per_s"] == pytest.approx((7 + 4) / 2 / average["ours_s"])
    for row in table:
        assert row["repetitions"] == 3
        assert 0 < row["ours_waits_s"] < median(row["ours_range_s"])
        assert row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"])
