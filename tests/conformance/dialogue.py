"""Words of the service protocol for hand-written endpoints: type codes and the usual moves."""

from google.protobuf.message import Message
from tests.conformance.raw import Attempt, Frame

from perdure.proto import service_pb2 as pb

START, SUSPENSION, ERROR, END, COMMAND_ACK = 0x0000, 0x0001, 0x0002, 0x0003, 0x0004
PROPOSE_RUN, AWAITING_ON, PROPOSE_RUN_ACK = 0x0005, 0x0006, 0x0007
INPUT, OUTPUT, SLEEP, CALL, ONE_WAY_CALL = 0x0400, 0x0401, 0x040C, 0x040D, 0x040E
GET_STATE, SET_STATE = 0x0402, 0x0403
SEND_SIGNAL, RUN, COMPLETE_AWAKEABLE = 0x0410, 0x0411, 0x0414
SLEEP_DONE, CALL_DONE, CALL_ID, RUN_DONE = 0x800C, 0x800D, 0x800E, 0x8011
STATE_DONE = 0x8002
SIGNAL = 0xFBFF


async def replay(attempt: Attempt) -> tuple[pb.StartMessage, list[Frame]]:
    """Accept the attempt and read ``Start`` and the journal that it announces."""
    attempt.respond()
    return await read_journal(attempt)


async def read_journal(attempt: Attempt) -> tuple[pb.StartMessage, list[Frame]]:
    start = await attempt.expect(START, pb.StartMessage)
    entries: list[Frame] = []
    for _ in range(start.known_entries):
        entry = await attempt.receive()
        assert entry is not None, "the stream ended within the replay"
        entries.append(entry)
    return start, entries


def value(content: bytes) -> pb.Value:
    return pb.Value(content=content)


def output(content: bytes) -> pb.OutputCommandMessage:
    return pb.OutputCommandMessage(value=value(content))


def run(completion_id: int, name: str = "") -> pb.RunCommandMessage:
    return pb.RunCommandMessage(result_completion_id=completion_id, name=name)


def proposal(completion_id: int, content: bytes) -> pb.ProposeRunCompletionMessage:
    return pb.ProposeRunCompletionMessage(result_completion_id=completion_id, value=content)


def sleep(completion_id: int, until_ms: int = 1) -> pb.SleepCommandMessage:
    return pb.SleepCommandMessage(result_completion_id=completion_id, wake_up_time=until_ms)


def suspension(version: int, completions: list[int], signals: list[int]) -> pb.SuspensionMessage:
    """Waiting for the first of these, in the version's shape."""
    if version < 7:
        return pb.SuspensionMessage(waiting_completions=completions, waiting_signals=signals)
    future = pb.Future(
        waiting_completions=completions,
        waiting_signals=signals,
        combinator_type=pb.FIRST_COMPLETED,
    )
    return pb.SuspensionMessage(awaiting_on=future)


def error(message: str, code: int = 500, delay_ms: int | None = None) -> pb.ErrorMessage:
    failure = pb.ErrorMessage(code=code, message=message)
    if delay_ms is not None:
        failure.next_retry_delay = delay_ms
    return failure


async def finish(attempt: Attempt, content: bytes) -> None:
    """Output and End; then wait for the server to end its side, which it must do at once."""
    attempt.send(OUTPUT, output(content))
    await close(attempt, END)


async def close(attempt: Attempt, terminal: int, message: Message | None = None) -> None:
    """Say the last word, await the server's end of stream, end ours."""
    attempt.send(terminal, message)
    while await attempt.receive() is not None:
        pass
    assert attempt.is_ended, "the server reset the stream instead of ending it"
    attempt.end()


def kinds(frames: list[Frame]) -> list[int]:
    return [each.code for each in frames]
