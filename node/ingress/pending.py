"""Requests that wait for the log or for an invocation's end: one object each, called back.

A pending request is answered once: with an outcome, with an error, by ``Ingress.drain``, or never,
when its client goes away. That never touches the invocation.
"""

from collections.abc import Callable
from typing import Protocol

from perdure.core.errors import NotFound, PerdureError
from perdure.core.ids import InvocationId, format_invocation_id
from perdure.core.invariant import invariant
from perdure.engine.actions import Accepted, Existing, Outcome
from perdure.engine.completions import NOT_FOUND
from perdure.engine.invoke import ALREADY_INVOKED
from perdure.node.http.server import Exchange
from perdure.node.ingress import answers
from perdure.node.ingress.answers import Answer
from perdure.node.ingress.content import output_content_type
from perdure.node.ingress.paths import Verb
from perdure.node.registry.model import OutputRules
from perdure.storage.tables.invocations import HandlerKind, Result, Success


class Desk(Protocol):
    """What pending requests need of the ingress."""

    def wait(
        self, invocation: InvocationId, waiter: Callable[[Result | PerdureError], None]
    ) -> Callable[[], None]:
        """Be told when the invocation ends; returns how to stop."""
        ...

    def closed(self, pending: "Pending", answer: Answer | None, is_invocation: bool) -> None:
        """The request is over; ``answer`` is None when nobody is left to get it."""
        ...


class Pending:
    """A request without an answer yet. ``service`` is "" where none is meant."""

    __slots__ = (
        "_desk",
        "_forget",
        "exchange",
        "id",
        "is_closed",
        "is_new",
        "kind",
        "service",
        "started",
    )

    def __init__(
        self, desk: Desk, exchange: Exchange, started: float, service: str, kind: str
    ) -> None:
        self._desk = desk
        self._forget: Callable[[], None] | None = None
        self.exchange = exchange
        self.started = started
        self.service = service
        self.kind = kind
        self.id: InvocationId | None = None
        self.is_closed = False
        self.is_new = False  # whether it started the invocation
        exchange.on_gone = self.on_gone

    def answer(self, answer: Answer, is_invocation: bool = False) -> None:
        """Answer, unless that was done before."""
        self._close(answer, is_invocation)

    def refuse(self, error: PerdureError) -> None:
        """Answer with an error of the ingress."""
        id_text = format_invocation_id(self.id) if self.id is not None else None
        self._close(answers.refusal(error, id_text), False)

    def on_gone(self) -> None:
        """The client is gone: stop waiting."""
        self._close(None, False)

    def _close(self, answer: Answer | None, is_invocation: bool) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self.exchange.on_gone = None  # no cycle is left for the collector
        if self._forget is not None:
            self._forget()
            self._forget = None
        self._desk.closed(self, answer, is_invocation)

    def _answer_result(self, rules: OutputRules, result: Result, expires_at_ms: int) -> None:
        assert self.id is not None
        id_text = format_invocation_id(self.id)
        if isinstance(result, Success):
            content_type = output_content_type(rules, result.value)
            self.answer(answers.output(content_type, id_text, expires_at_ms, result.value))
        else:
            self.answer(answers.failure(result, id_text, expires_at_ms), is_invocation=True)

    def _wait(self, waiter: Callable[[Result | PerdureError], None]) -> None:
        if self.is_closed:
            return
        assert self.id is not None
        try:
            self._forget = self._desk.wait(self.id, waiter)
        except PerdureError as error:
            self.refuse(error)


class PendingCall(Pending):
    """A call: proposed, then waiting for its result."""

    __slots__ = ("_handler_kind", "_rules")

    def expect(self, invocation: InvocationId, handler_kind: int, rules: OutputRules) -> None:
        """The invocation that is about to be proposed."""
        self.id = invocation
        self._handler_kind = handler_kind
        self._rules = rules

    def on_applied(self, outcome: Outcome) -> None:
        """It is there: new, or from an earlier request under the same key."""
        self.is_new = isinstance(outcome, Accepted)
        if isinstance(outcome, Existing):
            if self._handler_kind == HandlerKind.WORKFLOW_RUN and not outcome.is_repeat:
                self._answer_result(self._rules, ALREADY_INVOKED, 0)
                return
            if outcome.result is not None:
                self._answer_result(self._rules, outcome.result, outcome.expires_at_ms)
                return
        self._wait(self.on_result)

    def on_result(self, result: Result | PerdureError) -> None:
        """It ended, or nobody here will know."""
        self._forget = None
        if isinstance(result, PerdureError):
            self.refuse(result)
        else:
            self._answer_result(self._rules, result, 0)


class PendingSend(Pending):
    """A send: proposed."""

    __slots__ = ()

    def on_applied(self, outcome: Outcome) -> None:
        """It is there."""
        invariant(
            isinstance(outcome, Accepted | Existing), "an Invoke is answered so", outcome=outcome
        )
        assert isinstance(outcome, Accepted | Existing)
        assert self.id is not None
        id_text = format_invocation_id(self.id)
        self.is_new = isinstance(outcome, Accepted) or outcome.is_repeat
        self.answer(answers.sent(id_text, outcome.execute_at_ms, self.is_new))


class PendingSignal(Pending):
    """The completion of an awakeable: proposed."""

    __slots__ = ()

    def on_applied(self, outcome: Outcome) -> None:
        """Delivered, or dropped because nobody waits: the same to the sender."""
        self.answer(answers.accepted())


class PendingFetch(Pending):
    """An attach or output: the result of an invocation that another request started."""

    __slots__ = ("_rules_of_target",)

    def expect(self, invocation: InvocationId, rules_of_target: Callable[[], OutputRules]) -> None:
        """The invocation; ``rules_of_target`` raises when its handler is no longer registered."""
        self.id = invocation
        self._rules_of_target = rules_of_target

    def wait(self) -> None:
        """It has not ended yet: wait until it has."""
        self._wait(self.on_result)

    def answer_unknown(self, invocation: InvocationId, verb: Verb) -> None:
        """There is none, or it is forgotten."""
        id_text = format_invocation_id(invocation)
        if verb is Verb.OUTPUT:
            self.refuse(
                NotFound(f"there is no invocation {id_text}, or its result is no longer kept")
            )
        else:
            self.answer(answers.failure(NOT_FOUND, id_text, 0), is_invocation=True)

    def answer_stored(self, result: Result, expires_at_ms: int) -> None:
        """It has ended, and here is its result."""
        try:
            rules = self._rules_of_target()
        except PerdureError as error:
            self.refuse(error)
            return
        self._answer_result(rules, result, expires_at_ms)

    def on_result(self, result: Result | PerdureError) -> None:
        """It ended, or nobody here will know."""
        self._forget = None
        if isinstance(result, PerdureError):
            self.refuse(result)
        else:
            self.answer_stored(result, 0)
