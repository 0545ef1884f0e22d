"""Flexible-quorum arithmetic over a nodeset of n with replication R, and how a nodeset is chosen.

A write quorum is any R replicas, an f-majority any n - R + 1: each of the latter meets each of the
former (Howard et al., Flexible Paxos, 2016). ``R > n / 2`` keeps two writers from both committing
even if metadata lied.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that may hold a segment. Nodes without a zone are a zone each."""

    member: Member
    zone: str = ""

    @property
    def domain(self) -> str:
        return self.zone or f"\0{self.member.node}"


def choose_nodeset(
    candidates: Iterable[Candidate],
    replication: int,
    *,
    writer: NodeId,
    before: Iterable[Member] = (),
    salt: int = 0,
) -> tuple[Member, ...] | None:
    """The replicas of a new segment: ``min(2R - 1, candidates)`` of them; None: fewer than R.

    Spread over zones as evenly as they allow. Within that the writer's own node comes first, then
    those that held the segment before, then a hash of node and ``salt`` (the partition), so that
    load spreads and the choice is everybody's.
    """
    left = sorted(candidates, key=lambda each: each.member.node)
    size = min(2 * replication - 1, len(left))
    if size < replication:
        return None
    former = set(before)

    def rank(each: Candidate) -> tuple[bool, bool, int, int]:
        node = each.member.node
        drawn = zlib.crc32(salt.to_bytes(4, "little") + node.to_bytes(4, "little"))
        return node != writer, each.member not in former, drawn, node

    ordered = sorted(left, key=rank)
    chosen: list[Candidate] = []
    while len(chosen) < size:
        crowd = {each.domain: 0 for each in ordered}
        for each in chosen:
            crowd[each.domain] += 1
        rest = [each for each in ordered if each not in chosen]
        chosen.append(min(rest, key=lambda each: crowd[each.domain]))
    return tuple(sorted((each.member for each in chosen), key=lambda member: member.node))
