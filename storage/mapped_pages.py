"""Lets go of the pages of a mapped file: they stay in the system's cache, but are nobody's memory.

Pages of the tables that were read or written stay mapped, so a process would seem to grow with its
tables, up to all of them; and what is mapped is the last that the system takes back when memory
runs short. Reading a page again maps it again, without the disk.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_MADV_DONTNEED = 4
_SHARED_READ_ONLY = "r--s"


def release_mapped_pages(path: Path) -> int:
    """Unmap what is resident of a file that is mapped to be read; from any thread.

    Returns how many bytes of address space that was: 0 where it isn't mapped or on other systems
    than Linux. No mapping of the file may be made or removed meanwhile.
    """
    if sys.platform != "linux":
        return 0
    name = os.path.realpath(path)
    released = 0
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as mappings:
        for line in mappings:
            fields = line.rstrip("\n").split(maxsplit=5)
            # Of other kinds of mappings the content would be lost.
            if len(fields) == 6 and fields[5] == name and fields[1] == _SHARED_READ_ONLY:
                start, end = (int(number, 16) for number in fields[0].split("-"))
                size = end - start
                if _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED):
                    return 0
                released += size
    return released


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
