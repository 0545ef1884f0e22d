"""``perdure doctor``: what it finds on a real disk, at real ports, in real certificates; what it
makes of a node's answers."""

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.node.cli.answers import Answers
from tests.node.cli.standings import ONE, THREE, TWO, cluster, node
from tests.node.cli.terminal import Terminal

from perdure.cluster.core.failure_detector import NodeState
from perdure.core.clock import SystemClock
from perdure.node.admin.cluster_rows import cluster_document
from perdure.node.config.model import Config
from perdure.node.config.resolve import resolve
from perdure.node.doctor import local
from perdure.node.doctor.certificates import check_certificates
from perdure.node.doctor.findings import Finding, Level
from perdure.node.doctor.running import check_clocks, check_cluster
from perdure.storage.data_directory import lock_folder

FREE = {
    "PERDURE_INGRESS__BIND_ADDRESS": "127.0.0.1:0",
    "PERDURE_ADMIN__BIND_ADDRESS": "127.0.0.1:0",
    "PERDURE_BIND_ADDRESS": "127.0.0.1:0",
}


def config(folder: Path, **variables: str) -> Config:
    environment = {"PERDURE_BASE_DIR": str(folder / "data"), **FREE}
    environment |= {f"PERDURE_{name}": value for name, value in variables.items()}
    return resolve(None, environment, {}).config


def certificate(folder: Path, days: float, key: ec.EllipticCurvePrivateKey | None = None) -> Path:
    """A certificate that is valid for so many days from now on."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node-1")])
    until = datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(until - timedelta(days=400))
        .not_valid_after(until)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{days}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def only(found: list[Finding], level: Level) -> list[str]:
    return [finding.what for finding in found if finding.level is level]


# --- This machine -------------------------------------------------------------------------------


def test_a_disk_is_timed_and_left_as_it_was(tmp_path: Path) -> None:
    found = list(local.check_disk(config(tmp_path), SystemClock()))
    assert [finding.check for finding in found] == ["disk space", "disk sync"]
    assert "ms at the median" in found[1].what
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_is_told_of(tmp_path: Path) -> None:
    settings = config(tmp_path)
    is_running, found = local.check_folder(settings)
    assert (is_running, only(found, Level.NOTE)) == (
        False,
        ["it is not there yet: the next start is the first one"],
    )
    folder = settings.base_dir / settings.node_name
    lock = lock_folder(folder)
    assert local.check_folder(settings) == (True, local.check_folder(settings)[1])
    lock.release()
    assert local.check_folder(settings)[0] is False
    (folder / "MARKER").write_bytes(b"nonsense")
    assert only(local.check_folder(settings)[1], Level.CRITICAL)


def test_a_path_may_be_too_long_for_a_socket(tmp_path: Path) -> None:
    members = {"CLUSTER__MEMBERS": "node-1=10.0.0.1:5123"}
    _, found = local.check_folder(config(tmp_path / ("x" * 90), **members))
    assert "too long for the socket" in only(found, Level.CRITICAL)[0]
    assert not only(local.check_folder(config(tmp_path / ("x" * 90)))[1], Level.CRITICAL)


def test_ports_are_free_taken_or_silent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = config(tmp_path, ADMIN__BIND_ADDRESS=f"127.0.0.1:{port}")
        (found,) = local.check_ports(settings, is_running=False)
        assert (found.level, "can't be opened" in found.what) == (Level.CRITICAL, True)
        assert found.where == f"admin.bind-address 127.0.0.1:{port}"
        (found,) = local.check_ports(settings, is_running=True)
        assert found.level is Level.OK
    (found,) = local.check_ports(settings, is_running=True)
    assert (found.level, "nobody answers" in found.what) == (Level.CRITICAL, True)
    (found,) = local.check_ports(settings, is_running=False)
    assert found.level is Level.OK


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CLUSTER__SECRET_FILE": "/nowhere/secret"}, "can't read"),
        ({"CLUSTER__TLS_KEY_FILE": "/nowhere/key"}, "belong together"),
        (
            {
                "CLUSTER__MEMBERS": "node-1=10.0.0.1:5123",
                "CLUSTER__BIND_ADDRESS": "0.0.0.0:5123",
            },
            "open to everybody",
        ),
        ({"ETCD__ENDPOINTS": "a:2379", "ETCD__USER": "me"}, "belong together"),
    ],
)
def test_settings_that_don_t_fit_together(
    tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    found = only(list(local.check_settings(config(tmp_path, **variables))), Level.CRITICAL)
    assert any(words in what for what in found), found


def test_a_secret_that_everybody_may_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123")
    secret.chmod(0o644)
    settings = config(tmp_path, CLUSTER__SECRET_FILE=str(secret))
    assert only(list(local.check_settings(settings)), Level.WARNING)
    secret.chmod(0o600)
    assert not only(list(local.check_settings(settings)), Level.WARNING)


# --- Certificates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        (-1, Level.CRITICAL, "expired on"),
        (5.5, Level.WARNING, "in 5 days"),
        (100, Level.OK, "is valid until"),
        (500, Level.CRITICAL, "is not valid before"),
    ],
)
def test_certificates_expire(tmp_path: Path, days: float, level: Level, words: str) -> None:
    path = certificate(tmp_path, days)
    settings = config(tmp_path, CLUSTER__TLS_AUTHORITY_FILE=str(path))
    (found,) = check_certificates(settings, SystemClock())
    assert (found.level, words in found.what) == (level, True), found
    assert found.where == f"cluster.tls-authority-file {path}"


def test_a_key_is_of_the_certificate_beside_it(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = certificate(tmp_path, 100, key)
    key_file = tmp_path / "key"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    key_file.write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
    both = {"CLUSTER__TLS_CERTIFICATE_FILE": str(path), "CLUSTER__TLS_KEY_FILE": str(key_file)}
    settings = config(tmp_path, **both)
    assert not only(list(check_certificates(settings, SystemClock())), Level.CRITICAL)
    other = ec.generate_private_key(ec.SECP256R1())
    key_file.write_bytes(other.private_bytes(*form, serialization.NoEncryption()))
    (what,) = only(list(check_certificates(settings, SystemClock())), Level.CRITICAL)
    assert "not the key" in what
    key_file.write_bytes(b"nonsense")
    (what,) = only(list(check_certificates(settings, SystemClock())), Level.CRITICAL)
    assert "can't be read" in what


# --- What a node says ---------------------------------------------------------------------------


def test_problems_of_the_cluster_are_findings() -> None:
    seen = cluster(node(ONE), node(TWO), node(THREE, NodeState.DEAD))
    found = list(check_cluster(cluster_document(seen)))
    assert any(what.startswith("node-3 is dead") for what in only(found, Level.WARNING))
    assert all(finding.advice for finding in found)
    (well,) = check_cluster(cluster_document(cluster()))
    assert (well.level, "all is well" in well.what) == (Level.OK, True)


def test_nodes_of_different_releases_are_told_of() -> None:
    document: Any = cluster_document(cluster())
    for row, software in zip(document["nodes"], ("1.0", "1.1", "1.1"), strict=True):
        row["software"] = software
    (_, note) = check_cluster(document)
    assert (note.level, "node-1 1.0, node-2 1.1" in note.what) == (Level.NOTE, True)


@pytest.mark.parametrize(("apart_ms", "level"), [(0, Level.OK), (-900, Level.OK),
    (4_000, Level.WARNING), (-4_000, Level.WARNING)])  # fmt: skip
def test_clocks_are_compared(apart_ms: int, level: Level) -> None:
    document: Any = cluster_document(cluster())
    document["nodes"][0]["addresses"]["admin"] = "http://h1:9070/"
    clock = SystemClock()
    (found,) = check_clocks(document, clock, lambda url: clock.now_ms() + apart_ms)
    assert (found.level, found.where) == (level, "node-1 http://h1:9070/")
    assert list(check_clocks(document, clock, lambda url: None)) == []


# --- The command --------------------------------------------------------------------------------


def arguments(folder: Path) -> tuple[str, ...]:
    listeners = ("--ingress-address", "--admin-address", "--bind-address")
    free = (word for flag in listeners for word in (flag, "127.0.0.1:0"))
    return ("doctor", "--base-dir", str(folder / "data"), *free)


def test_a_machine_that_is_well(terminal: Terminal, tmp_path: Path, answers: Answers) -> None:
    answers.documents["GET", "/perdure/cluster"] = (200, cluster_document(cluster()))
    store = f"snapshots.destination=file://{tmp_path}/snapshots"
    asked = (*arguments(tmp_path), "--set", store, "--admin-url", answers.url)
    done = terminal.type(*asked, "--json")
    levels = {finding["check"]: finding["level"] for finding in done.json["findings"]}
    assert levels["snapshots"] == levels["cluster"] == levels["node"] == "ok"
    bad = [f for f in done.json["findings"] if f["level"] in ("critical", "warning")]
    assert done.code == (1 if bad else 0)  # the machine that runs the tests may be short of disk
    assert all(f["check"].startswith("disk") for f in bad), bad
    assert "snapshots: the object store keeps what it should" in terminal.type(*asked, "--all").out


def test_a_cluster_that_nobody_answers_for(terminal: Terminal, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    members = f"cluster.members=node-1=127.0.0.1:5123, b=127.0.0.1:{port}, c=127.0.0.1:{port}"
    bind = ("--set", "cluster.bind-address=127.0.0.1:0")
    done = terminal.type(*arguments(tmp_path), "--set", members, *bind)
    assert done.code == 1
    assert f"b 127.0.0.1:{port}" in done.out
    assert "next:  start it; if it runs, look at the address" in done.out
    assert "no node runs here" in done.out


def test_a_node_that_should_answer_and_does_not(terminal: Terminal, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = terminal.type(*arguments(tmp_path), "--admin-url", f"http://127.0.0.1:{port}")
    assert (done.code, "nothing answers" in done.out) == (1, True)
