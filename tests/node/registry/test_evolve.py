"""How the registry changes: the rules one by one, then any sequence of changes."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import (
    BadRequest,
    DeploymentNotFound,
    IncompatibleUpdate,
    PerdureError,
    ServiceNotFound,
    ServiceTypeChanged,
)
from perdure.node.registry.evolve import (
    Candidate,
    Change,
    Registered,
    SettingsPatch,
    Update,
    find_by_address,
    normalize_uri,
    patch_service,
    register,
    remove_deployment,
    update_deployment,
)
from perdure.node.registry.manifest import Discovered
from perdure.node.registry.model import (
    Handler,
    InputRules,
    Options,
    OutputRules,
    Registry,
    Service,
    ServiceType,
)
from perdure.storage.tables.invocations import HandlerKind


def offers(*names: str, kind: ServiceType = ServiceType.SERVICE, upper: int = 7) -> Discovered:
    """What an endpoint with services of these names says."""
    handler = Handler(
        name="run",
        kind=HandlerKind.WORKFLOW_RUN if kind is ServiceType.WORKFLOW else HandlerKind.SERVICE,
        input=InputRules(),
        output=OutputRules(),
        options=Options(workflow_completion_retention_ms=5),
    )
    return Discovered(
        services=tuple(Service(name=name, type=kind, handlers={"run": handler}) for name in names),
        is_bidirectional=True,
        protocol_version_min=5,
        protocol_version_max=upper,
        sdk_version="sdk/1",
    )


def candidate(number: int, discovered: Discovered, **fields: object) -> Candidate:
    plain = Candidate(
        id=f"dp_{number}",
        uri=f"http://host:{number}/",
        http_version="HTTP/2.0",
        discovered=discovered,
        headers={},
        metadata={},
        created_at_ms=number,
        allows_breaking=False,
        overwrites=False,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def registered(*candidates: Candidate) -> Registry:
    registry = Registry()
    for each in candidates:
        registry = register(registry, each).registry
    return registry


@pytest.mark.parametrize(
    ("given_uri", "stored"),
    [
        ("http://h:1", "http://h:1/"),
        ("http://h:1/", "http://h:1/"),
        ("https://h/a/b?x=1", "https://h/a/b?x=1"),
        ("http://h/a#fragment", "http://h/a"),
        ("http://[::1]:80/", "http://[::1]:80/"),
    ],
)
def test_uris(given_uri: str, stored: str) -> None:
    assert normalize_uri(given_uri) == stored


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "h:1",
        "/a",
        "//h/a",
        "ftp://h/",
        "http://",
        "http:///a",
        "http://h:x/",
        "http://h:70000",
        "http://u@h/",
        "http://h/a b",
        "http://h/\n",
        "http://[::1/",
        "http://h/" + "a" * 5000,
    ],
)
def test_uris_that_are_refused(uri: str) -> None:
    with pytest.raises(BadRequest):
        normalize_uri(uri)


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("http://host:1/", True),
        ("https://host:1/", True),
        ("http://HOST:1", True),
        ("http://host:2/", False),
        ("http://host:1/path", False),
    ],
)
def test_same_address(other: str, is_same: bool) -> None:
    registry = registered(candidate(1, offers("A")))
    assert (find_by_address(registry, other) is not None) == is_same


def test_a_new_deployment_takes_over_its_services() -> None:
    registry = registered(candidate(1, offers("A", "B")), candidate(2, offers("A", "C")))
    assert registry.latest == {"A": "dp_2", "B": "dp_1", "C": "dp_2"}
    revisions = {name: registry.service(name) for name in "ABC"}
    assert {name: s.revision for name, s in revisions.items() if s} == {"A": 2, "B": 1, "C": 1}


def test_a_known_address_is_left_alone() -> None:
    registry = registered(candidate(1, offers("A")))
    outcome = register(registry, candidate(1, offers("B"), id="dp_other"))
    assert outcome == Registered(registry, registry.deployments["dp_1"], Change.UNCHANGED)


def test_overwriting_keeps_the_id_and_resets_the_rest() -> None:
    registry = registered(candidate(1, offers("A"), metadata={"a": "b"}, headers={"h": "v"}))
    outcome = register(
        registry, candidate(1, offers("A"), id="dp_other", created_at_ms=99, overwrites=True)
    )
    assert outcome.change is Change.OVERWRITTEN
    deployment = outcome.deployment
    assert (deployment.id, deployment.created_at_ms) == ("dp_1", 99)
    assert (deployment.metadata, deployment.headers) == ({}, {})
    assert deployment.services["A"].revision == 2


def test_a_service_that_an_overwrite_drops_falls_back() -> None:
    registry = registered(candidate(1, offers("A", "B")), candidate(2, offers("A", "C")))
    registry = register(registry, candidate(2, offers("B"), overwrites=True)).registry
    assert registry.latest == {"A": "dp_1", "B": "dp_2"}


@pytest.mark.parametrize(("breaking", "is_refused"), [(False, True), (True, False)])
def test_a_changed_type_is_breaking(breaking: bool, is_refused: bool) -> None:
    registry = registered(candidate(1, offers("A")))
    changed = candidate(2, offers("A", kind=ServiceType.VIRTUAL_OBJECT), allows_breaking=breaking)
    if is_refused:
        with pytest.raises(ServiceTypeChanged) as caught:
            register(registry, changed)
        assert (caught.value.code, caught.value.http_status) == ("META0006", 409)
    else:
        service = register(registry, changed).registry.service("A")
        assert service is not None and service.type is ServiceType.VIRTUAL_OBJECT


def update(uri: str, discovered: Discovered, overwrites: bool = False) -> Update:
    return Update(
        uri=uri,
        http_version="HTTP/1.1",
        headers={"x": "y"},
        discovered=discovered,
        overwrites=overwrites,
    )


def test_update_changes_the_way_there_only() -> None:
    registry = registered(candidate(1, offers("A"), metadata={"a": "b"}))
    changed, deployment = update_deployment(registry, "dp_1", update("http://moved/", offers("B")))
    assert (deployment.uri, deployment.headers) == ("http://moved/", {"x": "y"})
    assert (deployment.created_at_ms, deployment.metadata) == (1, {"a": "b"})
    assert list(deployment.services) == ["A"] and changed.latest == {"A": "dp_1"}


def test_overwriting_update_keeps_revisions() -> None:
    registry = registered(candidate(1, offers("A", "B")), candidate(2, offers("A")))
    changed, deployment = update_deployment(
        registry, "dp_2", update("http://host:2/", offers("A", "B", "C"), overwrites=True)
    )
    revisions = {name: service.revision for name, service in deployment.services.items()}
    assert revisions == {"A": 2, "B": 2, "C": 1}
    assert changed.latest == {"A": "dp_2", "B": "dp_2", "C": "dp_2"}


@pytest.mark.parametrize(
    ("target", "change", "error"),
    [
        ("dp_9", update("http://x/", offers("A")), DeploymentNotFound),
        ("dp_1", update("http://x/", offers("A", upper=6)), IncompatibleUpdate),
        ("dp_1", update("http://host:2/", offers("A")), BadRequest),
        (
            "dp_1",
            update("http://x/", offers("A", kind=ServiceType.WORKFLOW), overwrites=True),
            ServiceTypeChanged,
        ),
    ],
)
def test_updates_that_are_refused(target: str, change: Update, error: type[PerdureError]) -> None:
    registry = registered(candidate(1, offers("A")), candidate(2, offers("B")))
    with pytest.raises(error):
        update_deployment(registry, target, change)


def test_removal_takes_the_latest_services_along() -> None:
    registry = registered(candidate(1, offers("A", "B")), candidate(2, offers("A")))
    assert remove_deployment(registry, "dp_2").latest == {"B": "dp_1"}
    assert remove_deployment(registry, "dp_1").latest == {"A": "dp_2"}
    with pytest.raises(DeploymentNotFound):
        remove_deployment(registry, "dp_3")


def test_settings_change_the_latest_revision_in_place() -> None:
    registry = registered(candidate(1, offers("A")), candidate(2, offers("A")))
    patch = SettingsPatch(public=False, journal_retention_ms=0)
    changed, service = patch_service(registry, "A", patch)
    assert (service.public, service.options.journal_retention_ms) == (False, 0)
    assert service.revision == 2 and changed.service("A") == service
    assert changed.deployments["dp_1"] == registry.deployments["dp_1"]
    _, untouched = patch_service(changed, "A", SettingsPatch(abort_timeout_ms=7))
    assert (untouched.public, untouched.options.journal_retention_ms) == (False, 0)


def test_a_workflows_retention_overrides_its_run_handler() -> None:
    registry = registered(candidate(1, offers("W", kind=ServiceType.WORKFLOW)))
    _, service = patch_service(registry, "W", SettingsPatch(workflow_completion_retention_ms=9))
    assert service.options.workflow_completion_retention_ms == 9
    assert service.handlers["run"].options.workflow_completion_retention_ms is None


def test_settings_that_are_refused() -> None:
    registry = registered(candidate(1, offers("A")))
    with pytest.raises(ServiceNotFound):
        patch_service(registry, "B", SettingsPatch(public=True))
    with pytest.raises(BadRequest):
        patch_service(registry, "A", SettingsPatch(workflow_completion_retention_ms=1))


_NAMES = st.sets(st.sampled_from("ABCD"), max_size=3).map(sorted).map(" ".join)
_KINDS = st.sampled_from(ServiceType)
_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("register"), st.integers(1, 3), _NAMES, _KINDS, st.booleans(), st.booleans()
        ),
        st.tuples(st.just("update"), st.integers(1, 3), _NAMES, _KINDS, st.booleans()),
        st.tuples(st.just("remove"), st.integers(1, 3)),
        st.tuples(st.just("patch"), st.sampled_from("ABCD")),
    ),
    max_size=12,
)


@given(_STEPS)
def test_any_sequence_keeps_the_registry_whole(steps: list[tuple[object, ...]]) -> None:
    registry = Registry()
    for index, step in enumerate(steps):
        try:
            registry = _apply(registry, index, step)
        except PerdureError:
            continue
        for name, at in registry.latest.items():
            assert name in registry.deployments[at].services
        addresses = [deployment.uri for deployment in registry.deployments.values()]
        assert len(addresses) == len(set(addresses))
        for deployment_id, deployment in registry.deployments.items():
            assert deployment.id == deployment_id
            for name, service in deployment.services.items():
                assert service.name == name and service.revision >= 1
        encoded = msgspec.msgpack.encode(registry)
        assert msgspec.msgpack.decode(encoded, type=Registry) == registry


def _apply(registry: Registry, index: int, step: tuple[object, ...]) -> Registry:
    match step:
        case ("register", int(number), str(names), ServiceType() as kind, bool(over), bool(force)):
            change = candidate(
                number,
                offers(*names.split(), kind=kind),
                id=f"dp_{index}",
                allows_breaking=over,
                overwrites=force,
            )
            before = {name: s.revision for name in "ABCD" if (s := registry.service(name))}
            outcome = register(registry, change)
            if outcome.change is not Change.UNCHANGED:
                for name, service in outcome.deployment.services.items():
                    assert service.revision == before.get(name, 0) + 1
                    assert outcome.registry.latest[name] == outcome.deployment.id
            return outcome.registry
        case ("update", int(number), str(names), ServiceType() as kind, bool(over)):
            known = find_by_address(registry, f"http://host:{number}/")
            discovered = offers(*names.split(), kind=kind)
            change_to = update(f"http://host:{number % 3 + 1}/", discovered, over)
            return update_deployment(registry, known.id if known else "dp_none", change_to)[0]
        case ("remove", int(number)):
            known = find_by_address(registry, f"http://host:{number}/")
            return remove_deployment(registry, known.id if known else "dp_none")
        case ("patch", str(name)):
            return patch_service(registry, name, SettingsPatch(public=False))[0]
        case _:
            raise AssertionError(step)
