"""Serve the suite's Python services: ``python -m tests.conformance.python.serve``.

Configured by the environment, as the TypeScript twin is: ``PORT``, ``PREFIX`` (of every service
name, so that one server can hold several copies), ``LEDGER`` (path), ``VERSION`` (of the code),
``PROTOCOL_MAX`` (the highest protocol version that discovery admits to),
``MAX_REQUESTS`` (that one connection may carry). HTTP/1.1 and HTTP/2 share the port; the SDK
streams on the one and not on the other.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any, cast

import restate
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from tests.conformance.ledger import Ledger
from tests.conformance.python import basics, calls, flows, objects, runs, waiting


def services(prefix: str, ledger: Ledger, version: str) -> list[Any]:
    """Every service of the suite, each name with the prefix."""
    return [
        *basics.services(prefix, ledger),
        *runs.services(prefix, ledger, version),
        *objects.services(prefix, ledger),
        *waiting.services(prefix, ledger),
        *calls.services(prefix, ledger),
        *flows.services(prefix, ledger),
    ]


def admitting(app: ASGIFramework, version_max: int) -> ASGIFramework:
    """The application, but its discovery names ``version_max`` as the highest protocol version."""

    async def wrapped(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_older(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.body" and event["body"]:
                document = json.loads(event["body"])
                document["maxProtocolVersion"] = version_max
                event["body"] = json.dumps(document).encode()
            await send(event)

        is_discovery = scope["type"] == "http" and scope["path"].endswith("/discover")
        await app(scope, receive, send_older if is_discovery else send)

    return wrapped


def main() -> None:
    environment = os.environ
    ledger = Ledger(Path(environment["LEDGER"]))
    app = restate.app(services(environment["PREFIX"], ledger, environment["VERSION"]))
    config = Config()
    config.bind = [f"127.0.0.1:{environment['PORT']}"]
    config.keep_alive_max_requests = int(environment["MAX_REQUESTS"])
    config.h2_max_concurrent_streams = 2_000
    version_max = int(environment["PROTOCOL_MAX"])
    asyncio.run(serve(admitting(cast(ASGIFramework, app), version_max), config))


if __name__ == "__main__":
    main()
