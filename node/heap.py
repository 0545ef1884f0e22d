"""One heap for all threads.

The C library gives each thread a heap of its own, and what one of them freed is of no use to the
others: a node whose threads take turns at large buffers keeps each one's largest. Python's threads
rarely allocate at the same moment, so sharing costs nothing.
"""

import ctypes
import sys

_M_ARENA_MAX = -8


def share_one_heap() -> bool:
    """To be called before threads are started; False where the C library has no such option."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    except AttributeError:
        return False  # a C library without heaps per thread
