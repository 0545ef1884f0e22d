"""The frame codec: golden bytes, arbitrary cuts, limits judged by the header alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine import notifications
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import (
    COMMAND_FIRST,
    CUSTOM_FIRST,
    NOTIFICATION_FIRST,
    REQUESTED_ACK,
    Frame,
    FrameReader,
    MessageType,
    Oversize,
    encode_frame,
    encode_header,
    is_command,
)
from perdure.storage.tables.invocations import Failure, Success

T = MessageType


@pytest.mark.parametrize(
    ("type_code", "payload", "wire"),
    [
        (T.END, pb.EndMessage().SerializeToString(), "0003000000000000"),
        (
            T.SUSPENSION,
            pb.SuspensionMessage(waiting_completions=[2], waiting_signals=[1]).SerializeToString(),
            "00010000000000060a0102120101",
        ),
        (
            T.COMMAND_ACK,
            pb.CommandAckMessage(command_index=3).SerializeToString(),
            "00040000000000020803",
        ),
        (
            T.PROPOSE_RUN_COMPLETION_ACK,
            pb.ProposeRunCompletionAckMessage(completion_id=1).SerializeToString(),
            "00070000000000020801",
        ),
        (T.SIGNAL_NOTIFICATION, notifications.cancel_signal(), "fbff00000000000410012200"),
        (T.SLEEP_COMPLETION, notifications.void(1), "800c00000000000408012200"),
        (
            T.GET_LAZY_STATE_COMPLETION,
            notifications.value(1, b"1"),
            "800200000000000708012a030a0131",
        ),
        (
            T.OUTPUT_COMMAND,
            pb.OutputCommandMessage(value=pb.Value(content=b'"ok"')).SerializeToString(),
            "040100000000000872060a04226f6b22",
        ),
        (T.INPUT_COMMAND, notifications.input_entry([], b""), "04000000000000027200"),
    ],
)
def test_golden_frames(type_code: int, payload: bytes, wire: str) -> None:
    encoded = encode_frame(type_code, payload)
    assert encoded.hex() == wire
    assert encode_header(type_code, len(payload)) + payload == encoded
    assert FrameReader(1024).feed(encoded) == [Frame(type_code, 0, payload)]


def test_golden_start() -> None:
    payload = (
        bytes.fromhex("0a18 68c277d3433fe3c09343a962e1c5aae6fb2f44dbc66bf1eb 1226")
        + b"inv_1gyJFyisFOmk7bdwE3huhCb5z5mkqdbdSj"
        + bytes.fromhex("1802 2801 4002 48 8bfe8c9bdbe994ee16")
    )
    start = pb.StartMessage.FromString(payload)
    assert start.debug_id == "inv_1gyJFyisFOmk7bdwE3huhCb5z5mkqdbdSj"
    assert (start.known_entries, start.partial_state) == (2, True)
    assert start.duration_since_last_stored_entry == 2
    assert start.random_seed == 1647283156897971979
    assert start.SerializeToString() == payload
    assert len(payload) == 82


def test_flag_is_one_bit() -> None:
    assert encode_frame(T.RUN_COMMAND, b"", REQUESTED_ACK).hex() == "0411800000000000"


_FRAMES = st.lists(
    st.builds(
        Frame, st.integers(0, 0xFFFF), st.sampled_from([0, REQUESTED_ACK]), st.binary(max_size=60)
    ),
    max_size=12,
)


@given(_FRAMES, st.data())
def test_frames_survive_any_cut(frames: list[Frame], data: st.DataObject) -> None:
    wire = b"".join(encode_frame(f.type, f.payload, f.flags) for f in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=20)))
    reader = FrameReader(1024)
    found: list[Frame] = []
    for lower, upper in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found.extend(reader.feed(wire[lower:upper]))
        assert reader.is_between_frames == _is_boundary(frames, upper)
    assert found == frames
    assert reader.oversize is None


def _is_boundary(frames: list[Frame], position: int) -> bool:
    at = 0
    for frame in frames:
        if at >= position:
            break
        at += 8 + len(frame.payload)
    return at == position


@given(_FRAMES)
def test_frames_survive_single_bytes(frames: list[Frame]) -> None:
    reader = FrameReader(1024)
    found: list[Frame] = []
    for frame in frames:
        for byte in encode_frame(frame.type, frame.payload, frame.flags):
            found.extend(reader.feed(bytes((byte,))))
    assert found == frames


@pytest.mark.parametrize("length", [100, 101, 2**32 - 1])
def test_limit_is_judged_by_the_header(length: int) -> None:
    reader = FrameReader(100)
    good = encode_frame(T.RUN_COMMAND, b"x" * 99)
    header = encode_header(T.OUTPUT_COMMAND, length)
    # Frames before it come out, whatever shares their chunk.
    assert reader.feed(good + header) == [Frame(T.RUN_COMMAND, 0, b"x" * 99)]
    assert reader.oversize == Oversize(T.OUTPUT_COMMAND, length)
    assert reader.feed(good) == []


def test_payload_under_the_limit_passes() -> None:
    reader = FrameReader(100)
    assert len(reader.feed(encode_frame(T.RUN_COMMAND, b"x" * 99))) == 1
    assert reader.oversize is None


def test_large_frame_in_small_pieces_is_joined_once() -> None:
    payload = bytes(1_000_000)
    wire = encode_frame(T.OUTPUT_COMMAND, payload)
    reader = FrameReader(2_000_000)
    found: list[Frame] = []
    for start in range(0, len(wire), 1000):
        found.extend(reader.feed(wire[start : start + 1000]))
    assert found == [Frame(T.OUTPUT_COMMAND, 0, payload)]


def test_namespaces() -> None:
    for kind in MessageType:
        in_commands = COMMAND_FIRST <= kind < NOTIFICATION_FIRST
        assert is_command(kind) == in_commands == kind.name.endswith("_COMMAND")
        assert kind < CUSTOM_FIRST
    assert not is_command(CUSTOM_FIRST)
    # A completion's code follows from its command's; a call's id has one of its own.
    for kind in MessageType:
        if kind.name.endswith("_COMPLETION") and kind not in (
            T.CALL_INVOCATION_ID_COMPLETION,
            T.PROPOSE_RUN_COMPLETION,
        ):
            command = MessageType[kind.name.replace("_COMPLETION", "_COMMAND")]
            assert kind == command - 0x0400 + 0x8000


# --- Notifications: the result oneof is never left out -------------------------------------------


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (notifications.void(1), "void"),
        (notifications.value(1, b""), "value"),
        (notifications.failure(1, 0, ""), "failure"),
        (notifications.result(1, Success(b"")), "value"),
        (notifications.result(1, Failure(409, "x", (("a", "b"),), "stack")), "failure"),
        (notifications.invocation_id(1, ""), "invocation_id"),
        (notifications.state_keys(1, []), "state_keys"),
        (notifications.cancel_signal(), "void"),
    ],
)
def test_result_is_present_even_when_empty(payload: bytes, kind: str) -> None:
    message = pb.NotificationMessage.FromString(payload)
    assert message.WhichOneof("result") == kind
    assert message.WhichOneof("id") is not None


def test_stack_traces_do_not_travel_and_metadata_does() -> None:
    failure = Failure(409, "x", (("a", "b"),), "stack")
    message = pb.NotificationMessage.FromString(notifications.result(1, failure))
    assert notifications.decode_failure(message.failure) == Failure(409, "x", (("a", "b"),))


def test_output_without_result_is_none() -> None:
    assert notifications.output_result(b"") is None
