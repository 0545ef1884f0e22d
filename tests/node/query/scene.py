"""A real node and real services, and invocations in every state."""

import http.client
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.node.admin.world import World

from perdure.node.query.libraries import arrow

ARROW = "application/vnd.apache.arrow.stream"
DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to a statement."""

    status: int
    media_type: str
    body: bytes

    @property
    def rows(self) -> list[dict[str, Any]]:
        assert (self.status, self.media_type) == (200, "application/json"), self.body
        rows: list[dict[str, Any]] = json.loads(self.body)["rows"]
        return rows

    @property
    def message(self) -> str:
        assert self.status >= 400, self.body
        return str(json.loads(self.body)["message"])

    @property
    def table(self) -> Any:
        """The Arrow stream, read to its end."""
        assert (self.status, self.media_type) == (200, ARROW), self.body
        return arrow.ipc.open_stream(io.BytesIO(self.body)).read_all()


class Scene:
    """``ids`` by what was called: ``step`` and ``refuse`` completed, ``nap`` suspended, ``hang``
    and ``hold`` running, ``trip`` backing off, ``pending`` inboxed, ``later`` scheduled, ``halted``
    paused, ``flow`` a workflow's run."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.ids: dict[str, str] = {}
        self.deployment = ""

    def start(self) -> None:
        world, ids = self.world, self.ids
        world.start()
        registered = world.admin("POST", "/deployments", {"uri": world.service})
        self.deployment = registered.json()["id"]
        ids["step"] = world.send("/Probe/step/send", "in", **{"idempotency-key": "once"})
        ids["refuse"] = world.send("/Probe/refuse/send")
        ids["nap"] = world.send("/Probe/nap/send", 3600)
        ids["hang"] = world.send("/Probe/hang/send")
        ids["trip"] = world.send("/Probe/trip/send")
        ids["halted"] = world.send("/Probe/nap/send", 1800)
        ids["hold"] = world.send("/Keyed/b/hold/send")
        ids["put"] = world.send("/Keyed/a/put/send", "x")
        ids["later"] = world.send("/Probe/echo/send?delay=1h", "z")
        ids["flow"] = world.send("/Flow/w/run/send")
        for name, status in (
            ("step", "completed"),
            ("refuse", "completed"),
            ("nap", "suspended"),
            ("halted", "suspended"),
            ("hang", "running"),
            ("trip", "backing-off"),
            ("hold", "running"),
            ("put", "completed"),
            ("flow", "completed"),
        ):
            world.wait_status(ids[name], status)
        ids["pending"] = world.send("/Keyed/b/put/send", "q")
        world.wait_status(ids["pending"], "pending")
        world.admin("PATCH", f"/invocations/{ids['halted']}/pause")
        world.wait_status(ids["halted"], "paused")

    def stop(self) -> None:
        self.world.stop()

    def ask(
        self, statement: str, accept: str | None = "application/json", path: str = "/query"
    ) -> Answer:
        """One statement over a connection of its own."""
        address = urlsplit(self.world.admin_url)
        connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=DEADLINE_SECONDS
        )
        headers = {"content-type": "application/json"}
        if accept is not None:
            headers["accept"] = accept
        try:
            connection.request("POST", path, json.dumps({"query": statement}), headers)
            response = connection.getresponse()
            media_type = response.getheader("content-type") or ""
            return Answer(response.status, media_type, response.read())
        finally:
            connection.close()

    def rows(self, statement: str) -> list[dict[str, Any]]:
        return self.ask(statement).rows

    def value(self, statement: str) -> Any:
        """The one value of the one row."""
        (row,) = self.rows(statement)
        (value,) = row.values()
        return value
