"""The settings of an etcd: which belong together, and the files that they name."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from perdure.core.errors import InvalidConfiguration
from perdure.node.config.resolve import resolve
from perdure.node.etcd import read_settings

_HERE = {"PERDURE_ETCD__ENDPOINTS": "127.0.0.1:2379"}


def settings(environment: Mapping[str, str]) -> object:
    return read_settings(resolve(None, {**_HERE, **environment}, {}).config)


def test_the_prefix_names_the_cluster() -> None:
    config = resolve(None, {**_HERE, "PERDURE_CLUSTER_NAME": "shop"}, {}).config
    assert read_settings(config).prefix == "perdure/shop/"


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "ca").write_bytes(b"pem")
    environment = {
        "PERDURE_ETCD__USER": "me",
        "PERDURE_ETCD__PASSWORD_FILE": str(tmp_path / "password"),
        "PERDURE_ETCD__TLS_AUTHORITY_FILE": str(tmp_path / "ca"),
        "PERDURE_ETCD__PREFIX": "mine/",
    }
    found = read_settings(resolve(None, {**_HERE, **environment}, {}).config)
    assert (found.user, found.password, found.prefix) == ("me", "secret", "mine/")
    assert (found.authority, found.certificate, found.key) == (b"pem", None, None)


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"PERDURE_CLUSTER__MEMBERS": "n1=127.0.0.1:5123"}, "two places"),
        ({"PERDURE_ETCD__USER": "me"}, "password-file"),
        ({"PERDURE_ETCD__PASSWORD_FILE": "/tmp/x"}, "etcd.user"),
        ({"PERDURE_ETCD__TLS_KEY_FILE": "/tmp/x"}, "tls-certificate-file"),
        (
            {"PERDURE_ETCD__TLS_KEY_FILE": "/x", "PERDURE_ETCD__TLS_CERTIFICATE_FILE": "/x"},
            "not encrypted",
        ),
        ({"PERDURE_ETCD__TLS_AUTHORITY_FILE": "/nowhere/ca.pem"}, "can't be read"),
    ],
)
def test_what_contradicts_itself_is_refused(environment: Mapping[str, str], word: str) -> None:
    with pytest.raises(InvalidConfiguration, match=word):
        settings(environment)
