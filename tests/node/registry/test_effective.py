"""Settings in effect: handler over service over server, clamped; routes of the catalogue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.retry import RetryPolicy
from perdure.node.http.stream import Origin
from perdure.node.registry.effective import Catalogue, Defaults, effective, locate
from perdure.node.registry.model import (
    Deployment,
    Handler,
    InputRules,
    OnMaxAttempts,
    Options,
    OutputRules,
    Registry,
    RetryOptions,
    Service,
    ServiceType,
)
from perdure.storage.tables.invocations import HandlerKind

_MAYBE_MS = st.none() | st.integers(0, 1_000_000)


def make(
    service: Options,
    handler: Options,
    kind: HandlerKind = HandlerKind.SERVICE,
    public: tuple[bool, bool | None] = (True, None),
) -> tuple[Service, Handler]:
    one = Handler(
        name="run",
        kind=kind,
        input=InputRules(),
        output=OutputRules(),
        options=handler,
        public=public[1],
    )
    whole = Service(
        name="A",
        type=ServiceType.SERVICE,
        handlers={"run": one},
        options=service,
        public=public[0],
    )
    return whole, one


@given(_MAYBE_MS, _MAYBE_MS)
def test_the_nearest_word_counts(service: int | None, handler: int | None) -> None:
    defaults = Defaults()
    found = effective(
        defaults,
        *make(Options(abort_timeout_ms=service), Options(abort_timeout_ms=handler)),
    )
    expected = next(v for v in (handler, service, defaults.abort_timeout_ms) if v is not None)
    assert found.abort_timeout_ms == expected


@given(_MAYBE_MS, _MAYBE_MS, st.integers(0, 1_000_000))
def test_retentions_are_clamped(service: int | None, handler: int | None, limit: int) -> None:
    defaults = Defaults(journal_retention_ms_max=limit, idempotency_retention_ms_max=limit)
    found = effective(
        defaults,
        *make(
            Options(journal_retention_ms=service, idempotency_retention_ms=service),
            Options(journal_retention_ms=handler, idempotency_retention_ms=handler),
        ),
    )
    assert found.journal_retention_ms <= limit and found.completion_retention_ms <= limit


@pytest.mark.parametrize(
    ("kind", "has_key", "expected"),
    [
        (HandlerKind.SERVICE, False, (40, 40)),
        (HandlerKind.SERVICE, True, (30, 30)),
        (HandlerKind.WORKFLOW_RUN, False, (20, 20)),
        (HandlerKind.WORKFLOW_SHARED, True, (30, 30)),
        (HandlerKind.EXCLUSIVE, False, (40, 40)),
    ],
)
def test_what_is_kept_and_how_long(
    kind: HandlerKind, has_key: bool, expected: tuple[int, int]
) -> None:
    stated = Options(
        workflow_completion_retention_ms=20, idempotency_retention_ms=30, journal_retention_ms=40
    )
    found = effective(Defaults(), *make(stated, Options(), kind))
    assert found.retention(kind, has_key) == expected


def test_retry_settings_are_merged_one_by_one() -> None:
    found = effective(
        Defaults(),
        *make(
            Options(retry=RetryOptions(factor=3.0, attempts_max=4)),
            Options(retry=RetryOptions(attempts_max=9, on_max_attempts=OnMaxAttempts.KILL)),
        ),
    )
    assert found.retry == RetryPolicy(
        initial_ms=500, factor=3.0, interval_ms_max=60_000, attempts_max=9
    )
    assert found.on_max_attempts is OnMaxAttempts.KILL


@pytest.mark.parametrize(
    ("service", "handler", "expected"),
    [
        (True, None, True),
        (True, False, False),
        (False, None, False),
        (False, True, False),
    ],
)
def test_who_is_public(service: bool, handler: bool | None, expected: bool) -> None:
    found = effective(Defaults(), *make(Options(), Options(), public=(service, handler)))
    assert found.public is expected


def test_lazy_state_means_no_eager_state() -> None:
    lazy = effective(Defaults(), *make(Options(lazy_state=True), Options()))
    assert lazy.eager_state_bytes_max == 0
    eager = effective(Defaults(), *make(Options(lazy_state=True), Options(lazy_state=False)))
    assert eager.eager_state_bytes_max > 0


@pytest.mark.parametrize(
    ("uri", "origin", "invoke"),
    [
        ("http://h:1/", ("http", "h", 1), "/invoke/A/run"),
        ("https://h/", ("https", "h", 443), "/invoke/A/run"),
        ("http://h/some/path?x=1", ("http", "h", 80), "/some/path/invoke/A/run?x=1"),
        ("http://[::1]:8/p/", ("http", "::1", 8), "/p/invoke/A/run"),
    ],
)
def test_urls_are_joined_with_one_slash(
    uri: str, origin: tuple[str, str, int], invoke: str
) -> None:
    found, prefix, query = locate(uri, "HTTP/2.0")
    assert found == Origin(*origin, "HTTP/2.0")
    assert f"{prefix}/invoke/A/run{query}" == invoke


def test_the_catalogue_knows_the_latest_and_every_pinned_route() -> None:
    service, _ = make(Options(), Options())
    deployments = {
        name: Deployment(
            id=name,
            uri=f"http://{name}/",
            http_version="HTTP/2.0",
            is_bidirectional=True,
            protocol_version_min=5,
            protocol_version_max=version,
            created_at_ms=0,
            services={"A": service},
            headers={"X-Token": "t"},
        )
        for name, version in (("old", 5), ("new", 7))
    }
    catalogue = Catalogue(Registry(deployments, {"A": "new"}), Defaults())
    latest = catalogue.latest("A", "run")
    assert latest is not None and latest.deployment_id == "new" and latest.is_supported
    pinned = catalogue.pinned("old", "A", "run")
    assert pinned is not None and pinned.headers == ((b"x-token", b"t"),)
    assert catalogue.latest("A", "nope") is None
    assert catalogue.pinned("gone", "A", "run") is None
