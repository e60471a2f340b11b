"""Training states: files from which training resumes, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from torch import Tensor

from models.checkpoint import STATE_FORMAT, VERSION, Entries, StateFile, check_entries, load, save
from utils.errors import CheckpointError

log = logging.getLogger(__name__)

_KEPT_STATES = 2


class _Optimizer(Entries):
    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


class _Random(Entries):
    python: tuple[Any, ...]
    torch: Tensor
    cuda: list[Tensor]


class _ResumableState(StateFile):
    optimizers: dict[str, _Optimizer]
    random: _Random
    position: dict[str, NonNegativeInt]
    iteration: NonNegativeInt
    best_dice: float | None
    skipped: NonNegativeInt
    settings: str


def save_state(folder: Path, content: Mapping[str, Any], iteration: int) -> Path:
    """Write a training state as ``state_<iteration>.pth`` and remove all but the last two states.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = folder / f"state_{iteration:07d}.pth"
    save({"format": STATE_FORMAT, "version": VERSION, "iteration": iteration, **content}, path)
    for old in find_states(folder)[_KEPT_STATES:]:
        old.unlink(missing_ok=True)
    return path


def find_states(folder: Path) -> list[Path]:
    """The training states in a folder, latest first."""
    return sorted(folder.glob("state_*.pth"), reverse=True)


def load_latest_state(folder: Path) -> dict[str, Any]:
    """Load the latest training state that can be read; damaged ones are logged and skipped.

    Raises:
        CheckpointError: there is none.
    """
    for path in find_states(folder):
        try:
            content = load(path)
            if content.get("format") != STATE_FORMAT:
                raise CheckpointError(f"{path}: not a training state")
            check_entries(content, _ResumableState, path)
            return content
        except CheckpointError as error:
            log.warning("%s", error)
    raise CheckpointError(f"{folder}: no training state to resume from; start without --resume")


def save_networks(path: Path, state: Path) -> None:
    """Write only S, G and D of a training state, in half precision; training cannot resume from it.

    Args:
        path: path of the new file.
        state: the training state.

    Raises:
        CheckpointError: `state` cannot be read, is no training state or has weights beyond half precision, or the file
            cannot be written.
    """
    content = load(state)
    if content.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{state}: not a training state; take a state_*.pth")
    networks = {name: {key: _halved(x) for key, x in w.items()} for name, w in content["networks"].items()}
    if not all(x.isfinite().all() for weights in networks.values() for x in weights.values()):
        raise CheckpointError(f"{state}: has weights beyond the range of half precision; take another state")
    # Without the settings, which contain folder names.
    known = {"iteration": content["iteration"]} if "iteration" in content else {}
    save({"format": STATE_FORMAT, "version": VERSION, **known, "networks": networks}, path)


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
