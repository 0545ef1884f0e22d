"""Dialling over TCP that is given up half-way: whatever the loop tells of it, closing ends."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from perdure.cluster.tcp_transport import TcpWires
from perdure.cluster.wires import Wire

_TURNS_MAX = 12
_TRIES = 20
_DEADLINE_SECONDS = 20.0

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_a_dial_that_is_given_up_at_any_moment_holds_up_nobody(run: Run) -> None:
    async def story() -> None:
        served: list[Wire] = []
        wires = TcpWires("127.0.0.1:0")
        address = await wires.listen(served.append)
        async with asyncio.timeout(_DEADLINE_SECONDS):
            for turns in range(_TURNS_MAX):
                for _ in range(_TRIES):
                    connection = wires.connect(address)
                    dial = asyncio.ensure_future(connection.open())
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    dial.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        (await dial).close()
                    await connection.aclose()
            await wires.aclose()

    run(story())
