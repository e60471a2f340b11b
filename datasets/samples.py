"""How the scans of a cohort become an endless stream of batches.

Every sample is a function of the seed, the split and its position in the stream, and of nothing else. So workers
and epochs never repeat an augmentation, the number of workers does not matter, and a stream can be taken up again
at any position.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from configs.settings import DataloaderSettings, ImageSettings
from datasets.augment import augment, build_augmenter
from datasets.cohort import HELD_OUT, TRAINING, Case, Volumes, read_volumes
from models.objectives import Batch
from utils import distributed
from utils.errors import TrainingError

_POLL_S = 2.0  # between looks at the workers while a batch is awaited
_STREAMS = {key: number for number, key in enumerate((*TRAINING, *HELD_OUT))}


def normalise(image: np.ndarray, normalization: str) -> np.ndarray:
    """Intensities of a crop mapped to [0, 1].

    Args:
        image: 0..255.
        normalization: ``minmax``, the published way, stretches each volume to the whole range; ``window`` divides
            by 255, so that a value means the same HU in every volume.

    Returns:
        float32 in [0, 1].
    """
    if normalization == "window":
        return (image / 255).astype(np.float32)
    low, high = image.min(), image.max()
    return ((image - low) / (high - low)).astype(np.float32)


def as_input(image: np.ndarray) -> Tensor:
    """[0, 1] mapped to the networks' [-1, 1], with the channel before it: (1, z, y, x)."""
    return torch.from_numpy(image[None] * 2 - 1)


def scan_input(volumes: Volumes, normalization: str) -> Tensor:
    """A whole scan as the networks take it in validation and testing: (1, 1, z, y, x) in [-1, 1]."""
    return as_input(normalise(volumes.image, normalization))[None]


@dataclass(frozen=True)
class _Failure:
    """Stands for a sample that could not be made: what is raised in a worker loses its message on the way."""

    id: str
    reason: str


class _Cache:
    """Image, lung and lesion of the first scans of a list, in memory that processes forked from this one share.

    The kernel lends a page when it is first written to, so room that is not used costs nothing.
    """

    def __init__(self, cases: Sequence[Case], size: tuple[int, int, int], capacity: int) -> None:
        image, mask = 4 * math.prod(size), math.prod(size)
        kept = cases[: capacity // (image + 2 * mask)]
        self._place = {case.id: place for place, case in enumerate(kept)}
        # Not in /dev/shm, which is small in containers.
        memory = mmap.mmap(-1, max(len(kept) * (image + 2 * mask + 1), 1))
        shape, end = (len(kept), *size), len(kept) * image
        self._images = np.frombuffer(memory, np.float32, len(kept) * mask).reshape(shape)
        self._masks = np.frombuffer(memory, np.uint8, 2 * len(kept) * mask, end).reshape(2, *shape)
        self._filled = np.frombuffer(memory, np.uint8, len(kept), end + self._masks.size)

    def find(self, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        place = self._place.get(case.id)
        if place is None or not self._filled[place]:
            return None
        return self._images[place], self._masks[0, place], self._masks[1, place]

    def keep(self, case: Case, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        place = self._place.get(case.id)
        if place is not None:
            self._images[place], self._masks[0, place], self._masks[1, place] = arrays
            # Last: two workers that read the same scan at once write the same, and nobody takes half of it.
            self._filled[place] = 1


class Samples(Dataset):
    """Training samples of one split by their position in its endless stream.

    Epoch after epoch, the scans come in a new random order. Each sample is a random stack of slices, augmented.

    Args:
        cases: the scans.
        split: key in DATASET.SPLIT; each has a stream of its own.
        image: size, normalization, augmentation.
        seed: of the experiment.
        cache_mb: megabytes of decoded scans that are kept in memory, shared by all workers.

    Attributes:
        under_way: process id of each worker and position of the sample it is making, -1 between samples: (workers, 2),
            in memory shared with the workers, so that it is known of a worker that can no longer tell.
    """

    def __init__(self, cases: Sequence[Case], split: str, image: ImageSettings, seed: int, cache_mb: int = 0) -> None:
        self.cases = tuple(cases)
        self.split = split
        self.image = image
        self.seed = seed
        self.augmenter = build_augmenter() if image.augmentation else None
        self._cache = _Cache(self.cases, image.size, cache_mb * 2**20)
        self.under_way = torch.zeros(0, 2, dtype=torch.int64)

    def _rng(self, purpose: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _STREAMS[self.split], purpose, index])

    def case(self, position: int) -> Case:
        """The scan at a position of the stream."""
        epoch, place = divmod(position, len(self.cases))
        return self.cases[self._rng(0, epoch).permutation(len(self.cases))[place]]

    def __getitem__(self, position: int) -> dict[str, Any] | _Failure:
        case = self.case(position)
        self._note(position)
        try:
            return self._sample(case, self._rng(1, position))
        except Exception as error:
            return _Failure(case.id, ": ".join([type(error).__name__, *str(error).splitlines()]))
        finally:
            self._note(-1)

    def _note(self, position: int) -> None:
        if (worker := get_worker_info()) is not None:
            self.under_way[worker.id, 1] = position

    def read(self, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, float32 in [0, 1], lung and lesion, uint8, of a whole scan: (z, y, x) each."""
        cached = self._cache.find(case)
        if cached is None:
            volumes = read_volumes(case)
            cached = normalise(volumes.image, self.image.normalization), volumes.lung, volumes.lesion
            self._cache.keep(case, cached)
        return cached

    def _sample(self, case: Case, rng: np.random.Generator) -> dict[str, Any]:
        image, lung, lesion = self.read(case)
        start = int(rng.integers(image.shape[0] - self.image.slices + 1))
        stack = slice(start, start + self.image.slices)
        arrays = image[stack], lung[stack], lesion[stack]
        if self.augmenter is not None:
            arrays = augment(self.augmenter, rng, *arrays)
        image, lung, lesion = arrays
        return {
            "image": as_input(image),
            "lung": torch.from_numpy(lung[None]),
            "lesion": torch.from_numpy(lesion[None]),
            "id": case.id,
        }


class _Endless(Sampler[int]):
    """The positions of one process: of every batch of all processes, `share` samples at `offset`."""

    def __init__(self, start: int, batch_size: int, offset: int, share: int) -> None:
        self.firsts = count(start + offset, batch_size)
        self.share = share

    def __iter__(self) -> Iterator[int]:
        return (position for first in self.firsts for position in range(first, first + self.share))


def _collate(samples: list[dict[str, Any] | _Failure]) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    image, lung, lesion = (torch.stack([s[name] for s in samples]) for name in ("image", "lung", "lesion"))
    return Batch(image, lung, lesion, tuple(s["id"] for s in samples))


def _start_worker(number: int) -> None:
    get_worker_info().dataset.under_way[number, 0] = os.getpid()
    # PR_SET_PDEATHSIG: however the main process ends, its workers end, too, even one that hangs.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Ctrl-C, and what torchrun passes on, reach a whole group of processes; the main one is to save first.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)


class BatchStream:
    """An endless stream of full batches of one split, from a given position on.

    Of several processes each gets its share of the same batches.

    Args:
        samples: of the split.
        batch_size: volumes a batch, all processes together; scans repeat where there are fewer.
        settings: number of workers, and how long to wait for them.
        device: where batches go.
        position: samples that were taken before, by all processes, when a run is taken up again.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        settings: DataloaderSettings,
        device: torch.device,
        position: int = 0,
    ) -> None:
        self.samples = samples
        self.device = device
        self.position = position
        self._batch_size = batch_size
        self._share = batch_size // distributed.world_size()
        self._offset = distributed.rank() * self._share
        workers = settings.num_workers
        self._timeout = settings.timeout or math.inf
        if workers:
            samples.under_way = torch.tensor([[0, -1]] * workers).share_memory_()
        loader = DataLoader(
            samples,
            batch_size=self._share,
            sampler=_Endless(position, batch_size, self._offset, self._share),
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            timeout=min(self._timeout, _POLL_S) if workers else 0,
            pin_memory=device.type == "cuda",
            # Of its own, so that a stream that starts leaves torch's global state alone.
            generator=torch.Generator(),
        )
        # torch would raise the end of a worker wherever the main process then is; here it is found in `next`.
        handler = signal.getsignal(signal.SIGCHLD)
        self._batches = iter(loader)
        signal.signal(signal.SIGCHLD, handler)

    def next(self) -> Batch:
        """The next batch, on the device; masks as float32.

        Raises:
            TrainingError: a sample cannot be made, or a worker died or hangs.
        """
        try:
            batch = self._wait()
        except (RuntimeError, StopIteration, OSError, EOFError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TrainingError(
                f"{self.samples.split}: a loader failed, making {self._unfinished()} ({reason}); check memory, the "
                "scan, and DATALOADER.NUM_WORKERS and TIMEOUT"
            ) from None
        if isinstance(batch, _Failure):
            raise TrainingError(f"{self.samples.split}: the sample {batch.id} cannot be made ({batch.reason})")
        self.position += self._batch_size
        image, lung, lesion = (x.to(self.device, non_blocking=True) for x in batch[:3])
        return Batch(image, lung.float(), lesion.float(), tuple(batch.ids))

    def _wait(self) -> Batch | _Failure:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return next(self._batches)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise RuntimeError(f"timed out after {self._timeout:g} seconds") from None

    def _unfinished(self) -> str:
        """What the workers that are gone were making or, where all are there, what the awaited batch lacks."""
        alive = {0, *(process.pid for process in multiprocessing.active_children())}  # 0: not yet under way
        first = self.position + self._offset
        awaited = range(first, first + self._share)
        under_way = self.samples.under_way.tolist()
        lost = [position for pid, position in under_way if pid not in alive]
        positions = [position for position in lost if position >= 0]
        if not lost:
            positions = [position for _, position in under_way if position in awaited]
        if positions:
            return "the sample " + " and ".join(self.samples.case(position).id for position in positions)
        return "the batch " + ", ".join(self.samples.case(position).id for position in awaited)
