"""Recognise and parse config files of the published code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from utils.errors import SettingsError
from utils.strict_yaml import StrictLoader, parse_yaml

NO_EFFECT = (
    "DATASET.N_CLASSES",
    "DATASET.IGNORE_LABEL",
    "DATASET.SCALES",
    "DATASET.SPLIT.NAIVE",
    "DATASET.SPLIT.FIXIMAGE",
    "IMAGE.MEAN",
    "IMAGE.SIZE.BASE",
    "IMAGE.SIZE.TEST",
    "INIT_MODEL.KK",
    "SOLVER.BATCH_SIZE.TEST",
    "SOLVER.ITER_SIZE",
    "SOLVER.ITER_SAVE",
    "SOLVER.ITER_TB",
    "SOLVER.AVERAGE_LOSS",
    "SOLVER.OPTIMIZER.NAME",
    "SOLVER.OPTIMIZER.MOMENTUM",
)
"""Keys, or sections, that the published code does not use."""

_UNMISTAKABLE = (
    "DATASET.N_CLASSES",
    "IMAGE.SIZE.TRAIN",
    "SOLVER.BATCH_SIZE.TRAIN",
    "SOLVER.ITER_SIZE",
    "SOLVER.OPTIMIZER.LR",
    *(f"SOLVER.LR_SCHEDULER_{network}.step_size" for network in "UGD"),
)
"""Keys that only published config files have."""


def parse_published(text: str, source: str) -> tuple[dict[str, Any], list[str]]:
    """Parse a published config file, which may give a key twice; the later value wins.

    Args:
        text: YAML.
        source: where the text comes from, for error messages.

    Returns:
        Values by dotted key, and the keys that are given more than once.

    Raises:
        SettingsError: the text is not plain YAML, or has no sections.
    """
    repeated: list[str] = []

    class Loader(StrictLoader):
        def repeated_key(self, key: str, mark: yaml.Mark) -> None:
            repeated.append(key)

    tree = parse_yaml(text, source, Loader)
    if not isinstance(tree, dict):
        raise SettingsError(f"{source}: expected sections such as EXP and DATASET, got {type(tree).__name__}")
    values = flatten(tree)
    return values, [_whole_name(key, values) for key in repeated]


def _whole_name(key: str, values: Iterable[str]) -> str:
    """A key with the sections around it."""
    for words in (name.split(".") for name in values):
        if key in words:
            return ".".join(words[: words.index(key) + 1])
    return key


def looks_published(text: str) -> bool:
    """Whether a text is a config file of the published code."""
    try:
        keys, _ = parse_published(text, "")
    except SettingsError:
        return False
    return any(key in keys for key in _UNMISTAKABLE)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
