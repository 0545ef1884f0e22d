"""The attempt's machine alone: response heads, what each version knows, acks, batches, the end."""

from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import entries as e
from tests.engine.world import any_of, tree

from perdure.core.ids import InvocationId
from perdure.core.limits import EFFECT_BYTES_PER_RECORD_MAX, EFFECTS_PER_RECORD_MAX
from perdure.engine.actions import Recorded
from perdure.engine.commands import Append, CompleteRun, Effect
from perdure.node.invoker.attempt import (
    Attempt,
    Behavior,
    Ended,
    Failed,
    Suspended,
    content_type_of,
)
from perdure.node.invoker.batches import batches
from perdure.node.invoker.validation import Callee
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import REQUESTED_ACK, FrameReader, encode_frame
from perdure.proto.frames import MessageType as T
from perdure.storage.tables.futures import Combinator, Future
from perdure.storage.tables.invocations import HandlerKind
from perdure.storage.tables.journal import Entry


class NoCalls:
    def resolve(self, callee: Callee) -> NoReturn:
        raise AssertionError(callee)


def attempt(version: int = 6, *, length: int = 1, commands: int = 1) -> Attempt:
    return Attempt(
        version=version,
        journal_length=length,
        command_count=commands,
        kind=HandlerKind.SERVICE,
    )


def hear(machine: Attempt, *frames: bytes) -> object:
    """The terminal that frames bring."""
    return machine.on_bytes(b"".join(frames), NoCalls()).terminal


def error(terminal: object) -> str:
    assert isinstance(terminal, Failed), terminal
    return terminal.failure.error_code


# --- The response head (1.4) ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "final_status", "is_reached"),
    [
        (502, "RT0010", 500, True),
        (504, "RT0010", 500, True),
        (503, "RT0023", 500, True),
        (429, "RT0023", 500, True),
        (415, "RT0015", 415, False),
        (413, "RT0019", 500, True),
        (404, "RT0012", 500, True),
        (401, "RT0012", 500, True),
        (301, "RT0012", 500, True),
        (307, "RT0012", 500, True),
        (500, "RT0012", 500, True),
        (199, "RT0012", 500, True),
        (999, "RT0012", 500, True),
    ],
)
def test_status(status: int, code: str, final_status: int, is_reached: bool) -> None:
    machine = attempt()
    failed = machine.on_response(status, content_type_of(6), 7000)
    assert failed is not None
    assert (failed.failure.error_code, failed.failure.code) == (code, final_status)
    assert failed.is_reached == is_reached
    # Only services that ask to slow down set the delay.
    assert failed.retry_after_ms == (7000 if status in (503, 429) else None)
    assert failed.behavior is Behavior.RETRY
    # The body is ignored, and its end is no second failure.
    assert hear(machine, encode_frame(T.END, b"")) is None
    assert machine.on_end() is None


@pytest.mark.parametrize("version", [5, 6, 7])
@pytest.mark.parametrize("status", [200, 201, 204])
def test_good_heads(status: int, version: int) -> None:
    content_type = f"application/vnd.restate.invocation.v{version}"
    assert attempt(version).on_response(status, content_type, None) is None


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "application/vnd.restate.invocation.v5",
        "application/vnd.restate.invocation.v6; charset=utf-8",
        "application/vnd.restate.invocation.V6",
    ],
)
def test_other_content_types(content_type: str | None) -> None:
    assert error(attempt().on_response(200, content_type, None)) == "RT0012"


# --- What each version knows ---------------------------------------------------------------------

FLAT = pb.SuspensionMessage(
    waiting_completions=[1], waiting_signals=[1], waiting_named_signals=["n"]
).SerializeToString()
TREE = pb.SuspensionMessage(
    awaiting_on=pb.Future(
        waiting_signals=[1],
        nested_futures=[pb.Future(waiting_completions=[2, 3], combinator_type=pb.ALL_COMPLETED)],
        combinator_type=pb.FIRST_COMPLETED,
    )
).SerializeToString()


@pytest.mark.parametrize("version", [5, 6])
def test_flat_suspension(version: int) -> None:
    terminal = hear(attempt(version), encode_frame(T.SUSPENSION, FLAT))
    assert terminal == Suspended(any_of(1, "#1", "n"))


def test_tree_of_version_7() -> None:
    nested = tree(Combinator.ALL_COMPLETED, 2, 3)
    terminal = hear(attempt(7), encode_frame(T.SUSPENSION, TREE))
    assert terminal == Suspended(tree(Combinator.FIRST_COMPLETED, "#1", nested))


@pytest.mark.parametrize(("version", "payload"), [(6, TREE), (7, FLAT), (6, b""), (7, b"")])
def test_suspension_of_another_shape_waits_for_nothing(version: int, payload: bytes) -> None:
    assert error(hear(attempt(version), encode_frame(T.SUSPENSION, payload))) == "RT0012"


def test_unknown_combinator() -> None:
    future = pb.Future(waiting_signals=[1]).SerializeToString() + bytes((5 << 3, 9))
    payload = bytes((4 << 3 | 2, len(future))) + future
    assert error(hear(attempt(7), encode_frame(T.SUSPENSION, payload))) == "RT0012"


def deep(levels: int) -> bytes:
    future = pb.Future(waiting_signals=[1])
    for _ in range(levels - 1):
        future = pb.Future(nested_futures=[future], combinator_type=pb.FIRST_COMPLETED)
    return pb.SuspensionMessage(awaiting_on=future).SerializeToString()


def test_future_that_is_too_deep_pauses() -> None:
    assert isinstance(hear(attempt(7), encode_frame(T.SUSPENSION, deep(90))), Suspended)
    terminal = hear(attempt(7), encode_frame(T.SUSPENSION, deep(91)))
    assert error(terminal) == "RT0025"
    assert isinstance(terminal, Failed)
    assert terminal.behavior is Behavior.PAUSE


def test_awaiting_on_is_remembered_by_version_7_and_unknown_before() -> None:
    message = pb.AwaitingOnMessage(awaiting_on=pb.Future(waiting_signals=[1]))
    frame = encode_frame(T.AWAITING_ON, message.SerializeToString())
    machine = attempt(7)
    assert hear(machine, frame) is None
    assert machine.awaiting_on == Future(0, (), (1,))
    assert error(hear(attempt(6), frame)) == "RT0012"
    assert error(hear(attempt(7), encode_frame(T.AWAITING_ON, b""))) == "RT0012"


# --- Errors of the service -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "label", "final"),
    [
        (500, "RT0007", 500),
        (418, "RT0007", 418),
        (570, "RT0016", 570),
        (571, "RT0012", 571),
        (65535, "RT0007", 65535),
        (65536, "RT0007", 500),
        (2**32 - 1, "RT0007", 500),
    ],
)
def test_error_codes(code: int, label: str, final: int) -> None:
    message = pb.ErrorMessage(code=code, message="m", stacktrace="s")
    terminal = hear(attempt(), encode_frame(T.ERROR, message.SerializeToString()))
    assert isinstance(terminal, Failed)
    failure = terminal.failure
    assert (failure.error_code, failure.code) == (label, final)
    assert (failure.message, failure.stacktrace) == ("m", "s")
    assert (failure.command_index, terminal.retry_after_ms) == (None, None)


@pytest.mark.parametrize("version", [5, 6, 7])
@pytest.mark.parametrize(
    ("number", "behavior"),
    [(0, Behavior.RETRY), (1, Behavior.PAUSE), (2, Behavior.FAIL), (3, Behavior.RETRY)],
)
def test_behavior_is_honoured_in_every_version(
    version: int, number: int, behavior: Behavior
) -> None:
    message = pb.ErrorMessage(code=500, next_retry_delay=0)
    payload = message.SerializeToString() + bytes((9 << 3, number))
    terminal = hear(attempt(version), encode_frame(T.ERROR, payload))
    assert isinstance(terminal, Failed)
    assert terminal.behavior is behavior
    assert terminal.retry_after_ms == 0  # a delay of nothing is a delay


def test_related_command() -> None:
    message = pb.ErrorMessage(
        code=500, related_command_index=0, related_command_name="", related_command_type=0x0411
    )
    terminal = hear(attempt(), encode_frame(T.ERROR, message.SerializeToString()))
    assert isinstance(terminal, Failed)
    failure = terminal.failure
    assert (failure.command_index, failure.command_name, failure.command_type) == (0, "", 0x0411)


# --- Unexpected frames and the end ---------------------------------------------------------------


@pytest.mark.parametrize(
    "type_code",
    [
        T.START,
        T.COMMAND_ACK,
        T.PROPOSE_RUN_COMPLETION_ACK,
        T.SLEEP_COMPLETION,
        T.SIGNAL_NOTIFICATION,
        T.INPUT_COMMAND,
        0x0008,
        0x03FF,
        0x040F,
        0x7FFF,
        0x9000,
        0xFC00,
        0xFFFF,
    ],
)
def test_unexpected_types_break_the_attempt_and_keep_what_came_before(type_code: int) -> None:
    machine = attempt(7)
    run = e.run(1)
    data = encode_frame(run.type_code, run.payload) + encode_frame(type_code, b"")
    received = machine.on_bytes(data, NoCalls())
    assert received.effects == [run]
    assert error(received.terminal) == "RT0012"


def test_run_proposal_without_a_result() -> None:
    payload = pb.ProposeRunCompletionMessage(result_completion_id=1).SerializeToString()
    assert error(hear(attempt(), encode_frame(T.PROPOSE_RUN_COMPLETION, payload))) == "RT0012"


@pytest.mark.parametrize("value", [b"", b"x"])
def test_run_proposal_becomes_a_notification(value: bytes) -> None:
    proposal = pb.ProposeRunCompletionMessage(result_completion_id=4, value=value)
    frame = encode_frame(T.PROPOSE_RUN_COMPLETION, proposal.SerializeToString(), REQUESTED_ACK)
    received = attempt().on_bytes(frame, NoCalls())
    ((effect,), (flag,)) = (received.effects, received.flags)
    assert isinstance(effect, CompleteRun)
    assert (effect.completion_id, effect.failed, flag) == (4, False, True)
    message = pb.NotificationMessage.FromString(effect.payload)
    assert (message.completion_id, message.WhichOneof("result")) == (4, "value")
    assert message.value.content == value


def test_empty_failure_of_a_run_is_a_failure() -> None:
    proposal = pb.ProposeRunCompletionMessage(result_completion_id=4, failure=pb.Failure())
    frame = encode_frame(T.PROPOSE_RUN_COMPLETION, proposal.SerializeToString())
    (effect,) = attempt().on_bytes(frame, NoCalls()).effects
    assert isinstance(effect, CompleteRun)
    assert effect.failed
    message = pb.NotificationMessage.FromString(effect.payload)
    assert message.WhichOneof("result") == "failure"


def test_end_of_the_response() -> None:
    failed = attempt().on_end()
    assert failed is not None
    assert (failed.failure.code, failed.failure.message) == (500, "unknown")
    cut = attempt()
    assert hear(cut, b"\x04\x11\x00") is None
    failed = cut.on_end()
    assert failed is not None
    assert "middle" in failed.failure.message
    done = attempt()
    assert hear(done, encode_frame(T.END, b"")) == Ended()
    assert done.on_end() is None


def test_first_terminal_frame_wins_whatever_follows() -> None:
    machine = attempt()
    error_payload = pb.ErrorMessage(code=500).SerializeToString()
    assert hear(machine, encode_frame(T.END, b""), encode_frame(T.ERROR, error_payload)) == Ended()
    assert hear(machine, encode_frame(T.ERROR, error_payload)) is None
    assert hear(machine, b"\xff" * 100) is None
    assert machine.on_end() is None


@given(st.lists(st.integers(1, 60), max_size=20))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    effects: list[Effect] = [e.run(1, "a"), e.sleep(2, 5), e.run_result(1, b"x"), e.output()]
    proposal = pb.ProposeRunCompletionMessage(result_completion_id=1, value=b"x")
    wire = b"".join(
        encode_frame(effect.type_code, effect.payload)
        if isinstance(effect, Append)
        else encode_frame(T.PROPOSE_RUN_COMPLETION, proposal.SerializeToString())
        for effect in effects
    ) + encode_frame(T.END, b"")
    machine = attempt()
    found: list[Effect] = []
    terminals: list[object] = []
    position = 0
    for size in [*cuts, len(wire)]:
        received = machine.on_bytes(wire[position : position + size], NoCalls())
        found.extend(received.effects)
        terminals.append(received.terminal)
        position += size
    assert found == effects
    assert [t for t in terminals if t is not None] == [Ended()]


# --- Towards the service -------------------------------------------------------------------------


def sent(machine: Attempt, entry: Entry) -> list[tuple[int, int, bytes]]:
    frames = FrameReader(1 << 20).feed(b"".join(machine.send(entry)))
    return [(frame.type, frame.flags, frame.payload) for frame in frames]


def entry(effect: Append) -> Entry:
    return Entry(effect.type_code, effect.payload, 0)


def test_replay_is_verbatim_and_own_commands_are_not_echoed() -> None:
    machine = attempt(length=3, commands=2)
    run = entry(e.run(1))
    notification = Entry(T.RUN_COMPLETION, b"raw", 0)
    assert sent(machine, Entry(T.INPUT_COMMAND, b"in", 0)) == [(T.INPUT_COMMAND, 0, b"in")]
    assert machine.is_replaying
    assert sent(machine, run) == [(T.RUN_COMMAND, 0, run.payload)]
    assert sent(machine, notification) == [(T.RUN_COMPLETION, 0, b"raw")]
    assert not machine.is_replaying
    assert sent(machine, run) == []
    assert sent(machine, notification) == [(T.RUN_COMPLETION, 0, b"raw")]
    assert machine.cursor == 5


def test_command_acks_follow_the_completions_and_count_commands() -> None:
    machine = attempt(length=4, commands=2)
    machine.cursor = 4
    call = e.call(2, InvocationId(bytes(24)), e.OTHER)
    effects: list[Effect] = [e.run(1), call, e.sleep(3, 1)]
    machine.on_recorded(effects, [False, True, True], Recorded((4, 5, 7), (0, 1, 0), 8, True))
    assert sent(machine, entry(e.run(1))) == []
    assert sent(machine, entry(call)) == []
    ids = Entry(T.CALL_INVOCATION_ID_COMPLETION, b"id", 0)
    ack_3 = pb.CommandAckMessage(command_index=3).SerializeToString()
    assert sent(machine, ids) == [
        (T.CALL_INVOCATION_ID_COMPLETION, 0, b"id"),
        (T.COMMAND_ACK, 0, ack_3),
    ]
    ack_4 = pb.CommandAckMessage(command_index=4).SerializeToString()
    assert sent(machine, entry(e.sleep(3, 1))) == [(T.COMMAND_ACK, 0, ack_4)]


@pytest.mark.parametrize(
    ("version", "flag", "type_code"),
    [
        (7, True, T.PROPOSE_RUN_COMPLETION_ACK),
        (7, False, T.RUN_COMPLETION),
        (6, True, T.RUN_COMPLETION),
        (5, True, T.RUN_COMPLETION),
    ],
)
def test_acknowledgement_of_a_run(version: int, flag: bool, type_code: int) -> None:
    machine = attempt(version)
    machine.cursor = 1
    result = e.run_result(9, b"x")
    machine.on_recorded([result], [flag], Recorded((1,), (0,), 2, True))
    ((found, _, payload),) = sent(machine, Entry(T.RUN_COMPLETION, result.payload, 0))
    assert found == type_code
    if type_code == T.PROPOSE_RUN_COMPLETION_ACK:
        assert payload == bytes.fromhex("0809")
    else:
        assert payload == result.payload


# --- Batches -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, EFFECT_BYTES_PER_RECORD_MAX // 3), max_size=30))
def test_batches_keep_order_and_fit(sizes: list[int]) -> None:
    shared = bytes(EFFECT_BYTES_PER_RECORD_MAX)
    effects: list[Effect] = [Append(T.RUN_COMMAND, shared[:size]) for size in sizes]
    flags = [size % 2 == 0 for size in sizes]
    cut = batches(effects, flags)
    assert [effect for batch, _ in cut for effect in batch] == effects
    assert [flag for _, batch in cut for flag in batch] == flags
    assert len(cut) >= 1
    for batch, _ in cut:
        weight = sum(len(effect.payload) for effect in batch if isinstance(effect, Append))
        assert len(batch) <= 1 or weight <= EFFECT_BYTES_PER_RECORD_MAX


def test_batches_of_many_small_effects() -> None:
    effects: list[Effect] = [e.run(number) for number in range(1, 1001)]
    cut = batches(effects, [False] * 1000)
    assert [len(batch) for batch, _ in cut] == [EFFECTS_PER_RECORD_MAX] * 3 + [232]


def test_effect_that_fills_a_record_stands_alone() -> None:
    large = Append(T.RUN_COMMAND, bytes(EFFECT_BYTES_PER_RECORD_MAX * 2))
    assert [len(batch) for batch, _ in batches([e.run(1), large, e.run(2)], [True] * 3)] == [
        1,
        1,
        1,
    ]
