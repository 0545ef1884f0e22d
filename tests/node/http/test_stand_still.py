"""A client that tells services nothing that it should have said before its process stood still."""

from functools import partial

import pytest
from tests.node.http.loopback import Echo, ask, origin_at, run, serving, until
from tests.node.http.wire import VERSIONS

from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.node.http.client import ClientLimits, HttpClient
from perdure.node.http.cores import make_client_core


class _WokenClock(SystemClock):
    """Of a process that can be made to have stood still."""

    stood_still_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.stood_still_s


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_woken_process_still_had_to_say_is_not_said(version: str) -> None:
    async def work() -> None:
        app, clock = Echo(), _WokenClock()
        client = _client(clock, ClientLimits(stand_still_ms_max=60_000))
        async with serving(app) as (_, port):
            await ask(client, origin_at(port, version), b"first").done.wait()
            stale = ask(client, origin_at(port, version), b"stale")
            clock.stood_still_s = 61.0
            await stale.done.wait()
            assert stale.failure is not None and stale.failure.kind == "lost"
            await ask(client, origin_at(port, version), b"next").done.wait()
            assert [exchange.body for exchange in app.exchanges] == [b"first", b"next"]
            client.close()
            await until(lambda: client.statistics().connections == 0)

    run(work)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_waited_for_a_connection_when_the_process_stood_still_is_not_sent(
    version: str,
) -> None:
    async def work() -> None:
        app, clock = Echo(), _WokenClock()
        client = _client(clock, ClientLimits(stand_still_ms_max=60_000))
        async with serving(app) as (_, port):
            stale = ask(client, origin_at(port, version), b"stale")
            assert client.statistics().waiting == 1
            clock.stood_still_s = 61.0
            await stale.done.wait()
            assert stale.failure is not None and stale.failure.kind == "refused"
            assert "stood still" in stale.failure.message
            await ask(client, origin_at(port, version), b"next").done.wait()
            assert [exchange.body for exchange in app.exchanges] == [b"next"]
            client.close()
            await until(lambda: client.statistics().connections == 0)

    run(work)


def test_what_waits_for_a_connection_need_not_wait_for_it_to_be_given_up() -> None:
    """The clock is looked at, too: a connection may come about long after the process woke."""

    async def work() -> None:
        clock = _WokenClock()
        bounds = ClientLimits(stand_still_ms_max=2_000, connections_per_origin_max=0)
        client = _client(clock, bounds)
        waiting = ask(client, origin_at(1, "HTTP/1.1"), b"stale")
        clock.stood_still_s = 3.0
        await waiting.done.wait()
        assert waiting.failure is not None and "stood still" in waiting.failure.message
        client.close()

    run(work)


def _client(clock: SystemClock, bounds: ClientLimits) -> HttpClient:
    return HttpClient(
        partial(make_client_core, "zttp"), SystemEntropy(), limits=bounds, clock=clock
    )
