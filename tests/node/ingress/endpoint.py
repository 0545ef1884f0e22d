"""A deployment that speaks the service protocol by hand: its handlers answer with frames.

It answers whole requests (request/response mode), so an attempt is a function from the journal to
frames. ``Endpoint.started`` tells tests which invocations have reached it.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from perdure.core.ids import InvocationId
from perdure.core.limits import FRAME_BYTES_MAX
from perdure.node.http.server import Exchange
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import Frame, FrameReader, MessageType, encode_frame

AWAKEABLE_INDEX = 17
DEADLINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the server sent: the start, the input, and the rest of the journal."""

    start: pb.StartMessage
    input: pb.InputCommandMessage
    journal: list[Frame]


class Endpoint:
    """The HTTP application of the deployment."""

    body_bytes_max = FRAME_BYTES_MAX

    def __init__(self) -> None:
        self.started: list[tuple[str, InvocationId]] = []
        self._changed = asyncio.Event()

    def on_exchange(self, exchange: Exchange) -> None:
        _, _, service, handler = exchange.target.split("/")
        frames = FrameReader(FRAME_BYTES_MAX).feed(exchange.body)
        attempt = Attempt(
            pb.StartMessage.FromString(frames[0].payload),
            pb.InputCommandMessage.FromString(frames[1].payload),
            frames[2:],
        )
        self.started.append((f"{service}/{handler}", InvocationId(attempt.start.id)))
        self._changed.set()
        body = _HANDLERS.get(handler, _greet)(attempt)
        content_type = exchange.header(b"content-type") or b""
        exchange.respond(200, [(b"content-type", content_type)], body)

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        raise AssertionError("the server sends no such bodies")

    async def wait_started(self, target: str, count: int = 1) -> InvocationId:
        """The id of the ``count``-th attempt at a target."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(found := [known for name, known in self.started if name == target]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found[count - 1]


def _output(value: bytes) -> bytes:
    message = pb.OutputCommandMessage(value=pb.Value(content=value))
    return encode_frame(MessageType.OUTPUT_COMMAND, message.SerializeToString()) + _END


def _failure(failure: pb.Failure) -> bytes:
    message = pb.OutputCommandMessage(failure=failure)
    return encode_frame(MessageType.OUTPUT_COMMAND, message.SerializeToString()) + _END


def _greet(attempt: Attempt) -> bytes:
    return _output(b'"Hello ' + attempt.input.value.content.strip(b'"') + b'"')


def _echo(attempt: Attempt) -> bytes:
    return _output(attempt.input.value.content)


def _key(attempt: Attempt) -> bytes:
    return _output(attempt.start.key.encode())


def _silent(attempt: Attempt) -> bytes:
    return _output(b"")


def _headers(attempt: Attempt) -> bytes:
    return _output(json.dumps([[h.key, h.value] for h in attempt.input.headers]).encode())


def _fail(attempt: Attempt) -> bytes:
    metadata = [pb.FailureMetadata(key="k", value="v")]
    code = int(attempt.input.value.content)
    return _failure(pb.Failure(code=code, message="as asked", metadata=metadata))


def _wait(attempt: Attempt) -> bytes:
    """Suspends until its awakeable is completed; then that is the result."""
    for frame in attempt.journal:
        if frame.type == MessageType.SIGNAL_NOTIFICATION:
            signal = pb.NotificationMessage.FromString(frame.payload)
            if signal.signal_idx == AWAKEABLE_INDEX:
                if signal.HasField("failure"):
                    return _failure(signal.failure)
                return _output(signal.value.content)
            return _failure(pb.Failure(code=409, message="cancelled"))
    message = pb.SuspensionMessage(waiting_signals=[1, AWAKEABLE_INDEX])
    return encode_frame(MessageType.SUSPENSION, message.SerializeToString())


_END = encode_frame(MessageType.END, b"")
_HANDLERS: dict[str, Callable[[Attempt], bytes]] = {
    "echo": _echo,
    "fail": _fail,
    "headers": _headers,
    "key": _key,
    "run": _wait,
    "silent": _silent,
    "wait": _wait,
}
