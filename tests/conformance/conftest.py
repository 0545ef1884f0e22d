"""One server for the whole suite; services are started when the first test needs them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.server import Server
from tests.conformance.services import KINDS, Kind, Services, install_typescript
from tests.conformance.world import World


@pytest.fixture(scope="session")
def suite_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="session")
def server(suite_directory: Path) -> Iterator[Server]:
    server = Server(suite_directory / "server")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    if kind.language == "typescript":
        install_typescript()
    return kind


@pytest.fixture(scope="session")
def services(kind: Kind, suite_directory: Path) -> Iterator[Services]:
    services = Services(kind, suite_directory)
    services.start()
    yield services
    services.process.kill()


@pytest.fixture(scope="session")
def world(server: Server, services: Services) -> World:
    services.register(server)
    return World(server, services.kind, services.ledger)
