"""The server is killed while SDKs are at work: nothing is lost, nothing happens twice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conformance.client import Response, wait_until
from tests.conformance.server import Server
from tests.conformance.services import KINDS, Kind, Services, install_packages
from tests.conformance.world import World

pytestmark = pytest.mark.slow
KILLS, CLIENTS, CALLS_EACH = 3, 8, 25


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A server and services of its own: this one is killed."""
    kind: Kind = replace(request.param, label="Restart")
    if kind.language == "typescript":
        install_packages()
    server, services = Server(tmp_path / "server"), Services(kind, tmp_path)
    server.start()
    services.start()
    services.register(server)
    yield World(server, kind, services.ledger)
    services.process.kill()
    server.kill()


def _insist(ask: Callable[[], Response]) -> Response:
    """Ask until there is an answer about the invocation; safe, as every request has its key."""

    def answer() -> Response | None:
        try:
            given = ask()
        except OSError:
            return None
        is_outcome = given.status < 400 or given.headers.get("x-restate-error-source") != "ingress"
        return given if is_outcome else None

    return wait_until(answer, "an answer", timeout_s=60)


def _one_client(world: World, number: int) -> None:
    for index in range(CALLS_EACH):
        key = f"{number}-{index}"
        step: dict[str, object] = {"key": f"step {key}", "value": key}
        assert _call(world, "Runs/once", step, key).json() == key
        added = _call(world, "Store/add", 1, key, f"counter {number}").json()
        assert added == index + 1, "every call counts once, in its order"


def _call(
    world: World, target: str, body: object, idempotency_key: str, key: str | None = None
) -> Response:
    return _insist(lambda: world.call(target, body, key, idempotency_key))


def test_a_server_killed_under_load_loses_and_repeats_nothing(world: World) -> None:
    waiting = world.start("Suspending/awakeable", "waits")
    name = world.await_entry("waits")
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(_one_client, world, number) for number in range(CLIENTS)]
        for kill in range(1, KILLS + 1):
            # Steps of every client so far: the kill comes in the middle of the work.
            wanted = kill * CLIENTS * CALLS_EACH // (KILLS + 1)
            _await_steps(world, wanted)
            world.server.kill()
            world.server.start()
        for client in clients:
            client.result()

    for number in range(CLIENTS):
        assert world.value("Store/total", key=f"counter {number}") == CALLS_EACH
        for index in range(CALLS_EACH):
            # Again only when a kill came between the step and its recording.
            assert 1 <= world.ledger.count(f"step {number}-{index}") <= 1 + KILLS
    assert _insist(lambda: world.ingress.resolve(name, "still here")).status == 202
    assert world.result(waiting) == {"value": "still here"}


def _await_steps(world: World, count: int) -> None:
    what = f"{count} steps"
    wait_until(lambda: len(set(world.ledger.keys("step "))) >= count, what, timeout_s=60)
