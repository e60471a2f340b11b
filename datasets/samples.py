"""Endless streams of training batches from the scans of a cohort.

A sample depends on the seed, the split and its position in the stream, and on nothing else. Workers and epochs
therefore never repeat an augmentation, results do not depend on the number of workers, and a stream can resume at any
position.
"""

import ctypes
import math
import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from configs.settings import DataloaderSettings, ImageSettings, SolverSettings
from datasets import HELD_OUT, TRAINING
from datasets.cohort import Case, Volumes, read_volumes
from models.losses import IGNORED
from utils import distributed
from utils.errors import TrainingError

MASKS = {"LABELED": ("lung", "lesion"), "WO_LABEL": ("lung",), "HEALTHY": ("lung",)}
"""Masks that the objectives read, by split."""

_FORK = multiprocessing.get_context("fork")  # workers share arrays of the main process
_POLL_S = 2.0  # between checks of the workers while waiting for a batch
_PREFETCHED = 2  # batches that a worker prepares ahead
_STREAMS = {key: number for number, key in enumerate((*TRAINING, *HELD_OUT))}


class Batch(NamedTuple):
    """Volumes of one kind, (batch, 1, depth, height, width) each, and masks, 0 or 1, if an objective reads them."""

    image: Tensor | None = None  # in [-1, 1]; None in a batch without volumes
    lung: Tensor | None = None
    lesion: Tensor | None = None
    ids: tuple[str, ...] = ()  # the scans, for messages


def batch_size(split: str, scans: int, solver: SolverSettings) -> int:
    """Volumes in a batch of a split, over all ranks: of labelled scans at most one each, unless FILL_LABELLED_BATCH."""
    if split == "LABELED" and not solver.fill_labelled_batch:
        return min(scans, solver.batch_size)
    return solver.batch_size


def workers_by_cores() -> int:
    """Workers per split: (cores per rank - 1) / 3, at least one and at most eight."""
    cores = len(os.sched_getaffinity(0)) // distributed.local_world_size()
    return min(max((cores - 1) // len(TRAINING), 1), 8)


def normalise(image: np.ndarray, normalization: str) -> np.ndarray:
    """Map the intensities of a crop, 0..255, to [0, 1], float32.

    ``minmax`` stretches each volume to the whole range, as published; ``window`` divides by 255, so that a value stands
    for the same HU in every volume.
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


def _shared_records(length: int, masks: Sequence[str], shape: Sequence[int], **more: type) -> np.ndarray:
    """Records of an image and its masks, in zeroed memory shared with forked processes.

    The kernel allocates a page on its first write, so unused records cost nothing. The memory is not in /dev/shm,
    which is small in containers.
    """
    arrays = [("image", np.float32, tuple(shape)), *((name, np.uint8, tuple(shape)) for name in masks)]
    record = np.dtype([*arrays, *more.items()], align=True)
    return np.frombuffer(mmap.mmap(-1, max(length * record.itemsize, 1)), record, length)


class Samples(Dataset):
    """Training samples of one split, one of `MASKS`, indexed by their position in its endless stream.

    Each epoch visits the scans in a new random order, which is another one for each split. A sample is a random stack
    of slices, augmented. `cache_mb` megabytes of decoded scans are kept in memory, shared by all workers.
    """

    def __init__(self, cases: Sequence[Case], split: str, image: ImageSettings, seed: int, cache_mb: int = 0) -> None:
        from datasets.augment import build_augmenter  # imgaug takes long to import, and only training needs it

        self.cases = tuple(cases)
        self.split = split
        self.image = image
        self.seed = seed
        self.masks = MASKS[split]
        self.augmenter = build_augmenter() if image.augmentation else None
        fitting = cache_mb * 2**20 // ((4 + len(self.masks)) * math.prod(image.size))
        self._places = {case.id: place for place, case in enumerate(self.cases[:fitting])}
        self._cache = _shared_records(len(self._places), self.masks, image.size, filled=bool)

    def _rng(self, purpose: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _STREAMS[self.split], purpose, index])

    def case(self, position: int) -> Case:
        """Return the scan at a position of the stream."""
        epoch, place = divmod(position, len(self.cases))
        return self.cases[self._rng(0, epoch).permutation(len(self.cases))[place]]

    def __getitem__(self, position: int) -> tuple[str, list[np.ndarray]] | TrainingError:
        """Id of the scan, its stack in [-1, 1] and masks; or an error, which torch would turn into a traceback."""
        case = self.case(position)
        try:
            return case.id, self._sample(case, self._rng(1, position))
        except Exception as error:
            reason = ": ".join([type(error).__name__, *str(error).splitlines()])
            return TrainingError(f"{self.split}: cannot load the sample {case.id} ({reason})")

    def read(self, case: Case) -> list[np.ndarray]:
        """Read a whole scan: image, float32 in [0, 1], and `masks`, uint8; (z, y, x) each."""
        kept = self._cache[self._places[case.id]] if case.id in self._places else None
        if kept is not None and kept["filled"]:
            return [kept[name] for name in ("image", *self.masks)]
        volumes = read_volumes(case)
        arrays = [normalise(volumes.image, self.image.normalization), *(getattr(volumes, name) for name in self.masks)]
        if kept is not None:
            for name, array in zip(("image", *self.masks), arrays, strict=True):
                kept[name] = array
            # Last, so that no worker reads a half-copied scan; two workers that copy the same scan write the same.
            kept["filled"] = True
        return arrays

    def _sample(self, case: Case, rng: np.random.Generator) -> list[np.ndarray]:
        from datasets.augment import augment, shift

        whole = self.read(case)
        start = int(rng.integers(whole[0].shape[0] - self.image.slices + 1))
        arrays = [array[start : start + self.image.slices] for array in whole]
        if any(self.image.shift):
            arrays = shift([int(rng.integers(-most, most + 1)) for most in self.image.shift], *arrays)
        if self.augmenter is not None:
            arrays = augment(self.augmenter, rng, *arrays)
        image, *masks = arrays
        return [image * 2 - 1, *masks]


def _start_worker(worker: int) -> None:
    # PR_SET_PDEATHSIG: workers die with the main process, however it ends, even if they hang.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Ctrl-C, a closed terminal, torchrun and schedulers signal all processes; workers must keep running until the main
    # process has saved.
    os.setpgrp()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)


def _fill(
    slots: np.ndarray, taken: Iterator[int], samples: Sequence[tuple[str, list[np.ndarray]] | TrainingError]
) -> tuple[tuple[int, int], tuple[str, ...]] | TrainingError:
    """Put the samples of a batch into the next slot of this worker; returns the slot and the scans.

    Torch would send tensors through files in /dev/shm, which is small in containers. Arrays sent through a pipe would
    leave the main process waiting for ever for the rest of one if a worker is killed.
    """
    for sample in samples:
        if isinstance(sample, TrainingError):
            return sample
    worker = get_worker_info()
    place = 0 if worker is None else worker.id, next(taken) % slots.shape[1]
    for number, (_, arrays) in enumerate(samples):
        for name, array in zip(slots.dtype.names, arrays, strict=True):
            slots[place][number][name] = array
    return place, tuple(case_id for case_id, _ in samples)


class BatchStream:
    """An endless stream of full batches of one split.

    With several ranks, each gets an equal share of every batch. A labelled batch whose size is not a multiple of their
    number is padded with repeated volumes, in which every voxel of the lesion mask is `IGNORED` by the loss.

    The batch size, of which scans repeat if there are fewer, and the position in the stream to start from, the samples
    taken so far, are those of all ranks.
    """

    def __init__(
        self, samples: Samples, batch_size: int, settings: DataloaderSettings, device: torch.device, position: int = 0
    ) -> None:
        self.samples = samples
        self.device = device
        self.position = position
        self._batch_size = batch_size
        share = -(-batch_size // distributed.world_size())
        offset = distributed.rank() * share
        # Positions of this rank in a batch, which repeats beyond its end.
        self._places = [place % batch_size for place in range(offset, offset + share)]
        self._counted = min(max(batch_size - offset, 0), share)
        self._timeout = settings.timeout or math.inf
        workers = workers_by_cores() if settings.num_workers is None else settings.num_workers
        shape = (samples.image.slices, *samples.image.size[1:])
        # A worker may fill one slot more than it prefetches, while the main process copies another.
        self._slots = _shared_records(max(workers, 1) * (_PREFETCHED + 1) * share, samples.masks, shape)
        self._slots = self._slots.reshape(max(workers, 1), _PREFETCHED + 1, share)
        # torch would raise the death of a worker anywhere in the main process; `next` detects it instead.
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            self._batches = iter(self._loader(workers))
        except OSError as error:
            raise TrainingError(
                f"{samples.split}: cannot start {workers} loaders ({error.strerror}); check the limits on memory and "
                "processes and that /dev/shm is writable, or set DATALOADER.NUM_WORKERS=0"
            ) from None
        finally:
            signal.signal(signal.SIGCHLD, handler)

    def _loader(self, workers: int) -> DataLoader:
        options = {}
        if workers:
            # A queue takes a page of /dev/shm. Without room for the loader's own, it would print a traceback later.
            [_FORK.Queue() for _ in range(workers + 3)]
            timeout = min(self._timeout, _POLL_S)
            options = {"multiprocessing_context": _FORK, "prefetch_factor": _PREFETCHED, "timeout": timeout}
        return DataLoader(
            self.samples,
            batch_sampler=(self._positions(first) for first in count(self.position, self._batch_size)),
            num_workers=workers,
            collate_fn=partial(_fill, self._slots, count()),
            worker_init_fn=_start_worker,
            # Its own generator leaves torch's global random state untouched.
            generator=torch.Generator(),
            **options,
        )

    def _positions(self, first: int) -> list[int]:
        return [first + place for place in self._places]

    def next(self) -> Batch:
        """Return the next batch, on the device; masks as float32.

        Raises:
            TrainingError: a sample failed, or a worker died or hangs.
        """
        try:
            loaded = self._wait()
        except (RuntimeError, StopIteration, OSError, EOFError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            awaited = ", ".join(self.samples.case(position).id for position in self._positions(self.position))
            raise TrainingError(
                f"{self.samples.split}: a loader failed before the batch {awaited} was there ({reason}); check memory, "
                "the scans, and DATALOADER.NUM_WORKERS and TIMEOUT"
            ) from None
        if isinstance(loaded, TrainingError):
            raise loaded
        place, ids = loaded
        slot = self._slots[place]
        volumes = {
            name: torch.from_numpy(slot[name]).to(self.device, torch.float32, copy=True)[:, None]
            for name in slot.dtype.names
        }
        self.position += self._batch_size
        batch = Batch(**volumes, ids=ids[: self._counted])
        if batch.lesion is not None:
            batch.lesion[self._counted :] = IGNORED
        return batch

    def _wait(self) -> tuple[tuple[int, int], tuple[str, ...]] | TrainingError:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return next(self._batches)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise RuntimeError(f"timed out after {self._timeout:g} seconds") from None
