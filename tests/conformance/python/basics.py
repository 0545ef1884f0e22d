"""Plain handlers: payloads, headers, outcomes of every kind, visibility."""

from datetime import timedelta
from typing import Any

import restate
from restate import Context, InvocationRetryPolicy, Service, TerminalError
from restate.serde import BytesSerde
from tests.conformance.ledger import Ledger

QUICK_RETRIES = InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=20), exponentiation_factor=1.0
)


def three_attempts(on_max_attempts: str) -> InvocationRetryPolicy:
    """Three quick attempts, then what is asked for."""
    return InvocationRetryPolicy(
        initial_interval=timedelta(milliseconds=10),
        exponentiation_factor=1.0,
        max_attempts=3,
        on_max_attempts="pause" if on_max_attempts == "pause" else "kill",
    )


def services(prefix: str, ledger: Ledger) -> list[Any]:
    return [_basics(prefix, ledger), _failing(prefix, ledger), _hidden(prefix)]


def _basics(prefix: str, ledger: Ledger) -> Service:
    basics = Service(f"{prefix}Basics", invocation_retry_policy=QUICK_RETRIES)

    @basics.handler(
        accept="*/*",
        content_type="application/octet-stream",
        input_serde=BytesSerde(),
        output_serde=BytesSerde(),
    )
    async def echo(ctx: Context, payload: bytes) -> bytes:
        return payload

    @basics.handler()
    async def greet(ctx: Context, name: str) -> str:
        return f"hello {name}"

    @basics.handler()
    async def headers(ctx: Context) -> dict[str, str]:
        return dict(ctx.request().headers)

    @basics.handler()
    async def nothing(ctx: Context) -> None:
        ledger.add("nothing", ctx.request().id)

    @basics.handler(ingress_private=True)
    async def private(ctx: Context, name: str) -> str:
        return f"private {name}"

    @basics.handler()
    async def call_private(ctx: Context, name: str) -> str:
        return await ctx.service_call(private, name)

    return basics


def _failing(prefix: str, ledger: Ledger) -> Service:
    failing = Service(f"{prefix}Failing", invocation_retry_policy=QUICK_RETRIES)

    @failing.handler()
    async def terminally(ctx: Context, failure: dict[str, Any]) -> None:
        raise TerminalError(failure["message"], failure["code"], failure.get("metadata"))

    @failing.handler()
    async def at_first(ctx: Context, arg: dict[str, Any]) -> int:
        attempt = ledger.add(arg["key"])
        if attempt <= arg["times"]:
            raise ValueError(f"attempt {attempt} fails")
        return attempt

    @failing.handler(invocation_retry_policy=three_attempts("pause"))
    async def until_healed_pause(ctx: Context, key: str) -> int:
        return _until_healed(ledger, key)

    @failing.handler(invocation_retry_policy=three_attempts("kill"))
    async def until_healed_kill(ctx: Context, key: str) -> int:
        return _until_healed(ledger, key)

    return failing


def _until_healed(ledger: Ledger, key: str) -> int:
    attempt = ledger.add(key)
    if not ledger.count(f"{key} healed"):
        raise ValueError("not healed yet")
    return attempt


def _hidden(prefix: str) -> Service:
    hidden = restate.Service(f"{prefix}Hidden", ingress_private=True)

    @hidden.handler()
    async def greet(ctx: Context, name: str) -> str:
        return f"hidden {name}"

    return hidden
