"""A node at one moment: what its long-lived objects say of themselves, taken together. Pure."""

from dataclasses import dataclass
from enum import Enum

from perdure.node.admin.admin import AdminStatistics
from perdure.node.http.client import ClientStatistics
from perdure.node.http.server import ServerStatistics
from perdure.node.ingress.ingress import IngressStatistics
from perdure.node.metrics.cluster_table import ClusterFigures
from perdure.node.metrics.process import ProcessFigures
from perdure.node.partition.host import HostStatistics
from perdure.node.partition.snapshotter import SnapshotterStatistics
from perdure.node.query.query import QueryStatistics


class Listener(Enum):
    """What listens."""

    INGRESS = "ingress"
    ADMIN = "admin"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Listening:
    """A listener: where it is bound, and where others reach it."""

    name: Listener
    address: str
    url: str
    statistics: ServerStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatistics:
    """All that health and metrics read. ``age_ms``: since the process began to start."""

    cluster_name: str
    node_name: str
    node_id: int
    generation: int
    age_ms: int
    host: HostStatistics
    ingress: IngressStatistics
    admin: AdminStatistics
    client: ClientStatistics
    listeners: tuple[Listening, ...]
    deployment_count: int
    service_count: int
    process: ProcessFigures
    query: QueryStatistics
    snapshots: SnapshotterStatistics | None = None
    cluster: ClusterFigures | None = None
