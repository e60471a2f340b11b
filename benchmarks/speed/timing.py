"""Interleaved timing of implementations, and result files that name the hardware and software."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import as_json
from utils.files import write_text

PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "pyimgaug", "isal")


def alternate(
    ways: Mapping[str, Callable[[], Any]],
    repetitions: int,
    warm_up: int = 1,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time several implementations in turn, so that other load on the machine affects all of them.

    Args:
        ways: functions to time, by name.
        repetitions: timed calls of each function.
        warm_up: untimed rounds before.
        synchronise: waits until the device is idle.

    Returns:
        Seconds of each call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + repetitions):
        for name, way in ways.items():
            synchronise()
            start = time.perf_counter()
            way()
            synchronise()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(
    what: str, seconds: Mapping[str, Sequence[float]], baseline: str, ours: str, **more: Any
) -> dict[str, Any]:
    """Table row with medians, ranges and ratio of two implementations timed with `alternate`."""
    medians = {name: statistics.median(seconds[name]) for name in (baseline, ours)}
    return {
        "what": what,
        "baseline": baseline,
        "baseline_s": medians[baseline],
        "ours": ours,
        "ours_s": medians[ours],
        "ratio": medians[baseline] / medians[ours],
        "baseline_range_s": [min(seconds[baseline]), max(seconds[baseline])],
        "ours_range_s": [min(seconds[ours]), max(seconds[ours])],
        "repetitions": len(seconds[ours]),
        **more,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and software of a measurement: device, driver, processor, cores, versions, revision."""
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "revision": _output("git", "describe", "--always", "--dirty"),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    return found


def write_results(
    path: Path, command: str, device: torch.device, tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Write tables as JSON together with the command and the environment, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, as_json({"command": command, "environment": environment(device), **tables}))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
