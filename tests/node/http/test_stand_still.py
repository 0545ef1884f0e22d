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
        client = HttpClient(
            partial(make_client_core, "zttp"),
            SystemEntropy(),
            limits=ClientLimits(stand_still_ms_max=60_000),
            clock=clock,
        )
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
