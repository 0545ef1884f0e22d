"""The health document of the node's own port. Pure."""

from perdure.node.config.durations import format_duration
from perdure.node.metrics.statistics import Listener, NodeStatistics

_ROLES = ["http-ingress", "admin", "worker", "log-server", "metadata-server"]
_NAMES = {
    Listener.INGRESS: "http-ingress-server",
    Listener.ADMIN: "admin-api-server",
    Listener.NODE: "message-fabric-server",
}


def health_document(node: NodeStatistics) -> dict[str, object]:
    """A node that answers is alive; the words behind tell how well it does.

    ``worker_status`` is Degraded while a partition is halted or has no leader here,
    ``log_server_status`` ReadOnly while the disk is full.
    """
    partitions = node.host.partitions
    halted = [part.partition for part in partitions if part.processor.is_halted]
    is_leading = not node.host.is_alone or all(part.leader.is_leading for part in partitions)
    return {
        "status": "FailingOver" if node.ingress.is_draining else "Alive",
        "node_id": f"N{node.node_id}:{node.generation}",
        "node_name": node.node_name,
        "cluster_name": node.cluster_name,
        "roles": _ROLES,
        "age": format_duration(node.age_ms),
        "admin_status": "Ready",
        "worker_status": "Ready" if is_leading and not halted else "Degraded",
        "log_server_status": "ReadOnly" if node.host.writer.is_full else "Ready",
        "metadata_server_status": "Member",
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
