"""A node on which a little of everything has happened."""

from collections.abc import Iterator

import pytest
from tests.node.query.scene import Scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """What is there is not changed by tests."""
    scene = Scene(tmp_path_factory.mktemp("query"))
    scene.start()
    yield scene
    scene.stop()
