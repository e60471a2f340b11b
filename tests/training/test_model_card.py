import json
import re
from pathlib import Path

import pytest
import torch

import train
from configs.settings import parse_settings, read_settings
from datasets.cohort import Case
from models import Segmenter
from models.checkpoint import SegmenterFacts, SegmenterInput, find_segmenter, load, read_segmenter, save, save_segmenter
from tests import reference
from training.model_card import describe_training, model_card, shareable, write_model_card
from utils.manifest import project_version

ROOT = Path(__file__).parents[2]
TRAINED_ON = SegmenterInput(size=(20, 64, 96), window=(-1000.0, 400.0), normalization="window")
OVERRIDES = (
    "EXP.ID=mine_recons_MIL",
    "EXP.OUTPUT_DIR=/home/someone/results",
    "DATASET.ROOT=/hospital/ward/covid",
    "INIT_MODEL.UNET=/home/someone/first/segmenter_best.pth",
    "SOLVER.OPTIMIZER.U={NAME: Adam, LR: 2e-4}",
    "SOLVER.BATCH_SIZE=3",
    "EXP.SEED=41",
)


def cases(*ids):
    return tuple(Case(case_id, Path(f"/hospital/{case_id}"), Path(), None) for case_id in ids)


COHORT = {"LABELED": cases("Doe^John"), "HEALTHY": cases("4711", "4712"), "VALID": cases("a", "b", "c")}


@pytest.fixture
def card(tmp_path):
    """The card of a segmenter whose training is known, and its file."""
    training = describe_training(read_settings(None, OVERRIDES), COHORT, torch.device("cpu"))
    save_segmenter(
        tmp_path / "segmenter_best.pth",
        Segmenter(2),
        SegmenterFacts(trained_on=TRAINED_ON, iteration=1234, valid_dice=0.56789, training=training),
    )
    return card_of(tmp_path / "segmenter_best.pth")


def card_of(path):
    write_model_card(path, *read_segmenter(path))
    return (path.parent / "model_card.md").read_text(encoding="utf-8")


def test_a_card_says_what_the_file_says(card):
    assert card.startswith("# Model card: mine_recons_MIL\n\nFor research use only; not a medical device.\n")
    # By hand: the stem, 27 w + w; levels of 2, 4 and 8 channels of pairs 9 io + 3 oo; convolutions 27 io; 27 w + 1.
    pairs = [(2, 2), (2, 2), (4, 4), (4, 4), (8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2)]
    full = [(2, 4), (4, 8), (8, 4), (4, 2)]
    parameters = 56 + sum(9 * i * o + 3 * o * o for i, o in pairs) + sum(27 * i * o for i, o in full) + 55
    assert f"width 2 with {parameters:,} parameters" in card
    for line in (
        "Iteration: 1234.",
        "| LABELED | training, diseased, with voxel labels | 1 |",
        "| HEALTHY | training, healthy | 2 |",
        "| VALID | validation, with voxel labels | 3 |",
        "| constraint losses | recons, MIL |",
        "| volumes in a batch | 3 |",
        "| seed | 41 |",
        "| optimiser of S, G, D | Adam 0.0002, Adam 1e-05, RMSprop 1e-05 |",
        "| S started from | `segmenter_best.pth` |",
        "| device | CPU |",
        "Cohort: `covid`.",
        "(3 in VALID), at the crop's resolution: 0.5679.",
        "selected among all validated iterations by that Dice",
        "resized to 20x64x96 voxels",
        "HU from -1000 to 400 become v from 0 to 255",
        "| normalization | `window`: x = 2 v / 255 - 1 |",
        f"GASNet {project_version()}",
        f"torch {torch.__version__.split('+')[0]}",
        "--model-path FOLDER/segmenter_best.pth",
        "Code: MIT. Weights: unknown",
        "arXiv:2010.09456",
    ):
        assert line in card, line


def test_neither_a_card_nor_its_file_tells_ids_of_scans_or_paths(card, tmp_path):
    content = (tmp_path / "segmenter_best.pth").read_bytes()
    for secret in ("Doe", "4711", "/hospital", "ward", "/home", "someone", str(tmp_path)):
        assert secret not in card
        assert secret.encode() not in content


def test_the_card_of_a_published_checkpoint_says_no_more_than_is_known(tmp_path):
    save(reference.published_state(reference.load("segmenter_base4")), tmp_path / "checkpointU_1000.pth")
    card = card_of(tmp_path / "checkpointU_1000.pth")
    for line in (
        "Iteration: unknown.",
        "## Training data\n\nUnknown: the file does not say.",
        "## Training\n\nSettings: unknown.",
        "Dice: unknown",
        "width 4",
        "resized to 40x160x160 voxels",
        "`minmax`",
        "The file does not say this; it is what the published code does.",
        "Trained with: unknown.",
        "--config-path configs/Gan.yaml --model-path FOLDER/checkpointU_1000.pth",
    ):
        assert line in card, line


def test_the_iterations_planned_are_those_of_a_run_that_stops_early(card, tmp_path):
    assert "| iterations planned | 300000 |" in card
    path = tmp_path / "segmenter_best.pth"
    content = load(path)
    content["training"]["settings"] = content["training"]["settings"].replace("STOP_AFTER: 0", "STOP_AFTER: 20000")
    save(content, path)
    assert "| iterations planned | 20000 |" in card_of(path)


def test_settings_of_other_versions_are_told_as_far_as_they_are_known(card, tmp_path):
    path = tmp_path / "segmenter_best.pth"
    content = load(path)
    recorded = content["training"]["settings"]
    content["training"]["settings"] = recorded.replace("SOLVER:\n", "SOLVER:\n  WARM_UP: 200\n  LATER: 1\n").replace(
        "DISCRIMINATOR_STEPS", "OTHER_NAME"
    )
    save(content, path)
    other = card_of(path)
    assert "| steps of D | unknown |" in other
    assert "| volumes in a batch | 3 |" in other
    assert "This run also used settings that later versions removed: SOLVER.WARM_UP 200." in other
    assert "removed" not in card
    for text in ("- a list\n", "EXP: [\n"):
        content["training"]["settings"] = text
        save(content, path)
        assert "Settings: unknown." in card_of(path)
    assert "| VALID | validation, with voxel labels | 3 |" in card_of(path)


def test_settings_are_handed_on_without_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = read_settings(None, [*OVERRIDES, "IMAGE.SLICES=16"])
    shared = shareable(settings)
    assert (shared.dataset.root, shared.exp.output_dir) == ("covid", "output")
    assert (shared.init_model.unet, shared.init_model.g) == ("segmenter_best.pth", None)
    assert (shared.image, shared.solver, shared.exp.id) == (settings.image, settings.solver, settings.exp.id)
    assert parse_settings(shared.to_yaml(), "shared") == shared
    for root, name in ((".", tmp_path.name), ("data/", "data"), ("/", "data")):
        assert shareable(read_settings(None, [f"DATASET.ROOT={root}"])).dataset.root == name


def test_the_licence_and_the_exported_files_stand_in_the_card(tmp_path):
    save_segmenter(tmp_path / "s.pth", Segmenter(2), SegmenterFacts(trained_on=TRAINED_ON))
    card = model_card(*read_segmenter(tmp_path / "s.pth"), "s.pth", {"segmenter.onnx": "as ONNX"}, "CC BY 4.0")
    assert "Weights: CC BY 4.0;" in card
    assert "| `segmenter.onnx` | as ONNX |" in card


def test_the_commands_in_a_card_are_commands_of_the_project(card):
    commands = re.search(r"```sh\n(.*?)```", card, re.DOTALL).group(1).splitlines()
    assert len(commands) == 2
    for command in commands:
        python, script, *words = command.split()
        assert python == "python"
        text = (ROOT / script).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in text, command


SHORT = ("EXP.ID=recons", "SOLVER.DISCRIMINATOR_STEPS=1", "INTERVAL.PICTURE=100")


def test_training_writes_the_card_of_the_best_segmenter(config, tmp_path):
    # Learns nothing in the second iteration, so that the best segmenter is not the last one.
    arguments = ["--config-path", str(config), "--is-validation", "--quiet", "--device", "cpu", *SHORT]
    train.main([*arguments, "SOLVER.ITER_MAX=2", "INTERVAL.VALID=1", "SOLVER.OPTIMIZER.U.LR=1e-12"])
    folder = tmp_path / "output" / "recons"
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dices = {entry["iteration"]: entry["valid/dice"] for entry in entries if "valid/dice" in entry}
    assert set(dices) == {1, 2}
    assert load(folder / "segmenter_last.pth")["iteration"] == 2
    assert load(folder / "segmenter_best.pth")["iteration"] == 1
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    assert "Iteration: 1." in card
    assert f"(2 in VALID), at the crop's resolution: {dices[1]:.4f}." in card
    assert "FOLDER/segmenter_best.pth" in card
    assert not re.search(r"sick_\d|well_\d", card)
    assert find_segmenter(folder) == folder / "segmenter_best.pth"


def test_a_run_without_validation_has_the_card_of_its_last_segmenter(config, tmp_path):
    train.main(["--config-path", str(config), "--quiet", "--device", "cpu", *SHORT, "SOLVER.ITER_MAX=1"])
    card = (tmp_path / "output" / "recons" / "model_card.md").read_text(encoding="utf-8")
    assert "Iteration: 1." in card
    assert "Dice: unknown" in card
    assert "FOLDER/segmenter_last.pth" in card
    assert "VALID" not in card
