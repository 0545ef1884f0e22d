"""The handlers with DBOS: ``python -m bench.apps.dbos_app PORT DATABASE_URL``.

Runs in the peers' environment.
"""

import asyncio
import sys
import time
import uuid
from typing import Any

from dbos import DBOS, DBOSConfig

from bench.apps import front
from bench.apps.wakes import Wakes

_wakes = Wakes()


@DBOS.step()
async def same(value: Any) -> Any:
    return value


@DBOS.workflow()
async def steps(count: int) -> int:
    for number in range(count):
        await same(number)
    return count


@DBOS.workflow()
async def echo(payload: str) -> str:
    return await same(payload)


@DBOS.workflow()
async def fan(count: int) -> int:
    calls = [await DBOS.start_workflow_async(steps, 0) for _ in range(count)]
    for call in calls:
        await call.get_result()
    return count


@DBOS.workflow()
async def hold(wake_ms: int) -> None:
    await DBOS.sleep_async(max(0.0, wake_ms / 1e3 - time.time()))
    _wakes.note(DBOS.workflow_id or str(uuid.uuid4()), wake_ms)


WORKFLOWS: dict[str, Any] = {"steps": steps, "echo": echo, "fan": fan, "hold": hold}


async def call(handler: str, argument: Any, waits: bool) -> Any:
    if handler == "woken":
        return _wakes.report(argument)
    if waits:
        return await WORKFLOWS[handler](argument)
    handle = await DBOS.start_workflow_async(WORKFLOWS[handler], argument)
    return handle.workflow_id


async def main() -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": sys.argv[2],
        "log_level": "ERROR",
        "run_admin_server": False,
    }
    DBOS(config=config)
    DBOS.launch()
    await front.run(call, int(sys.argv[1]))


if __name__ == "__main__":
    asyncio.run(main())
