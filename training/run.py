"""One training run: everything that is not the method itself.

Networks, optimisers, batches, log, validation, checkpoints and signals are held here, so that the loop in train.py
can be read as the method. Of several processes, each has a share of every batch and of the scans of validation, all
take the same steps with the mean of their gradients, and the first writes.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from configs.settings import Settings
from datasets.cohort import TRAINING, Case, read_volumes
from datasets.crop import WINDOW
from datasets.samples import BatchStream, Samples, scan_input
from evaluation.inference import autocast, predict_scans
from evaluation.metrics import summarise
from models import Discriminator, Generator, Segmenter
from models.objectives import Batch, Method, Networks, Objective
from reports.training import write_training_report
from training.balance import DiscriminatorBalance
from training.checkpoint import (
    BEST,
    LAST,
    SegmenterFacts,
    SegmenterInput,
    find_states,
    load_latest_state,
    load_weights,
    save_segmenter,
    save_state,
)
from training.log import RunLog, RunningMeans, SilentLog, picture_grid
from training.model_card import describe_training, write_model_card
from training.optimise import (
    SkippedSteps,
    build_optimizers,
    gradient_norms,
    gradients,
    guarded_step,
    set_learning_rates,
)
from utils import distributed
from utils.errors import CheckpointError, SettingsError, TrainingError
from utils.files import write_text
from utils.memory import keep_freed_memory

log = logging.getLogger(__name__)

_PAGE_SHARE = 0.02
"""Of the time of training, what is spent on report.html at most, but for the last one."""


class TrainingRun:
    """A training run, new or resumed.

    Args:
        settings: of the experiment.
        cohort: cases by key of DATASET.SPLIT.
        device: to train on.
        resume: go on from the latest state in the run's folder.
        validate: score the validation splits at INTERVAL.VALID and keep the best segmenter.
        progress: show a progress bar.

    Raises:
        SettingsError: the batch cannot be shared out to the processes.
        TrainingError: the run's folder holds a run already and `resume` is False.
        CheckpointError: a checkpoint to start or resume from cannot be read or does not fit.
        OSError: the run's folder cannot be written.
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
        if settings.solver.batch_size % distributed.world_size():
            raise SettingsError(
                f"SOLVER.BATCH_SIZE: {settings.solver.batch_size} volumes cannot be shared out to "
                f"{distributed.world_size()} processes; make it a multiple"
            )
        if find_states(self.folder) and not resume:
            raise TrainingError(
                f"{self.folder}: holds a run already; --resume goes on with it, another EXP.ID starts a new one"
            )
        if settings.speed.keep_memory and device.type == "cpu":
            keep_freed_memory()
        random.seed(settings.exp.seed)
        torch.manual_seed(settings.exp.seed)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = settings.solver.precision != "fp32"
        self.method = Method(settings.exp.constraints, settings.solver.iter_max, settings.loss, settings.gate)
        self.networks = _build_networks(settings, initialise=not resume).to(device, settings.speed.channels_last)
        if settings.speed.compile:
            self.networks.segmenter.compile()
            self.networks.generator.compile()
        self.optimizers = build_optimizers(self.networks, settings.solver)
        self._average = _moving_average(self.networks.segmenter, settings.solver.segmenter_average)
        self.iteration = 0
        self.best_dice: float | None = None
        self._stale = 0
        self.skipped = SkippedSteps(settings.solver.max_skipped)
        positions = dict.fromkeys(TRAINING, 0)
        if resume:
            positions = self._restore(load_latest_state(self.folder))
        self._streams = {
            split: BatchStream(
                Samples(cohort[split], split, settings.image, settings.exp.seed, settings.dataloader.cache_mb),
                settings.solver.batch_size,
                settings.dataloader,
                device,
                positions[split],
            )
            for split in TRAINING
        }
        if distributed.is_rank_zero():
            write_text(self.folder / "settings.yaml", settings.to_yaml())
            self._log = RunLog(self.folder, self.iteration, settings.solver.iter_max, progress)
        else:
            self._log = SilentLog()
        self._means = RunningMeans()
        self._balance = DiscriminatorBalance()
        self._last_log = (self.iteration, time.monotonic())
        self._next_page = time.monotonic() + 1 / _PAGE_SHARE  # as if one had taken a second
        self._signal = 0  # none
        self._handlers: dict[int, Any] = {}

    def iterations(self) -> Iterator[int]:
        """The iterations t that are left; logs, validates and saves between them.

        Ctrl-C and SIGTERM, in any process, end the iteration that is under way, save the state, and then raise
        SystemExit in all.
        """
        self._handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self._finished():
                set_learning_rates(self.optimizers, self.settings.solver, self.iteration)
                yield self.iteration
                self.iteration += 1
                self._between()
        finally:
            self._restore_handlers()
            self._log.close()

    def _finished(self) -> bool:
        solver = self.settings.solver
        return self.iteration >= solver.iter_max or 0 < solver.patience <= self._stale

    @property
    def segmenter(self) -> Segmenter:
        """The segmenter to use: S, or its moving average where there is one."""
        return self.networks.segmenter if self._average is None else self._average.module

    def batch(self, split: str) -> Batch:
        """The next batch of a training split, on the device."""
        return self._streams[split].next()

    def minimise(self, name: str, trained: Sequence[str], objective: Callable[..., Objective], *inputs: Any) -> None:
        """One step of the optimisers of some networks; the others are frozen.

        Args:
            name: of the objective, in the log.
            trained: names of the networks to step.
            objective: called with `inputs`.
            inputs: what the objective takes; the ids of the batches among them are named when it goes wrong.
        """
        for network_name, network in self.networks._asdict().items():
            network.requires_grad_(network_name in trained)
        optimizers = [self.optimizers[network_name] for network_name in trained]
        for optimizer in optimizers:
            optimizer.zero_grad()
        with autocast(self.device, self.settings.solver.precision):
            value = objective(*inputs)
        own = value.total.detach()
        logged = {name: term.clone() for name, term in {**value.terms, "total": own}.items()}
        if "segmenter" in trained and self._looks_at_gradients():
            logged |= gradient_norms(value.weighted, self.networks.segmenter)
        value.total.backward()
        distributed.average_over_ranks([*gradients(optimizers), *logged.values()])
        finite = guarded_step(optimizers, logged["total"])
        if self._average is not None and "segmenter" in trained:
            self._average.update_parameters(self.networks.segmenter)
        self._means.add(name, logged, finite.all())
        ids = [case_id for batch in inputs if isinstance(batch, Batch) for case_id in batch.ids]
        self.skipped.record(finite, own, self.iteration, name, ids)

    def _looks_at_gradients(self) -> bool:
        interval = self.settings.interval.gradients
        # Every so many iterations of S, not of all: half of them are D's.
        return interval > 0 and (self.iteration // 4 * 2 + self.iteration % 2) % interval == 0

    def write_page(self) -> None:
        """Write report.html, in the first process. A page that cannot be written is a warning, and no end of a run."""
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
        interval, done, stop = self.settings.interval, self.iteration, distributed.max_over_ranks(self._signal)
        self._log.bar.update()
        improved = False
        if self.validate and (done % interval.valid == 0 or self._finished()):
            improved = self._validate()
        finished = self._finished()  # or out of patience now
        # A state that did not know of the best segmenter would let a worse one take its place.
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
            log.warning("stopped at iteration %d, state saved; --resume goes on", done)
            raise SystemExit(128 + stop)

    def _report(self) -> None:
        for what in self.skipped.check():
            log.warning("NaN or Inf in the %s; this step was skipped", what)
        before, since = self._last_log
        now = time.monotonic()
        values = self._means.take()
        if message := self._balance.add(values):
            log.warning("iteration %d: %s", self.iteration, message)
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
        """Score the validation splits; whether this is the best segmenter so far."""
        values: dict[str, float] = {}
        for split in ("VALID", "VALIDH", "VALIDWL"):
            cases = self.cohort.get(split, ())
            image, precision = self.settings.image, self.settings.solver.precision
            mine = distributed.shard(cases)
            predictions = predict_scans(self.segmenter, mine, split, image.normalization, precision)
            summary = summarise(distributed.unshard([prediction.score for prediction in predictions]))
            if summary["lesion"]["scans"]:
                values["valid/dice"] = summary["lesion"]["dice"]["mean"]
            if summary["no_lesion"]["scans"]:
                values[f"{split.lower()}/false_positive_ml"] = summary["no_lesion"]["false_positive_ml"]["mean"]
            if summary["unknown"]["scans"]:
                values[f"{split.lower()}/predicted_ml"] = summary["unknown"]["predicted_ml"]["mean"]
        self._log.scalars(self.iteration, values)
        dice = values.get("valid/dice")
        if dice is None or (self.best_dice is not None and dice <= self.best_dice):
            self._stale += 1
            return False
        self.best_dice, self._stale = dice, 0
        if distributed.is_rank_zero():
            self._save_segmenter(BEST, dice)
        return True

    def _pictures(self) -> Tensor:
        settings = self.settings.image
        first = (settings.size[0] - settings.slices) // 2
        middle = slice(first, first + settings.slices)
        images, lungs = [], []
        for split in ("WO_LABEL", "HEALTHY", "LABELED"):
            volumes = read_volumes(self.cohort[split][0])
            images.append(scan_input(volumes, settings.normalization)[:, :, middle])
            lungs.append(torch.from_numpy(volumes.lung)[None, None, middle].float())
        with autocast(self.device, self.settings.solver.precision):
            return picture_grid(self.networks, torch.cat(images).to(self.device), torch.cat(lungs).to(self.device))

    def _save_segmenter(self, name: str, dice: float | None) -> None:
        trained_on = SegmenterInput(self.settings.image.size, WINDOW, self.settings.image.normalization)
        training = describe_training(self.settings, self.cohort, self.device)
        segmenter, facts = self.segmenter, SegmenterFacts(trained_on, self.iteration, dice, training)
        save_segmenter(self.folder / name, segmenter, trained_on, self.iteration, dice, training)
        # The card is of the segmenter that one would use.
        if name == BEST or self.best_dice is None:
            write_model_card(self.folder / name, segmenter, facts)

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
            "stale": self._stale,
            "skipped": self.skipped.count,
            "settings": self.settings.to_yaml(),
        }
        if self._average is not None:
            content["average"] = self._average.state_dict()
        save_state(self.folder, content, self.iteration)

    def _restore(self, state: Mapping[str, Any]) -> dict[str, int]:
        """Take up a state; returns the place in the stream of each split."""
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
            self.best_dice, self._stale = state["best_dice"], state.get("stale", 0)
            self.skipped.count = state["skipped"]
            self.iteration = state["iteration"]
            positions = dict(state["position"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.folder}: its state does not fit these settings ({reason}); resume with those in settings.yaml"
            ) from None
        if state["settings"] != self.settings.to_yaml():
            log.warning("resuming with settings that differ from those of the saved run")
        return positions

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        # A second signal does what it always does: nobody has to wait for a loader that hangs. torchrun may pass on one
        # that came already, and ends what hangs by itself.
        if distributed.world_size() == 1:
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Take up what an optimiser knew of its weights; its settings stay those of today."""
    fresh = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    if any(old.keys() - {"params"} != new.keys() for old, new in zip(saved["param_groups"], fresh, strict=True)):
        raise ValueError(f"it is of another optimiser than {type(optimizer).__name__}")
    groups = [{**old, **new} for old, new in zip(saved["param_groups"], fresh, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for weight, state in optimizer.state.items():
        if any(value.ndim and value.shape != weight.shape for value in state.values()):
            raise ValueError("the optimiser knows weights of other shapes")


def _moving_average(segmenter: Segmenter, decay: float) -> AveragedModel | None:
    return AveragedModel(segmenter, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def _build_networks(settings: Settings, initialise: bool) -> Networks:
    width, size = settings.model.width, settings.image.size
    networks = Networks(
        Segmenter(width.unet),
        Generator(width.g),
        Discriminator(width.d, (settings.image.slices, *size[1:])),
    )
    start = settings.init_model
    for network, path in zip(networks, (start.unet, start.g, start.d), strict=True):
        if path is not None and initialise:
            load_weights(network, Path(path))
    return networks
