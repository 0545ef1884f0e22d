"""A workflow: run once, promises from every side, state read while it runs."""

from datetime import timedelta
from typing import Any

from restate import TerminalError, Workflow, WorkflowContext, WorkflowSharedContext
from tests.conformance.ledger import Ledger
from tests.conformance.python.basics import QUICK_RETRIES


def services(prefix: str, ledger: Ledger) -> list[Any]:
    flow = Workflow(
        f"{prefix}Flow",
        inactivity_timeout=timedelta(milliseconds=50),
        invocation_retry_policy=QUICK_RETRIES,
    )

    @flow.main()
    async def run(ctx: WorkflowContext, value: str) -> str:
        ledger.add(f"flow {ctx.key()}")
        ctx.set("status", "waiting")
        try:
            answer = await ctx.promise("answer", type_hint=str).value()
        except TerminalError as error:
            answer = f"{error.status_code} {error.message}"
        ctx.set("status", "done")
        return f"{value} {answer}"

    @flow.handler()
    async def approve(ctx: WorkflowSharedContext, answer: str) -> None:
        await ctx.promise("answer", type_hint=str).resolve(answer)

    @flow.handler()
    async def refuse(ctx: WorkflowSharedContext, reason: str) -> None:
        await ctx.promise("answer", type_hint=str).reject(reason)

    @flow.handler()
    async def peek(ctx: WorkflowSharedContext) -> Any:
        return await ctx.promise("answer", type_hint=str).peek()

    @flow.handler()
    async def wait(ctx: WorkflowSharedContext) -> str:
        return await ctx.promise("answer", type_hint=str).value()

    @flow.handler()
    async def status(ctx: WorkflowSharedContext) -> Any:
        return await ctx.get("status", type_hint=str)

    return [flow]
