"""/perdure/invocations: reading invocations and their journals, page by page.

Tables are read in short turns on the event loop, so a page is not one moment: rows may change
between turns. The cursor is the last id looked at. Partitions are read one after the other, each in
the order of its table (fresh ids in the order they were made), so what stays is neither missed nor
repeated.
"""

import asyncio
from dataclasses import dataclass
from typing import NamedTuple, cast

import msgspec

from perdure.core.errors import BadRequest, NotFound
from perdure.core.hashing import key_partition_key
from perdure.core.ids import (
    InvocationId,
    PartitionId,
    format_invocation_id,
    partition_key_of,
    partition_of,
)
from perdure.core.limits import (
    INSPECTION_BYTES_MAX,
    INSPECTION_BYTES_PER_TURN,
    INSPECTION_PAGE_MAX,
    INSPECTION_ROWS_MAX,
    INSPECTION_ROWS_PER_TURN,
)
from perdure.node.admin import invocation_rows as shapes
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.elsewhere import PARTITION
from perdure.node.admin.invocation_rows import ALIASES, STATUSES, Document
from perdure.node.admin.requests import Reply, Request, json_reply, parse_invocation
from perdure.node.admin.routes import Route
from perdure.node.invoker.run import RunStatistics
from perdure.storage.keys import index_suffix, invocation_key
from perdure.storage.tables.invocations import Completed, Inboxed, Invocation, Invoked, Scheduled

_LISTED_AT = "/perdure/invocations"
_PAGE_COUNT = 50
_JOURNAL_PAGE_COUNT = 100
_EVENTS_COUNT = 100
_JOURNAL_INDEX_MAX = 0xFFFF_FFFF
_ENCODE = msgspec.json.Encoder().encode


class Position(NamedTuple):
    """Where reading goes on: at ``lower`` in a partition's table of invocations."""

    partition: int
    lower: bytes


START = Position(0, b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which invocations are asked for; None: any. Made in ``[created_after, created_before)``."""

    statuses: frozenset[str] | None
    service: str | None
    handler: str | None
    key: str | None
    created_after_ms: int | None
    created_before_ms: int | None

    def admits(self, row: Invocation) -> bool:
        """Whether the row fits but for its status."""
        target, created_at_ms = row.spec.target, row.spec.created_at_ms
        return (
            (self.service is None or target.service == self.service)
            and (self.handler is None or target.handler == self.handler)
            and (self.key is None or target.key == self.key)
            and (self.created_after_ms is None or created_at_ms >= self.created_after_ms)
            and (self.created_before_ms is None or created_at_ms < self.created_before_ms)
        )


class _Rows:
    """Rows of an answer, encoded: as many as were asked for, or as are long enough together."""

    def __init__(self, limit: int) -> None:
        self.rows: list[msgspec.Raw] = []
        self._limit = limit
        self._left = INSPECTION_BYTES_MAX

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= self._limit or self._left <= 0

    def add(self, document: Document) -> None:
        row = msgspec.Raw(_ENCODE(document))
        self.rows.append(row)
        self._left -= len(row)


async def list_invocations(context: Context, request: Request) -> Reply:
    """A page of invocations; ``cursor`` is there when there may be more."""
    wanted = _filter(request)  # what is wrong is told at once
    limit = request.number("limit", _PAGE_COUNT, 1, INSPECTION_PAGE_MAX)
    cursor = request.query.get("cursor")
    position, end = START, context.gateway.partition_count
    if wanted.key is not None:
        # All invocations of a key are in one partition.
        only = partition_of(key_partition_key(wanted.key), end)
        position, end = Position(only, b""), only + 1
    if cursor is not None:
        position = max(position, _behind(context, parse_invocation(cursor)))
    if PARTITION in request.query:
        only = PartitionId(int(request.query[PARTITION]))
        position, end = max(position, Position(only, b"")), min(end, only + 1)
    else:
        parts = range(position.partition, end)
        if not all(context.elsewhere.is_here(PartitionId(each)) for each in parts):
            return await _list_parts(context, request, parts, limit)
    found = _Rows(limit)
    looked_at = 0
    last: InvocationId | None = None
    while not found.is_full and looked_at < INSPECTION_ROWS_MAX:
        chunk, following = scan(context, position, end)
        for invocation, row in chunk:
            last = invocation
            looked_at += 1
            if (document := _select(context, wanted, invocation, row)) is not None:
                found.add(document)
                if found.is_full:
                    break
        else:
            if following is None:
                return json_reply(200, {"invocations": found.rows})
            position = following
        await asyncio.sleep(0)
    page: Document = {"invocations": found.rows}
    if last is not None:
        page["cursor"] = format_invocation_id(last)
    return json_reply(200, page)


async def _list_parts(context: Context, request: Request, partitions: range, limit: int) -> Reply:
    """A page of what several nodes lead, partition by partition."""
    found: list[object] = []
    query = {name: text for name, text in request.query.items() if name != "limit"}
    for partition in partitions:
        asked = {**query, "limit": str(limit - len(found))}
        page = await context.elsewhere.ask_part(partition, _LISTED_AT, asked)
        rows = page["invocations"]
        assert isinstance(rows, list)
        found += cast("list[object]", rows)
        cursor = page.get("cursor")
        if cursor is not None:
            return json_reply(200, {"invocations": found, "cursor": cursor})
        query.pop("cursor", None)
    return json_reply(200, {"invocations": found})


async def get_invocation(context: Context, request: Request) -> Reply:
    """An invocation with a page of its journal, and what happened to its attempts."""
    target = parse_invocation(request.parameters["id"])
    start = request.number("from", 0, 0, _JOURNAL_INDEX_MAX)
    limit = request.number("limit", _JOURNAL_PAGE_COUNT, 1, INSPECTION_PAGE_MAX)
    store = context.gateway.store(partition_key_of(target))
    row = store.invocations.get(target)
    if row is None:
        raise NotFound(f"there is no invocation {format_invocation_id(target)}")
    session = _session(context, target) if isinstance(row, Invoked) else None
    document: Document = {**_summary(context, target, row), **shapes.detail(row, session)}
    events = _Rows(_EVENTS_COUNT)
    for _, event in reversed(store.events.scan(target)[-_EVENTS_COUNT:]):
        if not events.is_full:
            events.add(shapes.event_shape(event))
    length = 1 if isinstance(row, Scheduled | Inboxed) else row.progress.journal_length
    journal = _Rows(limit)
    read_bytes = 0
    index = start
    while index < length and not journal.is_full:
        entry = store.journal.get(target, index_suffix(index))
        if entry is None:
            break  # purged meanwhile
        journal.add(shapes.entry_shape(index, entry))
        index += 1
        read_bytes += len(entry.payload) + 256
        if read_bytes > INSPECTION_BYTES_PER_TURN:
            read_bytes = 0
            await asyncio.sleep(0)
    document["journal"] = journal.rows
    document["events"] = events.rows[::-1]
    if journal.is_full and index < length:
        document["next_from"] = index
    return json_reply(200, document)


def _filter(request: Request) -> Filter:
    text = request.query.get("status")
    statuses: frozenset[str] | None = None
    if text is not None:
        names = [name.strip().lower() for name in text.split(",")]
        statuses = frozenset(shown for name in names for shown in ALIASES.get(name, (name,)))
        if unknown := statuses - set(STATUSES):
            raise BadRequest(
                f"status {min(unknown)!r}: expected of {', '.join((*STATUSES, *ALIASES))}"
            )
    return Filter(
        statuses=statuses,
        service=request.query.get("service"),
        handler=request.query.get("handler"),
        key=request.query.get("key"),
        created_after_ms=request.moment("created_after"),
        created_before_ms=request.moment("created_before"),
    )


def scan(
    context: Context, position: Position, end: int
) -> tuple[list[tuple[InvocationId, Invocation]], Position | None]:
    """Some rows from ``position`` on, before partition ``end``; and where to go on, if anywhere."""
    gateway = context.gateway
    count = gateway.partition_count
    lower = position.lower
    for partition in range(position.partition, end):
        # The lowest key of a partition: the least k with k * count >> 64 == partition.
        table = gateway.store(-(-(partition << 64) // count)).invocations
        found = table.scan(lower, INSPECTION_ROWS_PER_TURN)
        following = Position(partition + 1, b"")
        if len(found) == INSPECTION_ROWS_PER_TURN:
            following = Position(partition, table.after(found[-1][0]))
        if found:
            rows = [(InvocationId(key), row) for key, row in found]
            return rows, following if following.partition < end else None
        lower = b""
    return [], None


def _behind(context: Context, invocation: InvocationId) -> Position:
    partition = partition_of(partition_key_of(invocation), context.gateway.partition_count)
    return Position(partition, invocation_key(invocation) + b"\0")


def _select(
    context: Context, wanted: Filter, invocation: InvocationId, row: Invocation
) -> Document | None:
    if not wanted.admits(row):
        return None
    if wanted.statuses is not None:
        session = _session(context, invocation) if isinstance(row, Invoked) else None
        if shapes.status_of(row, session) not in wanted.statuses:
            return None
    return _summary(context, invocation, row)


def _summary(context: Context, invocation: InvocationId, row: Invocation) -> Document:
    store = context.gateway.store(partition_key_of(invocation))
    session = _session(context, invocation) if isinstance(row, Invoked) else None
    result = store.results.get(invocation) if isinstance(row, Completed) else None
    event = None
    if not isinstance(row, Scheduled | Inboxed | Completed) and row.progress.event_count:
        event = store.events.get(invocation, index_suffix(row.progress.event_count - 1))
    return shapes.summary(invocation, row, session, result, event)


def _session(context: Context, invocation: InvocationId) -> RunStatistics | None:
    run = context.gateway.run_of(invocation)
    return run.statistics() if run is not None else None


ROUTES: list[Route[Endpoint]] = [
    Route("GET", _LISTED_AT, list_invocations),
    Route("GET", "/perdure/invocations/{id}", get_invocation),
]
