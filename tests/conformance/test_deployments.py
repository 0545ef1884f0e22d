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
from tests.conformance.raw import Attempt, manifest, service
from tests.conformance.server import Server
from tests.conformance.services import KINDS, Kind, Services, install_packages
from tests.conformance.world import World, unique

Launch = Callable[..., Services]
# Far below what it takes to notice a silent peer: who has to be noticed that way has stalled.
WORN_TIMEOUT_S = 10.0


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
