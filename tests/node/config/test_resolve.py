"""The configuration as its sources make it: precedence, origins, errors, foreign keys."""

import tomllib
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import InvalidConfiguration
from perdure.node.config.choices import HttpCore, LogColours, LogLevel
from perdure.node.config.effective import to_defaults
from perdure.node.config.foreign import TRANSLATIONS, is_ignored
from perdure.node.config.model import Config, Setting, advertised, settings
from perdure.node.config.resolve import SETTINGS, File, Loaded, SourceKind, resolve
from perdure.node.config.values import Address
from perdure.node.registry.effective import Defaults
from perdure.node.registry.model import OnMaxAttempts

Flags = Mapping[tuple[str, ...], tuple[str, str]]


def load(
    toml: str | None = None, env: Mapping[str, str] | None = None, flags: Flags | None = None
) -> Loaded:
    file = File("perdure.toml", toml, tomllib.loads(toml)) if toml is not None else None
    return resolve(file, env or {}, flags or {})


def refusal(
    toml: str | None = None, env: Mapping[str, str] | None = None, flags: Flags | None = None
) -> str:
    with pytest.raises(InvalidConfiguration) as caught:
        load(toml, env, flags)
    return caught.value.message


# --- Precedence ---------------------------------------------------------------------------------

FOREIGN_FILE = 'default-journal-retention = "1s"\n'
OWN_FILE = '[retention]\njournal = "2s"\n'
FOREIGN_VARIABLE = {"RESTATE_DEFAULT_JOURNAL_RETENTION": "3s"}
OWN_VARIABLE = {"PERDURE_RETENTION__JOURNAL": "4s"}
FLAG = {("retention", "journal"): ("5s", "--journal-retention")}


@pytest.mark.parametrize(
    ("toml", "env", "flags", "milliseconds", "kind", "where"),
    [
        (None, {}, {}, 86_400_000, SourceKind.DEFAULT, "default"),
        (FOREIGN_FILE, {}, {}, 1_000, SourceKind.FILE, "perdure.toml:1"),
        (FOREIGN_FILE + OWN_FILE, {}, {}, 2_000, SourceKind.FILE, "perdure.toml:3"),
        (FOREIGN_FILE + OWN_FILE, FOREIGN_VARIABLE, {}, 3_000, SourceKind.ENVIRONMENT,
         "RESTATE_DEFAULT_JOURNAL_RETENTION"),
        (OWN_FILE, FOREIGN_VARIABLE | OWN_VARIABLE, {}, 4_000, SourceKind.ENVIRONMENT,
         "PERDURE_RETENTION__JOURNAL"),
        (OWN_FILE, FOREIGN_VARIABLE | OWN_VARIABLE, FLAG, 5_000, SourceKind.FLAG,
         "--journal-retention"),
    ],
)  # fmt: skip
def test_later_sources_win_and_are_named(
    toml: str | None,
    env: Mapping[str, str],
    flags: Flags,
    milliseconds: int,
    kind: SourceKind,
    where: str,
) -> None:
    loaded = load(toml, env, flags)
    found = {setting.key: (value, source) for setting, value, source in loaded.rows()}
    value, source = found["retention.journal"]
    assert value == loaded.config.retention.journal_ms == milliseconds
    assert (source.kind, source.name) == (kind, where)


def test_without_sources_everything_is_default() -> None:
    loaded = load()
    assert loaded.config == Config()
    assert {source.kind for _, _, source in loaded.rows()} == {SourceKind.DEFAULT}
    assert loaded.notices == ()


def test_the_result_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        load().config.node_name = "other"  # type: ignore[misc]


# Headers are masked when they are shown; they have a test of their own.
WRITABLE = [row for row in settings() if row.kind.name != "headers"]


@pytest.mark.parametrize("row", WRITABLE, ids=[row.key for row in WRITABLE])
def test_every_default_reads_back_from_every_source(row: Setting) -> None:
    text = row.kind.show(row.default)
    *tables, key = row.path
    toml = "".join(f"[{table}]\n" for table in tables) + f'{key} = "{text}"\n'
    snake = toml.replace(key, key.replace("-", "_"))
    for loaded in (
        load(toml),
        load(snake),
        load(env={row.variable: text}),
        load(flags={row.path: (text, "--flag")}),
    ):
        assert loaded.config == Config()
        assert loaded.sources[row.key].kind is not SourceKind.DEFAULT


def test_values_may_have_the_types_of_the_file_format() -> None:
    loaded = load(
        """
        base_dir = "/var/lib/perdure"
        http-core = "hyper"
        [ingress]
        cors = false
        request-bytes-max = 1048576
        concurrent-requests-max = 10
        [retry]
        exponentiation-factor = 3
        on-max-attempts = "Kill"
        [invoker.additional-request-headers]
        X-Tenant = "a"
        authorization = "Bearer secret"
        """
    )
    config = loaded.config
    assert config.base_dir == Path("/var/lib/perdure")
    assert config.http_core is HttpCore.HYPER
    assert config.ingress.cors is False
    assert config.ingress.request_bytes_max == 1_048_576
    assert config.ingress.concurrent_requests_max == 10
    assert config.retry.exponentiation_factor == 3.0
    assert config.retry.on_max_attempts is OnMaxAttempts.KILL
    headers = (("x-tenant", "a"), ("authorization", "Bearer secret"))
    assert config.invoker.additional_request_headers == headers
    variable = {"PERDURE_INVOKER__ADDITIONAL_REQUEST_HEADERS": "X-Tenant=a, authorization=Bearer b"}
    assert load(env=variable).config.invoker.additional_request_headers == (
        ("x-tenant", "a"),
        ("authorization", "Bearer b"),
    )


def test_credentials_are_never_shown() -> None:
    loaded = load('[invoker]\nadditional-request-headers = { authorization = "hunter2" }\n')
    shown = [setting.kind.show(value) for setting, value, _ in loaded.rows()]
    assert "authorization=***" in shown
    assert "hunter2" not in repr(loaded.document())
    message = refusal('[invoker]\nadditional-request-headers = { "a b" = "hunter2" }\n')
    assert "'a b' is no header name" in message
    assert "hunter2" not in message


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('\n[ingress]\n# here\nbind_address = "8080"\n',
         "ingress.bind-address = '8080' (perdure.toml:4): expected host:port"),
        ("shutdown-timeout = 90\n",
         "shutdown-timeout = 90 (perdure.toml:1): expected text in quotes"),
        ('shutdown-timeout = "90"\n', "expected a number with a unit"),
        ('shutdown-timeout = "2d"\n', "expected 0s to 1d"),
        ("[ingress]\ncors = 1\n", "ingress.cors = 1 (perdure.toml:2): expected true or false"),
        ('[ingress]\nrequest-bytes-max = "64 MiB"\n', "expected 1 KiB to 32 MiB"),
        ("[ingress]\nconcurrent-requests-max = 0\n",
         "a whole number from 1 to 1000000; or 'unlimited'"),
        ("[worker]\npartition-count = true\n", "a whole number from 1 to 4096"),
        ("[retry]\nexponentiation-factor = 0.5\n", "a number from 1 to 100"),
        ('http-core = "uvicorn"\n', "expected one of auto, zttp, hyper"),
        ('node-name = "../escape"\n', "1 to 63 letters, digits"),
        ('base-dir = ""\n', "expected a path"),
        ("[ingress]\nbind-adress = 1\n",
         "ingress.bind-adress (perdure.toml:2) is no setting: did you mean ingress.bind-address?"),
        ("[zzz.qqq]\nxxxxxx = 1\n",
         "zzz.qqq.xxxxxx (perdure.toml:2) is no setting: see `perdure config`"),
        ('base-dir = "a"\nbase_dir = "b"\n', "base-dir is set twice"),
        ("ingress = 5\n", "ingress (perdure.toml:1) is no setting"),
        ('[admin]\nbind-address = "127.0.0.1:8080"\n',
         "admin.bind-address and ingress.bind-address are both 127.0.0.1:8080"),
    ],
)  # fmt: skip
def test_errors_name_key_source_and_what_is_allowed(toml: str, message: str) -> None:
    assert message in refusal(toml)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"PERDURE_INGRESS__BIND_ADDRESS": "x"},
         "ingress.bind-address = 'x' (PERDURE_INGRESS__BIND_ADDRESS): expected host:port"),
        ({"PERDURE_INGRESS_BIND_ADDRESS": ":1"},
         "PERDURE_INGRESS_BIND_ADDRESS is no setting: did you mean PERDURE_INGRESS__BIND_ADDRESS?"),
        ({"PERDURE_INGRESS__CORS": "1"}, "expected true or false"),
        ({"RESTATE_SHUTDOWN_TIMEOUT": "1"},
         "shutdown-timeout = '1' (RESTATE_SHUTDOWN_TIMEOUT): expected a number with a unit"),
        ({"RESTATE_WORKER__INVOKER__ABORT_TIMEOUT": "x"},
         "worker.invoker.abort-timeout = 'x' (RESTATE_WORKER__INVOKER__ABORT_TIMEOUT)"),
    ],
)  # fmt: skip
def test_errors_name_the_variable(env: Mapping[str, str], message: str) -> None:
    assert message in refusal(env=env)


def test_errors_name_the_flag() -> None:
    message = refusal(flags={("base-dir",): ("", "--base-dir")})
    assert message == "base-dir = '' (--base-dir): expected a path"


@given(st.dictionaries(st.text(), st.text(), max_size=3), st.text())
def test_any_environment_is_read_or_refused(env: dict[str, str], value: str) -> None:
    stem = "PERDURE_" + value
    try:
        load(env={**env, stem: value})
    except InvalidConfiguration as error:
        assert "PERDURE_" in error.message


# --- Foreign keys -------------------------------------------------------------------------------


def test_foreign_keys_are_translated() -> None:
    loaded = load(
        """
        log-filter = "warn,restate=debug"
        log-disable-ansi-codes = true
        default-num-partitions = 24
        max-journal-retention = "7d"
        [default-retry-policy]
        max-attempts = "unlimited"
        max-interval = "10s"
        on-max-attempts = "kill"
        [ingress]
        advertised-ingress-endpoint = "https://calls.example"
        request-size-limit = "1 MiB"
        concurrent-api-requests-limit = 5
        [admin.query-engine]
        memory-size = "1 GiB"
        [worker.invoker]
        inactivity-timeout = "PT2M"
        eager-state-size-limit = 0
        additional-request-headers = { x-a = "b" }
        """
    )
    config = loaded.config
    assert config.log_level is LogLevel.DEBUG
    assert config.log_colours is LogColours.NEVER
    assert config.worker.partition_count == 24
    assert config.retention.journal_ms_max == 7 * 86_400_000
    assert config.retry.attempts_max is None
    assert config.retry.interval_ms_max == 10_000
    assert config.retry.on_max_attempts is OnMaxAttempts.KILL
    assert config.ingress.advertised_address == "https://calls.example/"
    assert config.ingress.request_bytes_max == 1024 * 1024
    assert config.ingress.concurrent_requests_max == 5
    assert config.query.memory_bytes_max == 1024**3
    assert config.invoker.inactivity_timeout_ms == 120_000
    assert config.invoker.eager_state_bytes_max == 0
    assert config.invoker.additional_request_headers == (("x-a", "b"),)
    assert loaded.notices == ()


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("warn,restate=info", LogLevel.INFO),
        ("warn", LogLevel.WARNING),
        ("restate=trace,hyper=warn", LogLevel.DEBUG),
        ("hyper=warn", LogLevel.INFO),
        ("off", LogLevel.ERROR),
    ],
)
def test_log_filters_become_levels(text: str, level: LogLevel) -> None:
    assert load(env={"RESTATE_LOG_FILTER": text}).config.log_level is level


def test_every_translation_leads_to_a_setting() -> None:
    assert {translation.path for translation in TRANSLATIONS.values()} <= set(SETTINGS)
    assert not set(TRANSLATIONS) & set(SETTINGS)
    assert not any(is_ignored(path) for path in (*SETTINGS, *TRANSLATIONS))


def test_what_means_nothing_here_is_noted() -> None:
    loaded = load(
        """
        rocksdb-total-memory-size = "2 GiB"
        [worker.invoker]
        http-proxy = "http://proxy"
        [worker.storage]
        anything = 1
        [admin.query-engine]
        query-parallelism = 4
        [[ingress.kafka-clusters]]
        name = "k"
        [aws]
        profile = "secret"
        """,
        {"RESTATE_ROLES": "[worker]", "RESTATE_FANCY_NEW_THING": "1"},
    )
    assert loaded.config == Config()
    assert loaded.notices == (
        "rocksdb-total-memory-size (perdure.toml:2) means nothing here and is ignored",
        "worker.invoker.http-proxy (perdure.toml:4) is ignored: services are called directly",
        "worker.storage (perdure.toml:5) means nothing here and is ignored",
        "admin.query-engine.query-parallelism (perdure.toml:8) means nothing here and is ignored",
        "ingress.kafka-clusters (perdure.toml) is ignored: nothing is read from Kafka",
        "aws (perdure.toml:11) means nothing here and is ignored",
        "RESTATE_FANCY_NEW_THING means nothing here and is ignored",
        "RESTATE_ROLES is ignored: a node has all roles",
    )


def test_variables_of_clients_and_platforms_are_nobodys_settings() -> None:
    loaded = load(
        env={
            "RESTATE_ADMIN_URL": "http://x",
            "RESTATE_SERVICE_HOST": "10.0.0.1",
            "PERDURE_ADMIN_URL": "http://x",
            "PERDURE_CONFIG": "perdure.toml",
            "PERDURE_PORT": "tcp://10.0.0.1:8080",
            "PERDURE_PORT_8080_TCP_ADDR": "10.0.0.1",
            "PERDURE_INGRESS_SERVICE_PORT_HTTP": "8080",
        }
    )
    assert loaded.config == Config()
    assert loaded.notices == ()


# --- Derived ------------------------------------------------------------------------------------


def test_bind_ip_moves_the_listeners_that_have_no_address_of_their_own() -> None:
    loaded = load('[admin]\nbind-address = "127.0.0.1:1234"\n', {"PERDURE_BIND_IP": "0.0.0.0"})
    config = loaded.config
    assert config.bind_address == Address("0.0.0.0", 5122)
    assert config.ingress.bind_address == Address("0.0.0.0", 8080)
    assert config.admin.bind_address == Address("127.0.0.1", 1234)
    assert loaded.sources["ingress.bind-address"].name == "PERDURE_BIND_IP"


def test_advertised_addresses() -> None:
    assert advertised(None, Address("0.0.0.0", 0), 8081) == "http://localhost:8081/"
    assert advertised(None, Address("::1", 0), 8081) == "http://[::1]:8081/"
    assert advertised("https://x/", Address("::1", 0), 8081) == "https://x/"


def test_defaults_for_services_are_the_registrys_own() -> None:
    assert to_defaults(Config()) == Defaults()


def test_settings_reach_the_registry() -> None:
    defaults = to_defaults(
        load(
            """
            [invoker]
            inactivity-timeout = "1ms"
            abort-timeout = "2ms"
            eager-state-bytes-max = 3
            [retention]
            journal = "4ms"
            idempotency = "5ms"
            workflow-completion = "6ms"
            journal-max = "7ms"
            idempotency-max = "8ms"
            workflow-completion-max = "9ms"
            [retry]
            initial-interval = "10ms"
            exponentiation-factor = 11
            interval-max = "12ms"
            attempts-max = 13
            on-max-attempts = "kill"
            """
        ).config
    )
    assert (defaults.inactivity_timeout_ms, defaults.abort_timeout_ms) == (1, 2)
    assert defaults.eager_state_bytes_max == 3
    assert defaults.journal_retention_ms == 4
    assert defaults.idempotency_retention_ms == 5
    assert defaults.workflow_completion_retention_ms == 6
    assert defaults.journal_retention_ms_max == 7
    assert defaults.idempotency_retention_ms_max == 8
    assert defaults.workflow_completion_retention_ms_max == 9
    assert (defaults.retry.initial_ms, defaults.retry.factor) == (10, 11)
    assert (defaults.retry.interval_ms_max, defaults.retry.attempts_max) == (12, 13)
    assert defaults.on_max_attempts is OnMaxAttempts.KILL


# --- Where the metadata is ----------------------------------------------------------------------


def test_etcd_endpoints_are_a_list_or_a_line() -> None:
    listed = load('[etcd]\nendpoints = ["a:2379", "b:2379"]\n').config
    named = load(None, {"PERDURE_ETCD__ENDPOINTS": "a:2379, b:2379,"}).config
    assert listed.etcd.endpoints == named.etcd.endpoints == ("a:2379", "b:2379")
    assert listed.is_clustered
    assert not load(None, {"PERDURE_ETCD__ENDPOINTS": "none"}).config.is_clustered


@pytest.mark.parametrize("endpoints", ["a", ":2379", "a:0", "http://a:2379"])
def test_an_etcd_endpoint_is_somewhere_to_connect_to(endpoints: str) -> None:
    assert "etcd.endpoints" in refusal(None, {"PERDURE_ETCD__ENDPOINTS": endpoints}) or (
        "PERDURE_ETCD__ENDPOINTS" in refusal(None, {"PERDURE_ETCD__ENDPOINTS": endpoints})
    )
