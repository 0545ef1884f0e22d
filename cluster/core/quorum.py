"""Flexible-quorum arithmetic over a nodeset of n with replication R.

A write quorum is any R replicas, an f-majority any n - R + 1: each of the latter meets each of the
former (Howard et al., Flexible Paxos, 2016). ``R > n / 2`` keeps two writers from both committing
even if metadata lied.
"""

from collections.abc import Iterable

from perdure.cluster.core.types import Member, NodeId
from perdure.core.invariant import invariant


def check_property(nodes: int, replication: int) -> None:
    """Stop unless ``R <= n <= 2R - 1``."""
    invariant(
        1 <= replication <= nodes <= 2 * replication - 1,
        "a nodeset is between R and 2R - 1 replicas",
        nodes=nodes,
        replication=replication,
    )


def committed_tail(acked_tails: Iterable[int], replication: int) -> int:
    """The R-th largest acknowledged tail: everything below is on a write quorum."""
    ordered = sorted(acked_tails, reverse=True)
    return ordered[replication - 1] if len(ordered) >= replication else 0


def recovered_tail(kgt: int, held: Iterable[int]) -> int:
    """The smallest offset at or above ``kgt`` that no sealed reply holds."""
    offsets = set(held)
    tail = kgt
    while tail in offsets:
        tail += 1
    return tail


class Confirmations:
    """Counts answers of a nodeset to one question until R have said yes, or too many no.

    R replicas that are not sealed prove that no later segment existed when they answered: its
    opener would have sealed n - R + 1 of them before.
    """

    def __init__(self, nodeset: Iterable[Member], replication: int) -> None:
        self._nodes = {member.node for member in nodeset}
        self._replication = replication
        self._answers: dict[NodeId, bool] = {}

    def answer(self, node: NodeId, is_confirmed: bool) -> None:
        """One replica's answer; a later one replaces it."""
        if node in self._nodes:
            self._answers[node] = is_confirmed

    @property
    def is_confirmed(self) -> bool:
        return sum(self._answers.values()) >= self._replication

    @property
    def is_refuted(self) -> bool:
        """Whether R confirmations can't come any more."""
        refusals = sum(not answer for answer in self._answers.values())
        return len(self._nodes) - refusals < self._replication
