"""What a control plane costs as clusters grow: rounds, ticks, and the size of what is said."""

import time
from collections.abc import Callable

import msgspec
import pytest

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, Replicas
from perdure.cluster.core.controller import ControllerCore, Decision, View
from perdure.cluster.core.failure_detector import (
    Beat,
    FailureDetector,
    Gossip,
    Mood,
    ReplicaReport,
    Report,
    Role,
    SendGossip,
)
from perdure.cluster.core.leadership import LeadershipCore
from perdure.cluster.core.membership import Addresses, ClusterMeta, NodeMeta
from perdure.cluster.core.messages import encode
from perdure.cluster.core.placement import WorkSite, place_leaders, place_replicas
from perdure.cluster.core.types import NodeId, Writer
from perdure.core.limits import BALANCE_SETTLE_MS

ME = NodeId(1)
ROUND_MS_MAX = 2_000


def _writer(node: int) -> Writer:
    return Writer(NodeId(node), 3, (1 << 63) + node)


class Cluster:
    """Node 1 of ``size`` nodes that lead ``partitions`` partitions, in quiet times."""

    def __init__(self, size: int, partitions: int) -> None:
        ids = [NodeId(number) for number in range(1, size + 1)]
        self.nodes = {
            node: NodeMeta(
                f"perdure-{node}",
                3,
                (1 << 63) + node,
                f"{node:032x}",
                Addresses(*(f"http://perdure-{node}.perdure:{port}" for port in (1, 2, 3))),
                f"zone-{node % 3}",
            )
            for node in ids
        }
        sites = [WorkSite(node, value.zone) for node, value in self.nodes.items()]
        sets = place_replicas(dict.fromkeys(range(partitions), ()), sites, 3)
        leaders = place_leaders(sets, {})
        self.partitions = {p: self._led(members, leaders[p]) for p, members in sets.items()}
        self.detector = FailureDetector(_writer(1), ids)
        for node in ids:
            self._report(node, 1)
        self.view = View(
            ClusterMeta(1, "c", "f", partitions, 2, 3), self.nodes, self.partitions, self.detector
        )

    def _led(self, members: tuple[NodeId, ...], leader: NodeId) -> PartitionMeta:
        meta = msgspec.structs.replace(chain.empty(), replicas=Replicas(members))
        for _ in range(3):
            meta = chain.claim(meta, _writer(leader), "leader gone")
            assert meta.claim is not None
            nodeset = tuple(self.nodes[node].member(node) for node in members)
            extended = chain.extend(meta, meta.claim, 1_000_000, nodeset, 2)
            assert extended is not None
            meta = extended
        return meta

    def _report(self, node: NodeId, count: int) -> None:
        replicas = tuple(
            ReplicaReport(
                p,
                Role.LEADER if meta.chain[-1].writer.node == node else Role.FOLLOWER,
                meta.epoch if meta.chain[-1].writer.node == node else 0,
                3_000_000,
                3_000_000,
            )
            for p, meta in self.partitions.items()
            if node in meta.replicas.current
        )
        if node == ME:
            self.detector.set_report(Report(replicas=replicas))
        else:
            beats = tuple(
                Beat(_writer(n), count, Mood.WELL) for n in (node, *(self.nodes.keys() - {node}))
            )
            self.detector.on_gossip(Gossip(beats, Report(replicas=replicas)))

    def decide(self) -> tuple[float, float, list[Decision]]:
        """Seconds of a first round and of a later one, and what both decided."""
        core = ControllerCore(ME)
        decisions: list[Decision] = []

        def round_at(now: int) -> None:
            decisions.extend(core.decide(now, self.view))

        first = _time(lambda: round_at(0))
        return first, _time(lambda: round_at(BALANCE_SETTLE_MS)), decisions

    def leadership_ticks(self) -> float:
        """Seconds to tick all partitions that node 1 is a replica of."""
        cores: list[LeadershipCore] = []
        for partition, meta in self.partitions.items():
            if ME in meta.replicas.current:
                core = LeadershipCore(partition, _writer(1), self.detector)
                core.on_meta(0, meta)
                core.on_bootstrapped()
                cores.append(core)
        return _time(lambda: [core.tick(250, 0.0) for core in cores])


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.mark.slow
@pytest.mark.parametrize(("size", "partitions"), [(3, 24), (5, 24), (24, 24), (24, 1000)])
def test_a_quiet_control_plane_costs_little(size: int, partitions: int) -> None:
    """Run with ``-s`` to see the figures; the bounds are far above them."""
    cluster = Cluster(size, partitions)
    first, later, decisions = cluster.decide()
    assert decisions == []
    gossips = [e.gossip for e in cluster.detector.tick(7) if isinstance(e, SendGossip)]
    whole = [len(encode(gossip)) for gossip in gossips if gossip.report is not None]
    assert len(whole) == len(gossips)
    beats = [len(encode(Gossip(gossip.beats))) for gossip in gossips]
    register = len(msgspec.msgpack.encode(cluster.partitions[0]))
    ticks = cluster.leadership_ticks()
    print(
        f"\n{size} nodes, {partitions} partitions: round {first * 1000:.1f} ms, then "
        f"{later * 1000:.1f} ms; leadership ticks {ticks * 1000:.2f} ms; gossip to {len(gossips)} "
        f"of {max(beats)} bytes, with report {max(whole)}; register {register} bytes"
    )
    assert max(first, later) * 1000 < ROUND_MS_MAX
    assert max(beats) < 40 * size + 100
    assert max(whole) - max(beats) < 25 * (3 * partitions // size + 3) + 100
    assert register < 400 + 120 * 3
