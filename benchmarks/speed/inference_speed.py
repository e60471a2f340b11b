"""Speed of the segmenter on whole crops, as in testing."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.speed.timing import compared
from benchmarks.speed.worker_process import process, requests
from evaluation.inference import autocast
from models import Segmenter
from models.layers import place
from utils.memory import keep_freed_memory

WAYS = ("contiguous fp32", "fp32", "bf16")
"""The first is the baseline: eager, contiguous layout, default memory allocation."""


@torch.no_grad()
def serve(connection: Connection, way: str, size: tuple[int, int, int], device: torch.device) -> None:
    """Answer each requested batch size with the seconds of one forward pass."""
    plain = way == WAYS[0]
    if not plain and device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    segmenter = place(Segmenter(), device, channels_last=False if plain else None)
    for batch_size in requests(connection):
        x = torch.rand(batch_size, 1, *size, device=device) * 2 - 1
        start = time.perf_counter()
        with autocast(device, "bf16_anywhere" if way == "bf16" else "fp32"):
            segmenter(x).sigmoid().amax().item()  # synchronises
        connection.send(time.perf_counter() - start)


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Seconds and volumes per second of S at several batch sizes.

    Args:
        device: compute device.
        quick: use small crops.
    """
    size = (16, 64, 64) if quick else (40, 160, 160)
    batch_sizes = (1, 2, 4) if device.type == "cpu" else (1, 4, 16)
    arguments = size, device
    with (
        process(serve, WAYS[0], *arguments) as plain,
        process(serve, WAYS[1], *arguments) as single,
        process(serve, WAYS[2], *arguments) as half,
    ):
        seconds = {(way, batch_size): [] for way in WAYS for batch_size in batch_sizes}
        for turn in range(5):
            for batch_size in batch_sizes:
                for way, ask in zip(WAYS, (plain, single, half), strict=True):
                    if way == WAYS[0] and batch_size > 1:
                        continue
                    second = ask(batch_size) / batch_size
                    if turn:
                        seconds[way, batch_size].append(second)
    table = []
    for batch_size in batch_sizes:
        for way in WAYS[1:]:
            both = {WAYS[0]: seconds[WAYS[0], 1], way: seconds[way, batch_size]}
            row = compared(f"S on a volume of {'x'.join(map(str, size))}, batch {batch_size}", both, WAYS[0], way)
            table.append(row | {"ours_volumes_per_s": 1 / row["ours_s"]})
    return table
