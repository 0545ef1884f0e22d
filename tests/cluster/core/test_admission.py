"""Who may talk to a node, and whose earlier lives may not."""

import pytest

from perdure.cluster.core.admission import Admission, names_match
from perdure.cluster.core.messages import GUEST, Peer
from perdure.cluster.core.types import NodeId
from perdure.core.errors import IdentityConflict, StaleGeneration, UnknownMember

ME = Peer(NodeId(1), 5, 100, b"disk 1")
OTHER = Peer(NodeId(2), 5, 200, b"disk 2")
GUEST_PEER = Peer(GUEST, 0, 900, b"")


def other(generation: int = 5, incarnation: int = 200, disk: bytes = b"disk 2") -> Peer:
    return Peer(NodeId(2), generation, incarnation, disk)


def admission(known: Peer | None = None) -> Admission:
    made = Admission(ME)
    made.set_members({NodeId(1): None, NodeId(2): known})
    return made


def test_members_are_let_in_and_nobody_else() -> None:
    admission().check(OTHER)
    admission().check(OTHER, expected=NodeId(2))
    admission().check(GUEST_PEER)
    with pytest.raises(UnknownMember):
        admission().check(Peer(NodeId(3), 1, 1, b""))
    with pytest.raises(UnknownMember):
        admission().check(OTHER, expected=NodeId(3))


@pytest.mark.parametrize("source", ["directory", "seen"])
@pytest.mark.parametrize(
    ("peer", "kind"),
    [
        (other(generation=4), StaleGeneration),
        (other(incarnation=201), IdentityConflict),
        (other(disk=b"a copy"), IdentityConflict),
        (other(generation=4, incarnation=201), StaleGeneration),
        (other(), None),
        (other(generation=6, incarnation=201), None),
        (other(generation=6, incarnation=201, disk=b"a new one"), None),
    ],
)
def test_a_life_is_one_process_on_one_disk(
    source: str, peer: Peer, kind: type[Exception] | None
) -> None:
    made = admission(OTHER if source == "directory" else None)
    if source == "seen":
        assert not made.learn(OTHER)
    if kind is None:
        made.check(peer)
        assert made.learn(peer) == (peer != OTHER)
        assert made.is_current(peer)
        assert made.is_current(OTHER) == (peer == OTHER)
    else:
        with pytest.raises(kind):
            made.check(peer)


def test_a_directory_that_is_behind_brings_nobody_back() -> None:
    made = admission()
    made.learn(other(generation=6))
    made.set_members({NodeId(2): OTHER})
    with pytest.raises(StaleGeneration):
        made.check(OTHER)
    made.set_members({})
    assert not made.is_current(other(generation=6))
    made.set_members({NodeId(2): other(generation=7)})
    assert not made.is_current(other(generation=6))
    with pytest.raises(StaleGeneration):
        made.check(other(generation=6))


def test_nobody_else_is_this_node() -> None:
    for generation, kind in ((4, StaleGeneration), (5, IdentityConflict), (6, IdentityConflict)):
        with pytest.raises(kind):
            admission().check(Peer(NodeId(1), generation, 999, b"disk 1"))


def test_guests_replace_nobody() -> None:
    made = admission()
    assert not made.learn(GUEST_PEER)
    assert not made.learn(Peer(GUEST, 0, 901, b""))
    assert made.is_current(GUEST_PEER)


@pytest.mark.parametrize(
    ("names", "allowed", "fits"),
    [
        (["node-1.perdure"], ["node-1.perdure"], True),
        (["node-1.perdure"], ["*.perdure"], True),
        (["a.node-1.perdure"], ["*.perdure"], False),
        (["perdure"], ["*.perdure"], False),
        (["node-1"], ["*."], False),
        (["x", "node-1"], ["node-1"], True),
        ([], ["node-1"], False),
        (["node-1"], [], False),
    ],
)
def test_names_of_certificates(names: list[str], allowed: list[str], fits: bool) -> None:
    assert names_match(names, allowed) == fits
