import os
import signal
import threading

import numpy as np
import pytest

from datasets.io import decoder as module
from datasets.io.decoder import Decoder, DecoderError
from tests.volumes import pixels, write

SHAPE = (6, 7, 8)


@pytest.fixture
def scan(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)
    return write(tmp_path / "ä scan.mha", array)


@pytest.fixture
def decoder():
    decoder = Decoder()
    yield decoder
    if decoder._socket is not None:
        decoder._end()


def read(decoder, path):
    return decoder.voxels([path], 2 * int(np.prod(SHAPE)))


def test_headers_and_voxels_come_through(decoder, scan):
    header = decoder.header(scan)
    assert (header.grid.size, header.values, header.bytes) == ((8, 7, 6), 1, 2)
    assert "16-bit signed" in header.kind
    np.testing.assert_array_equal(read(decoder, scan), pixels(scan))


def test_one_process_serves_many_files(decoder, scan):
    read(decoder, scan)
    first = decoder._process.pid
    for _ in range(5):
        read(decoder, scan)
    assert decoder._process.pid == first


def test_what_the_reader_says_of_a_file_is_passed_on(decoder, tmp_path):
    (tmp_path / "text.nrrd").write_text("Once upon a time")
    with pytest.raises(DecoderError, match="Unable to determine ImageIO reader"):
        decoder.header(tmp_path / "text.nrrd")


@pytest.mark.fault("a file that crashes")
def test_a_crash_costs_one_file(decoder, scan):
    read(decoder, scan)
    os.kill(decoder._process.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (decoder._process.pid, signal.SIGSEGV)).start()
    threading.Timer(0.4, os.kill, (decoder._process.pid, signal.SIGCONT)).start()
    with pytest.raises(DecoderError, match=r"crashed on it \(SIGSEGV\)"):
        read(decoder, scan)
    np.testing.assert_array_equal(read(decoder, scan), pixels(scan))


@pytest.mark.fault("a reader that hangs")
def test_a_reader_that_hangs_costs_one_file(decoder, scan, monkeypatch):
    read(decoder, scan)
    hanging = decoder._process
    os.kill(hanging.pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "VOXELS_TIMEOUT_S", 0.3)
    with pytest.raises(DecoderError, match=r"did not answer for 0\.3 s"):
        read(decoder, scan)
    assert hanging.poll() is not None
    monkeypatch.undo()
    np.testing.assert_array_equal(read(decoder, scan), pixels(scan))


@pytest.mark.fault("a reader that wants")
def test_memory_is_limited_by_what_the_header_promises(decoder, tmp_path, scan):
    # A gigabyte of voxels, where the caller expects a thousand.
    large = tmp_path / "large.mhd"
    size = "ObjectType = Image\nNDims = 3\nDimSize = 1024 1024 1024\n"
    large.write_text(size + "ElementType = MET_SHORT\nElementDataFile = large.raw\n")
    with (tmp_path / "large.raw").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(DecoderError, match=r"(?i)memory|alloc"):
        decoder.voxels([large], 2000)
    np.testing.assert_array_equal(read(decoder, scan), pixels(scan))


def test_a_forked_process_has_a_reader_of_its_own(decoder, scan):
    read(decoder, scan)
    own = decoder._process.pid
    child = os.fork()
    if child == 0:
        good = (read(decoder, scan) == pixels(scan)).all() and decoder._process.pid != own
        decoder._end()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(read(decoder, scan), pixels(scan))
    assert decoder._process.pid == own


def test_the_process_ends_with_its_parent(scan):
    decoder = Decoder()
    read(decoder, scan)
    process = decoder._process
    decoder._socket.close()
    assert process.wait(5) == 0


def test_threads_take_turns(decoder, scan):
    expected, good = pixels(scan), []
    threads = [threading.Thread(target=lambda: good.append((read(decoder, scan) == expected).all())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 8
