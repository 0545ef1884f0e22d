"""The cluster, its nodes and partitions in the shapes that the admin API answers. Pure.

Nodes are named as people name them; what isn't known is left out.
"""

from typing import Any

from perdure.node.problems import Problem, held_by, problems
from perdure.node.standing import (
    ClusterStanding,
    NodeStanding,
    PartitionStanding,
    ReplicaStanding,
)

Document = dict[str, Any]


def cluster_document(seen: ClusterStanding) -> Document:
    """All on one page, with what is wrong first."""
    cluster = seen.cluster
    document: Document = {
        "name": cluster.name,
        "fingerprint": cluster.fingerprint,
        "seen_by": seen.name_of(seen.seen_by),
        "is_single_node": seen.is_alone,
        "replication": cluster.replication,
        "partition_replicas": cluster.partition_replicas,
    }
    if seen.controller is not None:
        document["controller"] = seen.name_of(seen.controller)
    return {
        **document,
        "problems": [_problem_row(problem) for problem in problems(seen)],
        "nodes": [node_row(node, seen) for node in seen.nodes],
        "partitions": [partition_row(part, seen) for part in seen.partitions],
    }


def node_row(node: NodeStanding, seen: ClusterStanding) -> Document:
    """A node in a list."""
    value = node.value
    row: Document = {
        "name": value.name,
        "id": node.node,
        "generation": value.generation,
        "state": node.state.value,
        "is_controller": node.node == seen.controller,
        "roles": [role.value for role in value.roles],
        "storage": value.storage.value,
        "worker": value.worker.value,
        "metadata": value.metadata.value,
        "leads": node.led,
        "holds": node.held,
        "loop_lag_ms": node.loop_lag_ms,
        "is_disk_full": node.is_disk_full,
    }
    if value.zone:
        row["zone"] = value.zone
    if value.software:
        row["software"] = value.software
    addresses = {
        "fabric": value.addresses.fabric,
        "ingress": value.addresses.ingress,
        "admin": value.addresses.admin,
    }
    row["addresses"] = {name: address for name, address in addresses.items() if address}
    return row


def node_detail(node: NodeStanding, seen: ClusterStanding) -> Document:
    """A node, and what keeps it from being removed."""
    return {**node_row(node, seen), "held_by": held_by(seen, node)}


def partition_row(part: PartitionStanding, seen: ClusterStanding) -> Document:
    """A partition, with each of its replicas."""
    meta = part.meta
    last = meta.chain[-1] if meta.chain else None
    row: Document = {
        "partition": part.partition,
        "leader": seen.name_of(part.leader) if part.leader is not None else None,
        "epoch": part.epoch,
        "replicas": [_replica_row(replica, seen) for replica in part.replicas],
        "segments": len(meta.chain),
        "nodeset": [seen.name_of(member.node) for member in last.nodeset] if last else [],
        "trim_lsn": meta.trim_lsn,
        "is_frozen": meta.policy.is_frozen,
    }
    if part.committed_lsn is not None:
        row["committed_lsn"] = part.committed_lsn
    if meta.policy.pinned is not None:
        row["pinned"] = seen.name_of(meta.policy.pinned)
    if part.state is not None:
        row["state"] = part.state.value
    if part.waiting is not None:
        row["waits_for"] = [seen.name_of(member.node) for member in part.waiting.members]
        row["waits_because"] = part.waiting.reason
    if part.broken_because is not None:
        row["broken_because"] = part.broken_because
    return row


def _replica_row(replica: ReplicaStanding, seen: ClusterStanding) -> Document:
    row: Document = {
        "node": seen.name_of(replica.node),
        "role": replica.role,
        "applied_lsn": replica.applied_lsn,
        "durable_lsn": replica.durable_lsn,
        "is_coming": replica.is_coming,
    }
    if replica.lag_records is not None:
        row["lag_records"] = replica.lag_records
    return row


def _problem_row(problem: Problem) -> Document:
    return {
        "severity": problem.severity.name.lower(),
        "what": problem.what,
        "advice": problem.advice,
    }
