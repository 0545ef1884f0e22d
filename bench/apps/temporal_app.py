"""The handlers with Temporal: ``python -m bench.apps.temporal_app PORT SERVER``.

Runs in the peers' environment. A durable step is an activity. The sandbox is off: it only costs.
"""

import asyncio
import sys
import uuid
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from bench.apps import front
from bench.apps.wakes import Wakes

QUEUE = "bench"
_wakes = Wakes()


@activity.defn
async def same(number: int) -> int:
    return number


@workflow.defn
class Steps:
    @workflow.run
    async def run(self, count: int) -> int:
        for number in range(count):
            await workflow.execute_activity(
                same, number, start_to_close_timeout=timedelta(minutes=1)
            )
        return count


@workflow.defn
class Fan:
    @workflow.run
    async def run(self, count: int) -> int:
        await asyncio.gather(*(workflow.execute_child_workflow(Steps.run, 0) for _ in range(count)))
        return count


@workflow.defn
class Hold:
    @workflow.run
    async def run(self, wake_ms: int) -> None:
        await asyncio.sleep(max(0.0, wake_ms / 1e3 - workflow.now().timestamp()))
        if not workflow.unsafe.is_replaying():
            _wakes.note(workflow.info().workflow_id, wake_ms)


WORKFLOWS: dict[str, Any] = {"steps": Steps.run, "fan": Fan.run, "hold": Hold.run}


async def main() -> None:
    client = await Client.connect(sys.argv[2])

    async def call(handler: str, argument: Any, waits: bool) -> Any:
        if handler == "woken":
            return _wakes.report(argument)
        name = str(uuid.uuid4())
        start = client.execute_workflow if waits else client.start_workflow
        result = await start(WORKFLOWS[handler], argument, id=name, task_queue=QUEUE)
        return result if waits else name

    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Steps, Fan, Hold],
        activities=[same],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        await front.run(call, int(sys.argv[1]))


if __name__ == "__main__":
    asyncio.run(main())
