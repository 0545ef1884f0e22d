"""The replicated map: a function of its entries, exact under repeats, deaf to nonsense."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cluster.metadata import raft_state
from perdure.cluster.metadata.raft_state import (
    Applied,
    Barrier,
    Cas,
    Conflicting,
    Expired,
    Import,
    Moved,
    Passed,
    Refused,
    RegisterMap,
    Stop,
    Written,
    encode_command,
)
from perdure.cluster.metadata.store import Versioned


def _cas(number: int, expected: int | None, value: bytes, since: int = 0) -> bytes:
    return encode_command(Cas(1, number, since, "k", expected, value))


def test_a_cas_writes_only_what_it_expects() -> None:
    state = RegisterMap()
    assert state.apply(_cas(1, None, b"a")) == Applied(1, 1, Written(1))
    assert state.apply(_cas(2, None, b"b")) == Applied(1, 2, Conflicting(1))
    assert state.apply(_cas(3, 1, b"b")) == Applied(1, 3, Written(2))
    assert state.registers == {"k": Versioned(2, b"b")}
    assert state.apply(encode_command(Barrier(1, 4))) == Applied(1, 4, Passed())
    assert state.take_changed() == ["k"]
    assert state.take_changed() == []


def test_a_repeated_request_is_answered_as_it_was() -> None:
    state = RegisterMap()
    first = state.apply(_cas(1, None, b"a"))
    state.apply(_cas(2, 1, b"b"))
    assert state.apply(_cas(1, None, b"a")) == first
    assert state.registers["k"] == Versioned(2, b"b")
    conflict = state.apply(_cas(3, None, b"c"))
    assert state.apply(_cas(3, None, b"c")) == conflict


def test_a_request_older_than_the_outcomes_kept_is_not_executed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raft_state, "METADATA_OUTCOMES_KEPT", 3)
    state = RegisterMap()
    for number in range(1, 6):
        state.apply(_cas(number, number - 1 or None, b"x", since=number - 1))
    assert state.apply(_cas(1, None, b"x", since=0)) == Applied(1, 1, Expired())
    assert state.apply(_cas(3, 2, b"x", since=2)) == Applied(1, 3, Written(3))  # still known
    assert state.apply(_cas(6, 5, b"x", since=5)) == Applied(1, 6, Written(6))


@given(st.lists(st.binary(max_size=40), max_size=20))
@settings(deadline=None)
def test_nonsense_is_refused_alike_and_changes_nothing(blobs: list[bytes]) -> None:
    one, two = RegisterMap(), RegisterMap()
    for blob in [*blobs, msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({"a": 1})]:
        outcome = one.apply(blob)
        assert outcome == two.apply(blob)
        assert isinstance(outcome.outcome, Refused | Passed)
    assert one.registers == {}
    assert one.encode() == two.encode()


def test_a_loaded_state_goes_on_like_the_one_it_came_from() -> None:
    dice = random.Random(5)
    one = RegisterMap()
    for number in range(200):
        one.apply(_cas(dice.randrange(150), dice.choice((None, *range(20))), b"%d" % number))
        if number % 40 == 39:
            two = RegisterMap()
            two.load(one.encode())
            assert two.encode() == one.encode()
            assert two.bytes_held == one.bytes_held
            assert two.registers == one.registers
            one = two


def test_loading_tells_what_differs() -> None:
    one, two = RegisterMap(), RegisterMap()
    for state in (one, two):
        state.apply(encode_command(Cas(1, 1, 0, "same", None, b"")))
    one.apply(encode_command(Cas(1, 2, 0, "same", 1, b"new")))
    one.apply(encode_command(Cas(1, 3, 0, "fresh", None, b"")))
    two.take_changed()
    two.load(one.encode())
    assert two.take_changed() == ["fresh", "same"]
    with pytest.raises(msgspec.MsgspecError):
        two.load(b"nonsense")
    assert two.registers == one.registers


def test_an_import_keeps_versions_and_needs_an_empty_map() -> None:
    state = RegisterMap()
    rows = [("a", 7, b"x"), ("b", 1, b"yy")]
    assert state.apply(encode_command(Import(1, 1, 0, rows))).outcome == Written(2)
    assert state.registers == {"a": Versioned(7, b"x"), "b": Versioned(1, b"yy")}
    assert state.bytes_held == 5
    assert isinstance(state.apply(encode_command(Import(1, 2, 0, rows))).outcome, Refused)
    assert state.apply(encode_command(Import(1, 1, 0, rows))).outcome == Written(2)
    for bad in ([("a", 1, b""), ("a", 2, b"")], [("a", 0, b"")]):
        empty = RegisterMap()
        assert isinstance(empty.apply(encode_command(Import(1, 3, 0, bad))).outcome, Refused)
        assert empty.registers == {}


# --- Stopping -----------------------------------------------------------------------------------


def _stop(number: int, version: int) -> bytes:
    return encode_command(Stop(2, number, "k", version))


def test_a_map_is_stopped_at_just_this_version_of_a_register() -> None:
    state = RegisterMap()
    assert state.apply(_stop(1, 1)) == Applied(2, 1, Conflicting(None))
    state.apply(_cas(1, None, b"a"))
    assert state.apply(_stop(2, 2)) == Applied(2, 2, Conflicting(1))
    assert not state.is_stopped
    assert state.apply(_stop(3, 1)) == Applied(2, 3, Passed())
    assert state.is_stopped


def test_a_stopped_map_never_changes_and_repeats_only_what_it_had_answered() -> None:
    state = RegisterMap()
    first = state.apply(_cas(1, None, b"a"))
    conflict = state.apply(_cas(2, None, b"b"))
    state.apply(_stop(1, 1))
    known = state.encode()
    assert state.apply(_cas(1, None, b"a")) == first
    assert state.apply(_cas(2, None, b"b")) == conflict
    assert state.apply(_cas(3, 1, b"c")) == Applied(1, 3, Moved())
    assert state.apply(encode_command(Barrier(1, 4))) == Applied(1, 4, Moved())
    assert state.apply(encode_command(Import(1, 5, 0, []))) == Applied(1, 5, Moved())
    assert state.apply(_stop(9, 7)) == Applied(2, 9, Passed())
    assert isinstance(state.apply(b"nonsense").outcome, Refused)
    assert state.encode() == known
    loaded = RegisterMap()
    loaded.load(known)
    assert loaded.is_stopped


def test_another_quorum_goes_on_where_it_was_stopped() -> None:
    state = RegisterMap()
    first = state.apply(_cas(1, None, b"a"))
    state.apply(_stop(1, 1))
    following = RegisterMap()
    following.begin(state.encode())
    assert not following.is_stopped
    assert following.registers == state.registers
    assert following.applied_count == state.applied_count
    assert following.apply(_cas(1, None, b"a")) == first  # it has seen this request
    assert following.apply(_cas(3, 1, b"c")) == Applied(1, 3, Written(2))
    assert following.take_changed() == ["k"]
