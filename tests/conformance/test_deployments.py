"""Several versions of code, services that die, connections that wear out."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conformance import dialogue as say
from tests.conformance.client import wait_until
from tests.conformance.conftest import Deploy
from tests.conformance.raw import Attempt, RawEndpoint, Script, manifest, service
from tests.conformance.server import Server
from tests.conformance.services import KINDS, Kind, Services, install_packages
from tests.conformance.world import World, unique

from perdure.proto import service_pb2 as pb

Launch = Callable[..., Services]
# Far below what it takes to notice a silent peer: who has to be noticed that way has stalled.
WORN_TIMEOUT_S = 10.0
BEHIND_THE_INPUT = pytest.mark.differs("restarts from behind the input keep their deployment")
MISSING_DEPLOYMENT = "dp_14JkF5kJ9x5Y28Ugfc8vuA9"


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def own_kind(request: pytest.FixtureRequest) -> Kind:
    """A kind whose services have names of their own in every test."""
    kind: Kind = request.param
    if kind.language == "typescript":
        install_packages()
    return replace(kind, label=unique("Own").replace("-", ""))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts services that end with the test."""
    started: list[Services] = []

    def launch(kind: Kind, version: str = "1", max_requests: int = 1_000_000) -> Services:
        services = Services(kind, tmp_path, version, max_requests)
        started.append(services)
        services.start()
        return services

    yield launch
    for services in started:
        services.process.kill()


@pytest.mark.slow
def test_what_has_begun_stays_with_its_version(
    server: Server, own_kind: Kind, launch: Launch
) -> None:
    first = launch(own_kind, "one")
    world = World(server, own_kind, first.ledger)
    first.register(server)
    key, later = unique("pinned"), unique("later")
    old = world.start("Versioned/pinned", key)
    name = world.await_entry(key)

    launch(own_kind, "two").register(server)
    new = world.start("Versioned/pinned", later)
    world.ingress.resolve(world.await_entry(later), "go")
    world.ingress.resolve(name, "go")

    assert world.result(new) == ["two", "two"]
    assert world.result(old) == ["one", "one"]


def test_what_has_recorded_nothing_moves_to_the_newest_version(
    server: Server, deploy: Deploy
) -> None:
    name = unique("Moving")

    async def broken(attempt: Attempt) -> None:
        await say.replay(attempt)
        attempt.send(say.ERROR, say.error("broken", delay_ms=10))
        attempt.end()

    async def mended(attempt: Attempt) -> None:
        await say.replay(attempt)
        await say.finish(attempt, b'"mended"')

    discovery = manifest([service(name, "go")])
    old = deploy(discovery, {f"{name}/go": broken})
    sent = server.ingress.send(name, "go", "x").invocation_id
    old.await_attempt(f"/invoke/{name}/go")
    deploy(discovery, {f"{name}/go": mended})

    assert server.ingress.attach(sent).json() == "mended"


def _stepping(result: str, seen: list[list[int]]) -> Script:
    """Records a step on its first attempt and pauses; later says which code finished it."""

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        seen.append(say.kinds(entries))
        if say.RUN not in say.kinds(entries):
            attempt.send(say.RUN, say.run(1, "step"))
            attempt.send(say.PROPOSE_RUN, say.proposal(1, b"kept"), ack=True)
            await attempt.receive()
            attempt.send(say.ERROR, pb.ErrorMessage(code=500, message="x", behavior=pb.PAUSE))
            attempt.end()
            return
        await say.finish(attempt, result.encode())

    return script


@pytest.mark.parametrize(
    ("choice", "result"), [("", 1), ("keep", 1), ("latest", 2), ("first", 1), ("second", 2)]
)
def test_a_paused_invocation_may_go_on_elsewhere(
    server: Server, deploy: Deploy, choice: str, result: int
) -> None:
    name = unique("Elsewhere")
    discovery = manifest([service(name, "go")], protocol=(6, 7))
    seen: tuple[list[list[int]], list[list[int]]] = ([], [])
    ids: dict[str, str] = {}

    def launch(which: str, index: int) -> None:
        script = _stepping(str(index + 1), seen[index])
        endpoint = deploy(discovery, {f"{name}/go": script})
        ids[which] = _deployment_at(server, endpoint.uri)

    launch("first", 0)
    sent = server.ingress.send(name, "go", "x").invocation_id
    server.admin.await_status(sent, "paused")
    launch("second", 1)

    query = f"?deployment={ids.get(choice, choice)}" if choice else ""
    assert server.admin.request("PATCH", f"/invocations/{sent}/resume{query}").status == 200

    assert server.ingress.attach(sent).json() == result
    assert seen[result - 1][-1] == [say.INPUT, say.RUN, say.RUN_DONE]


def _deployment_at(server: Server, uri: str) -> str:
    deployments = server.admin.get("/deployments").json()["deployments"]
    (found,) = (each["id"] for each in deployments if each["uri"] == f"{uri}/")
    return str(found)


def test_a_deployment_moves_and_its_invocations_with_it(server: Server, deploy: Deploy) -> None:
    name = unique("Moved")
    discovery = manifest([service(name, "go")])
    old = deploy(discovery, {f"{name}/go": _stepping("1", [])})
    deployment = _deployment_at(server, old.uri)
    sent = server.ingress.send(name, "go", "x").invocation_id
    server.admin.await_status(sent, "paused")
    target = RawEndpoint(discovery)
    target.on(f"{name}/go", _stepping("2", []))
    target.start()
    try:
        change = {"uri": target.uri, "additional_headers": {"x-moved": "yes"}}
        moved = server.admin.send_json("PATCH", f"/deployments/{deployment}", change)
        assert moved.status == 200, moved.body
        assert moved.json()["id"] == deployment
        assert moved.json()["uri"] == f"{target.uri}/"
        assert server.admin.resume(sent).status == 200

        assert server.ingress.attach(sent).json() == 2
        (attempt,) = target.attempts_of(sent)
        assert attempt.headers["x-moved"] == "yes"
    finally:
        target.stop()


def test_where_an_invocation_can_not_go_on(server: Server, deploy: Deploy) -> None:
    name = unique("Nowhere")
    script = _stepping("1", [])
    first = deploy(manifest([service(name, "go")], protocol=(7, 7)), {f"{name}/go": script})
    sent = server.ingress.send(name, "go", "x").invocation_id
    server.admin.await_status(sent, "paused")
    older = deploy(manifest([service(name, "go")], protocol=(5, 6)), {f"{name}/go": script})

    def resume(deployment: str) -> int:
        path = f"/invocations/{sent}/resume?deployment={deployment}"
        return server.admin.request("PATCH", path).status

    for deployment in (_deployment_at(server, older.uri), "latest", MISSING_DEPLOYMENT, "nonsense"):
        assert resume(deployment) == 400
    assert server.admin.status(sent) == "paused"
    assert resume(_deployment_at(server, first.uri)) == 200
    assert server.ingress.attach(sent).json() == 1
    assert resume("latest") == 409


@pytest.mark.parametrize(
    ("query", "result"),
    [
        ("", 2),
        ("?deployment=latest", 2),
        ("?deployment=keep", 1),
        pytest.param("?from=1", 1, marks=BEHIND_THE_INPUT),
        pytest.param("?from=2", 1, marks=BEHIND_THE_INPUT),
        ("?from=2&deployment=latest", 2),
    ],
)
def test_a_restart_runs_on_the_deployment_that_was_asked_for(
    server: Server, deploy: Deploy, query: str, result: int
) -> None:
    name = unique("Again")
    discovery = manifest([service(name, "go")], protocol=(6, 7))

    def launch(result: str) -> None:
        async def script(attempt: Attempt) -> None:
            _, entries = await say.replay(attempt)
            if say.RUN not in say.kinds(entries):
                attempt.send(say.RUN, say.run(1, "step"))
                attempt.send(say.PROPOSE_RUN, say.proposal(1, b"kept"), ack=True)
                await attempt.receive()
            await say.finish(attempt, result.encode())

        deploy(discovery, {f"{name}/go": script})

    launch("1")
    done = server.ingress.call(name, "go", "x")
    assert done.json() == 1
    launch("2")

    path = f"/invocations/{done.invocation_id}/restart-as-new{query}"
    answer = server.admin.request("PATCH", path)
    assert answer.status == 200, answer.body

    assert server.ingress.attach(answer.json()["new_invocation_id"]).json() == result


@pytest.mark.slow
@pytest.mark.parametrize("target", ["Waiting", "Suspending"])
def test_a_service_is_killed_and_comes_back(
    server: Server, own_kind: Kind, launch: Launch, target: str
) -> None:
    services = launch(own_kind)
    world = World(server, own_kind, services.ledger)
    services.register(server)
    key = unique("killed")
    invocation = world.start(f"{target}/awakeable", key)
    name = world.await_entry(key)

    services.process.kill()
    assert world.ingress.resolve(name, "while you were away").status == 202
    late = world.start("Basics/greet", "late")
    services.start()

    assert world.result(invocation) == {"value": "while you were away"}
    assert world.result(late) == "hello late"
    assert set(world.ledger.entries(key)) == {name}


@pytest.mark.slow
@pytest.mark.differs("pings at once who says that it closes a connection", sometimes=True)
def test_connections_that_wear_out_are_replaced_unseen(server: Server, launch: Launch) -> None:
    """The service closes every connection after 20 requests; nobody has to wait for a retry."""
    kind = replace(KINDS[0], label=unique("Worn").replace("-", ""))
    services = launch(kind, max_requests=20)
    world = World(server, kind, services.ledger)
    services.register(server)
    keys = [unique("worn") for _ in range(300)]

    def step(key: str) -> float:
        started = time.monotonic()
        assert world.value("Runs/once", {"key": key, "value": key}) == key
        return time.monotonic() - started

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(step, keys)) < WORN_TIMEOUT_S

    # A connection may close after the step but before it was recorded: then it runs again.
    counts = [world.ledger.count(key) for key in keys]
    assert min(counts) == 1
    assert sum(counts) < 2 * len(keys)


@pytest.mark.slow
def test_registering_again(server: Server, own_kind: Kind, launch: Launch) -> None:
    services = launch(own_kind)
    first = services.register(server)
    again = services.register(server)
    forced = services.register(server, force=True)

    assert (first.status, again.status, forced.status) == (201, 200, 200)
    ids = {answer.json()["id"] for answer in (first, again, forced)}
    assert len(ids) == 1
    revisions = {service["revision"] for service in forced.json()["services"]}
    assert revisions == {2}
    names = {service["name"] for service in forced.json()["services"]}
    wait_until(
        lambda: names <= set(server.ingress.get("/restate/health").json()["services"]),
        "the services are listed",
    )
