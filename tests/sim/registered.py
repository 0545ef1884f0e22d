"""What is registered at simulated nodes: the service of tests/sim/service.py."""

import json
from functools import cache

from perdure.core.retry import RetryPolicy
from perdure.node.registry.effective import Catalogue, Defaults
from perdure.node.registry.evolve import Candidate, register
from perdure.node.registry.manifest import parse_manifest
from perdure.node.registry.model import Registry

MANIFEST = {
    "protocolMode": "BIDI_STREAM",
    "minProtocolVersion": 7,
    "maxProtocolVersion": 7,
    "services": [
        {"name": "Worker", "ty": "SERVICE", "handlers": [{"name": "go"}]},
        {"name": "Counter", "ty": "VIRTUAL_OBJECT", "handlers": [{"name": "add"}]},
    ],
}
DEFAULTS = Defaults(
    inactivity_timeout_ms=60,
    abort_timeout_ms=5_000,
    retry=RetryPolicy(initial_ms=20, factor=2.0, interval_ms_max=200, attempts_max=None),
)


@cache
def make_catalogue() -> Catalogue:
    """The service, registered."""
    candidate = Candidate(
        id="dp_sim",
        uri="http://127.0.0.1:9080/",
        http_version="HTTP/2.0",
        discovered=parse_manifest(json.dumps(MANIFEST).encode(), None),
        headers={},
        metadata={},
        created_at_ms=0,
        allows_breaking=False,
        overwrites=False,
    )
    return Catalogue(register(Registry(), candidate).registry, DEFAULTS)
