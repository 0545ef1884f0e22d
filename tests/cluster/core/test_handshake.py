"""Two nodes become sure of each other, or find out why they must not talk."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core.admission import Admission
from perdure.cluster.core.handshake import (
    ClusterIdentity,
    DiallerSide,
    Established,
    Failed,
    ListenerSide,
    Purpose,
    RefusedByPeer,
)
from perdure.cluster.core.messages import GUEST, Peer
from perdure.cluster.core.types import NodeId
from perdure.core.errors import (
    IncompatibleNode,
    InvalidConfiguration,
    NotAuthenticated,
    NotFound,
    PerdureError,
    UnknownMember,
    WrongCluster,
)

SECRET = b"long enough a secret"
CLUSTER = ClusterIdentity(name="test", fingerprint=b"F" * 16, secret=SECRET)
A = Peer(NodeId(1), 1, 101, b"a" * 16)
B = Peer(NodeId(2), 1, 201, b"b" * 16)
Change = Callable[[bytes], bytes]


@dataclass
class End:
    """What one side starts from."""

    me: Peer
    cluster: ClusterIdentity = CLUSTER
    nonce: bytes = b"n" * 32
    seals: bool = True

    def admission(self) -> Admission:
        admission = Admission(self.me)
        admission.set_members({A.node: None, B.node: None})
        return admission


def shake(
    dialler: End,
    listener: End,
    expected: NodeId | None = B.node,
    changes: tuple[Change, Change, Change] = (bytes, bytes, bytes),
) -> tuple[Established, Established]:
    """What both sides end up with, with bytes changed on their way."""
    there = ListenerSide(
        listener.cluster, listener.admission(), seals=listener.seals, nonce=listener.nonce
    )
    here = DiallerSide(
        dialler.cluster,
        dialler.admission(),
        seals=dialler.seals,
        nonce=dialler.nonce,
        expected=expected,
        purpose=Purpose.SESSION,
    )
    hello = changes[0](here.hello())
    try:
        welcome = there.take_hello(hello)
    except PerdureError as failure:
        here.take(there.refusal(failure))
        raise
    try:
        confirm, ours = here.take(changes[1](welcome))
    except PerdureError as failure:
        there.take_confirm(here.refusal(failure))
        raise
    return ours, there.take_confirm(changes[2](confirm))


def test_both_know_each_other_and_share_keys_nobody_else_has() -> None:
    ours, theirs = shake(End(A), End(B))
    assert (ours.peer, theirs.peer) == (B, A)
    assert ours.key_out == theirs.key_in is not None
    assert ours.key_in == theirs.key_out is not None
    assert ours.key_in != ours.key_out
    others = shake(End(A), End(B, nonce=b"m" * 32))[0]
    assert others.key_out != ours.key_out


def test_private_wires_need_no_seals_but_proofs() -> None:
    ours, _ = shake(End(A, seals=False), End(B, seals=False))
    assert ours.key_out is None
    wrong = replace(CLUSTER, secret=b"some other secret")
    with pytest.raises(RefusedByPeer, match="FAB0004"):
        shake(End(A, cluster=wrong, seals=False), End(B, seals=False))


def test_without_a_secret_identities_are_believed() -> None:
    open_to_all = replace(CLUSTER, secret=None)
    ours, theirs = shake(End(A, cluster=open_to_all), End(B, cluster=open_to_all))
    assert (ours.key_out, theirs.key_in) == (None, None)


@pytest.mark.parametrize(
    ("cluster", "kind"),
    [
        (replace(CLUSTER, name="other"), WrongCluster),
        (replace(CLUSTER, fingerprint=b"G" * 16), WrongCluster),
        (replace(CLUSTER, fingerprint=b""), WrongCluster),
        (replace(CLUSTER, secret=None), NotAuthenticated),
    ],
)
def test_the_listener_turns_down_who_is_of_another_cluster(
    cluster: ClusterIdentity, kind: type[PerdureError]
) -> None:
    for dialler, listener in ((cluster, CLUSTER), (CLUSTER, cluster)):
        with pytest.raises(RefusedByPeer) as caught:
            shake(End(A, cluster=dialler), End(B, cluster=listener))
        assert type(caught.value.error) is kind
        # Only what somebody says who knows the secret is to be believed.
        assert caught.value.is_proven == (dialler.secret == listener.secret)


def test_another_secret_is_noticed_by_the_dialler_and_told() -> None:
    wrong = replace(CLUSTER, secret=b"some other secret")
    with pytest.raises(RefusedByPeer) as caught:
        shake(End(A, cluster=wrong), End(B))
    assert type(caught.value.error) is NotAuthenticated
    assert not caught.value.is_proven


def test_another_node_than_the_one_dialled() -> None:
    with pytest.raises(RefusedByPeer, match="FAB0005"):
        shake(End(A), End(B), expected=NodeId(3))


def test_guests_learn_where_they_are() -> None:
    guest = Peer(GUEST, 0, 9, b"")
    nowhere = replace(CLUSTER, fingerprint=b"")
    ours, theirs = shake(End(guest, cluster=nowhere), End(B), expected=None)
    assert (ours.peer, ours.fingerprint, theirs.peer) == (B, CLUSTER.fingerprint, guest)


def flip(position: int) -> Change:
    def change(frame: bytes) -> bytes:
        at = position % len(frame)
        return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]

    return change


@given(step=st.integers(0, 2), position=st.integers(0, 500))
def test_a_changed_bit_anywhere_ends_it(step: int, position: int) -> None:
    changes: list[Change] = [bytes, bytes, bytes]
    changes[step] = flip(position)
    with pytest.raises((PerdureError, RefusedByPeer)):
        shake(End(A), End(B), changes=(changes[0], changes[1], changes[2]))


def test_a_proof_can_not_be_used_again_or_sent_back() -> None:
    frames: list[bytes] = []

    def keep(frame: bytes) -> bytes:
        frames.append(frame)
        return frame

    shake(End(A), End(B), changes=(keep, keep, keep))
    hello, welcome, confirm = frames
    for old in (confirm, welcome, hello):
        again = ListenerSide(CLUSTER, End(B).admission(), seals=True, nonce=b"m" * 32)
        again.take_hello(hello)
        with pytest.raises(PerdureError):
            again.take_confirm(old)
    back = DiallerSide(
        CLUSTER,
        End(A).admission(),
        seals=True,
        nonce=b"o" * 32,
        expected=None,
        purpose=Purpose.SESSION,
    )
    back.hello()
    with pytest.raises(NotAuthenticated):
        back.take(welcome)


@given(frame=st.binary(max_size=200))
def test_garbage_is_turned_down(frame: bytes) -> None:
    there = ListenerSide(CLUSTER, End(B).admission(), seals=True, nonce=b"n" * 32)
    with pytest.raises(PerdureError):
        there.take_hello(frame)
    here = DiallerSide(
        CLUSTER,
        End(A).admission(),
        seals=True,
        nonce=b"n" * 32,
        expected=B.node,
        purpose=Purpose.SESSION,
    )
    hello = here.hello()
    with pytest.raises(PerdureError):
        here.take(frame)
    there = ListenerSide(CLUSTER, End(B).admission(), seals=True, nonce=b"n" * 32)
    there.take_hello(hello)
    with pytest.raises(PerdureError):
        there.take_confirm(frame)


def test_long_words_are_not_looked_at() -> None:
    there = ListenerSide(CLUSTER, End(B).admission(), seals=True, nonce=b"n" * 32)
    with pytest.raises(IncompatibleNode):
        there.take_hello(bytes(5_000))


def test_weak_secrets_are_refused() -> None:
    with pytest.raises(InvalidConfiguration):
        ClusterIdentity(name="test", fingerprint=b"", secret=b"password")


def test_errors_keep_their_kind_and_unknown_ones_their_code() -> None:
    assert type(Failed.of(NotFound("x")).error()) is NotFound
    later = Failed("FAB9999", "from the future").error()
    assert type(later) is PerdureError
    assert "FAB9999" in later.message


def test_a_long_reason_still_fits() -> None:
    there = ListenerSide(CLUSTER, End(B).admission(), seals=True, nonce=b"n" * 32)
    assert len(there.refusal(UnknownMember("ü" * 10_000))) < 4096
