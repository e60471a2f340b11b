"""Translates a config file of the published code into one for this code.

The result names, as comments at its head, every key that had no effect and everything that changes its meaning.

Examples:
    python -m configs.translate Gan_old.yaml
    python -m configs.translate Gan_old.yaml --output configs/mine.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.published_format import NO_EFFECT, looks_published, parse_published
from configs.settings import CONSTRAINTS, read_settings_text
from utils.cli import new_parser, run
from utils.errors import SettingsError
from utils.files import write_text
from utils.strict_yaml import read_text

_KEPT = (
    "EXP.OUTPUT_DIR",
    "DATASET.ROOT",
    *(f"DATASET.SPLIT.{split}" for split in ("LABELED", "WO_LABEL", "HEALTHY", "VALID", "VALIDWL", "VALIDH")),
    "DATALOADER.NUM_WORKERS",
    "SOLVER.ITER_MAX",
    *(f"INIT_MODEL.{network}" for network in ("UNET", "G", "D")),
)
_RENAMED = {
    "SOLVER.BATCH_SIZE.TRAIN": "SOLVER.BATCH_SIZE",
    **{
        f"SOLVER.LR_SCHEDULER_{network}.{theirs}": f"SOLVER.LR_SCHEDULER_{network}.{ours}"
        for network in "UGD"
        for theirs, ours in (("step_size", "STEP"), ("gamma", "GAMMA"))
    },
}
_CROP_SLICES = 4
"""IMAGE.SIZE.TRAIN is this many times the number of slices in a stack."""

_SEGMENTER_RATE = 10
"""The published code multiplies SOLVER.OPTIMIZER.LR by this for S."""


def translate(text: str, source: str) -> tuple[str, list[str]]:
    """Translate a published config file.

    Args:
        text: YAML of the published code.
        source: where the text comes from, for error messages.

    Returns:
        YAML of this code, and notes: keys without effect, and values that were derived or changed.

    Raises:
        SettingsError: the text is not a published config file, or a value is out of range.
    """
    if not looks_published(text):
        raise SettingsError(
            f"{source}: not a config file of the published code; expected keys such as DATASET.N_CLASSES"
        )
    values, repeated = parse_published(text, source)
    notes = [f"{key}: given more than once; the last one counts" for key in repeated]
    ours: dict[str, Any] = {}
    derived = {
        "EXP.ID": _experiment,
        "IMAGE.SIZE.TRAIN": _slices,
        "SOLVER.OPTIMIZER.LR": _learning_rates,
        "SOLVER.OPTIMIZER.WEIGHT_DECAY": _weight_decays,
    }
    for key, value in values.items():
        if key in derived:
            changed, note = derived[key](value, source)
            ours |= changed
            notes += note
        elif key in _KEPT or key in _RENAMED:
            ours[_RENAMED.get(key, key)] = value
        elif key.startswith("SOLVER.LR_SCHEDULER_") and key.endswith(".name"):
            if value != "step_lr":
                notes.append(f"{key}: {value} had no effect; the published code knows step_lr alone")
        elif any(key == name or key.startswith(f"{name}.") for name in NO_EFFECT):
            notes.append(f"{key}: had no effect")
        else:
            notes.append(f"{key}: not a key of the published code; dropped")
    ours = {
        key: value for key, value in ours.items() if value is not None or key.startswith(("INIT_", "DATASET.SPLIT"))
    }
    written = yaml.safe_dump(_nested(ours), sort_keys=False, width=110)
    read_settings_text(written, source)
    return written, notes


def _experiment(name: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    """The published code looks for constraints anywhere in the ID, this one for whole words."""
    missing = [word for word in CONSTRAINTS if word in str(name) and word not in str(name).split("_")]
    notes = [f"EXP.ID: {word} is part of a longer word, which switched it on; added as a word" for word in missing]
    if "MIL" in str(name):
        notes.append(
            "EXP.ID: MIL stops the published code at iteration 10,001; here it acts, unless the word is removed"
        )
    return {"EXP.ID": "_".join([str(name), *missing])}, notes


def _slices(size: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(size, int) or size % _CROP_SLICES:
        raise SettingsError(f"{source}: IMAGE.SIZE.TRAIN: expected a multiple of {_CROP_SLICES}, got {size}")
    slices = size // _CROP_SLICES
    return {"IMAGE.SLICES": slices}, [f"IMAGE.SIZE.TRAIN: {size} is IMAGE.SLICES {slices}, a quarter"]


def _learning_rates(rate: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(rate, int | float):
        raise SettingsError(f"{source}: SOLVER.OPTIMIZER.LR: expected a number, got {rate}")
    rates = {"U": float(f"{rate * _SEGMENTER_RATE:.12g}"), "G": float(rate), "D": float(rate)}
    kinds = {"U": "Adam", "G": "Adam", "D": "RMSprop"}
    ours = {
        f"SOLVER.OPTIMIZER.{network}.{key}": value[network]
        for network in "UGD"
        for key, value in (("NAME", kinds), ("LR", rates))
    }
    return ours, [f"SOLVER.OPTIMIZER.LR: that of G and D; S had {_SEGMENTER_RATE} times the rate"]


def _weight_decays(decay: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    decays = {"U": decay, "G": 0, "D": decay}
    ours = {f"SOLVER.OPTIMIZER.{network}.WEIGHT_DECAY": value for network, value in decays.items()}
    return ours, ["SOLVER.OPTIMIZER.WEIGHT_DECAY: that of S and D; G had none"]


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m configs.translate``."""
    parser = new_parser(__doc__, "python -m configs.translate")
    parser.add_argument("config", type=Path, metavar="OLD.yaml", help="config file of the published code")
    parser.add_argument("--output", type=Path, metavar="NEW.yaml", help="file to write (default: standard output)")
    options = parser.parse_args(arguments)
    written, notes = translate(read_text(options.config), str(options.config))
    text = "".join([f"# Translated from {options.config.name}.\n", *(f"# {note}\n" for note in notes), "\n", written])
    if options.output is None:
        print(text, end="")
        return 0
    if options.output.exists():
        raise SettingsError(f"{options.output}: exists already; choose another name")
    write_text(options.output, text)
    print("\n".join([*notes, f"written to {options.output}"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
