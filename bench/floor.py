"""What no server can beat on this machine: a synced write and a round trip over loopback."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.loadgen import Load, drive
from bench.soak_http import serve_echo

_FILE_BYTES = 8 * 1024 * 1024


def sync_seconds(folder: Path, size: int, count: int) -> float:
    """Median of writing ``size`` bytes into a recycled file and syncing them."""
    path = folder / "floor"
    path.write_bytes(bytes(_FILE_BYTES))
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        data, taken = b"x" * size, list[float]()
        for number in range(count):
            started = perf_counter()
            os.pwrite(descriptor, data, number * size % (_FILE_BYTES - size))
            os.fdatasync(descriptor)
            taken.append(perf_counter() - started)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(taken)


@contextmanager
def _echo() -> Generator[int]:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve_echo, args=(theirs, "auto"))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        ours.recv()
        process.join()


def round_trip_seconds(count: int) -> float:
    """Median of an HTTP/2 request and its answer between two processes."""
    with _echo() as port:
        outcome = drive(Load(port, "/echo", b"1", count, 1))
    return outcome.latencies[len(outcome.latencies) // 2]
