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
from perdure.node.invoker.attempt import content_type_of
from perdure.node.registry.manifest import PROTOCOL_VERSION_MAX
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import (
    REQUESTED_ACK,
    Frame,
    FrameReader,
    MessageType,
    encode_frame,
    is_command,
)

# As perdure asks: both SDKs speak it.
_CONTENT_TYPE = content_type_of(PROTOCOL_VERSION_MAX).encode()
_FRAME_BYTES_MAX = 32 * 1024 * 1024
_TIMEOUT_S = 30.0


class Drive(NamedTuple):
    """What to ask the service for."""

    port: int
    steps: int
    requests: int
    seconds_max: float
    clients: int = 1


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

        self._drive = drive_
        self._begun = 0

    async def run(self) -> tuple[list[float], float]:
        """Seconds of each invocation, and of all together."""
        taken: list[float] = []
        await self._one()  # which makes the connection
        started = perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._drive.clients):
                    group.create_task(self._some(taken, started + self._drive.seconds_max))
        finally:
            self.client.close()
        return taken, perf_counter() - started

    async def _some(self, taken: list[float], end: float) -> None:
        while self._begun <= self._drive.requests:
            taken.append(await self._one())
            if perf_counter() > end:
                break

    async def _one(self) -> float:
        self._begun += 1
        started = perf_counter()
        attempt = _Attempt(self, self._drive.steps, self._begun)
        await asyncio.wait_for(attempt.done, _TIMEOUT_S)
        return perf_counter() - started


def latencies(drive_: Drive) -> list[float]:
    """Seconds of one invocation after the other, sorted."""
    return sorted(_run(drive_)[0])


def rate(drive_: Drive) -> float:
    """Invocations a second of as many clients at once."""
    taken, seconds = _run(drive_)
    return len(taken) / seconds


def _run(drive_: Drive) -> tuple[list[float], float]:
    async def main() -> tuple[list[float], float]:
        return await _Driver(drive_).run()

    return uvloop.run(main())
