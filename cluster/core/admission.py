"""Who may talk to this node: members of its cluster, each in its latest life, and nobody else.

Generations only grow, and a generation belongs to one process (incarnation) on one disk. What was
learned of a node is kept as long as this process lives: a process that was seen to be replaced is
not heard again, whatever the directory says.
"""

from collections.abc import Mapping, Sequence

from perdure.cluster.core.messages import GUEST, Peer
from perdure.cluster.core.types import NodeId
from perdure.core.errors import IdentityConflict, StaleGeneration, UnknownMember


class Admission:
    """What this node knows of the lives of the others."""

    def __init__(self, me: Peer) -> None:
        self.me = me
        self._members: frozenset[NodeId] = frozenset()
        self._latest: dict[NodeId, Peer] = {}

    def set_members(self, members: Mapping[NodeId, Peer | None]) -> None:
        """The directory changed. Identities in it may be older than what was learned since."""
        self._members = frozenset(members)
        for peer in members.values():
            if peer is not None and peer.node != self.me.node:
                known = self._latest.get(peer.node)
                if known is None or known.generation < peer.generation:
                    self._latest[peer.node] = peer

    def is_current(self, peer: Peer) -> bool:
        """Whether a peer that was admitted would still be."""
        if peer.node == GUEST:
            return True
        return peer.node in self._members and self._latest.get(peer.node, peer) == peer

    def check(self, peer: Peer, expected: NodeId | None = None) -> None:
        """Whether to talk to ``peer``, found where ``expected`` should be (None: anybody).

        Raises:
            UnknownMember, StaleGeneration, IdentityConflict: why not.
        """
        if expected is not None and peer.node != expected:
            raise UnknownMember(f"node {peer.node} answers where node {expected} should be")
        if peer.node == GUEST:
            return
        if peer.node == self.me.node:
            self._check_self(peer)
        if peer.node not in self._members:
            raise UnknownMember(f"node {peer.node} is not in the list of members of this node")
        known = self._latest.get(peer.node)
        if known is None or peer.generation > known.generation:
            return
        if peer.generation < known.generation:
            raise StaleGeneration(
                f"node {peer.node} was seen with generation {known.generation}; "
                f"this is generation {peer.generation}"
            )
        if peer != known:
            what = "process" if peer.incarnation != known.incarnation else "disk"
            raise IdentityConflict(
                f"another {what} was seen as node {peer.node}, generation {peer.generation}"
            )

    def learn(self, peer: Peer) -> bool:
        """Remember a peer that just passed ``check`` and proved what it is, or strangers could shut
        out members. True: an earlier life of the node has ended.
        """
        if peer.node == GUEST:
            return False
        known = self._latest.get(peer.node)
        self._latest[peer.node] = peer
        return known is not None and known != peer

    def _check_self(self, peer: Peer) -> None:
        if peer.generation < self.me.generation:
            raise StaleGeneration(
                f"node {peer.node} runs here with generation {self.me.generation}; "
                f"this is generation {peer.generation}"
            )
        raise IdentityConflict(
            f"node {peer.node} runs here too, with generation {self.me.generation}"
        )


def names_match(names: Sequence[str], allowed: Sequence[str]) -> bool:
    """Whether one of a certificate's names is allowed: equal, or below ``*.suffix`` (one label)."""
    for name in names:
        _, _, parent = name.partition(".")
        if name in allowed or (parent and f"*.{parent}" in allowed):
            return True
    return False
