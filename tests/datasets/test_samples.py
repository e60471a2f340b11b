import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.settings import DataloaderSettings, ImageSettings, SolverSettings
from datasets import samples as module
from datasets.cohort import read_cohort, read_volumes
from datasets.samples import Batch, BatchStream, Samples, as_input, batch_size, normalise
from models.losses import IGNORED
from tests.outputs import same
from tests.volumes import pixels, refused
from utils import distributed
from utils.errors import TrainingError

CPU = torch.device("cpu")
IMAGE = ImageSettings(size=(20, 64, 64), slices=16)
NO_WORKERS = DataloaderSettings(num_workers=0)


@pytest.fixture(scope="module")
def cases(cohort):
    return read_cohort(cohort, {"LABELED": "train_id_L", "WO_LABEL": "train_id_WL"}, IMAGE.size)


def stream_of(cases, split="WO_LABEL", seed=0, settings=NO_WORKERS, image=IMAGE, cache_mb=0, **options):
    samples = Samples(cases[split], split, image, seed, cache_mb)
    return BatchStream(samples, 2, settings, CPU, **options)


def taken(stream, count):
    return [stream.next() for _ in range(count)]


@pytest.mark.fault("fewer scans than a")
def test_a_batch(cases):
    batch = stream_of(cases, "LABELED").next()
    assert batch.image.shape == batch.lesion.shape == (2, 1, 16, 64, 64)
    assert batch.lung.shape == batch.lesion.shape
    assert batch.ids == ("sick_0", "sick_0")  # one scan gives full batches
    assert not torch.equal(batch.image[0], batch.image[1])
    assert batch.image.min() >= -1
    assert batch.image.max() <= 1
    unlabelled = stream_of(cases).next()
    assert unlabelled.lesion is None
    for mask in (batch.lesion, unlabelled.lung):
        assert mask.dtype == torch.float32
        assert set(mask.unique().tolist()) == {0, 1}


WORKERS = {number: DataloaderSettings(num_workers=number) for number in (0, 1, 2)}


@pytest.mark.parametrize(
    ("position", "options"),
    [(0, {"settings": WORKERS[1]}), (0, {"settings": WORKERS[2]}), (0, {"cache_mb": 100}), (8, {})],
    ids=["a worker", "two workers", "cache", "resumed"],
)
def test_batches_depend_on_seed_split_and_position_alone(cases, position, options):
    stream = stream_of(cases, position=position, **options)
    assert same(taken(stream, 6 - position // 2), taken(stream_of(cases), 6)[position // 2 :])
    assert stream.position == 12
    again = {"HEALTHY": cases["WO_LABEL"]}
    for other in (stream_of(cases, seed=1), stream_of(again, "HEALTHY")):
        assert not same(taken(other, 2), taken(stream_of(cases), 2))


def test_as_many_workers_as_the_cores_allow(monkeypatch):
    for cores, ranks, expected in [(1, 1, 1), (2, 1, 1), (8, 1, 2), (16, 1, 5), (16, 2, 2), (16, 8, 1), (64, 1, 8)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert module.workers_by_cores() == expected


def test_workers_share_the_cache_with_each_other_and_the_main_process(cases, monkeypatch):
    stream = stream_of(cases, cache_mb=100, settings=DataloaderSettings(num_workers=2))
    taken(stream, 3)  # each scan was sampled
    expected = [read_volumes(case) for case in cases["WO_LABEL"]]
    monkeypatch.setattr(module, "read_volumes", None)
    for case, volumes in zip(cases["WO_LABEL"], expected, strict=True):
        image, lung = stream.samples.read(case)
        np.testing.assert_array_equal(image, normalise(volumes.image, "minmax"))
        np.testing.assert_array_equal(lung, volumes.lung)


def test_every_scan_comes_once_an_epoch_each_time_in_another_order(cases):
    samples = Samples(cases["WO_LABEL"], "WO_LABEL", IMAGE, seed=0)
    epochs = [tuple(samples.case(3 * epoch + place).id for place in range(3)) for epoch in range(8)]
    assert all(sorted(epoch) == ["sick_1", "sick_2", "sick_3"] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_without_augmentation_a_sample_is_a_random_stack_of_the_scan(cases):
    image = IMAGE.model_copy(update={"augmentation": False})
    samples = Samples(cases["LABELED"], "LABELED", image, seed=0)
    case = cases["LABELED"][0]
    whole = pixels(case.image)
    whole = (whole - whole.min()) / (whole.max() - whole.min()) * 2 - 1
    lesion = pixels(case.lesion)
    starts = set()
    for position in range(40):
        image, *_, label = samples[position][1]
        (start,) = (s for s in range(5) if np.allclose(image, whole[s : s + 16], atol=1e-5))
        np.testing.assert_array_equal(label, lesion[start : start + 16])
        starts.add(start)
    assert starts == {0, 1, 2, 3, 4}


def test_normalisation_by_hand():
    image = np.array([51.0, 102.0, 153.0], np.float32)
    np.testing.assert_allclose(normalise(image, "minmax"), [0, 0.5, 1])
    np.testing.assert_allclose(normalise(image, "window"), [0.2, 0.4, 0.6], rtol=1e-6)
    assert as_input(np.array([0, 0.25, 1], np.float32)).tolist() == [[-1, -0.5, 1]]


@pytest.mark.fault("a sample that cannot")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [ValueError("broken\nscan"), StopIteration(), MemoryError()])
def test_a_sample_that_cannot_be_made_is_one_error_that_names_it(cases, monkeypatch, workers, error):
    def fail(case):
        if case.id == "sick_2":
            raise error
        return read_volumes(case)

    monkeypatch.setattr(module, "read_volumes", fail)
    stream = stream_of(cases, settings=DataloaderSettings(num_workers=workers))
    message = rf"WO_LABEL: cannot load the sample sick_2 \({type(error).__name__}"
    refused("", lambda: taken(stream, 3), message, TrainingError)


def failing_at(monkeypatch, case_id, fail):
    """Let the sample of one scan do something else; the others take a moment, so that workers overlap."""

    def read(case):
        fail() if case.id == case_id else time.sleep(0.1)
        return read_volumes(case)

    monkeypatch.setattr(module, "read_volumes", read)


@pytest.mark.fault("a loader that is killed")
@pytest.mark.parametrize(
    ("case_id", "workers", "end"),
    [
        ("sick_1", 1, lambda: os.kill(os.getpid(), signal.SIGKILL)),
        ("sick_2", 2, lambda: os.kill(os.getpid(), signal.SIGKILL)),
        ("sick_3", 2, lambda: os._exit(0)),
    ],
)
def test_a_worker_that_ends_is_one_error(cases, monkeypatch, case_id, workers, end):
    monkeypatch.setattr(module, "_POLL_S", 0.2)
    failing_at(monkeypatch, case_id, end)
    stream = stream_of(cases, settings=DataloaderSettings(num_workers=workers))
    message = r"WO_LABEL: a loader failed before the batch sick_\d, sick_\d was there \(.* exited unexpectedly\)"
    refused("", lambda: taken(stream, 3), message, TrainingError)


@pytest.mark.fault("a loader that hangs")
def test_a_worker_that_hangs_is_one_error_that_names_the_batch_and_a_slow_one_is_waited_for(cases, monkeypatch):
    monkeypatch.setattr(module, "_POLL_S", 0.1)
    expected = taken(stream_of(cases), 2)
    failing_at(monkeypatch, "sick_2", lambda: time.sleep(1.5))
    for timeout in (0, 30):
        assert same(taken(stream_of(cases, settings=DataloaderSettings(num_workers=1, timeout=timeout)), 2), expected)
    stream = stream_of(cases, settings=DataloaderSettings(num_workers=2, timeout=1))
    message = r"before the batch .*sick_2.* was there \(timed out after 1 seconds\)"
    refused("", lambda: taken(stream, 3), message, TrainingError)


@pytest.mark.parametrize(
    ("split", "size", "ranks", "workers"), [("WO_LABEL", 4, 2, 0), ("WO_LABEL", 4, 2, 1), ("LABELED", 3, 4, 0)]
)
def test_processes_share_out_every_batch_padded_with_volumes_that_the_loss_ignores(
    cases, monkeypatch, split, size, ranks, workers
):
    samples, each = Samples(cases[split], split, IMAGE, seed=0), -(-size // ranks)
    whole = taken(BatchStream(samples, size, NO_WORKERS, CPU, position=2 * size), 3)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        stream = BatchStream(samples, size, DataloaderSettings(num_workers=workers), CPU, position=2 * size)
        share = slice(each * rank, each * (rank + 1))
        for expected, found in zip(whole, taken(stream, 3), strict=True):
            if expected.ids[share]:
                lesion = None if expected.lesion is None else expected.lesion[share]
                assert same(found, Batch(expected.image[share], expected.lung[share], lesion, expected.ids[share]))
            else:
                assert (found.image.shape[0], found.ids) == (each, ())
                assert (found.lesion == IGNORED).all()
        assert stream.position == 5 * size


@pytest.mark.parametrize(
    ("split", "scans", "fill", "expected"),
    [("LABELED", 1, False, 1), ("LABELED", 3, False, 3), ("LABELED", 9, False, 4), ("LABELED", 1, True, 4),
     ("WO_LABEL", 1, False, 4), ("HEALTHY", 1, False, 4)],
)  # fmt: skip
def test_a_labelled_batch_has_as_many_volumes_as_its_list_unless_it_is_filled(split, scans, fill, expected):
    assert batch_size(split, scans, SolverSettings(batch_size=4, fill_labelled_batch=fill)) == expected


def test_a_signal_to_the_group_of_processes_does_not_reach_the_workers(cases):
    stream = stream_of(cases, settings=DataloaderSettings(num_workers=1))
    stream.next()
    worker = stream._batches._workers[0].pid
    assert os.getpgid(worker) == worker != os.getpgid(0)


def print_batches(root, method):
    """Print what eight batches of 1 MiB add up to, or the error."""
    multiprocessing.set_start_method(method)
    cases = read_cohort(Path(root), {"WO_LABEL": "train_id_WL"}, IMAGE.size)
    samples = Samples(cases["WO_LABEL"], "WO_LABEL", IMAGE, 0)
    try:
        batches = taken(BatchStream(samples, 4, DataloaderSettings(num_workers=2), CPU), 8)
        print([float(batch.image.double().sum()) for batch in batches])
    except TrainingError as error:
        print(error)


def in_small_shared_memory(cohort, size, method):
    """What `print_batches` prints in a process with a small /dev/shm."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no mounting here")
    code = f"from tests.datasets.test_samples import print_batches; print_batches({str(cohort)!r}, {method!r})"
    command = [*inside, sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    return result.stdout.strip()


@pytest.mark.fault("/dev/shm of 64 MB or 1 MB")
def test_batches_do_not_pass_through_shared_memory(cases, cohort):
    samples = Samples(cases["WO_LABEL"], "WO_LABEL", IMAGE, 0)
    expected = [float(batch.image.double().sum()) for batch in taken(BatchStream(samples, 4, NO_WORKERS, CPU), 8)]
    assert in_small_shared_memory(cohort, "512k", "spawn") == str(expected)


@pytest.mark.fault("a full or read-only /dev/shm")
def test_loaders_without_any_shared_memory(cohort):
    message = in_small_shared_memory(cohort, "16k", "fork")
    assert message.startswith("WO_LABEL: cannot start 2 loaders (No space left on device)")
    assert "DATALOADER.NUM_WORKERS=0" in message
