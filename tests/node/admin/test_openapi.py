"""The admin API's own OpenAPI document: valid, one-to-one with routes, true of what is answered."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from tests.node.admin.world import World

from perdure.node.admin.admin import ROUTES
from perdure.node.admin.operations import OPERATIONS

_NO_INVOCATION = "inv_1fmPlbwpWQrD0rnsHzjJVkZOYvlfu94Ctn"

_ITS_OWN_SERVICE = {"uri": "its own service"}
# Method, documented path, path asked for (ids are filled in), body.
_REQUESTS: list[tuple[str, str, str, object]] = [
    ("GET", "/version", "/version", None),
    ("GET", "/cluster-health", "/cluster-health", None),
    ("GET", "/openapi", "/openapi", None),
    ("GET", "/deployments", "/deployments", None),
    ("POST", "/deployments", "/deployments", _ITS_OWN_SERVICE),
    ("POST", "/deployments", "/deployments", {"uri": ""}),
    ("POST", "/deployments", "/deployments", {}),
    ("GET", "/deployments/{id}", "/deployments/{deployment}", None),
    ("GET", "/deployments/{id}", "/deployments/nope", None),
    ("PATCH", "/deployments/{id}", "/deployments/{deployment}", {}),
    ("DELETE", "/deployments/{id}", "/deployments/{deployment}", None),
    ("GET", "/perdure/deployments/{id}", "/perdure/deployments/{deployment}", None),
    ("GET", "/services", "/services", None),
    ("GET", "/services/{service}", "/services/Flow", None),
    ("GET", "/services/{service}", "/services/Nope", None),
    ("PATCH", "/services/{service}", "/services/Flow", {}),
    ("GET", "/services/{service}/openapi", "/services/Keyed/openapi", None),
    ("GET", "/services/{service}/handlers", "/services/Keyed/handlers", None),
    ("GET", "/services/{service}/handlers/{handler}", "/services/Probe/handlers/nap", None),
    ("GET", "/perdure/invocations", "/perdure/invocations?service=Probe", None),
    ("GET", "/perdure/invocations", "/perdure/invocations?status=nope", None),
    ("GET", "/perdure/invocations/{id}", "/perdure/invocations/{invocation}", None),
    ("GET", "/perdure/invocations/{id}", "/perdure/invocations/{failing}", None),
    ("GET", "/perdure/state/{service}/{key}", "/perdure/state/Keyed/nobody", None),
    ("PATCH", "/invocations/{id}/kill", "/invocations/{failing}/kill", None),
    ("PATCH", "/invocations/{id}/kill", "/invocations/{failing}/kill", None),
    (
        "PATCH",
        "/invocations/{id}/restart-as-new",
        "/invocations/{invocation}/restart-as-new",
        None,
    ),
    (
        "POST",
        "/internal/invocations_batch_operations/purge",
        "/internal/invocations_batch_operations/purge",
        {"invocation_ids": [_NO_INVOCATION]},
    ),
    ("GET", "/perdure/cluster", "/perdure/cluster", None),
    ("GET", "/perdure/nodes", "/perdure/nodes", None),
    ("GET", "/perdure/nodes/{node}", "/perdure/nodes/N1", None),
    ("GET", "/perdure/nodes/{node}", "/perdure/nodes/nobody", None),
    ("DELETE", "/perdure/nodes/{node}", "/perdure/nodes/1", None),
    ("PATCH", "/perdure/nodes/{node}/drain", "/perdure/nodes/1/drain", None),
    ("GET", "/perdure/partitions", "/perdure/partitions", None),
    ("GET", "/perdure/partitions/{partition}", "/perdure/partitions/0", None),
    ("GET", "/perdure/partitions/{partition}", "/perdure/partitions/99", None),
    ("PATCH", "/perdure/partitions/{partition}/lead", "/perdure/partitions/0/lead?to=1", None),
    ("PATCH", "/perdure/partitions/{partition}/pin", "/perdure/partitions/0/pin", None),
    ("GET", "/perdure/logs", "/perdure/logs", None),
    ("GET", "/perdure/logs/{partition}", "/perdure/logs/0", None),
    ("GET", "/perdure/logs/{partition}", "/perdure/logs/x", None),
    ("GET", "/perdure/logs/{partition}/verify", "/perdure/logs/1/verify", None),
    ("POST", "/perdure/logs/{partition}/verify", "/perdure/logs/0/verify", None),
    ("GET", "/perdure/logs/{partition}/verify", "/perdure/logs/0/verify", None),
    ("PATCH", "/perdure/logs/{partition}/seal", "/perdure/logs/0/seal", None),
    ("PATCH", "/perdure/logs/{partition}/reconfigure", "/perdure/logs/0/reconfigure", None),
    ("GET", "/perdure/metadata", "/perdure/metadata", None),
    ("GET", "/perdure/metadata/registers", "/perdure/metadata/registers?prefix=p/", None),
    ("GET", "/perdure/metadata/registers/{register}", "/perdure/metadata/registers/cluster", None),
    ("GET", "/perdure/metadata/registers/{register}", "/perdure/metadata/registers/no", None),
    ("GET", "/perdure/metadata/backup", "/perdure/metadata/backup", None),
    ("GET", "/perdure/metadata/voters", "/perdure/metadata/voters", None),
    ("PATCH", "/perdure/metadata/voters", "/perdure/metadata/voters?names=n1", None),
    ("GET", "/kafka-clusters", "/kafka-clusters", None),
    ("GET", "/kafka-clusters/{name}", "/kafka-clusters/x", None),
    ("GET", "/subscriptions", "/subscriptions", None),
    ("PUT", "/limits/rules", "/limits/rules", []),
    ("POST", "/vqueues/{id}/pause", "/vqueues/x/pause", None),
]


def document(world: World, prefix: str = "") -> Any:
    answered = world.admin("GET", f"{prefix}/openapi")
    assert answered.status == 200
    return answered.json()


@pytest.mark.parametrize("prefix", ["", "/v2", "/v3", "/v4"])
@pytest.mark.slow
def test_the_document_is_valid_in_every_version(world: World, prefix: str) -> None:
    found = document(world, prefix)
    OpenAPIV31SpecValidator(found).validate()
    assert found["servers"] == [{"url": prefix or "/"}]
    ids = [o["operationId"] for item in found["paths"].values() for o in item.values()]
    assert len(ids) == len(set(ids))


def test_every_route_is_documented_and_nothing_else() -> None:
    served = [(route.method, route.pattern) for route in ROUTES]
    assert len(served) == len(set(served))
    assert set(served) == set(OPERATIONS)


@pytest.mark.parametrize("prefix", ["", "/v2", "/v4"])
def test_every_documented_path_is_served_with_its_methods_alone(world: World, prefix: str) -> None:
    paths = document(world, prefix)["paths"]
    for pattern, item in paths.items():
        allowed = world.admin("TRACE", f"{prefix}{pattern.replace('{', '').replace('}', '')}")
        assert allowed.status == 405, pattern
        served = set(allowed.headers["allow"].split(", ")) - {"HEAD"}
        if prefix != "/v2":
            served -= {"PUT"} if pattern == "/deployments/{id}" else set()
        assert served == {method.upper() for method in item}, pattern


def test_only_version_2_has_the_old_update(world: World) -> None:
    for prefix in ("", "/v2", "/v3", "/v4"):
        item = document(world, prefix)["paths"]["/deployments/{id}"]
        assert ("put" in item) == (prefix == "/v2")


def test_bodies_are_those_of_the_routes(world: World) -> None:
    found = document(world)
    for route in ROUTES:
        if route.method == "PUT" and route.pattern == "/deployments/{id}":
            continue
        operation = found["paths"][route.pattern][route.method.lower()]
        assert ("requestBody" in operation) == (route.body is not None), route
    shapes = found["components"]["schemas"]
    assert set(shapes["StateEdit"]["required"]) == {"object_key", "new_state"}
    assert {"uri", "arn", "force", "dry_run"} <= set(shapes["Registration"]["properties"])


def test_answers_have_the_documented_shapes(world: World) -> None:
    found = document(world)
    deployments = world.admin("GET", "/deployments").json()["deployments"]
    deployment = deployments[0]["id"]
    invocation = world.send("/Probe/echo/send", "shaped")
    world.wait_status(invocation, "completed")
    failing = world.send("/Probe/trip/send")
    world.wait_status(failing, "backing-off")
    known = {"deployment": deployment, "invocation": invocation, "failing": failing}
    for method, pattern, template, body in _REQUESTS:
        path = template.format(**known)
        sent = {"uri": world.service} if body == _ITS_OWN_SERVICE else body
        answered = world.admin(method, path, sent)
        responses = found["paths"][pattern][method.lower()]["responses"]
        described = responses.get(str(answered.status))
        assert described is not None, (method, path, answered)
        if "content" not in described:
            assert answered.body == b"", (method, path)
            continue
        schema = {**described["content"]["application/json"]["schema"], **_components(found)}
        rules: Any = Draft202012Validator(schema)
        rules.validate(answered.json())


def test_answers_name_no_member_that_is_not_documented(world: World) -> None:
    found = document(world)
    invocation = world.send("/Probe/step/send", "strict")
    world.wait_status(invocation, "completed")
    for path, shape in (
        ("/version", "Version"),
        ("/services/Probe", "Service"),
        ("/services/Keyed/handlers/hold", "Handler"),
        (f"/perdure/invocations/{invocation}", "InvocationDetail"),
        ("/perdure/state/Keyed/nobody", "State"),
        ("/perdure/cluster", "ClusterStanding"),
        ("/perdure/nodes/1", "NodeDetail"),
        ("/perdure/partitions/1", "Partition"),
    ):
        known = set(found["components"]["schemas"][shape]["properties"])
        assert set(world.admin("GET", path).json()) <= known, path
    entries = world.admin("GET", f"/perdure/invocations/{invocation}").json()["journal"]
    known = set(found["components"]["schemas"]["JournalEntry"]["properties"])
    assert entries and all(set(entry) <= known for entry in entries)


@pytest.mark.parametrize("service", ["Probe", "Keyed", "Flow"])
def test_documents_of_services_are_valid(world: World, service: str) -> None:
    found = world.admin("GET", f"/services/{service}/openapi").json()
    OpenAPIV31SpecValidator(found).validate()


def _components(found: Any) -> dict[str, Any]:
    return {"components": found["components"]}
