"""The failure detector's loop: ticks, messages, and who is told what it finds."""

import asyncio
from collections.abc import Callable

from perdure.cluster.core.failure_detector import (
    Effect,
    FailureDetector,
    Gossip,
    Mood,
    NodeChanged,
    Replaced,
    SendGossip,
    UnknownNode,
)
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId, Writer
from perdure.cluster.transport import Answer, Transport
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.limits import FD_TICK_MS
from perdure.core.telemetry import logger

log = logger("membership")


class Gossiper:
    """Drives one ``FailureDetector``. A loop that was late ticks once: it has heard nobody."""

    def __init__(
        self, detector: FailureDetector, transport: Transport, clock: Clock, entropy: Entropy
    ) -> None:
        self.detector = detector
        self.loop_lag_ms = 0
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._on_change: list[Callable[[NodeChanged], None]] = []
        self._on_tick: list[Callable[[], None]] = []
        self._on_unknown: list[Callable[[NodeId], None]] = []
        self._on_replaced: list[Callable[[Writer], None]] = []
        transport.serve(Gossip, self._hear)
        transport.on_session(self._on_session)
        transport.on_vacant(self._on_vacated)

    def on_change(self, callback: Callable[[NodeChanged], None]) -> None:
        """Be told of nodes that are seen in another state, or start again."""
        self._on_change.append(callback)

    def on_tick(self, callback: Callable[[], None]) -> None:
        """Be called each tick, before messages go out."""
        self._on_tick.append(callback)

    def on_unknown(self, callback: Callable[[NodeId], None]) -> None:
        """Be told of somebody who is no member as far as this node knows."""
        self._on_unknown.append(callback)

    def on_replaced(self, callback: Callable[[Writer], None]) -> None:
        """Be told that a later process runs as this node."""
        self._on_replaced.append(callback)

    def set_members(self, nodes: list[NodeId]) -> None:
        """The nodes there are."""
        self._perform(self.detector.set_members(nodes))

    async def run(self) -> None:
        """Tick, until cancelled."""
        while True:
            asleep_at = self._clock.monotonic()
            await asyncio.sleep(FD_TICK_MS / 1000)
            late_ms = (self._clock.monotonic() - asleep_at) * 1000 - FD_TICK_MS
            self.loop_lag_ms = max(0, round(late_ms))
            for callback in self._on_tick:
                callback()
            self._perform(self.detector.tick(self._entropy.bits(64)))

    def stopping(self) -> None:
        """This node gives away what it leads and takes nothing more."""
        self.detector.mood = Mood.STOPPING
        self.detector.hurry_report()

    def farewell(self) -> None:
        """This process ends in good order."""
        self._perform(self.detector.farewell())

    def _hear(self, peer: Peer, gossip: Gossip, answer: Answer) -> None:
        if gossip.beats and gossip.beats[0].writer == peer.writer:
            self._perform(self.detector.on_gossip(gossip))

    def _on_session(self, peer: Peer, is_up: bool) -> None:
        self._perform(self.detector.on_link(peer.node, is_up))

    def _on_vacated(self, node: NodeId) -> None:
        self._perform(self.detector.on_vacant(node))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendGossip(to, gossip):
                    self._transport.send(to, gossip)
                case NodeChanged():
                    log.info("membership.node.changed", node=effect.node, state=effect.state.value)
                    for changed in self._on_change:
                        changed(effect)
                case Replaced(by):
                    for replaced in self._on_replaced:
                        replaced(by)
                case UnknownNode(node):
                    for unknown in self._on_unknown:
                        unknown(node)
