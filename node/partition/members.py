"""The other nodes of a cluster, as whoever has to ask one of them sees them."""

from typing import NamedTuple, Protocol

from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Transport
from perdure.core.errors import PartitionUnavailable
from perdure.core.ids import PartitionId


class Leaders(Protocol):
    """Who leads what, as far as this node knows."""

    def leader_of(self, partition: PartitionId) -> NodeId | None:
        """The node that leads the partition now; None while nobody is known to."""
        ...


class Members(NamedTuple):
    """The other nodes, and the way to them."""

    me: NodeId
    leaders: Leaders
    transport: Transport

    def leader_of(self, partition: int) -> NodeId:
        """The other node that leads a partition.

        Raises:
            PartitionUnavailable: none does, as far as is known.
        """
        node = self.leaders.leader_of(PartitionId(partition))
        if node is None or node == self.me:
            raise PartitionUnavailable(
                f"partition {partition} has no leader now, so its rows can't be read: try again "
                "shortly, or leave it out (by id, key or partition_key)"
            )
        return node
