"""Endless streams of training batches from the scans of a cohort.

A sample depends on the seed, the split and its position in the stream, and on nothing else. Workers and epochs
therefore never repeat an augmentation, results do not depend on the number of workers, and a stream can resume at any
position.
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
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from configs.settings import DataloaderSettings, ImageSettings, SolverSettings
from datasets.augment import augment, build_augmenter, shift
from datasets.cohort import HELD_OUT, TRAINING, Case, Volumes, read_volumes
from models.losses import IGNORED
from models.objectives import Batch
from utils import distributed
from utils.errors import TrainingError

MASKS = {"LABELED": ("lung", "lesion"), "WO_LABEL": ("lung",), "HEALTHY": ("lung",)}
"""Masks that the objectives read, by split."""

_FORK = multiprocessing.get_context("fork")
_POLL_S = 2.0  # between checks of the workers while waiting for a batch
_STREAMS = {key: number for number, key in enumerate((*TRAINING, *HELD_OUT))}


def batch_size(split: str, scans: int, solver: SolverSettings) -> int:
    """Volumes in a batch of a split, over all ranks.

    As published, a labelled batch has at most as many volumes as there are labelled scans, unless
    SOLVER.FILL_LABELLED_BATCH.
    """
    if split == "LABELED" and not solver.fill_labelled_batch:
        return min(scans, solver.batch_size)
    return solver.batch_size


def workers_by_cores() -> int:
    """Workers per split: a third of the cores of this rank, but for one; at least one, and at most eight."""
    cores = len(os.sched_getaffinity(0)) // distributed.local_world_size()
    return min(max((cores - 1) // len(TRAINING), 1), 8)


def normalise(image: np.ndarray, normalization: str) -> np.ndarray:
    """Map the intensities of a crop to [0, 1].

    Args:
        image: 0..255.
        normalization: ``minmax`` stretches each volume to the whole range, as published; ``window`` divides by 255, so
            that a value stands for the same HU in every volume.

    Returns:
        float32 in [0, 1].
    """
    if normalization == "window":
        return (image / 255).astype(np.float32)
    low, high = image.min(), image.max()
    return ((image - low) / (high - low)).astype(np.float32)


def as_input(image: np.ndarray) -> Tensor:
    """Map [0, 1] to [-1, 1] and add a channel axis: (1, z, y, x)."""
    return torch.from_numpy(image[None] * 2 - 1)


def scan_input(volumes: Volumes, normalization: str) -> Tensor:
    """Network input of a whole scan, for validation and testing: (1, 1, z, y, x) in [-1, 1]."""
    return as_input(normalise(volumes.image, normalization))[None]


@dataclass(frozen=True)
class _Failure:
    """Stands for a sample that failed: an exception in a worker would lose its message on the way."""

    id: str
    reason: str


class _Cache:
    """Images and masks of the first scans of a list, in memory shared with forked processes.

    The kernel allocates a page on its first write, so unused capacity costs nothing.
    """

    def __init__(self, cases: Sequence[Case], size: tuple[int, int, int], masks: int, capacity: int) -> None:
        voxels = math.prod(size)
        kept = cases[: capacity // ((4 + masks) * voxels)]
        self._place = {case.id: place for place, case in enumerate(kept)}
        # Not in /dev/shm, which is small in containers.
        memory = mmap.mmap(-1, max(len(kept) * ((4 + masks) * voxels + 1), 1))
        shape, end = (len(kept), *size), len(kept) * 4 * voxels
        self._images = np.frombuffer(memory, np.float32, len(kept) * voxels).reshape(shape)
        self._masks = np.frombuffer(memory, np.uint8, masks * len(kept) * voxels, end).reshape(masks, *shape)
        self._filled = np.frombuffer(memory, np.uint8, len(kept), end + self._masks.size)

    def find(self, case: Case) -> tuple[np.ndarray, ...] | None:
        place = self._place.get(case.id)
        if place is None or not self._filled[place]:
            return None
        return self._images[place], *self._masks[:, place]

    def keep(self, case: Case, image: np.ndarray, *masks: np.ndarray) -> None:
        place = self._place.get(case.id)
        if place is not None:
            self._images[place] = image
            for kept, mask in zip(self._masks, masks, strict=True):
                kept[place] = mask
            # Last, so that no worker reads a half-copied scan; two workers that copy the same scan write the same.
            self._filled[place] = 1


class Samples(Dataset):
    """Training samples of one split, indexed by their position in its endless stream.

    Each epoch visits the scans in a new random order. A sample is a random stack of slices, augmented.

    Args:
        cases: the scans.
        split: key of DATASET.SPLIT, one of `MASKS`; each split has its own random stream.
        image: size, normalization, augmentation.
        seed: seed of the experiment.
        cache_mb: megabytes of decoded scans to keep in memory, shared by all workers.

    Attributes:
        masks: names of the masks in a sample.
        under_way: process id of each worker and position of the sample it is loading, -1 between samples: (workers, 2).
            In shared memory, so that it outlives a worker that dies.
    """

    def __init__(self, cases: Sequence[Case], split: str, image: ImageSettings, seed: int, cache_mb: int = 0) -> None:
        self.cases = tuple(cases)
        self.split = split
        self.image = image
        self.seed = seed
        self.masks = MASKS[split]
        self.augmenter = build_augmenter(image.elastic) if image.augmentation else None
        self._cache = _Cache(self.cases, image.size, len(self.masks), cache_mb * 2**20)
        self.under_way = np.zeros((0, 2), np.int64)

    def _rng(self, purpose: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _STREAMS[self.split], purpose, index])

    def case(self, position: int) -> Case:
        """Return the scan at a position of the stream."""
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

    def read(self, case: Case) -> tuple[np.ndarray, ...]:
        """Read a whole scan: image, float32 in [0, 1], and `masks`, uint8; (z, y, x) each."""
        arrays = self._cache.find(case)
        if arrays is None:
            volumes = read_volumes(case)
            masks = (getattr(volumes, name) for name in self.masks)
            arrays = normalise(volumes.image, self.image.normalization), *masks
            self._cache.keep(case, *arrays)
        return arrays

    def _sample(self, case: Case, rng: np.random.Generator) -> dict[str, Any]:
        whole = self.read(case)
        start = int(rng.integers(whole[0].shape[0] - self.image.slices + 1))
        arrays = tuple(array[start : start + self.image.slices] for array in whole)
        if any(self.image.shift):
            arrays = shift([int(rng.integers(-most, most + 1)) for most in self.image.shift], *arrays)
        if self.augmenter is not None:
            arrays = augment(self.augmenter, rng, *arrays)
        image, *masks = arrays
        named = {name: mask[None] for name, mask in zip(self.masks, masks, strict=True)}
        return {"image": as_input(image).numpy(), **named, "id": case.id}


class _Endless(Sampler[int]):
    """The positions of one rank: `share` samples at `offset` of every batch, which repeats beyond its end."""

    def __init__(self, start: int, batch_size: int, offset: int, share: int) -> None:
        self.firsts = count(start, batch_size)
        self.places = [place % batch_size for place in range(offset, offset + share)]

    def __iter__(self) -> Iterator[int]:
        return (first + place for first in self.firsts for place in self.places)


_PREFETCHED = 2  # batches that a worker prepares ahead
_IN_USE = _PREFETCHED + 1  # and one that the main process is copying


@dataclass(frozen=True)
class _Loaded:
    """A batch in a slot of the buffer that the main process shares with its workers."""

    buffer: int
    worker: int
    slot: int
    ids: tuple[str, ...]

    def copied(self, pin: bool = False) -> Batch:
        arrays = _Buffer.of_process[self.buffer].arrays
        copies = {name: torch.from_numpy(array[self.worker, self.slot]) for name, array in arrays.items()}
        copies = {name: x.pin_memory() if pin else x.clone() for name, x in copies.items()}
        return Batch(copies["image"], copies.get("lung"), copies.get("lesion"), self.ids)

    def pin_memory(self) -> Batch:
        """Called by the loader, in a thread of its own, if batches go to a GPU."""
        return self.copied(pin=True)


class _Buffer:
    """Memory in which workers, forked from the main process, leave their batches.

    Torch would send tensors through files in /dev/shm, which is small in containers.

    Args:
        samples: samples of the split.
        share: volumes per batch.
        workers: number of workers; 0 if the main process loads.

    Attributes:
        arrays: by name, (workers, slots, share, 1, z, y, x).
    """

    of_process: ClassVar[WeakValueDictionary[int, _Buffer]] = WeakValueDictionary()
    _keys = count()

    def __init__(self, samples: Samples, share: int, workers: int) -> None:
        self._key = next(self._keys)
        self._taken = count()
        self.of_process[self._key] = self
        image = samples.image
        shape = (max(workers, 1), _IN_USE, share, 1, image.slices, *image.size[1:])
        types = {"image": np.float32, **dict.fromkeys(samples.masks, np.uint8)}
        self.arrays = {name: _shared_array(shape, dtype) for name, dtype in types.items()}

    def collate(self, loaded: list[dict[str, Any] | _Failure]) -> _Loaded | _Failure:
        """Put the samples of a batch into the next slot of this worker."""
        for sample in loaded:
            if isinstance(sample, _Failure):
                return sample
        info = get_worker_info()
        worker, slot = 0 if info is None else info.id, next(self._taken) % _IN_USE
        for name, array in self.arrays.items():
            np.stack([sample[name] for sample in loaded], out=array[worker, slot])
        return _Loaded(self._key, worker, slot, tuple(sample["id"] for sample in loaded))


def _shared_array(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros in anonymous memory shared with forked processes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, math.prod(shape)).reshape(shape)


def _start_worker(number: int) -> None:
    get_worker_info().dataset.under_way[number, 0] = os.getpid()
    # PR_SET_PDEATHSIG: workers die with the main process, however it ends, even if they hang.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Ctrl-C, a closed terminal and torchrun signal the whole process group; workers must keep running until the main
    # process has saved.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)


def _try_semaphores(workers: int) -> None:
    """Raise OSError if /dev/shm has no room for the semaphores of a loader's queues, a page each.

    Nothing else of a loader needs /dev/shm. A loader that runs out of room itself prints a traceback when deleted.
    """
    if workers:
        [_FORK.Queue() for _ in range(workers + 3)]


class BatchStream:
    """An endless stream of full batches of one split.

    With several ranks, each gets an equal share of every batch. A labelled batch whose size is not a multiple of their
    number is padded with repeated volumes, in which every voxel of the lesion mask is `IGNORED` by the loss.

    Args:
        samples: samples of the split.
        batch_size: volumes per batch, over all ranks; scans repeat if there are fewer.
        settings: number of workers and timeout.
        device: target device.
        position: position in the stream to start from: the samples taken so far, over all ranks.
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
        self._share = -(-batch_size // distributed.world_size())
        self._offset = distributed.rank() * self._share
        workers = workers_by_cores() if settings.num_workers is None else settings.num_workers
        self._timeout = settings.timeout or math.inf
        samples.under_way = _shared_array((workers, 2), np.int64)
        samples.under_way[:, 1] = -1
        # torch would raise the death of a worker anywhere in the main process; `next` detects it instead.
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            _try_semaphores(workers)
            self._batches = iter(self._loader(workers))
        except OSError as error:
            raise TrainingError(
                f"{samples.split}: cannot start {workers} loaders ({error.strerror}); check the limits on memory and "
                "processes and that /dev/shm is writable, or set DATALOADER.NUM_WORKERS=0"
            ) from None
        finally:
            signal.signal(signal.SIGCHLD, handler)

    def _loader(self, workers: int) -> DataLoader:
        self._buffer = _Buffer(self.samples, self._share, workers)
        forked = {
            "multiprocessing_context": _FORK,  # the cache and the buffer are shared with forked processes only
            "prefetch_factor": _PREFETCHED,
            "timeout": min(self._timeout, _POLL_S),
        }
        return DataLoader(
            self.samples,
            batch_size=self._share,
            sampler=_Endless(self.position, self._batch_size, self._offset, self._share),
            num_workers=workers,
            collate_fn=self._buffer.collate,
            worker_init_fn=_start_worker,
            pin_memory=self.device.type == "cuda",
            # Its own generator leaves torch's global random state untouched.
            generator=torch.Generator(),
            **(forked if workers else {}),
        )

    def next(self) -> Batch:
        """Return the next batch, on the device; masks as float32.

        Raises:
            TrainingError: a sample failed, or a worker died or hangs.
        """
        try:
            batch = self._wait()
        except (RuntimeError, StopIteration, OSError, EOFError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TrainingError(
                f"{self.samples.split}: a loader failed while loading {self._unfinished()} ({reason}); check memory, "
                "the scan, and DATALOADER.NUM_WORKERS and TIMEOUT"
            ) from None
        if isinstance(batch, _Failure):
            raise TrainingError(f"{self.samples.split}: cannot load the sample {batch.id} ({batch.reason})")
        if isinstance(batch, _Loaded):
            batch = batch.copied()
        volumes = (None if x is None else x.to(self.device, non_blocking=True).float() for x in batch[:3])
        batch = Batch(*volumes, batch.ids)
        self.position += self._batch_size
        counted = max(self._batch_size - self._offset, 0)
        if batch.lesion is not None:
            batch.lesion[counted:] = IGNORED
        return batch._replace(ids=tuple(batch.ids[:counted]))

    def _positions(self) -> list[int]:
        """Positions of the samples of the next batch in the stream."""
        places = range(self._offset, self._offset + self._share)
        return [self.position + place % self._batch_size for place in places]

    def _wait(self) -> Batch | _Loaded | _Failure:
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
        """What dead workers were loading or, if all are alive, what is missing of the awaited batch."""
        alive = {0, *(process.pid for process in multiprocessing.active_children())}  # 0: not started yet
        awaited = self._positions()
        under_way = self.samples.under_way.tolist()
        lost = [position for pid, position in under_way if pid not in alive]
        positions = [position for position in lost if position >= 0]
        if not lost:
            positions = [position for _, position in under_way if position in awaited]
        if positions:
            return "the sample " + " and ".join(self.samples.case(position).id for position in positions)
        return "the batch " + ", ".join(self.samples.case(position).id for position in awaited)
