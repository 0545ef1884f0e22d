"""Handlers that call handlers: results, failures, ids, order, attaching, cancelling."""

import json
from datetime import timedelta
from typing import Any

from restate import Context, Service, TerminalError, gather
from tests.conformance.ledger import Ledger
from tests.conformance.python.basics import QUICK_RETRIES


def services(prefix: str, ledger: Ledger) -> list[Any]:
    calls = Service(f"{prefix}Calls", invocation_retry_policy=QUICK_RETRIES)
    _results(calls, prefix)
    _sends(calls, prefix)
    _others(calls)
    return [calls, _families(prefix, ledger)]


async def _call(
    ctx: Context, service: str, handler: str, arg: object = None, key: str | None = None
) -> Any:
    answer = await ctx.generic_call(service, handler, json.dumps(arg).encode(), key)
    return json.loads(answer) if answer else None


def _results(calls: Service, prefix: str) -> None:
    @calls.handler()
    async def service(ctx: Context, name: str) -> str:
        return str(await _call(ctx, f"{prefix}Basics", "greet", name))

    @calls.handler()
    async def object(ctx: Context, arg: dict[str, Any]) -> int:
        return int(await _call(ctx, f"{prefix}Store", "add", arg["amount"], arg["key"]))

    @calls.handler()
    async def failing(ctx: Context, failure: dict[str, Any]) -> dict[str, Any]:
        try:
            await _call(ctx, f"{prefix}Failing", "terminally", failure)
        except TerminalError as error:
            return {"code": error.status_code, "message": error.message}
        return {}

    @calls.handler()
    async def idempotent(ctx: Context, arg: dict[str, Any]) -> list[str]:
        """Two calls with one idempotency key and different bodies."""
        answers: list[str] = []
        for value in ("first", "second"):
            body = json.dumps({"key": arg["key"], "value": value}).encode()
            answer = await ctx.generic_call(
                f"{prefix}Runs", "once", body, idempotency_key=arg["idempotency_key"]
            )
            answers.append(json.loads(answer))
        return answers

    @calls.handler()
    async def fan_out(ctx: Context, arg: dict[str, Any]) -> int:
        running = [
            ctx.generic_call(f"{prefix}Store", "add", b"1", f"{arg['key']}-{index}")
            for index in range(arg["count"])
        ]
        await gather(*running)
        return sum([json.loads(await each) for each in running])

    @calls.handler()
    async def headers(ctx: Context, given: dict[str, str]) -> dict[str, str]:
        answer = await ctx.generic_call(f"{prefix}Basics", "headers", b"", headers=given)
        return dict(json.loads(answer))


def _sends(calls: Service, prefix: str) -> None:
    @calls.handler()
    async def send(ctx: Context, arg: dict[str, Any]) -> str:
        delay = timedelta(milliseconds=arg["delay_ms"]) if arg["delay_ms"] else None
        body = json.dumps(arg["amount"]).encode()
        handle = ctx.generic_send(f"{prefix}Store", "add", body, arg["key"], send_delay=delay)
        return await handle.invocation_id()

    @calls.handler()
    async def send_in_order(ctx: Context, arg: dict[str, Any]) -> None:
        for index in range(arg["count"]):
            body = json.dumps(f"{index:03d}").encode()
            ctx.generic_send(f"{prefix}Queue", "pass_through", body, arg["key"])

    @calls.handler()
    async def start_flow(ctx: Context, arg: dict[str, Any]) -> dict[str, Any]:
        """Call a workflow's run handler; its second call is refused."""
        try:
            answer = await _call(ctx, f"{prefix}Flow", "run", arg["value"], arg["key"])
        except TerminalError as error:
            return {"code": error.status_code}
        return {"value": answer}


def _others(calls: Service) -> None:
    @calls.handler()
    async def attach(ctx: Context, invocation_id: str) -> dict[str, Any]:
        try:
            return {"value": await ctx.attach_invocation(invocation_id)}
        except TerminalError as error:
            return {"code": error.status_code}

    @calls.handler()
    async def cancel(ctx: Context, invocation_id: str) -> None:
        ctx.cancel_invocation(invocation_id)


def _families(prefix: str, ledger: Ledger) -> Service:
    families = Service(
        f"{prefix}Families",
        inactivity_timeout=timedelta(milliseconds=50),
        invocation_retry_policy=QUICK_RETRIES,
    )

    @families.handler()
    async def child(ctx: Context, key: str) -> str:
        name, promise = ctx.awakeable(type_hint=str)
        ledger.add(f"{key} child", f"{ctx.request().id} {name}")
        try:
            return await promise
        except TerminalError as error:
            ledger.add(f"{key} child failed", str(error.status_code))
            raise

    @families.handler()
    async def parent(ctx: Context, key: str) -> str:
        try:
            return await ctx.service_call(child, key)
        except TerminalError as error:
            ledger.add(f"{key} parent failed", str(error.status_code))
            raise

    @families.handler()
    async def stubborn(ctx: Context, key: str) -> str:
        """Swallows its first cancellation."""
        first, promise = ctx.awakeable(type_hint=str)
        ledger.add(key, first)
        try:
            return await promise
        except TerminalError as error:
            second, again = ctx.awakeable(type_hint=str)
            ledger.add(key, second)
            return f"{error.status_code} {await again}"

    return families
