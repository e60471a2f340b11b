"""Speed of our training compared with the published way of running the same networks and schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import train
from benchmarks.speed.reading_speed import read_written_cohort, write_cohort
from benchmarks.speed.timing import compared
from benchmarks.speed.worker_process import process, requests
from configs.settings import Settings, read_settings
from datasets.samples import Batch, BatchStream, Samples, batch_size
from evaluation.inference import autocast
from models.objectives import Method, Objective, build_networks
from training.optimise import build_optimizers
from training.run import TrainingRun
from utils.memory import peak_memory_mib

PHASES = {"generator+segmenter": 1, "discriminator": 2}
"""One iteration of each phase in which all terms are active."""

SCANS = 4
LABELLED = 1
"""Labelled scans, as in the published experiment; so many volumes are in a labelled batch."""


class _OneByOne(nn.Module):
    """Calls D once per batch instead of once for all, like the published code."""

    def __init__(self, discriminator: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.batch_size = batch_size

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits = [self.discriminator(batch) for batch in x.split(self.batch_size)]
        return tuple(map(torch.cat, zip(*logits, strict=True))) if isinstance(logits[0], tuple) else torch.cat(logits)


class PublishedTraining:
    """Replaces a `TrainingRun` and executes like the published code.

    Eager, contiguous layout, PyTorch's default precision (TF32 convolutions on GPUs), anomaly detection, every loss
    read at every step, every batch read from its files, gradients for D where only S and G are stepped, and one call
    of D per batch. Unlike the published code, S and G keep no graph in steps of D, which favours this baseline.
    """

    def __init__(self, settings: Settings, root: Path, device: torch.device) -> None:
        torch.manual_seed(settings.exp.seed)
        torch.autograd.set_detect_anomaly(True, check_nan=True)
        torch.backends.cudnn.benchmark = True
        plain = build_networks(settings.model, settings.image).to(device, channels_last=False)
        self.settings = settings
        self.iteration = 0
        self.method = Method(settings.exp.constraints, settings.solver.iter_max, settings.loss, settings.gate)
        self.optimizers = build_optimizers(plain, settings.solver)
        self.networks = plain._replace(discriminator=_OneByOne(plain.discriminator, settings.solver.batch_size))
        self._streams = {
            split: BatchStream(
                Samples(cases, split, settings.image, settings.exp.seed),
                batch_size(split, len(cases), settings.solver),
                settings.dataloader,
                device,
            )
            for split, cases in read_written_cohort(root, settings.image.size).items()
        }

    def batch(self, split: str) -> Batch:
        """See `TrainingRun.batch`."""
        return self._streams[split].next()

    def minimise(self, objective: Callable[..., Objective], first: Batch, second: Batch, trains: Sequence[str]) -> None:
        """See `TrainingRun.minimise`; without its guards."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        value = objective(self.networks, first, second, self.method, self.iteration)
        value.total.backward()
        for network in trains:
            self.optimizers[network].step()
        for term in (value.total, *value.terms.values()):
            term.item()


def _ours(settings: Settings, root: Path, device: torch.device) -> TrainingRun:
    return TrainingRun(settings, read_written_cohort(root, settings.image.size), device, validate=False, progress=False)


WAYS = {"published": PublishedTraining, "ours": _ours}


def serve(connection: Connection, way: str, settings: Settings, root: Path, device: torch.device) -> None:
    """Train on request: answer each iteration t with its seconds, seconds of waiting for batches, and peak MiB."""
    training = WAYS[way](settings, root, device)
    waited = 0.0
    batch = training.batch

    def timed_batch(split: str) -> Batch:
        nonlocal waited
        start = time.perf_counter()
        result = batch(split)
        waited += time.perf_counter() - start
        return result

    def iterations() -> Iterator[int]:
        nonlocal waited
        for t in requests(connection):
            _synchronise(device)
            training.iteration = t
            training.iteration = t
            waited, start = 0.0, time.perf_counter()
            yield t
            _synchronise(device)
            connection.send((time.perf_counter() - start, waited, _peak_memory_mib(device)))

    training.batch, training.iterations = timed_batch, iterations
    train.train(training)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_memory_mib()


def cases(device: torch.device, quick: bool) -> dict[str, list[str]]:
    """Measured configurations by name: the published size and the demo's, or only the demo's."""
    workers = 4 if device.type == "cuda" else 1
    always = [
        "EXP.ID=recons_origImgToD_genImgToD_perception_MIL",
        "LOSS.MIL_START=0",
        "LOSS.PERCEPTION_START=0",
        f"DATALOADER.NUM_WORKERS={workers}",
    ]
    batch_size = 4 if device.type == "cuda" else 1
    published = {f"32x160x160, batch {batch_size}": [*always, f"SOLVER.BATCH_SIZE={batch_size}"]}
    demo = ["IMAGE.SIZE=[16, 64, 64]", "IMAGE.SLICES=16", "MODEL.WIDTH={UNET: 8, G: 8, D: 8}", "SOLVER.BATCH_SIZE=2"]
    return ({} if quick else published) | {"16x64x64, widths 8, batch 2": [*always, *demo]}


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Seconds of both phases and of their average, waiting time, volumes per second, and peak memory.

    Args:
        device: training device.
        quick: only the demo size, with few repetitions.
    """
    table = []
    for name, overrides in cases(device, quick).items():
        slow = device.type == "cpu" and "160" in name
        table += _compare(name, overrides, device, repetitions=3 if quick or slow else 10)
    return table


def _compare(name: str, overrides: list[str], device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    ways = {"published": ("published", []), "ours": ("ours", [])}
    if device.type == "cpu" and autocast(device, "bf16_anywhere")._enabled:
        ways["ours, bf16_anywhere"] = ("ours", ["SOLVER.PRECISION=bf16_anywhere"])
    measured = {way: {phase: [] for phase in PHASES} for way in ways}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        settings = read_settings(None, overrides)
        root = Path(folder) / "cohort"
        write_cohort(root, settings.image.size, SCANS, LABELLED)
        asked = {}
        for number, (way, (kind, more)) in enumerate(ways.items()):
            own = read_settings(None, [*overrides, *more, f"EXP.OUTPUT_DIR={folder}/{number}"])
            asked[way] = stack.enter_context(process(serve, kind, own, root, device))
        for turn in range(1 + repetitions):
            for phase, t in PHASES.items():
                for way, ask in asked.items():
                    answer = ask(t)
                    if turn:
                        measured[way][phase].append(answer)
    batch, steps = settings.solver.batch_size, settings.solver.discriminator_steps
    # Joint: diseased and healthy; segmenter: healthy and labelled; D: diseased and healthy.
    volumes = {"generator+segmenter": 3 * batch + LABELLED, "discriminator": 2 * steps * batch}
    # The schedule alternates between the phases in equal numbers.
    for result in measured.values():
        pairs = zip(*(result[phase] for phase in PHASES), strict=True)
        result["average"] = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, max(a[2], b[2])) for a, b in pairs]
    volumes["average"] = sum(volumes.values()) / 2
    return [
        compared(
            f"{name}: {phase} iteration",
            {each: [seconds for seconds, _, _ in measured[each][phase]] for each in ways},
            "published",
            way,
            **{
                f"{label}_{key}": value
                for label, each in (("baseline", "published"), ("ours", way))
                for key, value in _more(measured[each][phase], volumes[phase]).items()
            },
        )
        for way in list(ways)[1:]
        for phase in (*PHASES, "average")
    ]


def _more(answers: list[tuple[float, float, float]], volumes: float) -> dict[str, float]:
    seconds, waited, memory = zip(*answers, strict=True)
    return {
        "waits_s": median(waited),
        "volumes_per_s": volumes / median(seconds),
        "peak_memory_mib": max(memory),
    }
