"""The controller's loop: a round now and then and when nodes change, and what becomes of it."""

import asyncio
from collections.abc import Callable

from perdure.cluster.core import chain
from perdure.cluster.core.controller import (
    ControllerCore,
    Decision,
    MoveLeader,
    Nominate,
    SetNode,
    SetReplicas,
    View,
    set_replicas,
)
from perdure.cluster.core.failure_detector import FailureDetector
from perdure.cluster.core.leadership import HandOver, Nominated
from perdure.cluster.core.messages import Message
from perdure.cluster.core.types import NodeId
from perdure.cluster.membership import Membership
from perdure.cluster.transport import Transport
from perdure.core.clock import Clock
from perdure.core.errors import MembershipRefused, MetadataConflict, MetadataUnavailable
from perdure.core.limits import CONTROLLER_REST_MS, CONTROLLER_TICK_MS
from perdure.core.telemetry import logger

log = logger("controller")


def view(membership: Membership, detector: FailureDetector) -> View | None:
    """What this node sees of the cluster; None before its register was read."""
    cluster = membership.cluster
    if cluster is None:
        return None
    partitions = {
        partition: membership.partitions.get(partition) or chain.empty()
        for partition in range(cluster.partition_count)
    }
    return View(cluster, membership.nodes, partitions, detector)


class Controller:
    """Runs on every node with the admin role; only one of them decides anything at a time.

    ``tell_self`` takes messages that are for this very node.
    """

    def __init__(
        self,
        membership: Membership,
        detector: FailureDetector,
        transport: Transport,
        clock: Clock,
        tell_self: Callable[[Message], None],
    ) -> None:
        self.core = ControllerCore(membership.me.node)
        self._membership = membership
        self._detector = detector
        self._transport = transport
        self._clock = clock
        self._tell_self = tell_self
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something has changed: have a round soon."""
        self._woken.set()

    async def run(self) -> None:
        """Rounds, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(CONTROLLER_TICK_MS / 1000):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            await self._round()
            # What changes in one go is looked at in one go.
            await asyncio.sleep(CONTROLLER_REST_MS / 1000)

    async def _round(self) -> None:
        seen = view(self._membership, self._detector)
        if seen is None:
            return
        was_active = self.core.is_active
        decisions = self.core.decide(round(self._clock.monotonic() * 1000), seen)
        if self.core.is_active is not was_active:
            log.info("controller.changed", is_active=self.core.is_active)
        try:
            async with asyncio.TaskGroup() as group:
                for decision in decisions:
                    group.create_task(self._perform(decision))
        except* MetadataUnavailable as failures:
            log.warning("metadata.unavailable", reason=str(failures.exceptions[0]))

    async def _perform(self, decision: Decision) -> None:
        match decision:
            case Nominate(partition, node, epoch):
                self.tell(node, Nominated(partition, epoch))
            case MoveLeader(partition, leader, to, epoch):
                log.info("controller.leader.moved", partition=partition, source=leader, target=to)
                self.tell(leader, HandOver(partition, to, epoch))
            case SetReplicas(partition):
                await self._set_replicas(partition, decision)
            case SetNode(node):
                await self._set_node(node, decision)

    def tell(self, node: NodeId, message: Message) -> None:
        """Send a node, which may be this one, a message of leadership."""
        if node == self._membership.me.node:
            self._tell_self(message)
        else:
            self._transport.send(node, message)

    async def _set_replicas(self, partition: int, decision: SetReplicas) -> None:
        try:
            meta = await self._membership.edit_partition(
                partition, lambda known: set_replicas(known or chain.empty(), decision)
            )
        except MetadataConflict:
            return  # somebody else is at it; the next round sees what came of it
        if meta is not None and meta.replicas == decision.replicas:
            log.info(
                "controller.replicas.set",
                partition=partition,
                current=list(decision.replicas.current),
                following=list(decision.replicas.following or ()),
            )

    async def _set_node(self, node: NodeId, decision: SetNode) -> None:
        try:
            await self._membership.edit_node(
                node, lambda known: decision.value if known == decision.seen else None
            )
        except (MetadataConflict, MembershipRefused):
            return
        log.info(
            "controller.node.drained",
            node=node,
            worker=decision.value.worker.value,
            storage=decision.value.storage.value,
        )
