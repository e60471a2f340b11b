import pytest
import yaml

from configs import translate as module
from configs.settings import Settings, read_settings
from configs.translate import translate
from utils.cli import run
from utils.errors import SettingsError

# The keys of a published Gan.yaml, with LR_SCHEDULER_D given twice.
PUBLISHED = """
EXP: {ID: sample1_recons_focal_origImgToD_genImgToD_perception, OUTPUT_DIR: data}
DATASET:
  ROOT: /somewhere/cropped
  N_CLASSES: 1
  IGNORE_LABEL: 255
  SCALES: [1]
  SPLIT: {LABELED: one, WO_LABEL: wl, HEALTHY: h, VALID: val, VALIDWL: vwl, VALIDH: vh, NAIVE: n, FIXIMAGE: f}
DATALOADER: {NUM_WORKERS: 16}
IMAGE:
  MEAN: {R: 1.5, G: 2.5, B: 3.5}
  SIZE: {BASE: , TRAIN: 128, TEST: 128}
INIT_MODEL: {KK: oo, UNET: u.pth, G: g.pth, D: d.pth}
SOLVER:
  BATCH_SIZE: {TRAIN: 3, TEST: 1}
  ITER_SIZE: 2
  ITER_SAVE: 50
  ITER_TB: 1
  AVERAGE_LOSS: 20
  ITER_MAX: 1234
  OPTIMIZER: {NAME: sgd, LR: 1.0e-5, WEIGHT_DECAY: 2.0e-3, MOMENTUM: 0.9}
  LR_SCHEDULER_D: {name: step_lr, step_size: 35000, gamma: 0.5}
  LR_SCHEDULER_U: {name: step_lr, step_size: 25000, gamma: 0.25}
  LR_SCHEDULER_D: {name: step_lr, step_size: 31000, gamma: 0.5}
  LR_SCHEDULER_G: {name: step_lr, step_size: 32000, gamma: 0.5}
"""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "Gan.yaml"
    path.write_text(PUBLISHED)
    return path


@pytest.mark.fault("a config file of the published code")
def test_a_published_config_is_recognised_in_one_line(old, tmp_path):
    with pytest.raises(SettingsError) as caught:
        read_settings(old)
    assert str(caught.value) == (
        f"{old}: a config file of the published code; translate it with python -m configs.translate {old} --output "
        "NEW.yaml (docs/published_config.md)"
    )
    # Without its repeated key, too, and with nothing but one of its keys.
    for text in (PUBLISHED.replace("  LR_SCHEDULER_D: {name: step_lr, step_size: 35000, gamma: 0.5}\n", ""),
                 "SOLVER: {LR_SCHEDULER_U: {name: step_lr, step_size: 3, gamma: 0.1}}"):  # fmt: skip
        old.write_text(text)
        with pytest.raises(SettingsError, match="a config file of the published code"):
            read_settings(old)


def test_a_published_config_becomes_ours(old, tmp_path, capsys):
    new = tmp_path / "new.yaml"
    assert run(lambda: module.main([str(old), "--output", str(new)])) == 0
    settings, ours = read_settings(new), Settings()
    assert settings.exp.id == "sample1_recons_focal_origImgToD_genImgToD_perception"
    assert settings.exp.output_dir == "data"
    split = settings.dataset.split
    assert (split.labeled, split.wo_label, split.healthy) == ("one", "wl", "h")
    assert (split.valid, split.validwl, split.validh) == ("val", "vwl", "vh")
    assert (settings.dataset.root, settings.dataloader.num_workers) == ("/somewhere/cropped", 16)
    assert (settings.image.slices, settings.image.size) == (32, (40, 160, 160))
    assert (settings.init_model.unet, settings.init_model.g, settings.init_model.d) == ("u.pth", "g.pth", "d.pth")
    solver = settings.solver
    assert (solver.batch_size, solver.iter_max) == (3, 1234)
    optimizers = [(o.name, o.lr, o.weight_decay) for o in (solver.optimizer.u, solver.optimizer.g, solver.optimizer.d)]
    assert optimizers == [("Adam", 1e-4, 2e-3), ("Adam", 1e-5, 0), ("RMSprop", 1e-5, 2e-3)]
    schedulers = [(s.step, s.gamma) for s in (solver.lr_scheduler_u, solver.lr_scheduler_g, solver.lr_scheduler_d)]
    assert schedulers == [(25_000, 0.25), (32_000, 0.5), (31_000, 0.5)]
    assert (settings.loss, settings.gate) == (ours.loss, ours.gate)

    named = {line.split(":")[0].removeprefix("# ") for line in new.read_text().splitlines() if line.startswith("# ")}
    assert {
        "SOLVER.LR_SCHEDULER_D", "DATASET.N_CLASSES", "DATASET.IGNORE_LABEL", "DATASET.SCALES", "DATASET.SPLIT.NAIVE",
        "DATASET.SPLIT.FIXIMAGE", "IMAGE.MEAN.R", "IMAGE.MEAN.G", "IMAGE.MEAN.B", "IMAGE.SIZE.BASE", "IMAGE.SIZE.TEST",
        "INIT_MODEL.KK", "SOLVER.BATCH_SIZE.TEST", "SOLVER.ITER_SIZE", "SOLVER.ITER_SAVE", "SOLVER.ITER_TB",
        "SOLVER.AVERAGE_LOSS", "SOLVER.OPTIMIZER.NAME", "SOLVER.OPTIMIZER.MOMENTUM",
    } <= named  # fmt: skip
    assert "EXP.ID" not in named
    printed = capsys.readouterr().out
    assert "SOLVER.LR_SCHEDULER_D: given more than once; the last one counts" in printed
    assert "SOLVER.ITER_SIZE: had no effect" in printed

    # Nothing is written over, and standard output is what would have been written.
    before = new.read_text()
    assert run(lambda: module.main([str(old), "--output", str(new)])) == 1
    assert "exists already" in capsys.readouterr().err
    assert new.read_text() == before
    assert module.main([str(old)]) == 0
    assert capsys.readouterr().out == before


def test_a_constraint_inside_of_a_longer_word_stays_on_and_keys_of_nobody_are_named():
    text = PUBLISHED.replace("sample1_recons_focal", "sample1_reconstruction").replace("ITER_SIZE", "ITER_SIEZ")
    written, notes = translate(text, "old.yaml")
    assert yaml.safe_load(written)["EXP"]["ID"] == "sample1_reconstruction_origImgToD_genImgToD_perception_recons"
    assert "EXP.ID: recons is part of a longer word, which switched it on; added as a word" in notes
    assert "SOLVER.ITER_SIEZ: not a key of the published code; dropped" in notes


def test_a_constraint_that_never_ran_is_named():
    _, notes = translate(PUBLISHED.replace("_focal_", "_MIL_"), "old.yaml")
    assert any(note.startswith("EXP.ID: MIL stops the published code at iteration 10,001") for note in notes)
    assert not any("MIL" in note for note in translate(PUBLISHED, "old.yaml")[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {BATCH_SIZE: 4}", "old.yaml: not a config file of the published code"),
        (
            PUBLISHED.replace("TRAIN: 128", "TRAIN: 127"),
            "old.yaml: IMAGE.SIZE.TRAIN: expected a multiple of 4, got 127",
        ),
        (PUBLISHED.replace("LR: 1.0e-5", "LR: fast"), "old.yaml: SOLVER.OPTIMIZER.LR: expected a number, got fast"),
        (PUBLISHED.replace("TRAIN: 3", "TRAIN: 0"), "old.yaml: SOLVER.BATCH_SIZE: "),
        (PUBLISHED.replace("step_size: 25000", "step_size: x"), "old.yaml: SOLVER.LR_SCHEDULER_U.STEP: "),
    ],
)
def test_what_cannot_be_translated_is_one_line(text, message):
    with pytest.raises(SettingsError, match=message) as caught:
        translate(text, "old.yaml")
    assert "\n" not in str(caught.value)
