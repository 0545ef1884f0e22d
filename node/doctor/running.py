"""What a node that runs says of its cluster, and how far the clocks of the nodes are apart."""

import http.client
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import cast
from urllib.parse import urlsplit

from perdure.core.clock import Clock
from perdure.core.limits_telling import CLOCK_SKEW_MS
from perdure.node.doctor.findings import Finding, Level, ok

Document = Mapping[str, object]

_LEVELS = {"critical": Level.CRITICAL, "warning": Level.WARNING, "note": Level.NOTE}
_TIMEOUT_S = 2.0
_SECOND_MS = 1_000


def check_cluster(document: Document) -> Iterator[Finding]:
    """What ``perdure cluster status`` is made of: problems, partitions, versions."""
    where = f"seen by {document.get('seen_by')}"
    problems = _rows(document, "problems")
    for row in problems:
        yield Finding(
            _LEVELS.get(str(row.get("severity")), Level.WARNING),
            "cluster",
            str(row.get("what")),
            where,
            str(row.get("advice")),
        )
    partitions = _rows(document, "partitions")
    if not problems:
        led = sum(row.get("leader") is not None for row in partitions)
        yield ok("cluster", f"all is well: {led} of {len(partitions)} partitions are led", where)
    versions = {str(row["software"]) for row in _rows(document, "nodes") if row.get("software")}
    if len(versions) > 1:
        listed = ", ".join(
            f"{row.get('name')} {row.get('software')}" for row in _rows(document, "nodes")
        )
        what = f"nodes run different releases: {listed}"
        advice = "finish the upgrade, one node at a time"
        yield Finding(Level.NOTE, "versions", what, where, advice)
    elif versions:
        yield ok("versions", f"all nodes run {versions.pop()}", where)


def check_clocks(
    document: Document, clock: Clock, ask: Callable[[str], int | None] | None = None
) -> Iterator[Finding]:
    """The clocks of nodes whose admin port can be reached from here, beside this machine's."""
    ask = ask or _ask_time
    for row in _rows(document, "nodes"):
        url = cast(dict[str, str], row.get("addresses") or {}).get("admin")
        if not url or row.get("state") == "dead":
            continue
        before = clock.now_ms()
        there = ask(url)
        if there is None:
            continue
        after = clock.now_ms()
        # It was within this second that the node said so.
        apart = max(there - after, before - (there + _SECOND_MS), 0)
        where = f"{row.get('name')} {url}"
        if apart > CLOCK_SKEW_MS:
            what = f"its clock and this machine's are {apart / 1000:.1f} s apart"
            advice = "keep the clocks of all nodes in step (NTP): timers fire early or late"
            yield Finding(Level.WARNING, "clocks", what, where, advice)
        else:
            yield ok("clocks", "its clock and this machine's agree", where)


def _ask_time(url: str) -> int | None:
    """What a node says the time is, in milliseconds; None: it doesn't answer."""
    parts = urlsplit(url)
    try:
        make = (
            http.client.HTTPSConnection if parts.scheme == "https" else (http.client.HTTPConnection)
        )
        connection = make(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/version")
            date = connection.getresponse().getheader("date")
        finally:
            connection.close()
        return int(parsedate_to_datetime(date).timestamp() * 1000) if date else None
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _rows(document: Document, name: str) -> list[dict[str, object]]:
    return cast(list[dict[str, object]], document.get(name) or [])
