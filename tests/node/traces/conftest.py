"""One traced node and one SDK service for all tests of traces."""

from collections.abc import Iterator

import pytest
from tests.node.admin.world import serve
from tests.node.traces.collector import TracedStage


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """URL of the services, in a process of their own."""
    url, process = serve("tests.node.metrics.services:APP")
    yield url
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, service: str) -> Iterator[TracedStage]:
    """A running node that knows the services, and the collector."""
    stage = TracedStage(tmp_path_factory.mktemp("traces"))
    stage.run(stage.world.register(service))
    yield stage
    stage.close()
