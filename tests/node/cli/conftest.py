"""A terminal whose surroundings say nothing about perdure."""

import os
import socket
from collections.abc import Iterator

import pytest
from tests.node.cli.answers import Answers, serving
from tests.node.cli.terminal import Terminal


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in list(os.environ):
        if name.startswith(("PERDURE_", "RESTATE_")):
            monkeypatch.delenv(name)
    return Terminal(capsys, monkeypatch)


@pytest.fixture
def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def answers() -> Iterator[Answers]:
    """A server that answers as a node would."""
    with serving() as known:
        yield known
