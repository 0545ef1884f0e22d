"""What no server can beat on this machine: synced writes, loopback, and the SDK alone."""

import os
from collections.abc import Generator as Yields
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

from bench import sdk_alone
from bench.loadgen import Load, drive
from bench.sizes import Sizes
from bench.soak_http import serve_echo
from bench.systems.restate_sdk import start_service

STEP_BYTES = 512
_CROWDS = (50, 200)
"""Clients at once of the SDK alone."""
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
def _echo() -> Yields[int]:
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


def measure_floor(language: str, sizes: Sizes, folder: Path) -> dict[str, float]:
    """The machine's part of each figure, under the names that the workloads give theirs.

    An invocation of k steps can't be answered before k + 1 synced writes (each step's result, and
    the invocation's), one round trip for its caller, and what the SDK takes by itself. Nor are
    there more of them a second than the SDK alone takes.
    """
    sync = sync_seconds(folder, STEP_BYTES, sizes.floor) * 1e3
    trip = round_trip_seconds(sizes.floor) * 1e3
    figures = {"floor: fdatasync of 512 bytes, ms": sync, "floor: HTTP/2 round trip, ms": trip}
    service, port = start_service(language, folder)
    try:
        for steps in sizes.steps:
            count = max(sizes.serial // (1 + steps // 4), sizes.serial_min)
            asked = sdk_alone.Drive(port, steps, count, sizes.serial_seconds)
            alone = median(sdk_alone.latencies(asked)) * 1e3
            figures[f"floor: SDK alone {steps} steps, ms"] = alone
            figures[f"latency: {steps} steps p50, ms"] = alone + trip + (steps + 1) * sync
        for steps, clients in product((0, 3), _CROWDS):
            asked = sdk_alone.Drive(port, steps, 10**9, sizes.crowd_seconds(clients), clients)
            name = f"throughput: {steps} steps, {clients} clients, /s"
            figures[name] = sdk_alone.rate(asked)
    finally:
        service.kill()
    few, many = min(sizes.steps), max(sizes.steps)
    each = (
        figures[f"latency: {many} steps p50, ms"] - figures[f"latency: {few} steps p50, ms"]
    ) / (many - few)
    figures["latency: each further step, ms"] = each
    alone = figures[f"floor: SDK alone {many} steps, ms"]
    alone -= figures[f"floor: SDK alone {few} steps, ms"]
    figures["floor: SDK alone, each further step, ms"] = alone / (many - few)
    return figures
