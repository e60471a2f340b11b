"""The sections of benchmarks/gpu.py. Each notes what it finds at once, so that a later failure loses nothing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import train
from benchmarks.speed.iteration_speed import PHASES, SCANS, PublishedTraining
from benchmarks.speed.reading_speed import read_written_cohort, write_cohort
from benchmarks.speed.roofline import count, of_phases, rates
from benchmarks.speed.timing import environment
from configs.settings import read_settings
from datasets.samples import workers_by_cores
from evaluation.inference import autocast
from models import Discriminator, Generator, Segmenter
from models.fast.networks import FastPath, accelerate
from models.layers import place
from training.run import TrainingRun

ROOT = Path(__file__).resolve().parents[2]

SWITCHES = ("PLANES", "PADDED_CHANNELS", "PHASES", "FUSED", "FLAT_STEP", "GRAPHS")
"""SPEED settings of the fast path."""

PARITY_ITERATIONS = range(4, 10)
"""Two iterations of S and G, two of D, two of S and G: with two steps of D each, twelve steps."""


@dataclass
class Section:
    """What a section may use.

    Attributes:
        name: of the section.
        device: the device to measure.
        toy: small sizes, to try the code on a CPU.
        deadline: `time.monotonic()` at which the section should be done.
        file: JSON Lines to append to.
    """

    name: str
    device: torch.device
    toy: bool
    deadline: float
    file: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def note(self, **row: Any) -> None:
        """Append a row to the file, and print it."""
        row = {"section": self.name, **row}
        self.rows.append(row)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def synchronise(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], most: float, warm_up: int = 2) -> list[float]:
        """Time calls of a function for some seconds, at least three; in toy size once."""
        if self.toy:
            most, warm_up = 0.0, 0
        for _ in range(warm_up):
            work()
        self.synchronise()
        found: list[float] = []
        end = time.monotonic() + most
        while len(found) < (1 if self.toy else 3) or (time.monotonic() < end and self.left() > 0):
            start = time.perf_counter()
            work()
            self.synchronise()
            found.append(time.perf_counter() - start)
        return found

    def settings(self, *overrides: str) -> list[str]:
        """Overrides of the measured training: the published size with all terms on."""
        size = [
            "IMAGE={SIZE: [16, 32, 64], SLICES: 16}",
            "MODEL.WIDTH={UNET: 2, G: 2, D: 2}",
            "SOLVER.BATCH_SIZE=1",
            "SOLVER.DISCRIMINATOR_STEPS=1",
        ]
        return [
            "EXP.ID=recons_origImgToD_genImgToD_perception_MIL",
            "LOSS={MIL_START: 0, PERCEPTION_START: 0}",
            "DATALOADER.NUM_WORKERS=0",
            *(size if self.toy else ["SOLVER.BATCH_SIZE=4"]),
            *overrides,
        ]


def switched(*on: str) -> list[str]:
    """Settings with some switches of the fast path on and the others off."""
    return [f"SPEED.{name}={str(name in on).lower()}" for name in SWITCHES]


@contextmanager
def trainings(section: Section) -> Iterator[Callable[..., Any]]:
    """Yield a function that builds a training from overrides: ours, or the published way if `published`."""
    with TemporaryDirectory() as name, _on_the_cpu() if section.toy else nullcontext():
        root = Path(name) / "cohort"
        size = read_settings(None, section.settings()).image.size
        write_cohort(root, size, 2 if section.toy else SCANS)
        built = 0

        def build(*overrides: str, published: bool = False) -> TrainingRun | PublishedTraining:
            nonlocal built
            built += 1
            settings = read_settings(None, section.settings(*overrides, f"EXP.OUTPUT_DIR={name}/{built}"))
            if published:
                return PublishedTraining(settings, root, section.device)
            cohort = read_written_cohort(root, size)
            return TrainingRun(settings, cohort, section.device, validate=False, progress=False)

        yield build
        torch.autograd.set_detect_anomaly(False)


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Let trainings on the CPU take the fast path, which is for CUDA."""
    with patch("training.run._has_fast_path", return_value=True), patch("training.graphs._WARM_UP", 1):
        yield


def one_iteration(training: TrainingRun | PublishedTraining, t: int) -> None:
    """Run iteration t of the schedule in train.py."""
    training.iteration = t
    training.iterations = lambda: iter([t])
    train.train(training)


def without_loader(training: TrainingRun | PublishedTraining) -> None:
    """Let a training see the same batches every time."""
    batches = {split: training.batch(split) for split in ("WO_LABEL", "HEALTHY", "LABELED")}
    training.batch = batches.__getitem__


def measure(section: Section, way: str, training: TrainingRun | PublishedTraining, seconds: float = 3.0) -> None:
    """Note the seconds of both phases of a training, and its peak memory."""
    start = time.perf_counter()
    for t in [] if section.toy else PHASES.values():
        one_iteration(training, t)
    section.synchronise()
    prepared = time.perf_counter() - start
    if section.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(section.device)
    found = {phase: section.seconds(lambda t=t: one_iteration(training, t), seconds) for phase, t in PHASES.items()}
    medians = {phase: median(values) for phase, values in found.items()}
    memory = torch.cuda.max_memory_allocated(section.device) / 2**30 if section.device.type == "cuda" else None
    section.note(
        way=way,
        joint_s=medians["generator+segmenter"],
        discriminator_s=medians["discriminator"],
        average_s=sum(medians.values()) / 2,
        repetitions=min(map(len, found.values())),
        first_s=prepared,
        memory_gib=memory,
    )


# ------------------------------------------------------------------------------------------------------- part 1


def device_rates(section: Section) -> None:
    """The device, its software, and the rates of a matrix product and of a copy."""
    precision = "bf16_anywhere" if section.device.type == "cpu" else "bf16"
    section.note(**environment(section.device))
    found = rates(section.device, precision)
    section.note(matrix_tflop_per_s=found["flops"] / 1e12, copy_tbyte_per_s=found["bytes"] / 1e12)


def kernel_checks(section: Section) -> None:
    """Compare the Triton kernels with float64 on the device (in toy size, one of them in Triton's interpreter)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/fast/kernel_checks.py"]
    more = {"TRITON_INTERPRET": "1"} if section.toy else {}
    _pytest(section, [*command, *(["-k", "constant_channels"] if section.toy else [])], more)


def _pytest(section: Section, command: list[str], more: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True, timeout=max(section.left(), 1)
        )
    except subprocess.TimeoutExpired:
        section.note(what=command[-1], passed=False, summary="out of time")
        return
    lines = done.stdout.strip().splitlines() or ["no output"]
    section.note(what=" ".join(command[3:]), passed=done.returncode == 0, summary=lines[-1], failures=[
        line for line in lines if line.startswith("FAILED")
    ][:5])  # fmt: skip


def gradients(section: Section) -> None:
    """How far outputs and gradients in bfloat16 are from float64, with eager autocast and with the fast path."""
    torch.manual_seed(0)
    size = (16, 32, 64)
    width = 2 if section.toy else 20
    for network in (Segmenter(width), Generator(width), Discriminator(width, size)):
        plain = place(network, section.device, channels_last=False).eval()
        x = torch.randn(2, 1, *size, device=section.device)
        exact = _outputs(copy.deepcopy(plain).double(), x.double())
        for way, candidate in (("eager", plain), ("fast", accelerate(copy.deepcopy(plain), FastPath(phases_from=0)))):
            with torch.autocast(section.device.type, torch.bfloat16):
                found = _outputs(candidate, x)
            errors = {name: _relative(found[name], value) for name, value in exact.items() if value.norm() > 1e-8}
            weights = [errors[name] for name in errors if name not in ("output", "input")]
            section.note(
                network=type(network).__name__, way=way, output=errors["output"], input_gradient=errors["input"],
                weight_gradient_median=median(weights), weight_gradient_worst=max(weights),
            )  # fmt: skip


def _outputs(network: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    x = x.clone().requires_grad_()
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view(y.shape)).sum().backward()
    named = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return {"output": y.detach(), "input": x.grad, **named}


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


class _Recorder:
    """Stands for the running means of a training and keeps every value."""

    def __init__(self) -> None:
        self.values: list[tuple[str, dict[str, float]]] = []

    def add(self, name: str, values: Mapping[str, Tensor], counts: Tensor) -> None:
        """Keep the values of one step."""
        self.values.append((name, {key: value.item() for key, value in values.items()}))


def parity(section: Section) -> None:
    """Terms of twelve steps, eager and with the fast path, from the same weights and batches."""
    with trainings(section) as build:
        for precision in ("fp32",) if section.toy else ("fp32", "bf16"):
            curves = []
            for on in ((), SWITCHES):
                always = [f"SOLVER.PRECISION={precision}", "SOLVER.DISCRIMINATOR_STEPS=2"]
                training = build(*always, *switched(*on))
                without_loader(training)
                training._means = _Recorder()
                for t in PARITY_ITERATIONS:
                    one_iteration(training, t)
                curves.append(training._means.values)
            errors = [
                {f"{name}/{key}": abs(found[key] - value) / max(abs(value), 1e-6) for key, value in expected.items()}
                for (name, expected), (_, found) in zip(*curves, strict=True)
            ]
            worst, of = max((error, name) for step in errors for name, error in step.items())
            section.note(
                precision=precision, steps=len(errors), worst_relative=worst, of=of,
                first_step_relative=max(errors[0].values()),  # before Adam turns rounding into whole steps
                totals=[values["total"] for _, values in curves[0]],
                fast_totals=[values["total"] for _, values in curves[1]],
            )  # fmt: skip


def baselines(section: Section) -> None:
    """The published way, ours without the fast path, and ours with all of it; the same batch every time."""
    with trainings(section) as build:
        ways = (
            ("published", True, ()),
            ("ours, eager", False, switched()),
            ("ours, fast path", False, switched(*SWITCHES)),
            ("ours, eager, channels last", False, [*switched(), "SPEED.CHANNELS_LAST=true"]),
        )
        for way, published, overrides in ways[: 3 if section.toy else 4]:
            if section.left() > 5:
                training = build(*overrides, published=published)
                without_loader(training)
                measure(section, way, training)
                del training
                torch.autograd.set_detect_anomaly(False)


def switches(section: Section) -> None:
    """The fast path with each switch off, and each alone on; the same batch every time."""
    ways = {f"without {name}": [other for other in SWITCHES if other != name] for name in SWITCHES}
    ways |= {f"{name} alone": [name] for name in SWITCHES}
    ways = {"without PLANES": ways["without PLANES"]} if section.toy else ways
    with trainings(section) as build:
        for way, on in ways.items():
            if section.left() > 5:
                training = build(*switched(*on))
                without_loader(training)
                measure(section, way, training, seconds=1.5)
                del training


@torch.no_grad()
def inference(section: Section) -> None:
    """S alone on volumes that are on the device, at several batch sizes."""
    size = (16, 32, 64) if section.toy else (40, 160, 160)
    plain = place(Segmenter(2 if section.toy else 20), section.device, channels_last=False).eval()
    ways = {"eager": plain, "fast": accelerate(copy.deepcopy(plain), FastPath())}
    for batch in (1,) if section.toy else (1, 4, 16):
        x = torch.rand(batch, 1, *size, device=section.device) * 2 - 1
        for way, network in ways.items():

            def work(network: torch.nn.Module = network, x: Tensor = x) -> Tensor:
                with autocast(section.device, "bf16"):
                    return network(x).float().sigmoid()

            seconds = median(section.seconds(work, 1.0))
            section.note(way=way, batch=batch, ms_per_volume=1e3 * seconds / batch, volumes_per_s=batch / seconds)


# ------------------------------------------------------------------------------------------------------- part 2


def cuda_tests(section: Section) -> None:
    """The tests that need CUDA, with training, resuming, and going on on the CPU among them."""
    folders = ["tests/test_train.py", *([] if section.toy else ["tests/models", "tests/training"])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda", *folders]
    _pytest(section, [*command, *(["--collect-only"] if section.toy else [])], {})


def one_rank(section: Section) -> None:
    """NCCL (gloo in toy size) with a world of one: an all-reduce leaves a tensor as it is."""
    import torch.distributed as dist

    with TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if section.device.type == "cuda" else "gloo", init_method=f"file://{folder}/store", rank=0,
            world_size=1,
        )  # fmt: skip
        try:
            x = torch.randn(1000, device=section.device)
            y = x.clone()
            dist.all_reduce(y)
            section.note(backend=dist.get_backend(), same=torch.equal(x, y))
        finally:
            dist.destroy_process_group()


def loader(section: Section) -> None:
    """The published way and ours with batches from files, and the share of time that ours waits for them."""
    workers = 0 if section.toy else workers_by_cores()
    ways = (
        ("published", True, ()),
        ("ours, fast path", False, switched(*SWITCHES)),
    )
    with trainings(section) as build:
        for way, published, overrides in ways:
            if section.left() < 5:
                return
            training = build(f"DATALOADER.NUM_WORKERS={workers}", *overrides, published=published)
            waited = 0.0
            batch = training.batch

            def timed(split: str, batch: Callable[[str], Any] = batch) -> Any:
                nonlocal waited
                start = time.perf_counter()
                result = batch(split)
                waited += time.perf_counter() - start
                return result

            training.batch = timed
            measure(section, way, training)
            waited, start = 0.0, time.perf_counter()
            for t in [*PHASES.values()] * (1 if section.toy else 4):
                one_iteration(training, t)
            section.synchronise()
            section.note(way=way, workers=workers, waiting_share=waited / (time.perf_counter() - start))
            torch.autograd.set_detect_anomaly(False)


def profile(section: Section) -> None:
    """The kernels of an iteration by their time, eager and with the fast path."""
    activity = torch.profiler.ProfilerActivity.CUDA if section.device.type == "cuda" else (
        torch.profiler.ProfilerActivity.CPU
    )  # fmt: skip
    with trainings(section) as build:
        for way, on in (("ours, fast path", SWITCHES), ("ours, eager", ()))[: 1 if section.toy else 2]:
            training = build(*switched(*on))
            without_loader(training)
            for t in [] if section.toy else [*PHASES.values()] * 2:
                one_iteration(training, t)
            for phase, t in PHASES.items():
                section.synchronise()
                with torch.profiler.profile(activities=[activity], acc_events=True) as found:
                    one_iteration(training, t)
                    section.synchronise()
                events = [
                    (getattr(event, "self_device_time_total", 0) or event.self_cpu_time_total, event.count, event.key)
                    for event in found.key_averages()
                ]
                total = sum(time_us for time_us, _, _ in events)
                section.note(way=way, phase=phase, total_ms=total / 1e3, kernels=sum(calls for _, calls, _ in events))
                for time_us, calls, key in sorted(events, reverse=True)[: 3 if section.toy else 20]:
                    section.note(
                        way=way, phase=phase, kernel=key[:100], ms=time_us / 1e3, share=time_us / total, calls=calls
                    )


def roofline(section: Section) -> None:
    """Operations and bytes of both phases, counted."""
    settings = read_settings(None, section.settings("SOLVER.PRECISION=bf16"))
    counted = of_phases(count(settings, torch.device("cpu")), settings.solver.discriminator_steps)
    for phase, (flops, moved) in counted.items():
        section.note(phase=phase, gflop=flops / 1e9, gbyte_in_float32=moved / 1e9)


def largest_batch(section: Section) -> None:
    """Double the batch until memory is used up."""
    with trainings(section) as build:
        for batch in (2,) if section.toy else (4, 8, 16, 32):
            if section.left() < 5:
                return
            try:
                training = build(f"SOLVER.BATCH_SIZE={batch}", *switched(*SWITCHES))
                without_loader(training)
                measure(section, f"batch {batch}", training, seconds=0.5)
            except torch.OutOfMemoryError:
                section.note(way=f"batch {batch}", out_of_memory=True)
                return
            finally:
                training = None
                if section.device.type == "cuda":
                    torch.cuda.empty_cache()


PARTS: Mapping[int, Sequence[tuple[Callable[[Section], None], float]]] = {
    1: (
        (device_rates, 0.04),
        (kernel_checks, 0.10),
        (gradients, 0.06),
        (baselines, 0.25),
        (parity, 0.15),
        (inference, 0.08),
        (switches, 0.32),
    ),
    2: (
        (cuda_tests, 0.30),
        (one_rank, 0.06),
        (loader, 0.20),
        (profile, 0.20),
        (roofline, 0.06),
        (largest_batch, 0.18),
    ),
}
"""Sections of each part, with their share of the time."""
