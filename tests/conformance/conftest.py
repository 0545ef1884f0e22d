"""One server for the whole suite; services are started when the first test needs them."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conformance.raw import Discovery, RawEndpoint, Script
from tests.conformance.server import Server
from tests.conformance.services import KINDS, OLDER_KINDS, Kind, Services, install_packages
from tests.conformance.world import World

Deploy = Callable[[Discovery, Mapping[str, Script]], RawEndpoint]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the reasons of intended differences into the report that ``make compat`` reads."""
    for item in items:
        for mark in item.iter_markers("differs"):
            item.user_properties.append(("differs", mark.args[0]))
            if mark.kwargs.get("sometimes"):
                item.user_properties.append(("sometimes", "yes"))


@pytest.fixture(scope="session")
def suite_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="session")
def server(suite_directory: Path) -> Iterator[Server]:
    server = Server(suite_directory / "server")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session", params=[*KINDS, *OLDER_KINDS], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    if kind.language == "typescript":
        install_packages()
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


@contextmanager
def deploying(server: Server) -> Generator[Deploy, None, None]:
    """Starts and registers hand-written endpoints; a script's failure is raised at the end."""
    endpoints: list[RawEndpoint] = []

    def deploy(discovery: Discovery, scripts: Mapping[str, Script]) -> RawEndpoint:
        endpoint = RawEndpoint(discovery)
        for target, script in scripts.items():
            endpoint.on(target, script)
        endpoint.start()
        endpoints.append(endpoint)
        answer = server.admin.register(endpoint.uri)
        assert answer.status == 201, answer.body
        return endpoint

    try:
        yield deploy
    finally:
        for endpoint in endpoints:
            endpoint.stop()


@pytest.fixture
def deploy(server: Server) -> Iterator[Deploy]:
    with deploying(server) as deploy:
        yield deploy
