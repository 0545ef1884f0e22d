"""How the places are that hold a cluster's metadata: members of its quorum, or etcd servers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceStanding:
    """One of them. ``failure``: why nothing is known of it now.

    ``term``: how often a leader was elected. ``detail``: what else it says, for people.
    """

    place: str
    failure: str | None = None
    is_leader: bool = False
    has_leader: bool = False
    term: int = 0
    detail: str = ""
