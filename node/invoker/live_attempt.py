"""An attempt on its stream: the shell around the machine, and the listener of the stream.

Entries are pulled from the journal table as fast as the service reads them, so a slow service
costs a cursor and not memory. Effects are proposed as they come; reading pauses while too much of
what a connection brought is not yet in the log.

Nobody waits for the command of a run, only for its result. So it is held for a moment and recorded
together with what follows, usually that result: a durable step is one record and one sync. Should
the node die meanwhile, the service runs the step again, as it does whenever a result is missing.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from perdure.core.attempt_errors import AbortTimeout, ServiceUnreachable
from perdure.core.hashing import random_seed
from perdure.core.ids import format_invocation_id
from perdure.core.invariant import invariant
from perdure.core.limits import (
    DRAIN_MS,
    HELD_EFFECTS_BYTES_MAX,
    HELD_EFFECTS_MAX,
    PIECE_BYTES,
    RUN_HOLD_MS,
)
from perdure.engine.actions import Outcome, Recorded, Stale
from perdure.engine.commands import Effect
from perdure.engine.objects import state_entries
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamFailure
from perdure.node.invoker.attempt import (
    Attempt,
    Failed,
    Received,
    Terminal,
    content_type_of,
    fail,
)
from perdure.node.invoker.batches import are_runs, batches, count_commands
from perdure.node.invoker.ports import GONE, Session, Stream
from perdure.node.invoker.retries import retry_after_ms
from perdure.node.registry.effective import Route
from perdure.node.traces.attempts import AttemptTrace
from perdure.node.traces.spans import Value
from perdure.node.traces.tracer import Tracer
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType, encode_frame
from perdure.storage.keys import index_suffix, object_group
from perdure.storage.tables.invocations import Invoked

_FIRST_VERSION_WITH_IDEMPOTENCY_KEY = 7


class LiveAttempt:
    """An attempt on its stream: the shell around the machine, and the listener of the stream."""

    def __init__(self, run: Session, row: Invoked, route: Route, version: int) -> None:
        self.run = run
        self.route = route
        self.attempt = Attempt(
            version=version,
            journal_length=row.progress.journal_length,
            command_count=row.progress.command_count,
            kind=row.spec.target.kind,
            frame_bytes_max=run.ports.frame_bytes_max,
        )
        self._on_quiet: Callable[[], None] | None = None
        self.is_closed = False
        self.delivered = 0
        self.started_at_ms = run.ports.clock.now_ms()
        self.started = run.ports.clock.monotonic()
        self.server: str | None = None
        self._row = row
        self._loop = asyncio.get_running_loop()
        self._journal_length = row.progress.journal_length
        self._is_bidirectional = (
            route.is_bidirectional and route.effective.inactivity_timeout_ms > 0
        )
        self._is_half_closed = False
        self._is_pumping = False
        self._is_over = False
        self._in_flight = 0
        self.last_activity = self._opened = self._loop.time()
        self.is_busy = False
        self._gate = run.ports.gates.of(route.origin) if route.function is None else None
        self._timer: asyncio.TimerHandle | None = None
        self._held: list[Effect] = []
        self._held_bytes = 0
        self._held_since = 0.0
        self._hold_timer: asyncio.TimerHandle | None = None
        self._stream: Stream
        self._resolver = run.ports.resolver
        self.trace = self._begin_trace(run.ports.tracer)

    # --- Asking ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the stream and send Start and as much of the journal as it takes."""
        row, ports = self._row, self.run.ports
        target = row.spec.target
        content_type = content_type_of(self.attempt.version).encode()
        headers: Headers = [
            (b"content-type", content_type),
            (b"accept", content_type),
            (b"x-restate-invocation-id", format_invocation_id(self.run.id).encode()),
        ]
        if target.key is not None:
            key = quote(target.key, safe="").encode()
            headers.append((b"x-restate-service-key", key))
        if self.trace is not None:
            headers.extend(self.trace.headers())
        headers.extend(self.route.headers)
        headers.extend(ports.additional_headers)
        headers.append((b"x-restate-cluster-name", ports.cluster_name.encode()))
        path = f"/invoke/{target.service}/{target.handler}"
        self._stir()
        self._stream = ports.caller.open(self.route, path, headers, self)
        self.pump(self._start_frame())

    def journal_grew(self, journal_length: int) -> None:
        self._journal_length = max(self._journal_length, journal_length)
        self.pump()

    def pump(self, opening: bytes = b"") -> None:
        """Send ``opening``, and entries from the cursor on while the stream takes them.

        In few and large writes: each is an event to the service, and costs it more than its bytes.
        One write a turn of the loop: the service begins with the first while the next is gathered.
        """
        attempt = self.attempt
        if self._is_half_closed or self._is_over:
            return
        limit = self._journal_length if self._is_bidirectional else attempt.known_entries
        if not opening and attempt.cursor < limit and not self.run.may_tell():
            return
        piece = [opening] if opening else []
        if attempt.cursor < limit and self._stream.is_writable():
            is_there_more = self._gather(piece, limit)
            if is_there_more and not self._is_pumping:
                self._is_pumping = True
                self._loop.call_soon(self._pump_on)
        self._send(piece)
        if attempt.cursor >= limit and not self._is_bidirectional:
            self._half_close()

    def _pump_on(self) -> None:
        self._is_pumping = False
        self.pump()

    def _gather(self, piece: list[bytes], limit: int) -> bool:
        """Add entries up to ``limit`` or until the piece is full; whether there are more."""
        attempt, journal = self.attempt, self.run.ports.store.journal
        size = 0
        while attempt.cursor < limit and size < PIECE_BYTES:
            index = attempt.cursor
            entry = journal.get(self.run.id, index_suffix(index))
            if entry is None:
                self._check_taken_away(index)
                return False
            if self.trace is not None:
                self.trace.sent(entry)
            piece += attempt.send(entry)
            size += len(entry.payload)
        return attempt.cursor < limit

    def _send(self, piece: list[bytes]) -> None:
        if not piece:
            return
        self._stir()
        if len(piece[-1]) >= PIECE_BYTES and len(piece) > 1:
            self._stream.write(b"".join(piece[:-1]))
            self._stream.write(piece[-1])  # not copied
        else:
            self._stream.write(b"".join(piece))

    def _check_taken_away(self, index: int) -> None:
        # The record that made the journal grow ended the invocation too: the abort is on its way.
        row = self.run.ports.store.invocations.get(self.run.id)
        is_current = isinstance(row, Invoked) and row.session == self._row.session
        invariant(not is_current, "journals are dense", id=self.run.id, index=index)

    def abort(self) -> None:
        """Drop the stream at once."""
        self._is_over = True
        if not self.is_closed:
            self._stream.reset()
            self._closed()

    def wind_down(self) -> None:
        """Send what the journal held at the start, then end the request: the service finishes the
        step it is at, and suspends."""
        self._is_bidirectional = False
        if not (self._is_half_closed or self._is_over):
            self.last_activity = self._loop.time()
            self.pump()
        if self._timer is not None and not self._is_over:
            # It may be set for an inactivity that no longer matters.
            self._timer.cancel()
            self._timer = None
            self.arm_timer()

    @property
    def is_quiet(self) -> bool:
        """Whether the stream is closed and everything it brought is applied."""
        return self.is_closed and self._in_flight == 0

    def when_quiet(self, callback: Callable[[], None]) -> None:
        """Call back, once, when nothing of this attempt is left; the last caller counts."""
        if self.is_quiet:
            callback()
        else:
            self._on_quiet = callback

    def arm_timer(self) -> None:
        """Watch over inactivity; called when the attempt has lived long enough to need it."""
        if not self.is_closed and self._timer is None:
            self._timer = self._loop.call_later(0, self._check_time)

    # --- Listening --------------------------------------------------------------------------------

    def on_response(self, status: int, headers: Headers) -> None:
        self._stir()
        if self._gate is not None:
            self._gate.answered(self.last_activity - self._opened)
        self.run.ports.tally.answer(status)
        found = dict(reversed(headers))
        content_type = found.get(b"content-type")
        server = found.get(b"x-restate-server")
        if server is not None and 200 <= status < 300:
            self.server = server.decode("latin-1")
        failed = self.attempt.on_response(
            status,
            content_type.decode("latin-1") if content_type is not None else None,
            retry_after_ms(found.get(b"retry-after", b""), self.run.ports.clock.now_ms()),
        )
        if failed is not None:
            self._terminate(failed, [])

    def on_body(self, data: bytes) -> None:
        size = len(data)
        received = self.attempt.on_bytes(data, self._resolver)
        self._stir()
        if self.trace is not None:
            self.trace.received(received.effects)
        effects, flags = received.effects, received.flags
        if received.terminal is None:
            if not effects:
                self._stream.consumed(size)
                return
            if self._can_hold(received, size):
                self._hold(effects, size)
                return
        if self._held:
            held, held_bytes = self._take_held()
            size += held_bytes
            effects, flags = held + effects, [False] * len(held) + flags
        *leading, (effects, flags) = batches(effects, flags)
        for batch in leading:
            if not self._propose(*batch, 0):
                return
        if received.terminal is not None:
            self._stream.consumed(size)
            self._terminate(received.terminal, effects)
        else:
            self._propose(effects, flags, size)

    def on_end(self) -> None:
        failed = self.attempt.on_end() if not self._is_over else None
        if failed is not None:
            self._terminate(failed, [])
        self._closed()

    def on_failed(self, failure: StreamFailure) -> None:
        if not self._is_over:
            error = ServiceUnreachable(failure.message)
            is_reached = failure.kind in ("lost", "broken")
            is_unseen = failure.kind in ("lost", "refused")
            self.is_closed = True
            self._terminate(fail(error, is_reached=is_reached, is_unseen=is_unseen), [])
        self._closed()

    def on_writable(self) -> None:
        self.pump()

    # --- Inside -----------------------------------------------------------------------------------

    def _stir(self) -> None:
        """Something moves on the stream."""
        self.last_activity = self._loop.time()
        gate = self._gate
        if gate is None:
            return
        if self.attempt.is_waiting:
            if self.is_busy:
                gate.leave(self)
        elif not self.is_busy and not self._is_over:
            gate.enter(self)

    def _leave_gate(self) -> None:
        if self._gate is not None:
            self._gate.leave(self)

    def _begin_trace(self, tracer: Tracer | None) -> AttemptTrace | None:
        if tracer is None:
            return None
        run, route = self.run, self.route
        attributes: dict[str, Value] = {
            "restate.deployment.id": route.deployment_id,
            "restate.protocol.version": self.attempt.version,
            "restate.attempt.failures": run.retry_state.failures_since_command,
            "server.address": route.origin.host,
            "server.port": route.origin.port,
        }
        trace = tracer.attempt(run.id, self._row.spec, run.ports.store, attributes)
        self._resolver = trace.resolver(self._resolver)
        return trace

    def _propose(self, effects: list[Effect], flags: list[bool], size: int) -> bool:
        """Put effects into the log; ``size`` bytes of the body are dealt with by then."""
        self._in_flight += 1
        is_taken = self.run.propose(effects, partial(self._recorded, effects, flags, size))
        if not is_taken:
            self._in_flight -= 1
            self.run.give_up_attempt()
            return False
        # Counted now: a failure that follows may be decided before the record is applied.
        self.run.retry_state.on_progress(count_commands(effects))
        return True

    def _can_hold(self, received: Received, size: int) -> bool:
        """Whether it is only commands of runs, few and small, and no ack was asked for."""
        return (
            len(self._held) + len(received.effects) <= HELD_EFFECTS_MAX
            and self._held_bytes + size <= HELD_EFFECTS_BYTES_MAX
            and True not in received.flags
            and are_runs(received.effects)
        )

    def _hold(self, effects: list[Effect], size: int) -> None:
        if not self._held:
            self._held_since = self.last_activity
        self._held += effects
        self._held_bytes += size
        if self._hold_timer is None:
            self._hold_timer = self._loop.call_later(RUN_HOLD_MS / 1000, self._check_held)

    def _take_held(self) -> tuple[list[Effect], int]:
        """What is held, and how many bytes of the body it was; nothing is held then."""
        held, size = self._held, self._held_bytes
        if held:
            self._held, self._held_bytes = [], 0
        return held, size

    def _check_held(self) -> None:
        """Record what was held for long enough; the timer outlives what it was set for."""
        self._hold_timer = None
        if not self._held or self._is_over:
            return
        left = self._held_since + RUN_HOLD_MS / 1000 - self._loop.time()
        if left > 0.001:
            self._hold_timer = self._loop.call_later(left, self._check_held)
            return
        held, size = self._take_held()
        self._propose(held, [False] * len(held), size)

    def _terminate(self, terminal: Terminal, effects: list[Effect]) -> None:
        """A terminal frame or a failure: half-close, drain, and let the run conclude."""
        self._is_over = True
        self._leave_gate()
        held, size = self._take_held()
        if held:
            effects = held + effects
            if not self.is_closed:
                self._stream.consumed(size)
        if not self.is_closed:
            self._half_close()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(DRAIN_MS / 1000, self._drained)
        commands = count_commands(effects)
        if commands and not isinstance(terminal, Failed):
            self.run.retry_state.on_progress(commands)
        self.run.conclude(terminal, effects)

    def _recorded(
        self, effects: list[Effect], flags: list[bool], size: int, outcome: Outcome
    ) -> None:
        self._in_flight -= 1
        if not self.is_closed:
            self._stream.consumed(size)
        if not isinstance(outcome, Recorded):
            invariant(isinstance(outcome, Stale), "effects are recorded or stale", outcome=outcome)
            self.run.abort()
            self._settle()
            return
        self.attempt.on_recorded(effects, flags, outcome)
        if not self._is_over:
            self.journal_grew(outcome.journal_length)
        self._settle()

    def _half_close(self) -> None:
        if not self._is_half_closed:
            self._is_half_closed = True
            if not self._is_over:
                self.delivered = self.attempt.cursor
            self._stream.end()

    def _drained(self) -> None:
        self._timer = None
        if not self.is_closed:
            self._stream.reset()
            self._closed()

    def _closed(self) -> None:
        self.is_closed = True
        self._leave_gate()
        for timer in (self._timer, self._hold_timer):
            if timer is not None:
                timer.cancel()
        self._settle()

    def _settle(self) -> None:
        if not self.is_quiet:
            return
        on_quiet, self._on_quiet = self._on_quiet, None
        if on_quiet is not None:
            on_quiet()
        # What refers to us: without cycles there is nothing for the garbage collector to find.
        self._timer = self._hold_timer = None
        self._stream = GONE

    def _check_time(self) -> None:
        self._timer = None
        if self.is_closed or self._is_over:
            return
        idle_ms = (self._loop.time() - self.last_activity) * 1000
        effective = self.route.effective
        if not self._is_half_closed:
            left = effective.inactivity_timeout_ms - idle_ms
            if self.attempt.is_replaying or self._in_flight or self._held:
                left = float(effective.inactivity_timeout_ms)
            elif left <= 0:
                self._half_close()
                self.last_activity = self._loop.time()
                left = float(effective.abort_timeout_ms)
        else:
            left = effective.abort_timeout_ms - idle_ms
            if left <= 0:
                error = AbortTimeout(
                    "the invocation stream was closed after the 'abort timeout' "
                    f"({effective.abort_timeout_ms} ms) fired."
                )
                self._terminate(fail(error), [])
                return
        self._timer = self._loop.call_later(max(left, 10) / 1000, self._check_time)

    def _start_frame(self) -> bytes:
        row = self._row
        target, progress, prefix = row.spec.target, row.progress, row.spec.prefix
        start = pb.StartMessage(
            id=self.run.id,
            debug_id=format_invocation_id(self.run.id),
            known_entries=progress.journal_length,
            retry_count_since_last_stored_entry=self.run.retry_state.failures_since_command,
            duration_since_last_stored_entry=max(self.started_at_ms - progress.modified_at_ms, 0),
            random_seed=random_seed(prefix.seed_of if prefix is not None else self.run.id),
        )
        if target.key is None:
            start.partial_state = True
        else:
            start.key = target.key
            limit = self.route.effective.eager_state_bytes_max
            start.partial_state = self._fill_state(start, limit) if limit else True
        if (
            self.attempt.version >= _FIRST_VERSION_WITH_IDEMPOTENCY_KEY
            and row.spec.idempotency_key is not None
        ):
            start.idempotency_key = row.spec.idempotency_key
        return encode_frame(MessageType.START, start.SerializeToString())

    def _fill_state(self, start: pb.StartMessage, limit: int) -> bool:
        """Add state by ascending key up to the limit; True when some was left out."""
        target = self._row.spec.target
        assert target.key is not None
        size = 0
        for entry in state_entries(self.run.ports.store, object_group(target.service, target.key)):
            size += len(entry.key) + len(entry.value)
            if size > limit:
                return True
            start.state_map.add(key=entry.key, value=entry.value)
        return False
