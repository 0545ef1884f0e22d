"""The services of the ingress's tests: their manifest, and the registry that has them."""

import json
from typing import Any

from perdure.node.registry.manifest import parse_manifest
from perdure.node.registry.model import Deployment, Registry

DEPLOYMENT = "dp_1"

_JSON: dict[str, Any] = {
    "input": {"required": True, "contentType": "application/json", "jsonSchema": {}},
    "output": {"contentType": "application/json"},
}
_ANY: dict[str, Any] = {
    "input": {"contentType": "*/*"},
    "output": {"contentType": "application/octet-stream"},
}
_SILENT: dict[str, Any] = {
    "input": {},
    "output": {"contentType": "application/json"},
}

_SERVICES: list[dict[str, Any]] = [
    {
        "name": "Greeter",
        "ty": "SERVICE",
        "handlers": [
            {"name": "greet", **_JSON},
            {"name": "echo", **_ANY},
            {"name": "headers", **_ANY},
            {"name": "fail", **_ANY},
            {"name": "wait", **_ANY},
            {"name": "silent", **_SILENT},
            {"name": "kept", **_JSON, "journalRetention": 60_000, "idempotencyRetention": 90_000},
            {"name": "forgotten", **_ANY, "journalRetention": 0},
            {"name": "hidden", **_JSON, "ingressPrivate": True},
        ],
    },
    {
        "name": "Counter",
        "ty": "VIRTUAL_OBJECT",
        "handlers": [
            {"name": "add", "ty": "EXCLUSIVE", **_JSON},
            {"name": "key", "ty": "SHARED", **_ANY},
            {"name": "wait", "ty": "EXCLUSIVE", **_ANY},
        ],
    },
    {
        "name": "Flow",
        "ty": "WORKFLOW",
        "handlers": [
            {"name": "run", "ty": "WORKFLOW", **_JSON},
            {"name": "status", "ty": "SHARED", **_JSON},
            {"name": "hidden", "ty": "SHARED", **_JSON, "ingressPrivate": True},
        ],
    },
]


def make_registry(uri: str) -> Registry:
    """A registry with one deployment, at ``uri``, that has all test services."""
    document = {
        "protocolMode": "REQUEST_RESPONSE",
        "minProtocolVersion": 5,
        "maxProtocolVersion": 6,
        "services": _SERVICES,
    }
    discovered = parse_manifest(json.dumps(document).encode(), None)
    services = {service.name: service for service in discovered.services}
    deployment = Deployment(
        id=DEPLOYMENT,
        uri=uri,
        http_version="HTTP/2.0",
        is_bidirectional=discovered.is_bidirectional,
        protocol_version_min=discovered.protocol_version_min,
        protocol_version_max=discovered.protocol_version_max,
        created_at_ms=0,
        services=services,
    )
    return Registry({DEPLOYMENT: deployment}, dict.fromkeys(services, DEPLOYMENT))
