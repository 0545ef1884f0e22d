"""A pool and a server live through many streams; ``make soak-http`` makes it a million."""

import os

import pytest
from bench.soak_http import soak
from tests.node.http.wire import VERSIONS

STREAMS = int(os.environ.get("SOAK_STREAMS", "20000"))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_soak(version: str) -> None:
    assert soak(STREAMS, "zttp", version), "every request is answered"
