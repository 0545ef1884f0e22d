"""The inner half of ``bench.scale``: fills a data directory, or lets what is in it expire.

Runs in a process of its own, so that its memory is that of a node, and prints a line of JSON for
each thing it has measured.
"""

import argparse
import asyncio
import gc
import json
import random
import time
from pathlib import Path
from statistics import median
from time import perf_counter

import uvloop

from bench.scale_node import DAY_MS, NODE, Driver, ShiftedClock, running
from perdure.core.ids import InvocationId, partition_key_of
from perdure.node.partition.host import Host
from perdure.storage.partition_store import TableId

_PROBES = 5_000
_PROBE_BLOCK = 2_000
_SAMPLES = 1_000
_BLOCK = 10_000
_MARKS = (1_000, 10_000, 100_000, 1_000_000)
SAMPLES_FILE = "samples"
_AT_ONCE = 256


def tell(stage: str, **figures: float) -> None:
    print(json.dumps({"stage": stage, **figures}), flush=True)


def memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of a process's own, and of files mapped (which the system may drop at any time)."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    kinds = {"memory_bytes": "RssAnon", "mapped_bytes": "RssFile"}
    return {name: int(fields[field].split()[0]) * 1024 for name, field in kinds.items()}


def grown(before: dict[str, int]) -> dict[str, int]:
    """By how much both have grown."""
    return {f"grown_{name}": size - before[name] for name, size in memory().items()}


def disk(folder: Path) -> dict[str, int]:
    """Bytes on disk: tables and log."""
    return {
        f"{name}_bytes": sum(
            path.stat().st_blocks * 512 for path in (folder / NODE / name).rglob("*")
        )
        for name in ("partitions", "wal")
    }


async def probe(host: Host, driver: Driver, known: list[InvocationId]) -> dict[str, float]:
    """What an invocation and a look-up cost now."""
    serial = sorted([await driver.call("echo", driver.next_id()) for _ in range(_PROBES)])
    before = time.process_time()
    await driver.run("echo", _PROBE_BLOCK)
    cpu = time.process_time() - before
    looked_up: list[float] = []
    for invocation in random.Random(1).choices(known, k=_SAMPLES):
        store = host.gateway.store(partition_key_of(invocation))
        started = perf_counter()
        if store.invocations.get(invocation) is None or store.results.get(invocation) is None:
            raise SystemExit(f"{invocation.hex()} is lost")
        looked_up.append(perf_counter() - started)
    return {
        "latency_p50_ms": serial[_PROBES // 2] * 1e3,
        "latency_p99_ms": serial[_PROBES * 99 // 100] * 1e3,
        "cpu_us": cpu / _PROBE_BLOCK * 1e6,
        "lookup_us": median(looked_up) * 1e6,
    }


async def settled(host: Host) -> None:
    """Everything applied is in the tables, and garbage is gone."""
    for led in host.led:
        flushed = asyncio.Event()
        led.processor.flush(flushed.set)
        await flushed.wait()
    gc.collect()


async def fill(folder: Path, completed: int, scheduled: int, suspended: int, derived: bool) -> None:
    clock = ShiftedClock(0)
    async with running(folder, clock) as host:
        driver = Driver(host, clock, seed=7, derived=derived)
        await driver.run("echo", 500)  # warm
        await settled(host)
        gc.freeze()
        tell("idle", **memory(), **disk(folder))
        await _suspend(host, driver, folder, suspended)
        await _schedule(host, driver, folder, scheduled)
        await _complete(host, driver, folder, completed)
        await driver.run("echo", 200)  # something that only the log knows
        tell("filled")
        await asyncio.sleep(3600)  # to be killed


async def _suspend(host: Host, driver: Driver, folder: Path, count: int) -> None:
    await settled(host)
    before = memory()
    for start in range(0, count, _AT_ONCE):
        await driver.run("sleep", min(_AT_ONCE, count - start), waits=False)
        await _quiet(host)
    await settled(host)
    tell("suspended", count=count, **grown(before), **memory())


async def _quiet(host: Host) -> None:
    """No attempt runs."""
    while any(led.leader.statistics().invoker.running for led in host.led):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def _schedule(host: Host, driver: Driver, folder: Path, count: int) -> None:
    before, on_disk, started = memory(), disk(folder), perf_counter()
    done = 0
    while done < count:
        block = min(_BLOCK * 10, count - done)
        await driver.run("echo", block, waits=False, delay_ms=30 * DAY_MS)
        done += block
        tell("progress", scheduled=done)
    seconds = perf_counter() - started
    await settled(host)
    tell(
        "scheduled",
        count=count,
        per_second=count / seconds,
        **grown(before),
        disk_bytes_each=(disk(folder)["partitions_bytes"] - on_disk["partitions_bytes"]) / count,
        **memory(),
    )


async def _complete(host: Host, driver: Driver, folder: Path, count: int) -> None:
    before, on_disk = memory(), disk(folder)
    known: list[InvocationId] = []
    every = max(count // _SAMPLES, 1)
    done, seen, seconds = 0, 0, 0.0

    def note(invocation: InvocationId) -> None:
        nonlocal seen
        if seen % every == 0:
            known.append(invocation)
        seen += 1

    marks = [mark for mark in _MARKS if mark < count] + [count]
    for mark in marks:
        while done < mark:
            block = min(_BLOCK, mark - done)
            started = perf_counter()
            await driver.run("echo", block, on_id=note)
            seconds += perf_counter() - started
            done += block
            if done % (10 * _BLOCK) == 0:
                tell("progress", completed=done, **memory())
        await settled(host)
        figures = await probe(host, driver, known)
        tell("stored", stored=mark, **figures, **memory(), **disk(folder))
    await settled(host)
    (folder / SAMPLES_FILE).write_text("\n".join(each.hex() for each in known))
    tell(
        "completed",
        count=count,
        per_second=count / seconds,
        **grown(before),
        disk_bytes_each=(disk(folder)["partitions_bytes"] - on_disk["partitions_bytes"]) / count,
        **memory(),
        **disk(folder),
    )


async def expire(folder: Path, seconds_max: float) -> None:
    """Two days later: everything completed has expired. Foreground latency, meanwhile and after."""
    clock = ShiftedClock(2 * DAY_MS)
    async with running(folder, clock) as host:
        gc.collect()
        gc.freeze()
        driver = Driver(host, clock, seed=8)
        due = _left(host)
        started = perf_counter()
        meanwhile: list[float] = []
        while perf_counter() - started < seconds_max and _has_due(host, clock):
            meanwhile.append(await driver.call("echo", driver.next_id()))
            await asyncio.sleep(0.01)
            if len(meanwhile) % 500 == 0:
                tell("progress", expired=due - _left(host))
        seconds = perf_counter() - started
        await settled(host)
        left = _left(host)
        await asyncio.sleep(2)
        # What is left keeps expiring: only a finished clean-up has an afterwards.
        after = [await driver.call("echo", driver.next_id()) for _ in range(_PROBES)]
        tell(
            "expired",
            due=due,
            left=left,
            per_second=(due - left) / seconds,
            **_percentiles("meanwhile", meanwhile),
            **_percentiles("after", after),
            **memory(),
        )


def _percentiles(name: str, latencies: list[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    return {
        f"{name}_p50_ms": ordered[len(ordered) // 2] * 1e3,
        f"{name}_p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
    }


def _has_due(host: Host, clock: ShiftedClock) -> bool:
    for led in host.led:
        first = led.processor.store.expiries.scan(b"", 1)
        if first and int.from_bytes(first[0][0][:8]) <= clock.now_ms():
            return True
    return False


def _left(host: Host) -> int:
    """Expiries in the tables as of the last flush."""
    lower, upper = bytes([TableId.EXPIRIES]), bytes([TableId.EXPIRIES + 1])
    return sum(sum(1 for _ in led.processor.store.env.scan(lower, upper)) for led in host.led)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["fill", "expire"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--completed", type=int, default=0)
    parser.add_argument("--scheduled", type=int, default=0)
    parser.add_argument("--suspended", type=int, default=0)
    parser.add_argument("--derived", action="store_true")
    parser.add_argument("--seconds-max", type=float, default=300.0)
    given = parser.parse_args()
    if given.what == "fill":
        counts = given.completed, given.scheduled, given.suspended
        uvloop.run(fill(given.folder, *counts, given.derived))
    else:
        uvloop.run(expire(given.folder, given.seconds_max))


if __name__ == "__main__":
    main()
