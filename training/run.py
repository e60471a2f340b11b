"""One training run: everything around the method.

It holds state, batches, log, validation and signals, so that the loop in train.py shows the method alone. With several
ranks, each processes its share of every batch and of the validation scans; gradients are averaged, and rank 0 writes.
"""

import logging
import os
import random
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from configs.settings import Settings
from datasets.cohort import Case, identity, read_volumes
from datasets.samples import Batch, BatchStream, Samples, batch_size, scan_input
from evaluation.inference import DICE, validate
from models.layers import autocast, describe_precision
from models.objectives import Method, Objective
from training.log import RunLog, RunningMeans, discriminator_balance, picture_grid
from training.optimise import gradients, guarded_step, set_learning_rates
from training.states import TrainingState, save_segmenters, save_state, state_to_resume
from utils import distributed
from utils.distributed import keep_freed_memory
from utils.errors import SettingsError
from utils.files import write_text

log = logging.getLogger(__name__)


class TrainingRun:
    """A training run, new or resumed, on cases by key of DATASET.SPLIT.

    `resume` continues from the latest state in the output folder or, without one, starts; `validate` validates at
    INTERVAL.VALID and keeps the best segmenter.

    Raises:
        SettingsError: the batch size is not a multiple of the number of ranks.
        TrainingError: the output folder already holds files of a run, and `resume` is False; or a list of scans has
            changed since the run began.
        CheckpointError: a checkpoint to start or resume from cannot be read or does not fit.
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
        volumes, ranks = settings.solver.batch_size, distributed.world_size()
        if volumes % ranks:
            raise SettingsError(
                f"SOLVER.BATCH_SIZE: {volumes} volumes cannot be split over {ranks} ranks; make it a multiple"
            )
        self.settings, self.cohort, self.device, self.validate = settings, cohort, device, validate
        self.folder = settings.exp.folder
        self.method = Method(settings.exp.constraints, settings.solver.iter_max, settings.loss, settings.gate)
        self.scans = distributed.on_rank_zero(
            lambda: {split: [identity(case) for case in cases] for split, cases in cohort.items()}
        )

        saved = state_to_resume(self.folder, resume)
        _prepare_torch(settings, device)
        self.state = TrainingState(settings, device, initialise=saved is None)
        position = {} if saved is None else self.state.restore(saved, self.scans, self.folder)
        self.state.seen |= {case.content for cases in cohort.values() for case in cases}
        if saved is not None and distributed.is_rank_zero():
            save_segmenters(self.state, cohort)  # a run that was killed after it saved this state may lack them
        self.networks, self.optimizers = self.state.networks, self.state.optimizers
        if settings.speed.compile:
            self.networks.segmenter.compile()
            self.networks.generator.compile()
        self._streams = {split: self._open_stream(split, position.get(split, 0)) for split in settings.training_splits}

        log.info("%s", describe_precision(device, settings.solver.precision))
        if distributed.is_rank_zero():
            write_text(self.folder / "settings.yaml", settings.to_yaml())
        logged = self.folder if distributed.is_rank_zero() else None
        self.log = RunLog(logged, self.iteration, settings.solver.last_iteration, progress)
        self.means = RunningMeans()
        self._last_entry = (self.iteration, time.monotonic())
        self.stop = StopSignal()

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.state.iteration

    def _open_stream(self, split: str, position: int) -> BatchStream:
        settings = self.settings
        samples = Samples(self.cohort[split], split, settings.image, settings.exp.seed, settings.dataloader.cache_mb)
        size = batch_size(split, len(samples.cases), settings.solver)
        return BatchStream(samples, size, settings.dataloader, self.device, position)

    def iterations(self) -> Iterator[int]:
        """Iterate over the remaining iterations t; log, validate and save in between.

        After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 on any rank, the current iteration is completed, the state is saved,
        and SystemExit is raised on all ranks.
        """
        try:
            with self.stop.caught():
                while not self.finished():
                    set_learning_rates(self.optimizers, self.settings.solver, self.iteration)
                    yield self.iteration
                    self.state.iteration += 1
                    self.between()
        finally:
            self.log.close()

    def finished(self) -> bool:
        """Whether the last iteration is done."""
        return self.iteration >= self.settings.solver.last_iteration

    def batch(self, split: str) -> Batch:
        """Return the next batch of a training split, on the device; without volumes if this run does not read it."""
        return self._streams[split].next() if split in self._streams else Batch()

    def minimise(self, objective: Callable[..., Objective], first: Batch, second: Batch, trains: Sequence[str]) -> None:
        """Take one optimiser step on the networks named in `trains`; the others are frozen.

        The objective is a function of `models.objectives`, called with its two batches.
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
        if problem := guarded_step(optimizers, logged["total"]):
            self.state.skipped.add(problem, own, self.iteration, value.name, [*first.ids, *second.ids])
            return
        if self.state.average is not None and "segmenter" in trains:
            self.state.average.update_parameters(self.networks.segmenter)
        self.means.add(value.name, logged)

    def between(self) -> None:
        """What follows an iteration: validate, log, draw and save, where it is time."""
        interval, done, stop = self.settings.interval, self.iteration, self.stop.on_any_rank()
        finished, improved = self.finished(), False
        self.log.bar.update()
        if self.validate and (done % interval.valid == 0 or finished):
            improved = self.validated()
        # Without a save, a resumed run would not know the best Dice, and could replace the best segmenter by a worse.
        save = done % interval.save == 0 or finished or improved or stop
        if done % interval.log == 0 or save:
            self._log_entry()
        if distributed.is_rank_zero() and (done % interval.picture == 0 or finished):
            self.log.picture(done, self._pictures())
        if distributed.is_rank_zero() and save:
            # The state first: from it, a run that is killed here writes the segmenters again.
            position = {split: stream.position for split, stream in self._streams.items()}
            save_state(self.folder, self.state.content(position, self.scans), done)
            save_segmenters(self.state, self.cohort)
        if stop:
            log.warning("stopped at iteration %d, state saved; continue with --resume", done)
            raise SystemExit(128 + stop)

    def validated(self) -> bool:
        """Validate; return whether this is the best segmenter so far."""
        normalization, precision = self.settings.image.normalization, self.settings.solver.precision
        values = validate(self.state.segmenter, self.cohort, normalization, precision)
        self.log.scalars(self.iteration, values)
        dice, best = values.get(DICE), self.state.best_dice
        if dice is None or (best is not None and dice <= best):
            return False
        self.state.best_dice, self.state.best_iteration = dice, self.iteration
        return True

    def _log_entry(self) -> None:
        (before, since), now = self._last_entry, time.monotonic()
        values = self.means.take()
        values |= discriminator_balance(values, self.settings.model.discriminator_heads)
        values |= {f"lr/{name}": o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
        values["seconds_per_iteration"] = (now - since) / max(self.iteration - before, 1)
        values["skipped"] = self.state.skipped.count
        if self.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.log.scalars(self.iteration, values)
        self._last_entry = (self.iteration, now)

    def _pictures(self) -> Tensor:
        image = self.settings.image
        first = (image.size[0] - image.slices) // 2
        middle = slice(first, first + image.slices)
        images, lungs = [], []
        for split in ("WO_LABEL", "HEALTHY", "LABELED"):
            if split in self._streams:
                volumes = read_volumes(self.cohort[split][0])
                images.append(scan_input(volumes, image.normalization)[:, :, middle])
                lungs.append(torch.from_numpy(volumes.lung)[None, None, middle].float())
        with autocast(self.device, self.settings.solver.precision):
            return picture_grid(self.networks, torch.cat(images).to(self.device), torch.cat(lungs).to(self.device))


def _prepare_torch(settings: Settings, device: torch.device) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    random.seed(settings.exp.seed)
    torch.manual_seed(settings.exp.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = settings.solver.precision != "fp32"


class StopSignal:
    """Remembers that SIGINT, SIGTERM, SIGHUP (a closed terminal) or SIGUSR1 (a time limit) arrived."""

    def __init__(self) -> None:
        self.number = 0  # the signal that arrived; 0 if none did
        self._handlers: dict[int, Any] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals inside the block; not SIGHUP under nohup."""
        caught = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            caught.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self.receive) for number in caught}
        try:
            yield
        finally:
            self._restore_handlers()

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """Handle a signal."""
        self.number = number
        if number == signal.SIGHUP:
            _leave_terminal()
        # A second signal has its usual effect, so that nobody has to wait for a loader that hangs. Under torchrun, a
        # second one may be the same signal passed on, and torchrun itself kills what hangs.
        if distributed.world_size() == 1:
            self._restore_handlers()

    def on_any_rank(self) -> int:
        """The signal that arrived on any rank, 0 if none did; all ranks must call this."""
        return max(distributed.gather(self.number))

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Discard output to a terminal: once it is closed, writing to it fails."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
