"""Host memory of this process."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory in this process for reuse, instead of returning it to the kernel.

    Feature maps have tens of megabytes each. glibc returns blocks of that size as soon as they are freed, and the
    kernel zeroes every page when it is allocated again, which takes half the time of a training step on a CPU. Does
    nothing for C libraries other than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
