"""Attach, output and lookup in all their forms; awakeables; health."""

import itertools

import pytest
from tests.node.ingress.client import Client, Reply
from tests.node.ingress.endpoint import AWAKEABLE_INDEX
from tests.node.ingress.test_calls import refused
from tests.node.ingress.world import Stage

from perdure.core.ids import (
    format_awakeable_id,
    format_invocation_id,
    make_invocation_id,
    parse_invocation_id,
)
from perdure.engine.commands import Cancel, Kill
from perdure.node.registry.model import Registry

_FRESH = itertools.count()
AWAKEABLE_OF_NOBODY = format_awakeable_id(make_invocation_id(1, 2), 17)
UNKNOWN = format_invocation_id(make_invocation_id(1 << 63, 5))


def fresh(stem: str) -> str:
    """A key that no other test uses."""
    return f"{stem}{next(_FRESH)}"


def awakeable_of(reply: Reply, index: int = AWAKEABLE_INDEX) -> str:
    """The awakeable of the invocation that a send started."""
    return format_awakeable_id(parse_invocation_id(reply.headers["x-restate-id"]), index)


def by_call(service: str, handler: str, idempotency_key: str, key: str | None) -> dict[str, object]:
    return {
        "target": "idempotentInvocation",
        "service": service,
        "handler": handler,
        "idempotencyKey": idempotency_key,
        **({"key": key} if key is not None else {}),
    }


@pytest.mark.parametrize(
    ("service", "key"), [("Greeter", None), ("Counter", "a/b"), ("Counter", "")]
)
def test_all_forms_meet_the_same_invocation(
    stage: Stage, client: Client, service: str, key: str | None
) -> None:
    async def scenario() -> None:
        idempotency_key = fresh("forms")
        segment = "" if key is None else "/" + key.replace("/", "%2F")
        fields = [("idempotency-key", idempotency_key)]
        sent = await client.ask("POST", f"/{service}{segment}/wait/send", headers=fields)
        id_ = sent.headers["x-restate-id"]
        named = by_call(service, "wait", idempotency_key, key)
        path = f"/restate/invocation/{service}{segment}/wait/{idempotency_key}"
        forms = [
            ("GET", f"/restate/invocation/{id_}/", ""),
            ("GET", f"{path}/", ""),
            ("GET", "/restate/", f"/{id_}"),
        ]
        for method, before, after in forms:
            refused(await client.ask(method, f"{before}output{after}"), 470)
        refused(await client.post("/restate/output", named), 470)
        found = await client.post("/restate/lookup", named)
        assert (found.status, found.document) == (200, {"invocationId": id_})

        attached = [client.start(method, f"{b}attach{a}") for method, b, a in forms]
        again = client.start("POST", f"/{service}{segment}/wait", headers=fields)
        statistics = stage.world.ingress.statistics
        await stage.world.wait_until(lambda: statistics().pending == len(attached) + 1)
        await stage.world.endpoint.wait_started(f"{service}/wait")
        resolved = await client.ask("POST", f"/restate/a/{awakeable_of(sent)}/resolve", b"done")
        assert (resolved.status, resolved.body) == (202, b"")
        for pending in (*attached, again):
            reply = await pending.reply()
            assert (reply.status, reply.body) == (200, b"done")
            assert reply.headers["x-restate-id"] == id_
            assert reply.headers["content-type"] == "application/octet-stream"
            assert "idempotency-expires" not in reply.headers
        for verb in ("attach", "output"):
            for method, before, after in forms:
                reply = await client.ask(method, f"{before}{verb}{after}")
                assert (reply.status, reply.body) == (200, b"done")
                assert "idempotency-expires" in reply.headers
            assert (await client.post(f"/restate/{verb}", named)).body == b"done"

    stage.run(scenario())


def test_workflow(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        key = fresh("w ")
        path = f"/restate/workflow/Flow/{key.replace(' ', '%20')}"
        named = {"target": "workflow", "workflowName": "Flow", "workflowKey": key}
        refused(await client.get(f"{path}/output"), 404)
        sent = await client.post(f"/Flow/{key.replace(' ', '%20')}/run/send", 1)
        refused(await client.get(f"{path}/output"), 470)
        attached = client.start("GET", f"{path}/attach")
        await client.ask("POST", f"/restate/awakeables/{awakeable_of(sent)}/resolve", b"7")
        assert (await attached.reply()).body == b"7"
        assert (await client.get(f"{path}/output")).body == b"7"
        assert (await client.post("/restate/attach", named)).body == b"7"
        assert (await client.get(f"{path}/output")).headers["content-type"] == "application/json"

    stage.run(scenario())


def test_call_without_key_is_kept_too(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        reply = await client.post("/Greeter/greet", "Ada")
        output = await client.get(f"/restate/output/{reply.headers['x-restate-id']}")
        assert (output.status, output.body) == (200, b'"Hello Ada"')

    stage.run(scenario())


def test_nothing_is_kept_where_retention_is_none(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        reply = await client.ask("POST", "/Greeter/forgotten")
        assert reply.status == 200
        refused(await client.get(f"/restate/output/{reply.headers['x-restate-id']}"), 404)

    stage.run(scenario())


def test_unknown_invocation(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        attached = await client.get(f"/restate/attach/{UNKNOWN}")
        refused(attached, 404, "invocation")
        assert attached.headers["x-restate-id"] == UNKNOWN
        refused(await client.get(f"/restate/output/{UNKNOWN}"), 404)
        refused(await client.get("/restate/invocation/Nobody/greet/k/output"), 404)
        refused(await client.get("/restate/workflow/Nobody/k/output"), 404)
        looked = {"target": "workflow", "workflowName": "Nobody", "workflowKey": "k"}
        assert (await client.post("/restate/lookup", looked)).status == 200

    stage.run(scenario())


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/restate/attach/inv_1x", 400),
        ("POST", f"/restate/attach/{UNKNOWN}", 405),
        ("GET", "/restate/attach", 405),
        ("POST", "/restate/attach", 400),
        ("GET", "/restate/lookup", 405),
        ("POST", f"/restate/invocation/{UNKNOWN}/attach", 405),
        ("GET", f"/restate/invocation/{UNKNOWN}/cancel", 404),
        ("POST", "/restate/health", 405),
        ("HEAD", "/restate/health/x", 405),
        ("POST", "/restate/awakeables/sign_1x/resolve", 400),
        (
            "GET",
            f"/restate/awakeables/{AWAKEABLE_OF_NOBODY}/resolve",
            405,
        ),
        ("POST", "/restate/foo", 404),
    ],
)
def test_refusals(stage: Stage, client: Client, method: str, target: str, status: int) -> None:
    async def scenario() -> None:
        reply = await client.ask(method, target, b"{" if method == "POST" else b"")
        if method == "HEAD":
            assert (reply.status, reply.body) == (status, b"")
        else:
            refused(reply, status)

    stage.run(scenario())


def test_rejected_awakeable_fails_its_invocation(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        sent = await client.ask("POST", "/Greeter/wait/send")
        id_ = sent.headers["x-restate-id"]
        attached = client.start("GET", f"/restate/invocation/{id_}/attach")
        for _ in range(2):  # the second finds nobody
            reply = await client.ask(
                "POST", f"/restate/a/{awakeable_of(sent)}/reject", b"not \xff today"
            )
            assert (reply.status, reply.body) == (202, b"")
            assert "content-type" not in reply.headers
        document = refused(await attached.reply(), 500, "invocation")
        assert document["message"] == "not \ufffd today"

    stage.run(scenario())


def test_awakeables_of_nobody_are_accepted(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        for id_ in (AWAKEABLE_OF_NOBODY, AWAKEABLE_OF_NOBODY.replace("sign", "prom")):
            for verb in ("resolve", "reject"):
                reply = await client.ask("POST", f"/restate/awakeables/{id_}/{verb}")
                assert (reply.status, reply.body) == (202, b"")

    stage.run(scenario())


@pytest.mark.parametrize("is_kill", [False, True])
def test_ended_by_an_operator(stage: Stage, client: Client, is_kill: bool) -> None:
    async def scenario() -> None:
        key = fresh("ended")
        count = len([name for name, _ in stage.world.endpoint.started if name == "Counter/wait"])
        call = client.start("POST", f"/Counter/{key}/wait")
        waiting = await stage.world.endpoint.wait_started("Counter/wait", count + 1)
        behind = client.start("POST", f"/Counter/{key}/wait")
        attached = client.start("GET", f"/restate/attach/{format_invocation_id(waiting)}")
        await stage.world.wait_until(lambda: stage.world.ingress.statistics().pending == 3)
        command = Kill(waiting) if is_kill else Cancel(waiting)
        gateway = stage.world.host.gateway
        gateway.propose(command, int.from_bytes(waiting[:8]), lambda _: None, _fail)
        for pending in (call, attached):
            reply = await pending.reply()
            refused(reply, 409, "invocation")
            assert reply.headers["x-restate-id"] == format_invocation_id(waiting)
        next_one = await stage.world.endpoint.wait_started(
            "Counter/wait", count + 2 + (not is_kill)
        )
        gateway.propose(Kill(next_one), int.from_bytes(next_one[:8]), lambda _: None, _fail)
        refused(await behind.reply(), 409, "invocation")

    stage.run(scenario())


def test_cancelled_before_it_began(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        sent = await client.post("/Greeter/greet/send?delay=1d", "Ada")
        id_text = sent.headers["x-restate-id"]
        id_ = parse_invocation_id(id_text)
        attached = client.start("GET", f"/restate/attach/{id_text}")
        await stage.world.wait_until(lambda: stage.world.ingress.statistics().pending == 1)
        gateway = stage.world.host.gateway
        gateway.propose(Cancel(id_), int.from_bytes(id_[:8]), lambda _: None, _fail)
        refused(await attached.reply(), 409, "invocation")
        refused(await client.get(f"/restate/attach/{id_text}"), 404, "invocation")

    stage.run(scenario())


def test_output_of_what_is_no_longer_registered(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        reply = await client.post("/Greeter/greet", "Ada")
        target = f"/restate/output/{reply.headers['x-restate-id']}"
        registry = stage.world.catalogue.registry
        stage.world.adopt(Registry())
        refused(await client.get(target), 404)
        assert (await client.get("/restate/health")).document == {"services": []}
        stage.world.adopt(registry)
        assert (await client.get(target)).status == 200

    stage.run(scenario())


def test_health(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        for target in ("/restate/health", "/restate/health/x/y"):
            reply = await client.get(target)
            assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
            assert reply.document == {"services": ["Counter", "Flow", "Greeter"]}

    stage.run(scenario())


def _fail(error: Exception) -> None:
    raise error
