"""The ingress clients that come with the SDKs."""

import asyncio
import json
import os
import subprocess
from datetime import timedelta

import pytest
import restate
from restate.client_types import HttpError
from tests.conformance.services import ROOT, install_packages, node
from tests.conformance.world import World, unique


@pytest.mark.differs("a bare number of milliseconds")
def test_the_python_client(world: World) -> None:
    asyncio.run(_talk(world, unique("client")))


async def _talk(world: World, key: str) -> None:
    store, basics = world.name("Store"), world.name("Basics")
    make = restate.create_client  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    async with make(world.ingress.url) as client:
        json_header = {"content-type": "application/json"}
        greeting = await client.generic_call(basics, "greet", b'"you"', headers=json_header)
        assert json.loads(greeting) == "hello you"

        total = await client.generic_call(store, "add", b"2", key=key, headers=json_header)
        assert json.loads(total) == 2

        # This client writes the delay as a bare number of milliseconds.
        sent = await client.generic_send(
            store, "add", b"3", key=key, send_delay=timedelta(milliseconds=50), headers=json_header
        )
        assert world.result(sent.invocation_id) == 5

        failure = json.dumps({"code": 418, "message": "teapot"}).encode()
        with pytest.raises(HttpError) as raised:
            await client.generic_call(
                world.name("Failing"), "terminally", failure, headers=json_header
            )
        assert raised.value.status_code == 418


@pytest.mark.slow
def test_the_typescript_client(world: World) -> None:
    install_packages()
    environment = {
        **os.environ,
        "INGRESS": world.ingress.url,
        "PREFIX": world.kind.prefix,
        "KEY": unique("client"),
        "NODE_NO_WARNINGS": "1",
    }
    script = ROOT / "tests" / "conformance" / "typescript" / "client.ts"
    done = subprocess.run(
        [str(node()), str(script)], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "greeting": "hello you",
        "total": 2,
        "sent": "Accepted",
        "again": "PreviouslyAccepted",
        "delayed": 5,
        "submitted": "Accepted",
        "early": False,
        "attached": "order yes",
        "late": "order yes",
        "failure": 418,
    }
