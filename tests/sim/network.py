"""A simulated network: the wires under the sessions of a cluster, on the loop's virtual time.

What it does to frames is what TCP and machines do: each takes a while, drawn from the seed; those
of one direction of a wire stay in order; a connection may break at any frame, which loses what is
under way and which the two ends learn of at different times; one direction between two hosts may be
cut, which holds frames up until it is healed; a host may lose its power, after which nobody tells
the others. It never damages, repeats or reorders frames of a wire.

What the network does is done in its own context, and whoever listens is called in the listener's:
frames travel on while the process that sent them is stopped (tests/sim/loop.py).
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass

from perdure.cluster.wires import Wire, WireBroken
from perdure.core.errors import AddressInUse

# What one direction of a wire holds before its writer has to wait, as sockets do.
WINDOW_BYTES = 256 * 1024


@dataclass(kw_only=True)
class NetworkFaults:
    """May be changed while the network runs. Times are in virtual seconds."""

    latency_min: float = 0.0002
    latency_max: float = 0.002
    reset_chance: float = 0.0  # per frame


class SimNetwork:
    """All hosts and what lies between them. Hosts are named by the addresses they listen on."""

    def __init__(self, dice: random.Random, faults: NetworkFaults | None = None) -> None:
        self.dice = dice
        self.faults = faults or NetworkFaults()
        self.context = copy_context()
        self.listeners: dict[str, tuple[Callable[[Wire], None], Context]] = {}
        self.powerless: set[str] = set()  # hosts of which not even the machine answers
        self.connections: list[SimConnection] = []
        self.frames_delivered = 0
        self.resets = 0
        self._cuts: set[tuple[str, str]] = set()
        self._dialling: list[asyncio.Future[None]] = []

    def wires(self, host: str, *, is_private: bool = False) -> "SimWires":
        """The network as one life of a host sees it."""
        return SimWires(self, host, is_private)

    def cut(self, source: str, target: str) -> None:
        """Hold up everything from ``source`` to ``target``, until healed."""
        self._cuts.add((source, target))

    def isolate(self, host: str) -> None:
        """Cut both directions between a host and every other."""
        self._cuts |= {(host, "*"), ("*", host)}

    def mend(self, host: str) -> None:
        """End the cuts that the host has part in: what was held up arrives, in order."""
        self._cuts = {cut for cut in self._cuts if host not in cut}
        self._go_on()

    def heal(self) -> None:
        """End all cuts."""
        self._cuts.clear()
        self._go_on()

    def _go_on(self) -> None:
        _wake(self._dialling)
        for connection in [*self.connections]:
            connection.go_on()

    async def wait_for_heal(self) -> None:
        """Wait until cuts end; there may be new ones by then."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._dialling.append(future)
        await future

    def is_cut(self, source: str, target: str) -> bool:
        return not self._cuts.isdisjoint({(source, target), (source, "*"), ("*", target)})

    def reset(self, one: str, other: str) -> None:
        """Break all connections between two hosts."""
        for connection in [*self.connections]:
            if {connection.dialler, connection.listener} == {one, other}:
                connection.reset()

    def latency(self) -> float:
        return self.dice.uniform(self.faults.latency_min, self.faults.latency_max)


class SimWires:
    """One life of a host; implements ``cluster.wires.Wires``."""

    def __init__(self, network: SimNetwork, host: str, is_private: bool) -> None:
        self.network = network
        self.host = host
        self.is_private = is_private
        self.is_dead = False
        self._is_listening = False

    def connect(self, address: str) -> "SimConnection":
        return SimConnection(self.network, self, address)

    async def listen(self, accept: Callable[[Wire], None]) -> str:
        if self.host in self.network.listeners:
            raise AddressInUse(f"{self.host} is taken")
        self.network.listeners[self.host] = accept, copy_context()
        self.network.powerless.discard(self.host)
        self._is_listening = True
        return self.host

    async def aclose(self) -> None:
        self._stop_listening()
        for connection in self._connections():
            await connection.aclose()

    def lose_power(self) -> None:
        """The host is gone from one instant to the next: the others are not told."""
        self._stop_listening()
        self.is_dead = True
        self.network.powerless.add(self.host)
        for connection in self._connections():
            connection.forget(self.host)

    def kill(self) -> None:
        """The process is gone; its operating system breaks its connections."""
        self._stop_listening()
        self.is_dead = True
        for connection in self._connections():
            connection.reset()

    def _stop_listening(self) -> None:
        if self._is_listening:
            self._is_listening = False
            del self.network.listeners[self.host]

    def _connections(self) -> list["SimConnection"]:
        found = self.network.connections
        return [item for item in found if self.host in (item.dialler, item.listener)]


class SimConnection:
    """Carries wires from one host to another; implements ``cluster.wires.Connection``."""

    def __init__(self, network: SimNetwork, wires: SimWires, address: str) -> None:
        self.network = network
        self.dialler = wires.host
        self.listener = address
        self.ends: list[SimWire] = []
        self._wires = wires
        self.is_over = False

    async def open(self) -> "SimWire":
        await self._reach()
        listening = self.network.listeners.get(self.listener)
        if self.is_over or self._wires.is_dead or listening is None:
            told = listening is None and self.listener not in self.network.powerless
            raise WireBroken(f"{self.listener} refuses connections", is_vacant=told)
        if not self.ends:
            self.network.connections.append(self)
        ours = SimWire(self, self.dialler, self.listener, self._wires.is_private)
        theirs = SimWire(self, self.listener, self.dialler, self._wires.is_private)
        ours.other, theirs.other = theirs, ours
        self.ends += (ours, theirs)
        accept, context = listening
        context.copy().run(accept, theirs)
        return ours

    async def aclose(self) -> None:
        self.is_over = True
        for end in [*self.ends]:
            end.close()
        self.release()

    def reset(self) -> None:
        """Break: what is under way is lost, and the two ends learn of it each in its time."""
        if not self.is_over:
            self.is_over = True
            self.network.resets += 1
            for end in self.ends:
                end.lose_incoming()
                loop, context = asyncio.get_running_loop(), self.network.context
                loop.call_later(self.network.latency(), end.end, context=context)
            self.release()

    def forget(self, host: str) -> None:
        """One of the hosts is gone; what it had sent still arrives."""
        for end in self.ends:
            if end.host == host:
                end.end()

    def go_on(self) -> None:
        """Cuts may have been healed."""
        for end in self.ends:
            end.deliver()

    def release(self) -> None:
        if self in self.network.connections:
            self.network.connections.remove(self)

    async def _reach(self) -> None:
        """A round trip; for ever while either direction is cut."""
        for source, target in ((self.dialler, self.listener), (self.listener, self.dialler)):
            await asyncio.sleep(self.network.latency())
            while self.network.is_cut(source, target):
                await self.network.wait_for_heal()
                await asyncio.sleep(self.network.latency())


class SimWire:
    """One end; implements ``cluster.wires.Wire``. It holds what is under way *to* it."""

    other: "SimWire"

    def __init__(
        self, connection: SimConnection, host: str, other_host: str, is_private: bool
    ) -> None:
        self.host = host
        self.remote = other_host
        self.is_private = is_private
        self.names: tuple[str, ...] | None = None
        self._connection = connection
        self._network = connection.network
        self._loop = asyncio.get_running_loop()
        self._coming: deque[tuple[float, bytes | None]] = deque()  # due, frame or the end
        self._here: deque[bytes] = deque()
        self._held_bytes = 0
        self._due = 0.0
        self._is_over = False  # nothing more will come
        self._readers: list[asyncio.Future[None]] = []
        self._writers: list[asyncio.Future[None]] = []

    async def read(self) -> bytes | None:
        while not self._here:
            if self._is_over:
                return None
            await self._wait(self._readers)
        frame = self._here.popleft()
        self._held_bytes -= len(frame)
        _wake(self._writers)
        return frame

    def write_soon(self, frame: bytes) -> bool:
        if self._is_over or self.other._held_bytes > WINDOW_BYTES:
            return False
        self._put(frame)
        return True

    async def write(self, frame: bytes) -> None:
        target = self.other
        while not self._is_over and target._held_bytes > WINDOW_BYTES:
            await target._wait(target._writers)
        if self._is_over:
            raise WireBroken("the wire has ended")
        self._put(frame)

    def _put(self, frame: bytes) -> None:
        target = self.other
        if not target._is_over and not self._connection.is_over:
            target._held_bytes += len(frame)
            target._bring(frame)
        if self._network.dice.random() < self._network.faults.reset_chance:
            self._connection.reset()

    def close(self) -> None:
        if self._is_over:
            return
        self.end()
        if self._network.dice.random() < 0.5:
            self.other.lose_incoming()  # what it had not read yet
        self.other._bring(None)

    def end(self) -> None:
        """From now on this end is broken."""
        self._is_over = True
        self._coming.clear()
        self._here.clear()
        _wake(self._readers)
        _wake(self._writers)
        _wake(self.other._writers)

    def lose_incoming(self) -> None:
        self._coming.clear()

    def deliver(self) -> None:
        """Take in what is due, unless the way to here is cut."""
        # Timers may fire a hair early: virtual time is a sum of floats.
        now = self._loop.time() + 1e-6
        while self._coming and self._coming[0][0] <= now and not self._is_over:
            if self._network.is_cut(self.remote, self.host):
                return
            _, frame = self._coming.popleft()
            if frame is None:
                self._is_over = True
                _wake(self.other._writers)
                _wake(self._writers)
            else:
                self._here.append(frame)
                self._network.frames_delivered += 1
            _wake(self._readers)

    def _bring(self, frame: bytes | None) -> None:
        self._due = max(self._due, self._loop.time() + self._network.latency())
        self._coming.append((self._due, frame))
        self._loop.call_at(self._due, self.deliver, context=self._network.context)

    async def _wait(self, waiting: list[asyncio.Future[None]]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        waiting.append(future)
        await future


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()
