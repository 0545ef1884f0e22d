"""What nodes say to each other about statements: messages 0x0601 on (cluster/core/messages.py).

Who reads names what it reads: a ``ticket`` for the statement, ``scan`` for a scan of it.
"""

import msgspec

from perdure.cluster.core.messages import Message, Request
from perdure.node.query.bounds import ALWAYS, Need, Order, Restriction, Span, Values

_Listed = dict[str, tuple[bool | int | str, ...]]


class Conditions(msgspec.Struct, frozen=True, array_like=True):
    """A ``bounds.Restriction`` as it travels. A span without an end has None there."""

    equal: _Listed
    unequal: _Listed
    spans: dict[str, tuple[int, int | None]]


class ReadingOpened(Message, frozen=True, tag=0x0601):
    """What the statement reads here stays as it is, until it is closed."""


class OpenReading(Request[ReadingOpened], frozen=True, tag=0x0602):
    """Hold the tables of partitions that the receiver leads as they are now, and the sessions of
    ``live``; no longer than ``timeout_ms``."""

    ticket: int
    partitions: tuple[int, ...]
    live: tuple[int, ...]
    timeout_ms: int


class ScanPiece(Message, frozen=True, tag=0x0603):
    """Some rows, as an Arrow stream; empty where none passed yet. ``is_cut``: the stream goes on in
    the next piece."""

    batches: bytes
    is_last: bool
    is_cut: bool = False


class OpenScan(Request[ScanPiece], frozen=True, tag=0x0604):
    """Scan a table of what was opened, and give the first piece. ``condition`` is what the rows
    must meet, ``filtered`` what it looks at; the rest says what need not be read."""

    ticket: int
    scan: int
    table: str
    columns: tuple[str, ...]
    filtered: tuple[str, ...]
    scans: tuple[Conditions, ...]
    order: tuple[int, bool] | None
    condition: bytes | None


class NextPiece(Request[ScanPiece], frozen=True, tag=0x0605):
    """The next piece of a scan."""

    ticket: int
    scan: int


class CloseScan(Message, frozen=True, tag=0x0606):
    """Nobody wants more of the scan."""

    ticket: int
    scan: int


class CloseReading(Message, frozen=True, tag=0x0607):
    """The statement has ended, or was given up: let go of what it reads."""

    ticket: int


def pack_scans(need: Need) -> tuple[Conditions, ...]:
    """The restrictions of a need, as they travel."""
    return tuple(
        Conditions(
            _listed(scan.equal),
            _listed(scan.unequal),
            {
                column: (span.lower, None if span.upper >= ALWAYS.upper else span.upper)
                for column, span in scan.spans.items()
            },
        )
        for scan in need.scans
    )


def unpack_need(request: OpenScan) -> Need:
    """The need that was packed; its columns are the scan's."""
    scans = tuple(
        Restriction(
            _values(each.equal),
            _values(each.unequal),
            {
                column: Span(lower, ALWAYS.upper if upper is None else upper)
                for column, (lower, upper) in each.spans.items()
            },
        )
        for each in request.scans
    )
    return Need(scans, order=Order(*request.order) if request.order is not None else None)


def _listed(values: Values) -> _Listed:
    return {
        column: tuple(each for each in among if isinstance(each, bool | int | str))
        for column, among in values.items()
    }


def _values(listed: _Listed) -> Values:
    return {column: frozenset[object](among) for column, among in listed.items()}
