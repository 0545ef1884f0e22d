"""What is wrong with a cluster, the worst first, each with what to do about it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from perdure.cluster.core import membership
from perdure.cluster.core.chain import open_segment
from perdure.cluster.core.failure_detector import NodeState
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import MemberState, NodeRole, StorageState, WorkerState
from perdure.core.errors import (
    IdentityConflict,
    IncompatibleNode,
    NotAuthenticated,
    WrongCluster,
)
from perdure.core.limits import REPLICA_LAG_RECORDS_MAX
from perdure.core.limits_telling import CHAIN_SEGMENTS_MANY
from perdure.core.loss_errors import HistoryForsaken
from perdure.node.standing import ClusterStanding, NodeStanding, PartitionStanding

_SLOW_LOOP_MS = 1000
_WAITS = {
    "seal_quorum": "too few answer to know where its log ends",
    "repair_copies": "too few are there to hold copies of its last records",
    "repair_source": "only they have some of its last records",
}
# By code of the refusal; others pass by themselves.
_REFUSED_ADVICE = {
    WrongCluster.code: "the process there has another cluster's settings or data directory: give "
    "it its own, or stop it",
    NotAuthenticated.code: "all nodes need the same cluster.secret-file, and certificates of one "
    "authority: compare the files, then restart the node that differs",
    IdentityConflict.code: "a data directory was copied: stop the copy",
    IncompatibleNode.code: "upgrade the older of the two",
}
_LISTED_MAX = 8


class Severity(IntEnum):
    """CRITICAL: something isn't served, or will be lost. WARNING: less is left to fail than there
    should be. NOTE: somebody wanted it so, and it is under way."""

    CRITICAL = 0
    WARNING = 1
    NOTE = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """``advice``: the next step of an operator."""

    severity: Severity
    what: str
    advice: str


def problems(seen: ClusterStanding) -> list[Problem]:
    """All that can be told from one node."""
    found = [*_of_this_node(seen), *_of_partitions(seen), *_of_findings(seen)]
    if not seen.is_alone:
        found += _of_quorums(seen)
    for node in seen.nodes:
        found += _of_node(seen, node)
    return sorted(found, key=lambda problem: problem.severity)


def held_by(seen: ClusterStanding, node: NodeStanding) -> list[str]:
    """What keeps a node from being removed; empty: nothing."""
    nodes = {known.node: known.value for known in seen.nodes}
    metas = {part.partition: part.meta for part in seen.partitions}
    return membership.holds(nodes, node.node, metas)


def _of_this_node(seen: ClusterStanding) -> Iterator[Problem]:
    name = seen.name_of(seen.seen_by)
    if seen.is_isolated:
        yield Problem(
            Severity.CRITICAL,
            f"{name}, which says this, hears no other node, or none hears it",
            "start the nodes that are missing; if they run, look at the network between them",
        )
    if seen.conflicts:
        yield Problem(
            Severity.CRITICAL,
            f"a second process runs as {name} with the same generation",
            "a data directory was copied: stop the copy, and give it a name and a directory",
        )
    if seen.pin_conflicts:
        yield Problem(
            Severity.CRITICAL,
            f"{name} was sent records by a second writer of a segment, {seen.pin_conflicts} times, "
            "and refused them",
            "metadata has given one segment to two nodes: keep all data directories, report it",
        )
    for refusal in seen.refusals:
        if refusal.code in _REFUSED_ADVICE:
            who = seen.name_of(refusal.node) if refusal.node is not None else refusal.address
            yield Problem(
                Severity.WARNING,
                f"{name} and {who} turn each other away, {refusal.times} times by now: "
                f"{refusal.reason}",
                _REFUSED_ADVICE[refusal.code],
            )


def _of_quorums(seen: ClusterStanding) -> Iterator[Problem]:
    voters = [node for node in seen.nodes if node.value.metadata is MemberState.VOTER]
    reached = sum(_is_there(seen, node) for node in voters)
    needed = len(voters) // 2 + 1
    if voters and reached < needed:
        yield Problem(
            Severity.CRITICAL,
            f"{reached} of {len(voters)} nodes with metadata are there, {needed} are needed: "
            "leaders lead on, but nobody can take over",
            f"start {_listed(node.value.name for node in voters if not _is_there(seen, node))}",
        )
    elif len(voters) > 1 and reached == needed:
        yield Problem(
            Severity.WARNING,
            f"{reached} of {len(voters)} nodes with metadata are there: one less, and nobody can "
            "take over",
            f"start {_listed(node.value.name for node in voters if not _is_there(seen, node))}"
            if reached < len(voters)
            else "have three metadata members, not two",
        )
    storing = [node for node in seen.nodes if node.value.may_store and _is_there(seen, node)]
    copies = seen.cluster.replication
    if len(storing) < copies:
        yield Problem(
            Severity.CRITICAL,
            f"log servers that can be used: {len(storing)}, and each record is stored {copies} "
            "times: no segment of a log can begin, so nobody can take over",
            "start the nodes that are missing, or add some",
        )
    elif len(storing) == copies and copies > 1:
        yield Problem(
            Severity.WARNING,
            f"log servers that can be used: {len(storing)}, as many as each record is stored "
            "times: with one less nobody can take over",
            "start the nodes that are missing, or add one",
        )


def _of_findings(seen: ClusterStanding) -> Iterator[Problem]:
    metadata = seen.findings.metadata
    if metadata.failure is not None:
        yield Problem(
            Severity.CRITICAL,
            f"metadata can't be read: {metadata.failure}",
            "leaders lead on, nobody can take over: `perdure metadata status` shows each place",
        )
    elif not any(node.state.is_gone for node in seen.nodes):
        for place in metadata.places:
            if place.failure is not None:
                yield Problem(
                    Severity.WARNING,
                    f"one place of {len(metadata.places)} that hold the metadata is away: "
                    f"{place.place}: {place.failure}",
                    "bring it back: with a majority gone nobody can take over",
                )
    for found in seen.findings.verified:
        what = f"partition {found.partition}: when its log was compared"
        again = f"perdure log verify {found.partition}"
        if found.count("diverging"):
            yield Problem(
                Severity.CRITICAL,
                f"{what}, replicas differed in {found.count('diverging')} records",
                f"a disk or this software is broken: keep all data directories, and report what "
                f"{again} prints",
            )
        if found.count("missing"):
            yield Problem(
                Severity.CRITICAL,
                f"{what}, {found.count('missing')} records were on no replica that answered",
                f"start all nodes, then look again: {again}",
            )
        elif found.count("under_replicated"):
            yield Problem(
                Severity.WARNING,
                f"{what}, {found.count('under_replicated')} records were on too few replicas",
                f"start all nodes; they go with the next trim, then look again: {again}",
            )


def _is_there(seen: ClusterStanding, node: NodeStanding) -> bool:
    """This node is, even if it has given up what it led."""
    return node.node == seen.seen_by or not node.state.is_gone


def _of_node(seen: ClusterStanding, node: NodeStanding) -> Iterator[Problem]:
    name, value = node.value.name, node.value
    if node.state is NodeState.DEAD:
        yield Problem(
            Severity.WARNING,
            f"{name} is dead: no node has heard of it for seconds",
            f"start it again; if its disk will never come back: perdure nodes mark-lost {name}",
        )
        return
    is_told = node.node == seen.seen_by and seen.is_isolated
    if node.state in (NodeState.SUSPECT, NodeState.FAILING_OVER) and not is_told:
        yield Problem(
            Severity.WARNING,
            f"{name} is {node.state.value.replace('_', ' ')}",
            "it has just started, or was paused or cut off: look again in a few seconds",
        )
    if node.is_disk_full:
        yield Problem(
            Severity.WARNING if len(seen.nodes) > 1 else Severity.CRITICAL,
            f"the disk of {name} is full",
            "free some space: it goes on within a second",
        )
    if node.loop_lag_ms > _SLOW_LOOP_MS:
        yield Problem(
            Severity.WARNING,
            f"{name} stands still for {node.loop_lag_ms} ms at a time",
            "give it more CPU, or less to do",
        )
    yield from _of_states(seen, node)
    if NodeRole.LOG_SERVER in value.roles and value.storage is StorageState.PROVISIONING:
        yield Problem(
            Severity.NOTE, f"{name} has not offered its storage yet", "look at its log if it stays"
        )


def _of_states(seen: ClusterStanding, node: NodeStanding) -> Iterator[Problem]:
    name, value = node.value.name, node.value
    if value.storage is StorageState.DATA_LOSS:
        yield Problem(
            Severity.WARNING,
            f"{name} has lost its log: what it stored counts no more",
            f"once its disk is well, or new and empty: perdure nodes resume {name}, and restart it",
        )
    if value.worker is WorkerState.ACTIVE or seen.is_alone:
        return
    holding = held_by(seen, node)
    if not holding:
        yield Problem(
            Severity.NOTE, f"{name} is drained", f"stop it, then: perdure nodes remove {name}"
        )
    else:
        yield Problem(
            Severity.NOTE,
            f"{name} is being drained; held by {len(holding)} things still",
            f"wait; perdure nodes describe {name} lists them, perdure nodes undrain {name} takes "
            "it back",
        )


def _of_partitions(seen: ClusterStanding) -> Iterator[Problem]:
    vacant = [part.partition for part in seen.partitions if part.leader is None]
    if vacant:
        yield Problem(
            Severity.CRITICAL,
            f"no leader is known for {_partitions(vacant)}: their calls wait or are refused",
            "restart the node"
            if seen.is_alone
            else "it takes seconds; if it stays, see below "
            "which nodes are missing, and log.recovery.waiting in their logs",
        )
    for part in seen.partitions:
        if part.waiting is not None:
            nodes = _listed(seen.name_of(member.node) for member in part.waiting.members)
            yield Problem(
                Severity.CRITICAL,
                f"partition {part.partition} can't be recovered without {nodes}: "
                f"{_WAITS[part.waiting.reason]}",
                f"start {nodes} on their disks; nothing acknowledged is lost while it waits. If "
                f"their disks are gone for good: perdure log unsafe-close {part.partition}",
            )
        if part.state is ReplicaState.BROKEN:
            reason = part.broken_because or ""
            is_forsaken = reason.startswith(f"[{HistoryForsaken.code}]")
            yield Problem(
                Severity.CRITICAL,
                f"partition {part.partition} is broken on {seen.name_of(seen.seen_by)}: {reason}",
                "wipe its data directory and start it again, or replace it; the others go on"
                if is_forsaken
                else "keep the data directory and report it; then restart the node",
            )
        yield from _of_unsafe(part)
    if not seen.is_alone:
        yield from _of_copies(seen)


def _of_unsafe(part: PartitionStanding) -> Iterator[Problem]:
    """A segment is closed without a quorum, or was, and what came before is still in the log."""
    opened = open_segment(part.meta)
    allowed = part.meta.allowed
    if allowed is not None and opened is not None and allowed.segment == opened.index:
        yield Problem(
            Severity.WARNING,
            f"partition {part.partition}: segment {allowed.segment} is to be closed unsafely, "
            f"as {allowed.by} has allowed",
            "wait for who takes over; if it takes long, start nodes with storage",
        )
    for done in part.meta.unsafe:
        if part.meta.chain and done.segment >= part.meta.chain[0].index:
            yield Problem(
                Severity.WARNING,
                f"partition {part.partition}: {done.by} closed segment {done.segment} unsafely "
                f"before record {done.tail_lsn}: what was acknowledged beyond is lost",
                "take snapshots (perdure snapshots create); wipe nodes that come back from before. "
                "It is told until the log is trimmed",
            )


def _of_copies(seen: ClusterStanding) -> Iterator[Problem]:
    long = [part.partition for part in seen.partitions if _is_long(part)]
    if long:
        yield Problem(
            Severity.WARNING,
            f"{_partitions(long)}: the log has {CHAIN_SEGMENTS_MANY} segments or more",
            "it isn't trimmed, or leaders keep changing: look at replicas that are behind or gone, "
            "at snapshots, and at perdure_cluster_partition_epoch",
        )
    lossy = [part.partition for part in seen.partitions if _is_thin(seen, part)]
    if lossy:
        yield Problem(
            Severity.WARNING,
            f"{_partitions(lossy)}: log records are on fewer nodes than they should be",
            "they go with the next trim: keep all nodes up until then",
        )
    wanted = seen.cluster.partition_replicas
    short = [part.partition for part in seen.partitions if _usable(part) < wanted]
    if short:
        yield Problem(
            Severity.WARNING,
            f"{_partitions(short)}: fewer than {wanted} nodes have usable tables",
            "start the nodes that are missing, or wait while tables are copied",
        )
    for part in seen.partitions:
        for replica in part.replicas:
            if (replica.lag_records or 0) >= REPLICA_LAG_RECORDS_MAX and not replica.is_coming:
                yield Problem(
                    Severity.WARNING,
                    f"{seen.name_of(replica.node)} is {replica.lag_records} records behind in "
                    f"partition {part.partition}",
                    "wait; if it grows, that node is too slow or its disk is",
                )


def _is_thin(seen: ClusterStanding, part: PartitionStanding) -> bool:
    """Whether some of its log has fewer copies than it should: disks were lost, or a single node
    wrote it before it was promoted."""
    return any(
        segment.is_under_replicated or segment.replication < seen.cluster.replication
        for segment in part.meta.chain
    )


def _is_long(part: PartitionStanding) -> bool:
    return len(part.meta.chain) >= CHAIN_SEGMENTS_MANY


def _usable(part: PartitionStanding) -> int:
    return sum(
        replica.role in ("leader", "candidate", "follower") and not replica.is_coming
        for replica in part.replicas
    )


def _partitions(numbers: list[int]) -> str:
    return f"partition{'s' * (len(numbers) > 1)} {_listed(str(number) for number in numbers)}"


def _listed(names: Iterator[str]) -> str:
    found = list(names)
    more = len(found) - _LISTED_MAX
    return ", ".join(found[:_LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
