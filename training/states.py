"""Training states: files from which training resumes, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from configs.settings import Settings
from datasets.cohort import Case
from models.checkpoint import STATE_FORMAT, VERSION, Entries, StateFile, Training, check_entries, load, save
from utils.errors import CheckpointError
from utils.ledger import environment, project_version

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


def describe_training(settings: Settings, cohort: Mapping[str, Sequence[Case]], device: torch.device) -> Training:
    """Describe a training run, for the file of its segmenter: no ids of scans, and of folders only the last part.

    Args:
        settings: settings of the experiment.
        cohort: cases by key of DATASET.SPLIT; they are counted.
        device: device of the training.
    """
    start = {name: None if path is None else Path(path).name for name, path in settings.init_model}
    root = Path(settings.dataset.root).resolve().name or "data"
    shared = settings.model_copy(
        update={
            "exp": settings.exp.model_copy(update={"output_dir": "output"}),
            "dataset": settings.dataset.model_copy(update={"root": root}),
            "init_model": settings.init_model.model_copy(update=start),
        }
    )
    return Training(
        cohort=root,
        scans={split: len(cases) for split, cases in cohort.items()},
        settings=shared.to_yaml(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        versions={"GASNet": project_version(), **environment()["versions"]},
    )
