"""Sizes and moments at the edge: what is huge stays usable, what races has one of two ends."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from tests.conformance import dialogue as say
from tests.conformance.client import Options, wait_until
from tests.conformance.conftest import Deploy, deploying
from tests.conformance.raw import Attempt, frame, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import World, unique

from perdure.proto import service_pb2 as pb

LATIN = "".join(map(chr, range(256)))  # 384 bytes of UTF-8, control characters and NUL among them
ENTRIES = 10_000
CROWD, CROWDS = 10_000, 10
INBOX = CROWD * CROWDS


def test_keys_of_a_kibibyte_that_differ_in_the_last_letter(world: World) -> None:
    stem = (LATIN + LATIN + unique("long")).ljust(767, "x")
    keys = [stem + "a", stem + "b"]
    assert [len(key.encode()) for key in keys] == [1024, 1024]

    for amount, key in enumerate(keys, start=1):
        assert world.value("Store/add", amount, key) == amount
    assert [world.value("Store/total", key=key) for key in keys] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("store", ["Store", "LazyStore"])
def test_ten_thousand_commands_write_ten_thousand_entries(world: World, store: str) -> None:
    key = unique("wide")
    world.value(f"{store}/write", {f"entry-{number}": number for number in range(ENTRIES)}, key)

    names = cast(list[str], world.value(f"{store}/names", key=key))
    assert len(set(names)) == ENTRIES
    assert world.value(f"{store}/read", f"entry-{ENTRIES - 1}", key) == ENTRIES - 1
    world.value(f"{store}/clear_all", key=key)
    assert world.value(f"{store}/names", key=key) == []


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.stop()


async def hold(attempt: Attempt) -> None:
    """Keep the object for oneself until the stream is cut."""
    await say.replay(attempt)
    await attempt.receive()


async def crowd(attempt: Attempt) -> None:
    """Send ``CROWD`` messages to the held object, all in one attempt."""
    await say.replay(attempt)
    held = attempt.path.split("/")[-2].replace("Crowd", "Held")
    for number in range(CROWD):
        message = pb.OneWayCallCommandMessage(
            service_name=held,
            handler_name="take",
            key="the one",
            invocation_id_notification_idx=number + 1,
        )
        attempt.unsent += frame(say.ONE_WAY_CALL, message.SerializeToString())
    await say.finish(attempt, b'"sent"')


async def take(attempt: Attempt) -> None:
    await say.replay(attempt)
    await say.finish(attempt, b'"taken"')


@pytest.mark.differs("one attempt may send 10,000 messages", sometimes=True)
@pytest.mark.slow
def test_a_hundred_thousand_wait_for_one_key(own_server: Server) -> None:
    name = unique("Held").replace("-", "")
    crowd_name = name.replace("Held", "Crowd")
    discovery = manifest(
        [service(name, "hold", "take", ty="VIRTUAL_OBJECT"), service(crowd_name, "crowd")]
    )
    scripts = {f"{name}/hold": hold, f"{name}/take": take, f"{crowd_name}/crowd": crowd}
    with deploying(own_server) as deploy:
        endpoint = deploy(discovery, scripts)
        holder = own_server.ingress.send(name, "hold", "x", Options(key="the one")).invocation_id
        endpoint.await_attempt(f"/invoke/{name}/hold")
        for _ in range(CROWDS):
            assert own_server.ingress.call(crowd_name, "crowd", "x").json() == "sent"
        wait_until(lambda: _waiting(own_server, name) == INBOX, "all wait in the inbox", 60.0)

        # Other keys don't feel it, and a crash forgets nobody.
        assert own_server.ingress.call(name, "take", "x", Options(key="free")).json() == "taken"
        own_server.kill()
        own_server.start()
        assert _waiting(own_server, name) == INBOX
        assert own_server.ingress.call(name, "take", "x", Options(key="free")).json() == "taken"

        assert own_server.admin.kill(holder).status in (200, 202)
        wait_until(lambda: _waiting(own_server, name) < INBOX, "the queue moves on")


def _waiting(server: Server, name: str) -> int:
    rows = server.admin.query(
        "select count(*) as waiting from sys_inbox "
        f"where service_name = '{name}' and service_key = 'the one'"
    )
    return int(rows[0]["waiting"])


def test_a_cancellation_that_races_with_the_end_has_one_of_two_ends(
    server: Server, deploy: Deploy
) -> None:
    name = unique("Race")
    deploy(manifest([service(name, "go")]), {f"{name}/go": take})

    def race(number: int) -> int:
        started = server.ingress.send(name, "go", "x", Options(idempotency_key=f"{number}"))
        server.admin.cancel(started.invocation_id)
        return server.ingress.attach(started.invocation_id).status

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(race, range(100)))
    assert set(ends) <= {200, 409}
    wait_until(lambda: _unfinished(server, name) == 0, "none is left behind")


def _unfinished(server: Server, name: str) -> int:
    rows = server.admin.query(
        "select count(*) as unfinished from sys_invocation "
        f"where target_service_name = '{name}' and status <> 'completed'"
    )
    return int(rows[0]["unfinished"])
