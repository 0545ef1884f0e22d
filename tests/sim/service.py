"""A service and its SDK, simulated: speaks protocol version 7, replays journals, keeps a ledger.

A handler runs the *program* in its input: run closures, sleeps, calls, sends, awakeables. The
service's process outlives the node's, so its ledger tells what was done to the outside world: which
closures were executed, what an attempt has learnt for good, what an invocation's output was.

The twin is strict where SDKs are: a replayed command must be, byte for byte, the one that was sent.
"""

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from perdure.core.clock import Clock
from perdure.core.ids import InvocationId
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamFailure, StreamListener
from perdure.node.invoker.ports import Stream
from perdure.node.registry.effective import Route
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import (
    REQUESTED_ACK,
    Frame,
    FrameReader,
    MessageType,
    encode_frame,
    is_command,
)

Program = list[list[Any]]
CONTENT_TYPE = b"application/vnd.restate.invocation.v7"
_FIRST_SIGNAL = 17
_LIMIT_BYTES = 1 << 24

# What a handler waits for: a completion id, or a signal index as a negative number.
Awaited = int
Script = Generator[Awaited, pb.NotificationMessage, object]


class Broken(AssertionError):
    """The node broke a promise to a service."""


@dataclass
class Ledger:
    """What happened in the outside world. Keys are (invocation, step)."""

    executions: Counter[tuple[bytes, str]] = field(default_factory=Counter[tuple[bytes, str]])
    known: dict[tuple[bytes, str], int] = field(default_factory=dict[tuple[bytes, str], int])
    outputs: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    awakeables: dict[tuple[InvocationId, int], bool] = field(
        default_factory=dict[tuple[InvocationId, int], bool]
    )
    happened: Counter[str] = field(default_factory=Counter[str])

    def execute(self, invocation: bytes, step: str) -> int:
        """A run closure is executed; returns a value that nobody will ever get again."""
        if (invocation, step) in self.known:
            raise Broken(f"recorded step {step} of {invocation.hex()} is executed again")
        self.executions[invocation, step] += 1
        return self.executions.total()

    def learn(self, invocation: bytes, step: str, value: int) -> None:
        """A handler was told the recorded value of a step."""
        if self.known.setdefault((invocation, step), value) != value:
            raise Broken(f"step {step} of {invocation.hex()} came back with another value")

    def output(self, invocation: bytes, value: bytes) -> None:
        """A handler gives its output: every attempt gives the same."""
        if self.outputs.setdefault(invocation, value) != value:
            raise Broken(f"{invocation.hex()} would end with another output")


class SimService:
    """Opens attempts for a node; implements ``node.invoker.ports.Caller`` for one life of it."""

    def __init__(
        self,
        ledger: Ledger,
        dice: random.Random,
        clock: Clock,
        *,
        is_flaky: bool,
        context: Context | None = None,
    ) -> None:
        # The service's own process; a context without variables is false.
        self.context = copy_context() if context is None else context
        self.ledger = ledger
        self.clock = clock
        self.dice = dice
        self.is_flaky = is_flaky
        self.holders: dict[str, Attempt] = {}

    def open(self, route: Route, path: str, headers: Headers, listener: StreamListener) -> Stream:
        if route.query or not path.startswith("/invoke/"):
            raise Broken(f"unexpected path {path}")
        return SimStream(self, path, dict(headers), listener)


class SimStream:
    """A request stream with delays both ways, each of them in order."""

    def __init__(
        self,
        service: SimService,
        path: str,
        headers: dict[bytes, bytes],
        listener: StreamListener,
    ) -> None:
        self._service = service
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._node = copy_context()
        self._there_at = self._back_at = 0.0
        self._coming: deque[Callable[[], None]] = deque()  # to the node
        self._is_closed = False
        self._has_response = False
        self._attempt = Attempt(service, path, headers, self)

    # --- The node's side ------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._there(lambda: self._attempt.receive(data))

    def end(self) -> None:
        self._there(self._attempt.receive_end)

    def reset(self) -> None:
        self._is_closed = True
        self._attempt.drop()

    def is_writable(self) -> bool:
        if self._service.dice.random() < 0.1:
            self._back(self._listener.on_writable)
            return False
        return True

    def consumed(self, size: int) -> None:
        """Nothing piles up here."""

    # --- The service's side ---------------------------------------------------------------------

    def respond(self, data: bytes) -> None:
        """Send bytes, cut anywhere."""
        if not self._has_response:
            self._has_response = True
            self._back(lambda: self._listener.on_response(200, [(b"content-type", CONTENT_TYPE)]))
        while data:
            size = self._service.dice.randint(1, len(data))
            piece, data = data[:size], data[size:]
            self._back(partial(self._listener.on_body, piece))

    def respond_end(self) -> None:
        self._back(self._finish)

    def lose(self) -> None:
        """The connection goes away."""
        self._back(self._fail)

    def _finish(self) -> None:
        self._is_closed = True
        self._listener.on_end()

    def _fail(self) -> None:
        self._is_closed = True
        self._listener.on_failed(StreamFailure("lost", "simulated"))

    def _there(self, action: Callable[[], None]) -> None:
        self._there_at = self._later(self._there_at, action, self._service.context)

    def _back(self, action: Callable[[], None]) -> None:
        # A process that woke up may be late with what comes first: it still comes first.
        self._coming.append(action)
        take = partial(_take_next, self._coming)
        self._back_at = self._later(self._back_at, take, self._node.copy())

    def _later(self, after: float, action: Callable[[], None], context: Context) -> float:
        delay = self._service.dice.choice((0.0001, 0.0005, 0.003))
        at = max(self._loop.time() + delay, after + 1e-6)
        self._loop.call_at(at, lambda: None if self._is_closed else action(), context=context)
        return at


def _take_next(coming: deque[Callable[[], None]]) -> None:
    coming.popleft()()


class Attempt:
    """One attempt as an SDK sees it."""

    def __init__(
        self, service: SimService, path: str, headers: dict[bytes, bytes], stream: SimStream
    ) -> None:
        self._service = service
        self._ledger = service.ledger
        self._stream = stream
        self._handler = path.removeprefix("/invoke/")
        self._reader = FrameReader(_LIMIT_BYTES)
        self._key = ""
        self._known: int | None = None
        self._entries = 0
        self._commands: list[tuple[int, bytes]] = []
        self._next_command = 0
        self._next_completion = 1
        self._next_signal = _FIRST_SIGNAL
        self._found: dict[Awaited, pb.NotificationMessage] = {}
        self._script: Script | None = None
        self._awaited: Awaited | None = None
        self._unsent: list[bytes] = []
        self._has_ended = False
        self._is_over = False
        self.id = InvocationId(b"")

    def receive(self, data: bytes) -> None:
        """Bytes of the node."""
        for frame in self._reader.feed(data):
            if not self._is_over:
                self._on_frame(frame)
        self._go_on()

    def receive_end(self) -> None:
        """The node will send no more: whoever waits suspends."""
        self._has_ended = True
        self._go_on()

    def drop(self) -> None:
        """The node has given the attempt up."""
        self._is_over = True
        self._release()

    def _on_frame(self, frame: Frame) -> None:
        if self._known is None:
            if frame.type != MessageType.START:
                raise Broken(f"the first frame is {frame.type:#x}")
            start = pb.StartMessage.FromString(frame.payload)
            self.id = InvocationId(start.id)
            self._known = start.known_entries
            self._key = start.key
            self._hold()
            return
        if frame.type == MessageType.PROPOSE_RUN_COMPLETION_ACK:
            ack = pb.ProposeRunCompletionAckMessage.FromString(frame.payload)
            self._found[ack.completion_id] = pb.NotificationMessage()
            return
        if is_command(frame.type):
            if self._entries >= self._known:
                raise Broken("commands are not echoed")
            self._commands.append((frame.type, frame.payload))
        else:
            note = pb.NotificationMessage.FromString(frame.payload)
            place = -note.signal_idx if note.HasField("signal_idx") else note.completion_id
            if place > 0 and place in self._found:
                raise Broken(f"completion {place} came twice")
            self._found.setdefault(place, note)  # of repeated signals the first one counts
        self._entries += 1

    def _hold(self) -> None:
        if not self._handler.startswith("Counter/"):
            return
        holder = self._service.holders.get(self._key)
        if holder is not None and holder.id != self.id:
            raise Broken(f"two invocations run under key {self._key}")
        self._service.holders[self._key] = self

    def _release(self) -> None:
        if self._service.holders.get(self._key) is self:
            del self._service.holders[self._key]

    # --- Running the handler --------------------------------------------------------------------

    def _go_on(self) -> None:
        if self._is_over or self._known is None or self._entries < self._known:
            return
        try:
            if self._script is None:
                self._script = self._make_script()
                self._awaited = next(self._script)
            while self._awaited in self._found:
                self._awaited = self._script.send(self._found[self._awaited])
        except StopIteration as stop:
            self._finish(stop.value)
        else:
            if self._has_ended:
                self._suspend()
        self._flush()

    def _make_script(self) -> Script:
        kind, payload = self._commands[0]
        if kind != MessageType.INPUT_COMMAND:
            raise Broken("a journal starts with its input")
        self._next_command = 1
        body = pb.InputCommandMessage.FromString(payload).value.content
        if self._handler == "Counter/add":
            return self._add()
        return self._run_program(json.loads(body))

    def _finish(self, value: object) -> None:
        content = json.dumps(value).encode()
        self._ledger.output(self.id, content)
        output = pb.OutputCommandMessage(value=pb.Value(content=content))
        self._command(MessageType.OUTPUT_COMMAND, output.SerializeToString())
        self._unsent.append(encode_frame(MessageType.END, b""))
        self._close("ended")

    def _suspend(self) -> None:
        assert self._awaited is not None
        awaiting = pb.Future(combinator_type=pb.FIRST_COMPLETED)
        if self._awaited < 0:
            awaiting.waiting_signals.append(-self._awaited)
        else:
            awaiting.waiting_completions.append(self._awaited)
        message = pb.SuspensionMessage(awaiting_on=awaiting)
        self._unsent.append(encode_frame(MessageType.SUSPENSION, message.SerializeToString()))
        self._close("suspended")

    def _close(self, how: str) -> None:
        self._ledger.happened[how] += 1
        self._is_over = True
        self._release()

    def _flush(self) -> None:
        if self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            if self._service.is_flaky and self._service.dice.random() < 0.08:
                self._stumble(data)
                return
            self._stream.respond(data)
        if self._is_over:
            self._stream.respond_end()

    def _stumble(self, data: bytes) -> None:
        """The connection or the handler fails somewhere in what it was about to send."""
        dice = self._service.dice
        self._is_over = True
        self._release()
        if dice.random() < 0.5:
            self._ledger.happened["lost"] += 1
            self._stream.respond(data[: dice.randint(0, len(data))])
            self._stream.lose()
        else:
            self._ledger.happened["failed"] += 1
            error = pb.ErrorMessage(code=500, message="simulated")
            self._stream.respond(encode_frame(MessageType.ERROR, error.SerializeToString()))
            self._stream.respond_end()

    # --- Steps ----------------------------------------------------------------------------------

    def _command(self, kind: MessageType, payload: bytes, *, is_exact: bool = True) -> None:
        """Send a command, or find that it was sent before."""
        index = self._next_command
        self._next_command += 1
        if index >= len(self._commands):
            self._unsent.append(encode_frame(kind, payload))
            return
        found = self._commands[index]
        if found[0] != kind or (is_exact and found[1] != payload):
            raise Broken(f"command {index} was {found}, is {(kind, payload)}")

    def _completion(self) -> int:
        self._next_completion += 1
        return self._next_completion - 1

    def _run_program(self, program: Program) -> Script:
        results: list[object] = []
        for number, (kind, *arguments) in enumerate(program):
            match kind:
                case "run":
                    results.append((yield from self._run(f"run {number}")))
                case "sleep":
                    yield from self._sleep(arguments[0])
                case "add":
                    results.append((yield from self._call("Counter", "add", arguments[0], [])))
                case "call":
                    results.append((yield from self._call("Worker", "go", "", arguments[0])))
                case "post":
                    yield from self._send(arguments[0])
                case "awake":
                    results.append((yield from self._awakeable(f"awake {number}")))
                case _:
                    raise AssertionError(kind)
        return results

    def _run(self, step: str) -> Generator[Awaited, pb.NotificationMessage, int]:
        completion = self._completion()
        command = pb.RunCommandMessage(result_completion_id=completion, name=step)
        self._command(MessageType.RUN_COMMAND, command.SerializeToString())
        value = 0
        if completion not in self._found:
            value = self._ledger.execute(self.id, step)
            proposal = pb.ProposeRunCompletionMessage(
                result_completion_id=completion, value=b"%d" % value
            )
            flags = REQUESTED_ACK if self._service.dice.random() < 0.5 else 0
            self._unsent.append(
                encode_frame(
                    MessageType.PROPOSE_RUN_COMPLETION, proposal.SerializeToString(), flags
                )
            )
        note = yield completion
        if note.HasField("value"):
            value = int(note.value.content)
        self._ledger.learn(self.id, step, value)
        return value

    def _sleep(self, delay_ms: int) -> Generator[Awaited, pb.NotificationMessage, None]:
        completion = self._completion()
        command = pb.SleepCommandMessage(
            wake_up_time=self._service.clock.now_ms() + delay_ms, result_completion_id=completion
        )
        self._command(MessageType.SLEEP_COMMAND, command.SerializeToString(), is_exact=False)
        yield completion

    def _call(
        self, service: str, handler: str, key: str, program: Program
    ) -> Generator[Awaited, pb.NotificationMessage, object]:
        id_completion, completion = self._completion(), self._completion()
        command = pb.CallCommandMessage(
            service_name=service,
            handler_name=handler,
            key=key,
            parameter=json.dumps(program).encode(),
            invocation_id_notification_idx=id_completion,
            result_completion_id=completion,
        )
        self._command(MessageType.CALL_COMMAND, command.SerializeToString())
        note = yield completion
        return json.loads(note.value.content)

    def _send(self, key: str) -> Generator[Awaited, pb.NotificationMessage, None]:
        completion = self._completion()
        command = pb.OneWayCallCommandMessage(
            service_name="Counter",
            handler_name="add",
            key=key,
            parameter=b"[]",
            invocation_id_notification_idx=completion,
        )
        self._command(MessageType.ONE_WAY_CALL_COMMAND, command.SerializeToString())
        yield completion

    def _awakeable(self, step: str) -> Generator[Awaited, pb.NotificationMessage, str]:
        signal = self._next_signal
        self._next_signal += 1
        yield from self._run(step)
        self._ledger.awakeables.setdefault((self.id, signal), False)
        note = yield -signal
        return note.value.content.decode()

    def _add(self) -> Script:
        completion = self._completion()
        get = pb.GetLazyStateCommandMessage(key=b"n", result_completion_id=completion)
        self._command(MessageType.GET_LAZY_STATE_COMMAND, get.SerializeToString())
        note = yield completion
        count = (int(note.value.content) if note.HasField("value") else 0) + 1
        put = pb.SetStateCommandMessage(key=b"n", value=pb.Value(content=b"%d" % count))
        self._command(MessageType.SET_STATE_COMMAND, put.SerializeToString())
        return count
