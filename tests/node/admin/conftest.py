"""One node and one service for all tests of the admin API; what they register is the same."""

from collections.abc import Iterator

import pytest
from tests.node.admin.world import World


@pytest.fixture(scope="session")
def empty_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A node that knows no service yet, for tests that care."""
    world = World(tmp_path_factory.mktemp("admin-empty"))
    world.start()
    yield world
    world.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A node that serves the services of ``world.py``."""
    world = World(tmp_path_factory.mktemp("admin"))
    world.start()
    answered = world.admin("POST", "/deployments", {"uri": world.service})
    assert answered.status == 201, answered
    yield world
    world.stop()
