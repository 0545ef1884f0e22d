"""One node and one SDK service for all tests of metrics."""

from collections.abc import Iterator

import pytest
from tests.node.admin.world import serve
from tests.node.metrics.world import Stage, World


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """URL of the services, in a process of their own."""
    url, process = serve("tests.node.metrics.services:APP")
    yield url
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, service: str) -> Iterator[Stage]:
    """A running node that knows the services."""
    stage = Stage(World(tmp_path_factory.mktemp("metrics")))
    stage.run(stage.world.register(service))
    yield stage
    stage.close()
