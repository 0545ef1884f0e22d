"""Serve the suite's Python services: ``python -m tests.conformance.python.serve``.

Configured by the environment, as the TypeScript twin is: ``PORT``, ``PREFIX`` (of every service
name, so that one server can hold several copies), ``LEDGER`` (path), ``VERSION`` (of the code),
``MAX_REQUESTS`` (that one connection may carry). HTTP/1.1 and HTTP/2 share the port; the SDK
streams on the one and not on the other.
"""

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import restate
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework
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


def main() -> None:
    environment = os.environ
    ledger = Ledger(Path(environment["LEDGER"]))
    app = restate.app(services(environment["PREFIX"], ledger, environment["VERSION"]))
    config = Config()
    config.bind = [f"127.0.0.1:{environment['PORT']}"]
    config.keep_alive_max_requests = int(environment["MAX_REQUESTS"])
    config.h2_max_concurrent_streams = 2_000
    asyncio.run(serve(cast(ASGIFramework, app), config))


if __name__ == "__main__":
    main()
