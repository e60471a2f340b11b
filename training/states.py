"""What a run saves: states, from which it resumes bit for bit, and segmenters."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from configs.settings import Settings, read_settings_text
from datasets.cohort import Case
from models.checkpoint import (
    BEST,
    LAST,
    STATE_FORMAT,
    VERSION,
    SegmenterFacts,
    SegmenterInput,
    Training,
    load,
    load_weights,
    save,
    save_segmenter,
)
from models.objectives import build_networks
from training.optimise import SkippedSteps, build_optimizers
from utils.errors import CheckpointError, SettingsError, TrainingError, one_line
from utils.ledger import environment, project_version

log = logging.getLogger(__name__)

_KEPT_STATES = 2


class TrainingState:
    """What a run changes, but for its files: networks, optimisers, random generators and counters.

    `initialise` loads the networks of INIT_MODEL, which raises a `CheckpointError` where one does not fit.
    """

    def __init__(self, settings: Settings, device: torch.device, initialise: bool) -> None:
        image, width, start = settings.image, settings.model.width, settings.init_model
        input_size = (image.slices, *image.size[1:])
        networks = build_networks((width.unet, width.g, width.d), input_size, settings.model.discriminator_heads)
        self.seen: set[str] = set()  # checksums of all CTs that the networks were trained on or chosen by
        for network, path in zip(networks, (start.unet, start.g, start.d), strict=True):
            if path is not None and initialise:
                self.seen.update(load_weights(network, Path(path)))
        self.settings = settings
        self.device = device
        self.networks = networks.to(device)
        self.optimizers = build_optimizers(self.networks, settings.solver)
        decay = settings.solver.segmenter_average
        self.average = (
            AveragedModel(self.networks.segmenter, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        )
        self.iteration = 0  # iterations done
        self.best_dice: float | None = None  # mean validation Dice of the best segmenter
        self.best_iteration: int | None = None
        self.skipped = SkippedSteps(settings.solver.max_skipped)

    @property
    def segmenter(self) -> nn.Module:
        """The segmenter to validate and keep: S, or its moving average."""
        return self.networks.segmenter if self.average is None else self.average.module

    def content(self, position: Mapping[str, int], scans: Mapping[str, Sequence[list[str]]]) -> dict[str, Any]:
        """What to write to a file, with the sample position and the scans, see `identity`, in order, of each split."""
        content = {
            "networks": {name: network.state_dict() for name, network in self.networks._asdict().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "random": {
                "python": random.getstate(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            "position": dict(position),
            "scans": dict(scans),
            "seen": sorted(self.seen),
            "iteration": self.iteration,
            "best_dice": self.best_dice,
            "best_iteration": self.best_iteration,
            "skipped": self.skipped.count,
            "settings": self.settings.to_yaml(),
        }
        return content if self.average is None else {**content, "average": self.average.state_dict()}

    def restore(
        self, content: Mapping[str, Any], scans: Mapping[str, Sequence[list[str]]], folder: Path
    ) -> dict[str, int]:
        """Continue from what `content` returned, on scans by split; return the sample position by split.

        Messages name the folder of the run.

        Raises:
            CheckpointError: the content does not fit these settings.
            TrainingError: a split has other scans than the run began with, or the same ids other CTs or masks.
        """
        for split, before in (content.get("scans") or {}).items():
            if (now := scans.get(split, before)) != before:
                others = sorted({scan[0] for scan in now} ^ {scan[0] for scan in before})
                changed = [f"{scan[0]} has another CT or mask" for scan in now if scan not in before]
                how = f"{len(others)}, such as {others[0]}" if others else (*changed, "another order")[0]
                raise TrainingError(
                    f"{folder}: DATASET.SPLIT.{split} has other scans than when it began ({how}); restore them, or "
                    "start another run with a new EXP.ID"
                )
        try:
            for name, network in self.networks._asdict().items():
                network.load_state_dict(content["networks"][name])
            if self.average is not None:
                self.average.load_state_dict(content["average"])
            for name, optimizer in self.optimizers.items():
                _restore_optimizer(optimizer, content["optimizers"][name])
            random.setstate(content["random"]["python"])
            torch.set_rng_state(content["random"]["torch"])
            if self.device.type == "cuda" and len(content["random"]["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(content["random"]["cuda"])
            self.iteration = content["iteration"]
            self.best_dice, self.best_iteration = content["best_dice"], content.get("best_iteration")
            self.skipped.count = content["skipped"]
            self.seen.update(content.get("seen") or ())
            position = dict(content["position"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: its state does not fit these settings ({one_line(error)}); resume with its settings.yaml"
            ) from None
        if not _recorded_as(content["settings"], self.settings):
            log.warning("resuming with settings that differ from those of the saved run")
        return position


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Restore the state of an optimiser; learning rate, weight decay and so on come from the current settings."""
    fresh = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    if any(old.keys() - {"params"} != new.keys() for old, new in zip(saved["param_groups"], fresh, strict=True)):
        raise ValueError(f"it belongs to another optimiser than {type(optimizer).__name__}")
    groups = [{**old, **new} for old, new in zip(saved["param_groups"], fresh, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for weight, state in optimizer.state.items():
        if any(value.ndim and value.shape != weight.shape for value in state.values()):
            raise ValueError("the optimiser state has weights of other shapes")


def _recorded_as(recorded: str, settings: Settings) -> bool:
    try:
        return read_settings_text(recorded, "settings") == settings
    except SettingsError:  # from another version
        return False


def save_segmenters(state: TrainingState, cohort: Mapping[str, Sequence[Case]]) -> None:
    """Write the segmenter of a run for use, and as the best one if the last validation found it to be."""
    settings, iteration = state.settings, state.iteration
    image = settings.image
    facts = SegmenterFacts(
        trained_on=SegmenterInput(size=image.size, window=image.window, normalization=image.normalization),
        width=settings.model.width.unet,
        iteration=iteration,
        training=_describe(settings, cohort, state.device),
        seen=sorted(state.seen),
    )
    save_segmenter(settings.exp.folder / LAST, state.segmenter, facts)
    if state.best_iteration == iteration:
        best = facts.model_copy(update={"valid_dice": state.best_dice})
        save_segmenter(settings.exp.folder / BEST, state.segmenter, best)


def _describe(settings: Settings, cohort: Mapping[str, Sequence[Case]], device: torch.device) -> Training:
    """How a segmenter is trained, for its file: no ids of scans, and of folders only the last part."""
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


def save_state(folder: Path, content: Mapping[str, Any], iteration: int) -> Path:
    """Write a training state as ``state_<iteration>.pth`` and remove all but the last two states."""
    path = folder / f"state_{iteration:07d}.pth"
    save({"format": STATE_FORMAT, "version": VERSION, **content, "iteration": iteration}, path)
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
            return content
        except CheckpointError as error:
            log.warning("%s", error)
    raise CheckpointError(f"{folder}: no training state to resume from; start another run with a new EXP.ID")


def state_to_resume(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The state that a run in a folder continues from; None if it starts at the beginning.

    With `resume`, a run that left no state, because it never began or ended before its first save, starts.

    Raises:
        TrainingError: the folder holds files of a run, and `resume` is False or there is no state beside its segmenter.
        CheckpointError: none of the states can be read.
    """
    if resume and find_states(folder):
        return load_latest_state(folder)
    kinds = ("segmenter_*.pth",) if resume else ("state_*.pth", "segmenter_*.pth", "metrics.jsonl", "pictures/*.png")
    if found := [path for kind in kinds for path in sorted(folder.glob(kind))]:
        resumable = find_states(folder) or not list(folder.glob("segmenter_*.pth"))
        remedy = "; resume it with --resume" if resumable else ", but no state; move them away"
        raise TrainingError(
            f"{folder}: already holds files of a run ({found[0].name}){remedy}, or start another with a new EXP.ID"
        )
    return None
