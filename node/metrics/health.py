"""The health document of the node's own port. Pure."""

from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import MemberState, StorageState
from perdure.node.config.durations import format_duration
from perdure.node.metrics.statistics import Listener, NodeStatistics
from perdure.node.standing import ClusterStanding

_ROLES = ["http-ingress", "admin", "worker", "log-server", "metadata-server"]
_NAMES = {
    Listener.INGRESS: "http-ingress-server",
    Listener.ADMIN: "admin-api-server",
    Listener.NODE: "message-fabric-server",
}


def health_document(node: NodeStatistics) -> dict[str, object]:
    """A node that answers is alive; the words behind tell how well it does.

    ``worker_status`` is Degraded while a partition is halted or has no leader here, or while no
    other node is heard, ``log_server_status`` ReadOnly while the disk is full. Among several nodes
    they say what the cluster's registers say of this one.
    """
    partitions = node.host.partitions
    halted: list[int] = [part.partition for part in partitions if part.processor.is_halted]
    cluster = node.cluster.standing if node.cluster is not None else None
    if cluster is not None:
        halted = sorted({*halted} | _broken(cluster))
    is_leading = not node.host.is_alone or all(part.leader.is_leading for part in partitions)
    is_isolated = cluster is not None and cluster.is_isolated
    is_well = is_leading and not halted and not is_isolated
    return {
        "status": "FailingOver" if node.ingress.is_draining or is_isolated else "Alive",
        "node_id": f"N{node.node_id}:{node.generation}",
        "node_name": node.node_name,
        "cluster_name": node.cluster_name,
        "roles": _ROLES,
        "age": format_duration(node.age_ms),
        "admin_status": "Ready",
        "worker_status": "Ready" if is_well else "Degraded",
        "log_server_status": _log_server(node),
        "metadata_server_status": "Member" if cluster is None else _metadata(cluster),
        "halted_partitions": halted,
        "bound_addresses": [
            {"name": _NAMES[listener.name], "address": listener.address, "kind": "tcp"}
            for listener in node.listeners
        ],
        "advertised_addresses": [
            {"name": _NAMES[listener.name], "address": listener.url, "kind": "http"}
            for listener in node.listeners
        ],
    }


_STORAGE = {
    StorageState.PROVISIONING: "StartingUp",
    StorageState.READ_WRITE: "Ready",
    StorageState.READ_ONLY: "ReadOnly",
    StorageState.DATA_LOSS: "FailSafe",
    StorageState.DISABLED: "ReadOnly",
}


def _log_server(node: NodeStatistics) -> str:
    if node.host.writer.is_full:
        return "ReadOnly"
    if node.cluster is None:
        return "Ready"
    own = node.cluster.standing.own
    return _STORAGE[own.value.storage] if own is not None else "FailSafe"


def _metadata(seen: ClusterStanding) -> str:
    is_voter = seen.own is not None and seen.own.value.metadata is MemberState.VOTER
    return "Member" if is_voter else "Standby"


def _broken(seen: ClusterStanding) -> set[int]:
    return {part.partition for part in seen.partitions if part.state is ReplicaState.BROKEN}
