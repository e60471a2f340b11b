"""The main memory of this process."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process reuse the memory it frees, for good, instead of handing it back to the kernel.

    Feature maps are tens of megabytes each. glibc hands back everything that large as soon as it is freed, and the
    kernel clears every page of it that it lends again, which on the CPU takes half the time of a training step.
    C libraries other than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def peak_memory_mib() -> float:
    """Most memory that this process has held so far (Linux).

    Not that of getrusage, which a process takes over from the one that it was forked from.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
