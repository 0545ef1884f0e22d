"""The SDK alone: its service driven by a peer that answers at once and stores nothing.

What is left of a server's latency when the server costs nothing: HTTP/2 over loopback, the SDK, the
user's code.
"""

import asyncio
from functools import partial
from time import perf_counter
from typing import NamedTuple

import uvloop

from bench.processes import BenchFailed
from perdure.core.entropy import SystemEntropy
from perdure.node.http.client import HttpClient
from perdure.node.http.cores import make_client_core
from perdure.node.http.ports import Headers
from perdure.node.http.stream import Origin, RequestStream, StreamFailure
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import (
    REQUESTED_ACK,
    Frame,
    FrameReader,
    MessageType,
    encode_frame,
    is_command,
)

_CONTENT_TYPE = b"application/vnd.restate.invocation.v5"
_FRAME_BYTES_MAX = 32 * 1024 * 1024
_TIMEOUT_S = 30.0


class Drive(NamedTuple):
    """What to ask the service for."""

    port: int
    steps: int
    requests: int
    seconds_max: float


class _Attempt:
    """One invocation of ``Bench/steps``: every proposal is acknowledged as it comes."""

    def __init__(self, stream_of: "_Driver", steps: int, number: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._frames = FrameReader(_FRAME_BYTES_MAX)
        self._commands = 0
        headers = [(b"content-type", _CONTENT_TYPE)]
        self._stream: RequestStream = stream_of.client.open(
            stream_of.origin, "POST", "/invoke/Bench/steps", headers, self
        )
        start = pb.StartMessage(
            id=number.to_bytes(24, "big"), debug_id=f"inv_{number}", known_entries=1
        )
        entry = pb.InputCommandMessage(value=pb.Value(content=str(steps).encode()))
        self._stream.write(
            encode_frame(MessageType.START, start.SerializeToString())
            + encode_frame(MessageType.INPUT_COMMAND, entry.SerializeToString())
        )

    def on_response(self, status: int, headers: Headers) -> None:
        if status != 200:
            self._fail(f"status {status}")

    def on_body(self, data: bytes) -> None:
        self._stream.consumed(len(data))
        for frame in self._frames.feed(data):
            self._on_frame(frame)

    def on_end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def on_failed(self, failure: StreamFailure) -> None:
        self._fail(failure.message)

    def on_writable(self) -> None:
        pass

    def _on_frame(self, frame: Frame) -> None:
        if is_command(frame.type):
            self._commands += 1
            if frame.flags & REQUESTED_ACK:
                ack = pb.CommandAckMessage(command_index=self._commands)
                self._stream.write(encode_frame(MessageType.COMMAND_ACK, ack.SerializeToString()))
        elif frame.type == MessageType.PROPOSE_RUN_COMPLETION:
            proposal = pb.ProposeRunCompletionMessage.FromString(frame.payload)
            result = pb.NotificationMessage(
                completion_id=proposal.result_completion_id,
                value=pb.Value(content=proposal.value),
            )
            self._stream.write(encode_frame(MessageType.RUN_COMPLETION, result.SerializeToString()))
        elif frame.type == MessageType.END:
            self._stream.end()
        elif frame.type in (MessageType.ERROR, MessageType.SUSPENSION):
            self._fail(f"the SDK sent {MessageType(frame.type).name}: {frame.payload[:300]!r}")

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchFailed(f"SDK alone: {reason}"))


class _Driver:
    def __init__(self, drive_: Drive) -> None:
        self.client = HttpClient(partial(make_client_core, "auto"), SystemEntropy())
        self.origin = Origin("http", "127.0.0.1", drive_.port, "HTTP/2.0")

    async def run(self, drive_: Drive) -> list[float]:
        taken: list[float] = []
        begun = perf_counter()
        try:
            for number in range(drive_.requests + 1):
                started = perf_counter()
                attempt = _Attempt(self, drive_.steps, number)
                await asyncio.wait_for(attempt.done, _TIMEOUT_S)
                taken.append(perf_counter() - started)
                if number and perf_counter() - begun > drive_.seconds_max:
                    break
        finally:
            self.client.close()
        return sorted(taken[1:])  # the first one made the connection


def latencies(drive_: Drive) -> list[float]:
    """Seconds of one invocation after the other, sorted."""

    async def main() -> list[float]:
        return await _Driver(drive_).run(drive_)

    return uvloop.run(main())
