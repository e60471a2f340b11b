from pathlib import Path

import pytest
import yaml

from configs.settings import Settings, misspelt_constraints, read_settings
from tests import volumes
from utils.errors import SettingsError

CONFIGS = Path(__file__).parents[2] / "configs"


def written(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(message, path, overrides=()):
    return volumes.refused("", lambda: read_settings(path, overrides), message, SettingsError)


def test_gan_yaml_names_every_setting_with_its_published_value():
    tree = yaml.safe_load((CONFIGS / "Gan.yaml").read_text())
    settings = read_settings(CONFIGS / "Gan.yaml")
    assert settings == Settings()

    def keys(node):
        return {key: keys(value) for key, value in node.items()} if isinstance(node, dict) else None

    assert keys(tree) == keys(yaml.safe_load(settings.to_yaml()))


def test_the_published_numbers():
    settings = read_settings(CONFIGS / "Gan.yaml")
    solver, loss, gate = settings.solver, settings.loss, settings.gate
    assert (solver.batch_size, solver.iter_max, solver.discriminator_steps) == (4, 300_000, 5)
    assert not solver.fill_labelled_batch
    assert [(o.name, o.lr, o.weight_decay) for o in (solver.optimizer.u, solver.optimizer.g, solver.optimizer.d)] == [
        ("Adam", 1e-4, 1e-3), ("Adam", 1e-5, 0), ("RMSprop", 1e-5, 1e-3)
    ]  # fmt: skip
    steps = [s.step for s in (solver.lr_scheduler_u, solver.lr_scheduler_g, solver.lr_scheduler_d)]
    assert steps == [20_000, 30_000, 30_000]
    assert (loss.segmentation, loss.labelled, loss.recons, loss.mil, loss.perception) == (100, 5, 100, 1000, 100)
    assert (loss.mil_start, loss.perception_start) == (10_000, 10_000)
    assert (loss.perception_lesion, loss.perception_background) == (0.8, 0.2)
    gates = [(g.below, g.factor) for g in (gate.joint, gate.segmenter, gate.discriminator, gate.origimgtod)]
    assert gates == [(0.16, 1e-3), (0.064, 1e-2), (0.16, 1e-6), (0.1, 1e-4)]
    assert (settings.image.size, settings.image.slices) == ((40, 160, 160), 32)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_valid_and_misspells_no_constraint(path):
    assert misspelt_constraints(read_settings(path)) is None


def test_settings_survive_being_written(tmp_path):
    settings = read_settings(CONFIGS / "demo.yaml", ["EXP.SEED=7", "INIT_MODEL.G=g.pth"])
    assert read_settings(written(tmp_path, settings.to_yaml())) == settings


def test_overrides_are_applied_in_order_over_the_file(tmp_path):
    path = written(tmp_path, "SOLVER: {BATCH_SIZE: 3}\nINIT_MODEL:\n")
    overrides = ["SOLVER.BATCH_SIZE=2", "SOLVER.OPTIMIZER.U.NAME=RMSprop", "SOLVER.OPTIMIZER.U.LR=1e-3"]
    overrides += ["INIT_MODEL.D=d.pth", "IMAGE.SIZE=[16, 64, 64]", "IMAGE.SLICES=16", "SOLVER.BATCH_SIZE=1"]
    overrides += ["SOLVER={ITER_MAX: 7, OPTIMIZER: {U: {WEIGHT_DECAY: 0}}}"]  # keeps what it does not name
    settings = read_settings(path, [*overrides, "DATASET.SPLIT.VALID=null"])
    assert (settings.solver.batch_size, settings.solver.iter_max) == (1, 7)
    assert (settings.solver.optimizer.u.name, settings.solver.optimizer.u.lr) == ("RMSprop", 1e-3)
    assert settings.init_model.d == "d.pth"
    assert settings.image.size == (16, 64, 64)
    assert settings.dataset.split.valid is None


@pytest.mark.fault("unknown keys, wrong")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {BATCHSIZE: 4}", "SOLVER.BATCHSIZE: unknown setting; known here: BATCH_SIZE"),
        ("solver: {BATCH_SIZE: 4}", "solver: unknown setting"),
        ("SOLVER: {BATCH_SIZE: true}", "SOLVER.BATCH_SIZE: .*integer, got True"),
        ("SOLVER: {BATCH_SIZE: '4'}", "SOLVER.BATCH_SIZE: .*integer"),
        ("SOLVER: {BATCH_SIZE: -1}", "SOLVER.BATCH_SIZE: .*greater than 0, got -1"),
        ("SOLVER: {OPTIMIZER: {U: {NAME: Adam, LR: .nan}}}", "SOLVER.OPTIMIZER.U.LR: .*finite number"),
        ("SOLVER: {OPTIMIZER: {U: {NAME: Adam, LR: -1e-4}}}", "SOLVER.OPTIMIZER.U.LR: .*greater than 0"),
        ("SOLVER: {OPTIMIZER: {U: {NAME: SGD, LR: 1e-4}}}", "SOLVER.OPTIMIZER.U.NAME: .*'Adam' or 'RMSprop'"),
        ("LOSS: {RECONS: .inf}", "LOSS.RECONS: .*finite number"),
        ("LOSS: {PERCEPTION_BACKGROUND: 0.9}", "LOSS: PERCEPTION_BACKGROUND .0.9. must not exceed"),
        ("IMAGE: {SIZE: [16, 64]}", "IMAGE.SIZE.2: "),
        ("IMAGE: {SIZE: [16, 64, 64]}", "IMAGE: SLICES must be at most the depth in SIZE, 16, got 32"),
        ("IMAGE: {SLICES: 8}", "IMAGE: SLICES must be a multiple of 16, and SIZE of 4, 32 and 32, got 8 and"),
        ("IMAGE: {SIZE: [16, 32, 32], SLICES: 16}", "IMAGE: SLICES and SIZE must be above 16 slices of 32x32"),
        ("SOLVER: {OPTIMIZER: {U: {NAME: Adam, LR: 1e38}}}", "SOLVER.OPTIMIZER.U.LR: .*less than or equal to 1"),
        ("EXP: {ID: ../run}", "EXP.ID: .*pattern"),
        ("EXP: {SEED: 1}\nEXP: {SEED: 2}", "line 2: the key EXP is given twice"),
        ("EXP: !!python/object/apply:os.system ['true']", r"line 1: tags \(!\) are not supported; expected plain YAML"),
        ("EXP: {SEED: !!int '3'}", r"line 1: tags \(!\) are not supported"),
        ("EXP: &a {SEED: 1}\nLOSS: *a", r"line 1: anchors \(&\) and aliases \(\*\) are not supported"),
        ("EXP:\n  <<: {SEED: 1}", "line 2: "),
        ("EXP: {ID: 2020-99-99}", "not valid YAML: month must be in 1..12"),
        ('DATASET: {ROOT: "a\\0b"}', "DATASET.ROOT: "),
        ('DATASET: {SPLIT: {VALID: "a\\nb"}}', "DATASET.SPLIT.VALID: "),
        ("DATASET: {ROOT: ''}", "DATASET.ROOT: "),
        ("\x00", "not valid YAML: "),
        ("EXP: [", "line 1: "),
        ("- EXP", "expected sections such as EXP and DATASET, got list"),
        ("1: 2", "the key 1 is not a word"),
        ("IMAGE: {WINDOW: [250, -1250]}", "IMAGE: WINDOW must give the lower HU first, got .250.0, -1250.0"),
        ("LOSS: {HEALTHY: 0}\nDATASET: {SPLIT: {HEALTHY: null}}", "DATASET.SPLIT.HEALTHY must name a list; only"),
        ("DATASET: {SPLIT: {WO_LABEL: null}}", "DATASET.SPLIT.WO_LABEL must name a list; only"),
        ("SOLVER: {SEGMENTER_ONLY: true}\nDATASET: {SPLIT: {HEALTHY: null}}", "DATASET.SPLIT.HEALTHY must name a list"),
        ("MODEL: {DISCRIMINATOR_HEADS: 3}", "MODEL.DISCRIMINATOR_HEADS: .*less than or equal to 2"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(tmp_path, text, message):
    path = written(tmp_path, text)
    assert str(path) in refused(message, path)


def laughs(levels):
    lines = ["a0: &a0 [ha, ha]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels))]
    return "\n".join([*lines, f"EXP: *a{levels - 1}"])


@pytest.mark.fault("alias bombs, deep nesting")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(12), r"line 1: anchors"),
        ("a" * (2**20 + 1), "larger than 1 MB"),
        ("[" * 10_000, "nested too deeply"),
        ("a:\n" + "\n".join(" " * k + "a:" for k in range(1, 1000)), "nested too deeply"),
        (f"EXP: {{SEED: {'9' * 10_000}}}", "line 1: a number of 10000 characters"),
        (f"EXP: {{SEED: 0x{'f' * 10_000}}}", "line 1: a number of 10002 characters"),
        (f"SOLVER: {{BATCH_SIZE: 1.{'0' * 10_000}}}", "line 1: a number of 10002 characters"),
        (f"SOLVER: {{ITER_MAX: {'9' * 40}, BATCH_SIZE: [{'1, ' * 5000}]}}", "BATCH_SIZE: .*integer, got .1, 1, 1"),
        (f"SOLVER: {{BATCH_SIZE: {'four' * 5000}}}", r"BATCH_SIZE: .*integer, got 'fourfour.*\.\.\.$"),
        (f"{'A' * 900}: 1", "A{60}\\.\\.\\.: unknown setting"),
        (f"{'A' * 900}: 1\n{'A' * 900}: 2", r"line 2: the key A{60}\.\.\. is given twice"),
        ("\n".join(f"KEY{k}: 1" for k in range(1000)), "KEY9: unknown setting; .*; and 990 more$"),
    ],
)
def test_a_config_made_to_overwhelm_is_one_short_line(tmp_path, text, message):
    assert len(refused(message, written(tmp_path, text))) < 3000


@pytest.mark.fault("unknown keys, wrong")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("SOLVER.BATCH_SIZE", "expected an override of the form KEY.SUB=value"),
        ("=3", "of the form KEY.SUB=value"),
        ("SOLVER..X=3", "of the form KEY.SUB=value"),
        ("SOLVER.BATCH_SIZE.X=3", r"SOLVER.BATCH_SIZE: expected a valid integer, got \{'X': 3\}"),
        ("SOLVER.BATCH_SIZE=[", "SOLVER.BATCH_SIZE="),
        ("SOLVER.TYPO=3", "SOLVER.TYPO: unknown setting"),
        ("EXP.SEED=" + "9" * 5000, r"^EXP.SEED=9+\.\.\., line 1: a number of 5000 characters"),
        ("EXP.SEED=&a 1", "anchors"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path, override, message):
    refused(message, written(tmp_path, "SOLVER: {BATCH_SIZE: 4}"), [override])


@pytest.mark.fault("not UTF-8, missing")
def test_a_missing_or_binary_config_is_one_line(tmp_path):
    refused(r"nothing\.yaml: No such file", tmp_path / "nothing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused(r"binary\.yaml: not UTF-8", tmp_path / "binary.yaml")


@pytest.mark.fault("a config file of the published code")
@pytest.mark.parametrize(
    "text",
    [
        "DATASET:\n  ROOT: /somewhere\n  N_CLASSES: 1\n",
        "IMAGE: {SIZE: {BASE: , TRAIN: 128, TEST: 128}}",
        "SOLVER:\n  ITER_SIZE: 2\n",
        "SOLVER:\n  LR_SCHEDULER_D: {name: step_lr, step_size: 3}\n  LR_SCHEDULER_D: {name: step_lr, step_size: 4}\n",
    ],
)
def test_a_published_config_is_recognised_in_one_line(tmp_path, text):
    refused("config.yaml: a config file of the published code; docs/differences.md says", written(tmp_path, text))


@pytest.mark.parametrize(
    ("run", "constraints"),
    [
        (
            "sample1_recons_origImgToD_genImgToD_perception_MIL",
            {"recons", "origImgToD", "genImgToD", "perception", "MIL"},
        ),
        ("sample_focal_recons_MIL_", {"recons", "MIL"}),
        ("sample1_focal_origImgToD", {"origImgToD"}),
        ("reconstruction_MILK", set()),
    ],
)
def test_constraints_are_whole_words_of_the_id(run, constraints):
    assert read_settings(None, [f"EXP.ID={run}"]).exp.constraints == constraints


@pytest.mark.parametrize(
    ("word", "meant"), [("percepton", "perception"), ("reconst", "recons"), ("genimgtod", "genImgToD"), ("mil", "MIL")]
)
def test_a_word_that_nearly_is_a_constraint_is_warned_of(word, meant):
    warning = misspelt_constraints(read_settings(None, [f"EXP.ID=sample1_{word}_origImgToD"]))
    assert warning.startswith(f"EXP.ID: {word} (did you mean {meant}?) has no effect; ")
    others = "EXP.ID=wuhan_focal_run7_recons_seed0_precision"
    assert misspelt_constraints(read_settings(None, [others])) is None


def test_the_splits_that_training_reads():
    def splits(*overrides):
        return read_settings(None, overrides).training_splits

    assert splits() == splits("LOSS.HEALTHY=0") == ("LABELED", "WO_LABEL", "HEALTHY")
    assert splits("SOLVER.SEGMENTER_ONLY=true", "DATASET.SPLIT.WO_LABEL=null") == ("LABELED", "HEALTHY")
    labels_only = read_settings(CONFIGS / "labels_only.yaml")
    assert labels_only.training_splits == ("LABELED",)
    # But for what makes them what they are, the two baselines are one.
    supervised = read_settings(CONFIGS / "supervised.yaml")
    same = {"exp": labels_only.exp, "dataset": labels_only.dataset, "loss": labels_only.loss}
    assert supervised.model_copy(update=same) == labels_only
    assert supervised.loss.model_copy(update={"healthy": 0.0}) == labels_only.loss


def test_what_the_authors_ran():
    settings = read_settings(CONFIGS / "published.yaml")
    assert settings.exp.constraints == {"recons", "origImgToD", "genImgToD", "perception"}
    assert settings.model.discriminator_heads == 2
    assert (settings.solver.last_iteration, settings.solver.iter_max) == (20_000, 300_000)
    assert settings.loss.perception_start == 10_000
    for name in ("mosmed.yaml", "mosmed_finetune.yaml"):
        assert "MIL" not in read_settings(CONFIGS / name).exp.constraints
