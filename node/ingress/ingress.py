"""The ingress: answers clients over HTTP, with what the partitions say.

One callback table, no task per request: a request is parsed, proposed, and answered when its
outcome is applied or its invocation ends. An answer that says "accepted" means committed and
applied. Closing a connection stops the waiting, never the invocation.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    BodyTooLarge,
    Draining,
    MethodNotAllowed,
    NotFound,
    NotReady,
    PartitionUnavailable,
    PerdureError,
    TooManyRequests,
)
from perdure.core.ids import InvocationId, format_invocation_id, partition_key_of
from perdure.core.limits import MESSAGE_BYTES_MAX
from perdure.core.telemetry import logger
from perdure.engine.actions import Outcome
from perdure.engine.commands import Command
from perdure.node.http.server import Exchange
from perdure.node.ingress import answers
from perdure.node.ingress.answers import Answer
from perdure.node.ingress.awakeables import make_signal
from perdure.node.ingress.paths import (
    Call,
    CompleteAwakeable,
    Fetch,
    FetchByBody,
    Health,
    Request,
    Verb,
    parse_path,
)
from perdure.node.ingress.pending import (
    Pending,
    PendingCall,
    PendingFetch,
    PendingSend,
    PendingSignal,
)
from perdure.node.ingress.submission import make_invoke
from perdure.node.ingress.tally import Latency, RequestCount, Status, Tally, status_of
from perdure.node.ingress.targets import parse_target
from perdure.node.partition.gateway import Found, Gateway
from perdure.node.registry.effective import Catalogue
from perdure.node.registry.model import OutputRules, ServiceType
from perdure.node.traces.tracer import Tracer
from perdure.storage.tables.invocations import Result, Target

log = logger("ingress")

P = TypeVar("P", bound=Pending)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressOptions:
    """``concurrent_requests_max`` None: no limit. ``cors``: pages of any origin may call."""

    body_bytes_max: int = MESSAGE_BYTES_MAX
    concurrent_requests_max: int | None = None
    cors: bool = True


@dataclass(frozen=True, slots=True)
class IngressStatistics:
    """Requests waiting for an answer, and what became of the others."""

    pending: int
    is_draining: bool
    requests: tuple[RequestCount, ...]
    latencies: tuple[Latency, ...]


class Ingress:
    """The HTTP application on the ingress port."""

    def __init__(
        self,
        gateway: Gateway,
        catalogue: Callable[[], Catalogue],
        clock: Clock,
        entropy: Entropy,
        options: IngressOptions,
        tracer: Tracer | None = None,
    ) -> None:
        self.body_bytes_max = options.body_bytes_max
        self._gateway = gateway
        self._catalogue = catalogue
        self._clock = clock
        self._entropy = entropy
        self._options = options
        self._pending: set[Pending] = set()
        self._tally = Tally()
        self._tracer = tracer
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    # --- What the HTTP server calls -------------------------------------------------------------

    def on_exchange(self, exchange: Exchange) -> None:
        """A whole request has arrived."""
        if exchange.method == "OPTIONS" and self._options.cors:
            self._respond(exchange, answers.preflight(exchange.headers))
            return
        limit = self._options.concurrent_requests_max
        if self._is_draining:
            self._refuse(exchange, Draining("this node is stopping: ask again, or another node"))
        elif limit is not None and len(self._pending) >= limit:
            self._tally.count(Status.RATE_LIMITED)
            error = TooManyRequests(f"{limit} requests are under way: try again shortly")
            self._respond(exchange, answers.refusal(error))
        else:
            self._tally.count(Status.ADMITTED)
            try:
                self._begin(exchange)
            except PerdureError as error:
                self._refuse(exchange, error)
            except Exception as error:  # bulkhead: one request, not the connection's others
                log.error("ingress.request.failed", cause=error, path=exchange.target)
                self._refuse(exchange, PerdureError("the request failed here: see the log"))
                if exchange.on_gone is not None:
                    exchange.on_gone()

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        """The body exceeds the limit: by its declared length, or while it came in."""
        error = BodyTooLarge(f"the body exceeds {self.body_bytes_max} bytes")
        self._refuse(exchange, error)

    # --- What the node calls --------------------------------------------------------------------

    async def drain(self, limit_ms: int) -> None:
        """Refuse new requests; let pending ones end for a while, then tell them to ask again."""
        self._is_draining = True
        try:
            async with asyncio.timeout(limit_ms / 1000):
                await self._idle.wait()
        except TimeoutError:
            log.info("ingress.requests.dropped", count=len(self._pending))
        for pending in list(self._pending):
            pending.refuse(
                Draining(
                    "this node is stopping; what was asked for goes on when it is back: ask again "
                    "under the same idempotency key, or attach to the invocation's id"
                )
            )

    def statistics(self) -> IngressStatistics:
        return IngressStatistics(
            len(self._pending), self._is_draining, self._tally.counts(), self._tally.latencies()
        )

    # --- What pending requests call -------------------------------------------------------------

    def wait(
        self, invocation: InvocationId, waiter: Callable[[Result | PerdureError], None]
    ) -> Callable[[], None]:
        return self._gateway.wait(invocation, waiter)

    def closed(self, pending: Pending, answer: Answer | None, is_invocation: bool) -> None:
        self._pending.discard(pending)
        if not self._pending:
            self._idle.set()
        if answer is None:
            return
        status = status_of(answer.status, is_invocation)
        seconds = self._clock.monotonic() - pending.started
        self._tally.answered(status, pending.service, pending.kind, seconds)
        if self._tracer is not None:
            exchange = pending.exchange
            request = (pending.kind, exchange.method, exchange.target)
            self._tracer.answered(
                request,
                exchange.headers,
                pending.started,
                (pending.id, pending.is_new),
                answer.status,
            )
        self._respond(pending.exchange, answer)

    # --- One method per kind of request ---------------------------------------------------------

    def _begin(self, exchange: Exchange) -> None:
        catalogue = self._catalogue()

        def type_of(name: str) -> ServiceType | None:
            service = catalogue.service(name)
            return service.type if service is not None else None

        request: Request = parse_path(exchange.target, type_of)
        match request:
            case Call():
                self._call(exchange, request, catalogue)
            case Fetch():
                _check_method(exchange, "GET")
                self._fetch(exchange, request.id, request.verb)
            case FetchByBody():
                _check_method(exchange, "POST")
                self._fetch(exchange, parse_target(exchange.body), request.verb)
            case CompleteAwakeable():
                _check_method(exchange, "POST")
                self._complete(exchange, request)
            case Health():
                _check_method(exchange, "GET")
                self._answer(exchange, self._health(catalogue))

    def _health(self, catalogue: Catalogue) -> Answer:
        halted = self._gateway.halted()
        if len(halted) == self._gateway.partition_count:
            raise PartitionUnavailable("every partition is halted: see the node's log")
        return answers.health(catalogue.registry.latest, halted)

    def _call(self, exchange: Exchange, call: Call, catalogue: Catalogue) -> None:
        route = catalogue.latest(call.service, call.handler)
        command = make_invoke(call, route, exchange, self._clock, self._entropy)
        assert route is not None
        exchange.body = b""  # it is in the command
        pending: PendingCall | PendingSend
        if call.is_send:
            pending = self._track(PendingSend, exchange, call.service, "send")
            pending.id = command.id
        else:
            pending = self._track(PendingCall, exchange, call.service, "call")
            pending.expect(command.id, command.target.kind, route.handler.output)
        self._propose(command, command.id, pending, pending.on_applied)

    def _fetch(self, exchange: Exchange, invocation: InvocationId, verb: Verb) -> None:
        if verb is Verb.LOOKUP:
            self._answer(exchange, answers.found(format_invocation_id(invocation)))
            return
        pending = self._track(PendingFetch, exchange, "", verb.value)
        self._gateway.look_up(invocation, partial(self._looked_up, pending, invocation, verb))

    def _looked_up(
        self,
        pending: PendingFetch,
        invocation: InvocationId,
        verb: Verb,
        found: Found | PerdureError | None,
    ) -> None:
        if isinstance(found, PerdureError):
            pending.refuse(found)
            return
        if found is None:
            pending.answer_unknown(invocation, verb)
            return
        pending.service = found.target.service
        if found.result is None and verb is Verb.OUTPUT:
            pending.refuse(
                NotReady(
                    f"{format_invocation_id(invocation)} has not completed yet: ask again, or "
                    "attach"
                )
            )
            return
        pending.expect(invocation, lambda: self._output_rules(found.target))
        if found.result is not None:
            pending.answer_stored(found.result, found.expires_at_ms)
        else:
            pending.wait()

    def _complete(self, exchange: Exchange, request: CompleteAwakeable) -> None:
        if request.target is None:
            self._answer(exchange, answers.accepted())
            return
        invocation, index = request.target
        command = make_signal(invocation, index, request.is_resolve, exchange.body)
        pending = self._track(PendingSignal, exchange, "", "awakeable")
        self._propose(command, invocation, pending, pending.on_applied)

    def _propose(
        self,
        command: Command,
        invocation: InvocationId,
        pending: Pending,
        on_applied: Callable[[Outcome], None],
    ) -> None:
        try:
            self._gateway.propose(
                command,
                partition_key_of(invocation),
                on_applied,
                pending.refuse,
                is_awaited=isinstance(pending, PendingCall),
            )
        except PerdureError as error:
            pending.id = None  # nothing was taken, so there is nothing to name
            pending.refuse(error)

    # --- Answering ------------------------------------------------------------------------------

    def _track(self, kind: type[P], exchange: Exchange, service: str, word: str) -> P:
        pending = kind(self, exchange, self._clock.monotonic(), service, word)
        self._pending.add(pending)
        self._idle.clear()
        return pending

    def _output_rules(self, target: Target) -> OutputRules:
        route = self._catalogue().latest(target.service, target.handler)
        if route is None:
            raise NotFound(
                f"{target.service}/{target.handler} is no longer registered, so its output has no "
                "type: register a deployment that serves it"
            )
        return route.handler.output

    def _answer(self, exchange: Exchange, answer: Answer) -> None:
        self._tally.count(Status.COMPLETED)
        self._respond(exchange, answer)

    def _refuse(self, exchange: Exchange, error: PerdureError) -> None:
        self._tally.count(status_of(error.http_status, False))
        self._respond(exchange, answers.refusal(error))

    def _respond(self, exchange: Exchange, answer: Answer) -> None:
        headers = answer.headers
        if self._options.cors:
            headers += answers.shared_with(exchange.header(b"origin"))
        exchange.respond(answer.status, headers, answer.body)


def _check_method(exchange: Exchange, method: str) -> None:
    if exchange.method != method:
        raise MethodNotAllowed(f"this path takes {method}, not {exchange.method}")
