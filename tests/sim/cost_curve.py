"""What the control plane costs as clusters grow: ``python -m tests.sim.cost_curve``.

Whole control planes (tests/sim/leadership_world.py) of N nodes and P partitions start at once, come
to rest, stand still for a while, lose the power of the node that leads most, lead without it, and
replace it in all replica sets. Bytes and virtual seconds are exact and repeat with the seed; CPU is
this machine's.
"""

# pyright: reportPrivateUsage=false

import argparse
import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any
from unittest.mock import patch

from tests.sim.leadership_world import FINGERPRINT, REPLICATION, FakeReplica, SimNode, World
from tests.sim.loop import SimLoop, run
from tests.sim.network import SimWire

from perdure.cluster.core import controller
from perdure.cluster.core.controller import ControllerCore
from perdure.cluster.core.failure_detector import Gossip
from perdure.cluster.core.membership import ClusterMeta
from perdure.cluster.core.messages import Message, encode
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.leadership import Leaderships
from perdure.cluster.membership import provision
from perdure.core.limits import FD_TICK_MS

SHAPES = tuple((nodes, partitions) for nodes in (3, 6, 12, 24) for partitions in (24, 100, 1_000))
QUIET_SECONDS = 10
REPAIR_AFTER_MS = 5_000  # instead of minutes, so that a run doesn't take hours
PATIENCE_SECONDS = 6_000
WRITE_EVERY_SECONDS = 5


@dataclass(slots=True)
class Meters:
    """What was seen since the last ``reset``; CPU in milliseconds."""

    wire_bytes: int = 0
    gossip_bytes: list[int] = field(default_factory=list[int])
    passes_ms: list[float] = field(default_factory=list[float])
    ticks_ms: list[float] = field(default_factory=list[float])

    def reset(self) -> None:
        self.wire_bytes = 0
        for figures in (self.gossip_bytes, self.passes_ms, self.ticks_ms):
            figures.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one cluster. Per round: one tick of one node's failure detector."""

    nodes: int
    partitions: int
    formed_s: float
    gossip_message_bytes: float
    gossip_message_bytes_max: int
    wire_bytes_per_round: float
    pass_ms: float
    pass_ms_max: float
    ticks_ms: float
    register_bytes: int
    register_bytes_each: float
    led_again_s: float
    replaced_s: float


def measure(nodes: int, partitions: int) -> Costs:
    """Live through one cluster."""
    found: list[Costs] = []

    async def main(loop: SimLoop) -> None:
        world = World(loop, 1, nodes, partitions)
        with _metered() as meters:
            found.append(await _measure(world, meters))
        await world.end()

    with (
        patch.object(FakeReplica, "_keep_writing", _announce_and_write_seldom),
        patch.object(controller, "REPLICA_REPAIR_MS", REPAIR_AFTER_MS),
    ):
        run(1, main)
    return found[0]


async def _measure(world: World, meters: Meters) -> Costs:
    cluster = ClusterMeta(1, "sim", FINGERPRINT, world.partitions, REPLICATION, 3)
    await provision(world.registers, cluster)
    began = world.loop.time()
    await asyncio.gather(*(_start(world, number) for number in range(len(world.nodes))))
    await _until(world, lambda: _is_placed(world))
    formed = world.loop.time() - began
    await asyncio.sleep(10)
    meters.reset()
    await asyncio.sleep(QUIET_SECONDS)
    rounds = QUIET_SECONDS * 1000 / FD_TICK_MS * len(world.nodes)
    values = {key: len(at.value) for key, at in world.registers.found.items()}
    each = [size for key, size in values.items() if key.startswith("p/")]
    gossip = list(meters.gossip_bytes)
    quiet_ms, ticks_ms, wire = median(meters.passes_ms), mean(meters.ticks_ms), meters.wire_bytes
    lost = max(world.nodes, key=_led_by)
    led_again, replaced = await _lose(world, lost, meters)
    return Costs(
        nodes=len(world.nodes),
        partitions=world.partitions,
        formed_s=formed,
        gossip_message_bytes=mean(gossip),
        gossip_message_bytes_max=max(gossip),
        wire_bytes_per_round=wire / rounds,
        pass_ms=quiet_ms,
        pass_ms_max=max(meters.passes_ms),
        ticks_ms=ticks_ms,
        register_bytes=sum(values.values()),
        register_bytes_each=mean(each),
        led_again_s=led_again,
        replaced_s=replaced,
    )


async def _lose(world: World, lost: SimNode, meters: Meters) -> tuple[float, float]:
    """Seconds until everything is led again, and from the decision on until it is replaced."""
    assert lost.life is not None
    gone = lost.life.joined.node
    can_replace = len(world.nodes) > 3
    meters.reset()
    await lost.kill(loses_power=True)
    began = world.loop.time()
    await _until(world, world.is_led)
    led_again = world.loop.time() - began
    if can_replace:
        await _until(world, lambda: _is_placed(world, gone))
    replaced = max(0.0, world.loop.time() - began - REPAIR_AFTER_MS / 1000)
    return led_again, replaced if can_replace else float("nan")


async def _start(world: World, number: int) -> None:
    """Nearly at once: those that read registers which the others write all the time give up."""
    await asyncio.sleep(0.05 * number)
    await world.nodes[number].start()


def _led_by(node: SimNode) -> int:
    assert node.life is not None
    return len(node.life.plane.leaderships.led())


async def _until(world: World, condition: Callable[[], bool]) -> None:
    """As ``World.until``, looked at seldom: looking at a thousand partitions isn't free."""
    began = world.loop.time()
    while not condition():
        await asyncio.sleep(0.25)
        if world.loop.time() - began > PATIENCE_SECONDS:
            raise TimeoutError(f"not within {PATIENCE_SECONDS} s")


def _is_placed(world: World, without: NodeId | None = None) -> bool:
    """Everything is led, and by whole replica sets of nodes that live."""
    metas = world.membership().partitions
    return (
        world.is_led()
        and len(metas) == world.partitions
        and all(
            len(meta.replicas.current) == 3
            and meta.replicas.following is None
            and without not in meta.replicas.current
            for meta in metas.values()
        )
    )


async def _announce_and_write_seldom(self: FakeReplica, epoch: int) -> None:
    await asyncio.sleep(0.005 * self.life.node.world.dice.random())
    while True:
        outcome = self._try_commit(epoch)
        if outcome == "sealed":
            self.life.plane.leaderships.on_log_stopped(self.partition, "sealed")
            return
        if outcome == "committed":
            self.life.plane.leaderships.on_announced(self.partition, epoch)
        await asyncio.sleep(WRITE_EVERY_SECONDS if outcome == "committed" else 0.2)


@contextmanager
def _metered() -> Generator[Meters]:
    meters = Meters()
    bring, send = SimWire._bring, Fabric.send
    decide, tick = ControllerCore.decide, Leaderships.tick

    def brought(self: SimWire, frame: bytes | None) -> None:
        meters.wire_bytes += len(frame or b"")
        bring(self, frame)

    def sent(self: Fabric, node: NodeId, message: Message) -> bool:
        if isinstance(message, Gossip):
            meters.gossip_bytes.append(len(encode(message)))
        return send(self, node, message)

    def decided(self: ControllerCore, *arguments: Any) -> Any:
        passes = list[float]()
        with _timed(passes):
            decisions = decide(self, *arguments)
        if self.is_active:
            meters.passes_ms += passes
        return decisions

    def ticked(self: Leaderships, *arguments: Any) -> None:
        with _timed(meters.ticks_ms):
            tick(self, *arguments)

    with (
        patch.object(SimWire, "_bring", brought),
        patch.object(Fabric, "send", sent),
        patch.object(ControllerCore, "decide", decided),
        patch.object(Leaderships, "tick", ticked),
    ):
        yield meters


@contextmanager
def _timed(figures: list[float]) -> Generator[None]:
    began = time.thread_time()
    yield
    figures.append((time.thread_time() - began) * 1000)


def _row(costs: Costs) -> str:
    return (
        f"| {costs.nodes} | {costs.partitions:,} | {costs.gossip_message_bytes:,.0f} / "
        f"{costs.gossip_message_bytes_max:,} | {costs.wire_bytes_per_round:,.0f} | "
        f"{costs.pass_ms:.2f} / {costs.pass_ms_max:.2f} | {costs.ticks_ms:.2f} | "
        f"{costs.register_bytes_each:,.0f} / {costs.register_bytes:,} | {costs.formed_s:.1f} | "
        f"{costs.led_again_s:.1f} | {costs.replaced_s:.1f} |"
    )


def main(arguments: list[str]) -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.cost_curve", description=__doc__)
    parser.add_argument("--nodes", type=int, help="only clusters of so many nodes")
    parser.add_argument("--partitions", type=int, help="only clusters of so many partitions")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    gc.set_threshold(50_000, 20, 50)
    print(
        "| nodes | partitions | gossip message, mean / max (B) | on the wire per node and round (B)"
        " | controller pass, quiet / after the loss, at most (ms) | leadership tick (ms)"
        " | register, each / all (B) | formed (s) | led again (s) | replaced (s) |\n|" + "---|" * 10
    )
    for nodes, partitions in SHAPES:
        if options.nodes in (None, nodes) and options.partitions in (None, partitions):
            print(_row(measure(nodes, partitions)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
