"""One training run: everything around the method.

It holds networks, optimisers, batches, log, validation, checkpoints and signals, so that the loop in train.py shows the
method alone. With several ranks, each processes its share of every batch and of the validation scans; gradients are
averaged, and rank 0 writes.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from configs.settings import Settings, read_settings_text
from datasets.cohort import Case, read_volumes
from datasets.samples import Batch, BatchStream, Samples, batch_size, scan_input
from evaluation.inference import autocast
from models import Segmenter
from models.checkpoint import BEST, LAST, SegmenterFacts, SegmenterInput, load_weights, save_segmenter
from models.objectives import Method, Networks, Objective, build_networks, disturb
from reports.training import write_training_report
from training.log import RunLog, RunningMeans, SilentLog, discriminator_balance, picture_grid
from training.optimise import (
    SkippedSteps,
    build_optimizers,
    gradients,
    guarded_step,
    set_learning_rates,
)
from training.signals import StopSignal
from training.states import describe_training, find_states, load_latest_state, save_state
from training.validation import DICE, validate
from utils import distributed
from utils.errors import CheckpointError, SettingsError, TrainingError, one_line
from utils.files import write_text
from utils.memory import keep_freed_memory

log = logging.getLogger(__name__)

_PAGE_SHARE = 0.02
"""Largest share of the training time that is spent on report.html; the last page comes on top."""


class TrainingRun:
    """A training run, new or resumed.

    Args:
        settings: settings of the experiment.
        cohort: cases by key of DATASET.SPLIT.
        device: device to train on.
        resume: resume from the latest state in the output folder.
        validate: validate at INTERVAL.VALID and keep the best segmenter.
        progress: show a progress bar.

    Raises:
        SettingsError: the batch size is not a multiple of the number of ranks.
        TrainingError: the output folder already holds a run, and `resume` is False.
        CheckpointError: a checkpoint to start or resume from cannot be read or does not fit.
        OSError: the output folder cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        cohort: Mapping[str, Sequence[Case]],
        device: torch.device,
        resume: bool = False,
        validate: bool = True,
        progress: bool = True,
    ) -> None:
        self.settings = settings
        self.cohort = cohort
        self.device = device
        self.folder = settings.exp.folder
        self.validate = validate
        self._refuse_what_cannot_run(resume)
        _prepare_torch(settings, device)
        self.method = Method(settings.exp.constraints, settings.solver.iter_max, settings.loss, settings.gate)
        self.networks = _initial_networks(settings, initialise=not resume).to(device)
        if settings.speed.compile:
            self.networks.segmenter.compile()
            self.networks.generator.compile()
        self.optimizers = build_optimizers(self.networks, settings.solver)
        self._average = _moving_average(self.networks.segmenter, settings.solver.segmenter_average)
        self.iteration = 0
        self.best_dice: float | None = None
        self.skipped = SkippedSteps(settings.solver.max_skipped)
        positions: dict[str, int] = {}
        if resume:
            positions = self._restore(load_latest_state(self.folder))
        self._streams = {split: self._open_stream(split, positions.get(split, 0)) for split in settings.training_splits}
        if distributed.is_rank_zero():
            write_text(self.folder / "settings.yaml", settings.to_yaml())
            self._log = RunLog(self.folder, self.iteration, settings.solver.last_iteration, progress)
        else:
            self._log = SilentLog()
        self._means = RunningMeans()
        self._last_log = (self.iteration, time.monotonic())
        self._next_page = time.monotonic() + 1 / _PAGE_SHARE  # as if a page had just taken a second
        self.stop = StopSignal()

    def _refuse_what_cannot_run(self, resume: bool) -> None:
        volumes, ranks = self.settings.solver.batch_size, distributed.world_size()
        if volumes % ranks:
            raise SettingsError(
                f"SOLVER.BATCH_SIZE: {volumes} volumes cannot be split over {ranks} ranks; make it a multiple"
            )
        if find_states(self.folder) and not resume:
            raise TrainingError(
                f"{self.folder}: already holds a run; resume it with --resume, or start another with a new EXP.ID"
            )

    def _open_stream(self, split: str, position: int) -> BatchStream:
        settings = self.settings
        samples = Samples(self.cohort[split], split, settings.image, settings.exp.seed, settings.dataloader.cache_mb)
        size = batch_size(split, len(samples.cases), settings.solver)
        return BatchStream(samples, size, settings.dataloader, self.device, position)

    def iterations(self) -> Iterator[int]:
        """Iterate over the remaining iterations t; log, validate and save in between.

        After Ctrl-C, SIGTERM or SIGHUP on any rank, the current iteration is completed, the state is saved, and
        SystemExit is raised on all ranks.
        """
        try:
            with self.stop.caught():
                while not self._finished():
                    set_learning_rates(self.optimizers, self.settings.solver, self.iteration)
                    yield self.iteration
                    self.iteration += 1
                    self._between()
        finally:
            self._log.close()

    def _finished(self) -> bool:
        return self.iteration >= self.settings.solver.last_iteration

    @property
    def segmenter(self) -> Segmenter:
        """The segmenter to validate and save: S, or its moving average if SOLVER.SEGMENTER_AVERAGE is set."""
        return self.networks.segmenter if self._average is None else self._average.module

    def batch(self, split: str) -> Batch:
        """Return the next batch of a training split, on the device; without volumes if this run does not read it."""
        return self._streams[split].next() if split in self._streams else Batch()

    def taught(self, unlabelled: Batch) -> Batch:
        """Label volumes with the teacher, the moving average of S, and disturb the volumes for S."""
        with torch.no_grad(), autocast(self.device, self.settings.solver.precision):
            lesion = self.segmenter(unlabelled.image).float().sigmoid()
        return unlabelled._replace(image=disturb(unlabelled.image, self.method.loss.disturbance), lesion=lesion)

    def minimise(self, objective: Callable[..., Objective], first: Batch, second: Batch, trains: Sequence[str]) -> None:
        """Take one optimiser step on some networks; the others are frozen.

        Args:
            objective: a function of `models.objectives`.
            first: its first batch.
            second: its second batch.
            trains: names of the networks to train.
        """
        for name, network in self.networks._asdict().items():
            network.requires_grad_(name in trains)
        optimizers = [self.optimizers[name] for name in trains]
        for optimizer in optimizers:
            optimizer.zero_grad()
        with autocast(self.device, self.settings.solver.precision):
            value = objective(self.networks, first, second, self.method, self.iteration)
        own = value.total.detach()
        logged = {name: term.clone() for name, term in {**value.terms, "total": own}.items()}
        value.total.backward()
        distributed.average_over_ranks([*gradients(optimizers), *logged.values()])
        finite = guarded_step(optimizers, logged["total"])
        if self._average is not None and "segmenter" in trains:
            self._average.update_parameters(self.networks.segmenter)
        self._means.add(value.name, logged, finite.all())
        self.skipped.record(finite, own, self.iteration, value.name, [*first.ids, *second.ids])

    def write_page(self) -> None:
        """Write report.html on rank 0. If that fails, warn and continue."""
        if not distributed.is_rank_zero():
            return
        since = time.monotonic()
        try:
            write_training_report(self.folder)
        except Exception as error:
            log.warning("%s: not written (%s: %s)", self.folder / "report.html", type(error).__name__, error)
        now = time.monotonic()
        self._next_page = now + (now - since) / _PAGE_SHARE

    def _between(self) -> None:
        interval, done, stop = self.settings.interval, self.iteration, self.stop.on_any_rank()
        self._log.bar.update()
        improved = False
        if self.validate and (done % interval.valid == 0 or self._finished()):
            improved = self._validate()
        finished = self._finished()
        # Without a save, a resumed run would not know the best Dice, and could replace the best segmenter by a worse.
        save = done % interval.save == 0 or finished or improved or stop
        if done % interval.log == 0 or save:
            self._report()
        if distributed.is_rank_zero() and (done % interval.picture == 0 or finished):
            self._log.picture(done, self._pictures())
        if distributed.is_rank_zero() and save:
            self._save()
            if stop or time.monotonic() >= self._next_page:
                self.write_page()
        if stop:
            log.warning("stopped at iteration %d, state saved; continue with --resume", done)
            raise SystemExit(128 + stop)

    def _report(self) -> None:
        for what in self.skipped.check():
            log.warning("NaN or Inf in the %s; this step was skipped", what)
        before, since = self._last_log
        now = time.monotonic()
        values = self._means.take()
        values |= discriminator_balance(values, self.settings.model.discriminator_heads)
        values |= {f"lr/{name}": o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
        values |= {
            "seconds_per_iteration": (now - since) / max(self.iteration - before, 1),
            "skipped": self.skipped.count,
        }
        if self.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._log.losses(self.iteration, values)
        self._last_log = (self.iteration, now)

    def _validate(self) -> bool:
        """Validate; return whether this is the best segmenter so far."""
        values = validate(self.segmenter, self.cohort, self.settings)
        self._log.scalars(self.iteration, values)
        dice = values.get(DICE)
        if dice is None or (self.best_dice is not None and dice <= self.best_dice):
            return False
        self.best_dice = dice
        if distributed.is_rank_zero():
            self._save_segmenter(BEST, dice)
        return True

    def _pictures(self) -> Tensor:
        settings = self.settings.image
        first = (settings.size[0] - settings.slices) // 2
        middle = slice(first, first + settings.slices)
        images, lungs = [], []
        for split in ("WO_LABEL", "HEALTHY", "LABELED"):
            if split not in self._streams:
                continue
            volumes = read_volumes(self.cohort[split][0])
            images.append(scan_input(volumes, settings.normalization)[:, :, middle])
            lungs.append(torch.from_numpy(volumes.lung)[None, None, middle].float())
        with autocast(self.device, self.settings.solver.precision):
            return picture_grid(self.networks, torch.cat(images).to(self.device), torch.cat(lungs).to(self.device))

    def _save_segmenter(self, name: str, dice: float | None) -> None:
        image = self.settings.image
        trained_on = SegmenterInput(size=image.size, window=image.window, normalization=image.normalization)
        facts = SegmenterFacts(
            trained_on=trained_on,
            iteration=self.iteration,
            valid_dice=dice,
            training=describe_training(self.settings, self.cohort, self.device),
        )
        save_segmenter(self.folder / name, self.segmenter, facts)

    def _save(self) -> None:
        self._save_segmenter(LAST, None)
        content = {
            "networks": {name: network.state_dict() for name, network in self.networks._asdict().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "random": {
                "python": random.getstate(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            "position": {split: stream.position for split, stream in self._streams.items()},
            "best_dice": self.best_dice,
            "skipped": self.skipped.count,
            "settings": self.settings.to_yaml(),
        }
        if self._average is not None:
            content["average"] = self._average.state_dict()
        save_state(self.folder, content, self.iteration)

    def _restore(self, state: Mapping[str, Any]) -> dict[str, int]:
        """Restore a training state; return each split's sample position."""
        try:
            for name, network in self.networks._asdict().items():
                network.load_state_dict(state["networks"][name])
            if self._average is not None:
                self._average.load_state_dict(state["average"])
            for name, optimizer in self.optimizers.items():
                _restore_optimizer(optimizer, state["optimizers"][name])
            random.setstate(state["random"]["python"])
            torch.set_rng_state(state["random"]["torch"])
            if self.device.type == "cuda" and len(state["random"]["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
            self.best_dice = state["best_dice"]
            self.skipped.count = state["skipped"]
            self.iteration = state["iteration"]
            positions = dict(state["position"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = one_line(error)
            raise CheckpointError(
                f"{self.folder}: its state does not fit these settings ({reason}); resume with its settings.yaml"
            ) from None
        if not _recorded_as(state["settings"], self.settings):
            log.warning("resuming with settings that differ from those of the saved run")
        return positions


def _prepare_torch(settings: Settings, device: torch.device) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    random.seed(settings.exp.seed)
    torch.manual_seed(settings.exp.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = settings.solver.precision != "fp32"


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


def _moving_average(segmenter: Segmenter, decay: float) -> AveragedModel | None:
    return AveragedModel(segmenter, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def _initial_networks(settings: Settings, initialise: bool) -> Networks:
    networks = build_networks(settings.model, settings.image)
    start = settings.init_model
    for network, path in zip(networks, (start.unet, start.g, start.d), strict=True):
        if path is not None and initialise:
            load_weights(network, Path(path))
    return networks
