"""One world per module of tests; each test with each HTTP version."""

from collections.abc import Iterator

import pytest
from tests.node.ingress.client import Client
from tests.node.ingress.world import VERSIONS, Stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A running world that the module's tests share."""
    stage = Stage(tmp_path_factory.mktemp("world"))
    yield stage
    stage.close()


@pytest.fixture(params=VERSIONS)
def client(stage: Stage, request: pytest.FixtureRequest) -> Client:
    """The shared world's client of one HTTP version."""
    return stage.world.clients[request.param]
