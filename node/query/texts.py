"""How failures, futures and events are written in columns. Pure."""

from typing import Any

import msgspec

from perdure.proto.frames import MessageType
from perdure.storage.tables.futures import Combinator, Future
from perdure.storage.tables.invocations import Failure
from perdure.storage.tables.journal import AttemptFailure, Event, EventKind

Document = dict[str, Any]

_ENCODE = msgspec.json.Encoder().encode
# Words that stand beside the codes of failed attempts.
_CODE_NAMES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    408: "Timeout",
    409: "Aborted",
    413: "Payload too large",
    429: "Too many requests",
    500: "Internal",
    501: "Not implemented",
    503: "Service unavailable",
    570: "Journal mismatch",
    571: "Protocol violation",
}
_COMBINATORS = {
    Combinator.UNKNOWN: "Unknown",
    Combinator.FIRST_COMPLETED: "FirstCompleted",
    Combinator.ALL_COMPLETED: "AllCompleted",
    Combinator.FIRST_SUCCEEDED_OR_ALL_FAILED: "FirstSucceededOrAllFailed",
    Combinator.ALL_SUCCEEDED_OR_FIRST_FAILED: "AllSucceededOrFirstFailed",
}


def to_json(document: object) -> str:
    """JSON text."""
    return _ENCODE(document).decode()


def completion_failure(failure: Failure) -> str:
    """``[code] message``."""
    return f"[{failure.code}] {failure.message}"


def last_failure(failure: AttemptFailure) -> str:
    """``[code Name] message``, and the stack trace on lines of its own."""
    name = _CODE_NAMES.get(failure.code)
    text = f"[{failure.code}{f' {name}' if name else ''}] {failure.message}"
    return f"{text}\n{failure.stacktrace}" if failure.stacktrace else text


def command_type(type_code: int) -> str:
    """``Run``, ``GetLazyState``, …: a command or completion without what kind of entry it is."""
    try:
        words = MessageType(type_code).name.split("_")
    except ValueError:
        return f"0x{type_code:04x}"
    if words[-1] in ("COMMAND", "COMPLETION", "NOTIFICATION"):
        words.pop()
    return "".join(word.capitalize() for word in words)


def future_json(future: Future) -> str:
    """The tree of what is awaited."""
    return to_json(_future(future))


def event_type(event: Event) -> str:
    """A word for what happened."""
    return {
        EventKind.TRANSIENT_ERROR: "TransientError",
        EventKind.PAUSED: "Paused",
        EventKind.SUSPENDED: "Suspended",
    }.get(EventKind(event.kind), "Unknown")


def event_json(event: Event) -> str:
    """What happened, tagged ``ty``."""
    document: Document = {"ty": event_type(event)}
    if event.awaiting is not None:
        document["awaiting_on"] = _future(event.awaiting)
    if event.failure is not None:
        failure = _attempt_failure(event.failure)
        if event.kind == EventKind.PAUSED:
            document["last_failure"] = failure
        else:
            document.update(failure)
    if event.awaiting is not None:
        document["awaiting_on"] = _future(event.awaiting)
    return to_json(document)


def _attempt_failure(failure: AttemptFailure) -> Document:
    document: Document = {"error_code": failure.code, "error_message": failure.message}
    if failure.stacktrace:
        document["error_stacktrace"] = failure.stacktrace
    if failure.error_code:
        document["restate_doc_error_code"] = failure.error_code
    if failure.command_index is not None:
        document["related_command_index"] = failure.command_index
    if failure.command_name:
        document["related_command_name"] = failure.command_name
    if failure.command_type is not None:
        document["related_command_type"] = command_type(failure.command_type)
    return document


def _future(future: Future) -> Document:
    leaves: list[Document] = [
        *({"Single": {"CompletionId": number}} for number in future.completions),
        *({"Single": {"SignalIndex": number}} for number in future.signals),
        *({"Single": {"SignalName": name}} for name in future.names),
        *(_future(nested) for nested in future.nested),
    ]
    if len(leaves) == 1 and future.combinator == Combinator.UNKNOWN:
        return leaves[0]
    try:
        name = _COMBINATORS[Combinator(future.combinator)]
    except ValueError:
        name = "Unknown"
    return {name: leaves}
