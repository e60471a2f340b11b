"""ITK's readers, in a process of their own.

A damaged file can crash a reader, or make it ask for more memory than there is. In another process, with a limit on
its memory, that costs one file instead of a night's work. The process is started with the first file that needs it,
and serves all that follow; voxels come back through shared memory.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from datasets.io.grid import Grid

HEADER_TIMEOUT_S = 60.0
VOXELS_TIMEOUT_S = 600.0

_HEADER_MEMORY = 1 << 29
"""Bytes that reading a header may take."""

_COPIES = 4
"""Memory that reading voxels may take besides, as multiples of the voxels themselves."""

_LONGEST_REPLY = 1 << 14


class DecoderError(Exception):
    """What went wrong with a file, without its name."""


@dataclass(frozen=True)
class Header:
    """What a file says of its volume.

    Attributes:
        grid: size and geometry; of any number of dimensions.
        values: numbers a voxel.
        bytes: of a voxel.
        kind: the type of the values, in words.
    """

    grid: Grid
    values: int
    bytes: int
    kind: str


class Decoder:
    """A process that reads files with ITK. It may be used from several threads, and after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None

    def header(self, path: Path) -> Header:
        """Read the header of a file.

        Raises:
            DecoderError: it cannot be read, or the reader crashed, hung or wanted too much memory.
        """
        reply, _ = self._ask({"header": str(path.absolute()), "memory": _HEADER_MEMORY}, HEADER_TIMEOUT_S)
        grid = Grid(*(tuple(reply[key]) for key in ("size", "spacing", "origin", "direction")))
        return Header(grid, reply["values"], reply["bytes"], reply["kind"])

    def voxels(self, paths: Sequence[Path], expected_bytes: int) -> np.ndarray:
        """Read the voxels of a file, or of the slices of a DICOM series.

        Args:
            paths: one file, or the slices in their order.
            expected_bytes: of all voxels.

        Returns:
            (z, y, x), in the file's type; slices with an intercept as int16 where that holds them. Read-only.

        Raises:
            DecoderError: as `header`.
        """
        memory = _HEADER_MEMORY + _COPIES * expected_bytes
        reply, voxels = self._ask(
            {"voxels": [str(path.absolute()) for path in paths], "memory": memory}, VOXELS_TIMEOUT_S
        )
        with open(voxels, "rb") as file:  # noqa: PTH123 - a descriptor
            shared = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(shared, reply["type"]).reshape(reply["shape"])

    def _ask(self, request: dict[str, Any], timeout: float) -> tuple[dict[str, Any], int]:
        with self._lock:
            connection = self._connection()
            connection.settimeout(timeout)
            try:
                connection.sendall(json.dumps(request).encode() + b"\n")
                message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_REPLY, 1)
            except TimeoutError:
                self._end()
                raise DecoderError(f"the reader did not answer for {timeout:g} s") from None
            except OSError:
                message = b""
            if not message:
                code = self._end()
                raise DecoderError(f"the reader crashed on it ({signal.Signals(-code).name if code < 0 else code})")
        reply = json.loads(message)
        if "error" in reply:
            raise DecoderError(reply["error"])
        return reply, (descriptors or [-1])[0]

    def _connection(self) -> socket.socket:
        if self._socket is None or self._owner != os.getpid():
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno())],
                    cwd=Path(__file__).parents[2],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            self._socket, self._owner = ours, os.getpid()
        return self._socket

    def _end(self) -> int:
        """End the process, should it still be there; returns its exit code."""
        self._socket.close()
        self._socket = None
        try:
            # One that has closed its end is about to exit, with a code that says why.
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side is gone."""
    for line in connection.makefile("rb"):
        request = json.loads(line)
        _limit_memory(request["memory"])
        descriptors = []
        try:
            if "header" in request:
                reply = _read_header(request["header"])
            else:
                reply, voxels = _read_voxels(request["voxels"])
                descriptors.append(voxels)
        except (RuntimeError, MemoryError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reply = {"error": (lines[-1] if lines else type(error).__name__)[:1000]}
        _limit_memory(None)
        socket.send_fds(connection, [json.dumps(reply).encode()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _limit_memory(more: int | None) -> None:
    """Allow this process so many bytes more than it has now, or as many as its user may have."""
    highest = resource.getrlimit(resource.RLIMIT_AS)[1]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = highest if more is None else pages * resource.getpagesize() + more
    if highest != resource.RLIM_INFINITY:
        limit = min(limit, highest)
    resource.setrlimit(resource.RLIMIT_AS, (limit, highest))


def _read_header(path: str) -> dict[str, Any]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    kind = reader.GetPixelID()
    return {
        "size": reader.GetSize(),
        "spacing": reader.GetSpacing(),
        "origin": reader.GetOrigin(),
        "direction": reader.GetDirection(),
        "values": reader.GetNumberOfComponents() * (2 if "complex" in sitk.GetPixelIDValueAsString(kind) else 1),
        "bytes": sitk.Image([1] * 3, kind).GetSizeOfPixelComponent(),
        "kind": sitk.GetPixelIDValueAsString(kind),
    }


def _read_voxels(paths: list[str]) -> tuple[dict[str, Any], int]:
    image = sitk.ReadImage(paths if len(paths) > 1 else paths[0])
    voxels = sitk.GetArrayViewFromImage(image)
    if len(paths) > 1 and voxels.dtype == np.int32 and (voxels.astype(np.int16) == voxels).all():
        voxels = voxels.astype(np.int16)  # ITK makes 32 bits of slices of 16 bits with an intercept
    descriptor = os.memfd_create("voxels")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(np.ascontiguousarray(voxels))
    return {"shape": voxels.shape, "type": voxels.dtype.str}, descriptor


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
