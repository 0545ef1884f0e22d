"""The service under test: executes the JSON programs of ``programs.py`` with the official SDK.

Run as ``python -m tests.process.interpreter --port N --ledger PATH`` (served by hypercorn, HTTP/2
and HTTP/1.1). It shares nothing with the model but the JSON: what a program means is written down
here once, in SDK calls, and in ``model.py`` once more, as plain arithmetic.
"""

import argparse
import asyncio
import json
import logging
import secrets
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import restate
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config
from restate.exceptions import TerminalError
from tests.process.ledger import LedgerWriter, Line

Document = dict[str, Any]

POLICY = restate.InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=50),
    max_interval=timedelta(milliseconds=500),
    exponentiation_factor=2.0,
    max_attempts=1_000_000,
)

# The plain service is asked to suspend soon, the others stay attached while they wait.
runner = restate.Service(
    "Runner", invocation_retry_policy=POLICY, inactivity_timeout=timedelta(milliseconds=150)
)
cell = restate.VirtualObject("Cell", invocation_retry_policy=POLICY)
flow = restate.Workflow(
    "Flow", invocation_retry_policy=POLICY, inactivity_timeout=timedelta(seconds=1)
)


@runner.handler("run")
async def run_runner(ctx: restate.Context, program: Document) -> Document:
    return await Execution(ctx, program).run()


@cell.handler("run", kind="exclusive")
async def run_cell(ctx: restate.ObjectContext, program: Document) -> Document:
    return await Execution(ctx, program).run()


@cell.handler("read", kind="shared", enable_lazy_state=True)
async def read_cell(ctx: restate.ObjectSharedContext) -> Document:
    count = await ctx.get("count", type_hint=int)
    tokens = await ctx.get("log", type_hint=list[str])
    return {"count": count or 0, "log": tokens or []}


@flow.main("run")
async def run_flow(ctx: restate.WorkflowContext, program: Document) -> Document:
    return await Execution(ctx, program).run()


@flow.handler("settle")
async def settle_flow(ctx: restate.WorkflowSharedContext, settle: Document) -> str:
    await ctx.promise(settle["promise"], type_hint=str).resolve(settle["value"])
    return "ok"


class Surroundings:
    """What the process has besides the SDK: its ledger, and which flaky steps failed already."""

    ledger: LedgerWriter
    failed: set[tuple[str, int]]


class Execution:
    """One attempt to execute a program."""

    def __init__(self, ctx: restate.Context, program: Document) -> None:
        self._ctx = ctx
        self._name: str = program["name"]
        self._program = program
        self._sent: dict[int, restate.SendHandle] = {}

    async def run(self) -> Document:
        results = [await self._op(index, op) for index, op in enumerate(self._program["ops"])]
        self._note("end", len(results), "-")
        if self._program["failure"]:
            raise TerminalError(self._program["failure"], status_code=self._program["code"])
        return {"name": self._name, "results": results}

    async def _op(self, index: int, op: Document) -> Any:
        match op["op"]:
            case "step":
                return await self._step(index, op["flaky"])
            case "sleep":
                await self._ctx.sleep(timedelta(milliseconds=op["ms"]))
                return "slept"
            case "call":
                return await _outcome(self._call(op["program"]))
            case "send":
                self._sent[index] = self._send(op["program"], op["delay_ms"])
                return "sent"
            case "attach":
                invocation = await self._sent[op["send"]].invocation_id()
                return await _outcome(self._ctx.attach_invocation(invocation, type_hint=dict))
            case "both":
                calls = [self._call(program) for program in op["programs"]]
                await restate.gather(*calls)
                return [await _outcome(call) for call in calls]
            case "twice":
                key = op["program"]["name"]
                calls = [self._call(op["program"], key) for _ in range(2)]
                await restate.gather(*calls)
                return [await _outcome(call) for call in calls]
            case "awakeable":
                return await self._awakeable(index)
            case "peek":
                answer = await self._ctx.generic_call("Cell", "read", b"", key=op["key"])
                return json.loads(answer)["count"]
            case "run_flow":
                return await self._run_flow(op)
            case _:
                return await self._keyed_op(op)

    async def _keyed_op(self, op: Document) -> Any:
        # The SDK has one class for all contexts; the program says what it may be used as.
        ctx = cast(restate.WorkflowContext, self._ctx)
        match op["op"]:
            case "increment":
                count = await ctx.get("count", type_hint=int) or 0
                ctx.set("count", count + 1)
                return count
            case "append":
                tokens = await ctx.get("log", type_hint=list[str]) or []
                ctx.set("log", [*tokens, op["token"]])
                return "appended"
            case "await_promise":
                return await ctx.promise(op["promise"], type_hint=str).value()
            case _:
                raise TerminalError(f"no such operation: {op}")

    async def _step(self, index: int, is_flaky: bool) -> str:
        place = (self._name, index)

        # A coroutine, so that it runs on the loop: a thread could outlive the attempt.
        async def execute() -> str:
            if is_flaky and place not in Surroundings.failed:
                Surroundings.failed.add(place)
                raise ValueError("the first try of a flaky step")
            nonce = secrets.token_hex(8)
            self._note("ran", index, nonce)
            return nonce

        nonce = await self._ctx.run_typed(f"step {index}", execute)
        self._note("seen", index, nonce)
        return nonce

    async def _awakeable(self, index: int) -> str:
        name, future = self._ctx.awakeable(type_hint=str)

        async def publish() -> None:
            self._note("wake", index, name)

        await self._ctx.run_typed(f"publish {index}", publish)
        return await future

    async def _run_flow(self, op: Document) -> Document:
        program = op["program"]
        run = self._call(program)
        settled: list[Any] = []
        for settle in op["settles"]:
            answer = await self._ctx.generic_call(
                "Flow", "settle", json.dumps(settle).encode(), key=program["key"]
            )
            settled.append(json.loads(answer))
        return {"run": await _outcome(run), "settled": settled}

    def _call(
        self, program: Document, idempotency_key: str | None = None
    ) -> restate.RestateDurableCallFuture[bytes]:
        return self._ctx.generic_call(
            program["service"],
            "run",
            json.dumps(program).encode(),
            key=program["key"] or None,
            idempotency_key=idempotency_key,
        )

    def _send(self, program: Document, delay_ms: int) -> restate.SendHandle:
        return self._ctx.generic_send(
            program["service"],
            "run",
            json.dumps(program).encode(),
            key=program["key"] or None,
            send_delay=timedelta(milliseconds=delay_ms) if delay_ms else None,
        )

    def _note(self, kind: str, index: int, value: str) -> None:
        Surroundings.ledger.append(Line(kind, self._name, index, value, self._ctx.request().id))


async def _outcome(future: restate.RestateDurableFuture[Any]) -> Document:
    try:
        answer = await future
    except TerminalError as error:
        return {"failed": error.message, "code": error.status_code}
    return {"returned": json.loads(answer) if isinstance(answer, bytes) else answer}


def serve_with(
    services: Sequence[restate.Service | restate.VirtualObject | restate.Workflow],
    host: str = "127.0.0.1",
    requests_per_connection: int | None = None,
) -> None:
    """Run services that write to a ledger, as the command line says, until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    arguments = parser.parse_args()
    # Failing attempts are the point here: their stack traces would drown everything else.
    logging.getLogger("restate").setLevel(logging.CRITICAL)
    Surroundings.ledger = LedgerWriter(arguments.ledger)
    Surroundings.failed = set()
    config = Config()
    config.bind = [f"{host}:{arguments.port}"]
    config.loglevel = "WARNING"
    if requests_per_connection is not None:
        config.keep_alive_max_requests = requests_per_connection
    app = restate.app(services)
    asyncio.run(serve(app, config))


if __name__ == "__main__":
    serve_with([runner, cell, flow])
