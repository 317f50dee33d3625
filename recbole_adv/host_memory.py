"""Keeps on the heap what one training step frees, for the next one.

glibc gives large blocks back to the system the moment they are freed, and the system fills with zeros,
page by page, those it hands out again: a third of the time of a step with many temporaries of 32 MB or
more, such as SASRec's (benchmarks/kept_memory.py). Values are the same to the bit.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MB = 2**20
# What glibc arrives at by itself in a process that frees large blocks; setting a value ends its adapting.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * _MB, _TRIM_THRESHOLD: 64 * _MB}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}

_inside = 0


@contextmanager
def kept(wanted: bool) -> Iterator[None]:
    """Inside, memory that is freed stays with the process; it goes back at the end of the outermost.

    Of other threads than the main one, whose heaps have 64 MB, only smaller blocks, unless
    ``MALLOC_ARENA_MAX=1`` gives all threads the main one's. Nothing happens with another C library, and
    where the environment tells glibc what to keep (``MALLOC_TRIM_THRESHOLD_`` and the like,
    ``GLIBC_TUNABLES``).
    """
    global _inside
    library = _glibc() if wanted else None
    if library is None:
        yield
        return
    if not _inside:
        _tell(library, _KEEPING)
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1
        if not _inside:
            _tell(library, _USUAL)
            library.malloc_trim(0)


def keeps_memory(method: Callable) -> Callable:
    """A trainer's method inside :func:`kept`, where the trainer computes on a CPU and ``keep_memory``."""

    @wraps(method)
    def run(self, *args, **kwargs):
        with kept(self.device.type == "cpu" and bool(self.config["keep_memory"])):
            return method(self, *args, **kwargs)

    return run


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc and nobody else tells it how to keep memory."""
    told = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    told = told or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if told or platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _tell(library: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        library.mallopt(option, value)
