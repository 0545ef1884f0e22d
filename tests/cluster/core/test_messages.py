"""Messages between nodes: numbers of their own, fields that are only appended, no surprises."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core import messages
from perdure.cluster.core.messages import BadMessage, Message, Peer, Request, decode, encode
from perdure.cluster.core.types import Member, NodeId, Writer


class Found(Message, frozen=True, tag=0x7F01):
    """Of today."""

    size: int
    body: bytes = b""


class Missing(Message, frozen=True, tag=0x7F02):
    """Nothing to say."""


class Find(Request[Found | Missing], frozen=True, tag=0x7F03):
    """May be answered in two ways."""

    name: str


def test_messages_come_back_as_they_were() -> None:
    for message in (Found(3, b"abc"), Missing(), Find("x"), Peer(NodeId(1), 2, 3, b"u" * 16)):
        assert decode(messages.kind_of(type(message)), encode(message)) == message


def test_missing_fields_take_their_default_and_unknown_ones_are_skipped() -> None:
    assert decode(0x7F01, b"\x92\xcd\x7f\x01\x05") == Found(5)
    assert decode(0x7F01, b"\x95\xcd\x7f\x01\x05\xc4\x01a\xc0\xc3") == Found(5, b"a")


def test_requests_know_what_may_answer_them() -> None:
    assert messages.replies_of(Find) == (Found, Missing)


@pytest.mark.parametrize("kind", [0x7F01, 0x7F03, 0, 0x7FFF, 0xFFFF])
@given(data=st.binary(max_size=64))
def test_garbage_is_told_from_messages(kind: int, data: bytes) -> None:
    try:
        message = decode(kind, data)
    except BadMessage:
        return
    assert isinstance(message, messages.catalogue()[kind])


def test_deep_nesting_is_garbage_too() -> None:
    with pytest.raises(BadMessage):
        decode(0x7F01, b"\x92\xcd\x7f\x01" + b"\x91" * 100_000)


def test_every_message_has_a_number_of_its_own() -> None:
    counted = Counter(messages.kind_of(kind) for kind in messages.catalogue().values())
    assert counted
    assert set(counted.values()) == {1}
    assert all(number == messages.kind_of(kind) for number, kind in messages.catalogue().items())


def test_who_a_peer_is_to_the_log() -> None:
    peer = Peer(NodeId(1), 2, 3, b"u" * 16)
    assert peer.writer == Writer(NodeId(1), 2, 3)
    assert peer.member == Member(NodeId(1), b"u" * 16)
