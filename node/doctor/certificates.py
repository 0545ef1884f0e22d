"""The certificates that the settings name: readable, of the key beside them, and for how long."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from perdure.core.clock import Clock
from perdure.core.limits import KEY_FILE_BYTES_MAX
from perdure.core.limits_telling import CERTIFICATE_EXPIRY_DAYS
from perdure.node.config.model import Config
from perdure.node.doctor.findings import Finding, Level, ok

_DAY_S = 86_400


def check_certificates(config: Config, clock: Clock) -> Iterator[Finding]:
    """All that are named; nothing where none is."""
    cluster, etcd = config.cluster, config.etcd
    now = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    for key, path in (
        ("cluster.tls-certificate-file", cluster.tls_certificate_file),
        ("cluster.tls-authority-file", cluster.tls_authority_file),
        ("etcd.tls-certificate-file", etcd.tls_certificate_file),
        ("etcd.tls-authority-file", etcd.tls_authority_file),
    ):
        if path is not None:
            yield from _check_dates(f"{key} {path}", path, now)
    for name, pair in (
        ("cluster.tls-key-file", (cluster.tls_certificate_file, cluster.tls_key_file)),
        ("etcd.tls-key-file", (etcd.tls_certificate_file, etcd.tls_key_file)),
    ):
        certificate, key_file = pair
        if certificate is not None and key_file is not None:
            yield from _check_pair(f"{name} {key_file}", certificate, key_file)


def _check_dates(where: str, path: Path, now: datetime) -> Iterator[Finding]:
    try:
        found = x509.load_pem_x509_certificates(_read(path))
    except (OSError, ValueError) as error:
        yield _unreadable(where, error)
        return
    first = min(found, key=lambda each: each.not_valid_after_utc)
    name = first.subject.rfc4514_string() or "a certificate without a name"
    left = (first.not_valid_after_utc - now).total_seconds()
    until = f"{first.not_valid_after_utc:%Y-%m-%d}"
    renew = "renew it: nodes read the files again when they change"
    if left <= 0:
        what = f"{name} expired on {until}"
        yield Finding(Level.CRITICAL, "certificates", what, where, renew)
    elif left < CERTIFICATE_EXPIRY_DAYS * _DAY_S:
        what = f"{name} expires on {until}, in {int(left // _DAY_S)} days"
        yield Finding(Level.WARNING, "certificates", what, where, renew)
    elif first.not_valid_before_utc > now:
        what = f"{name} is not valid before {first.not_valid_before_utc:%Y-%m-%d %H:%M}"
        advice = "is this machine's clock right?"
        yield Finding(Level.CRITICAL, "certificates", what, where, advice)
    else:
        yield ok("certificates", f"{name} is valid until {until}", where)


def _check_pair(where: str, certificate: Path, key_file: Path) -> Iterator[Finding]:
    try:
        key = load_pem_private_key(_read(key_file), None)
        first = x509.load_pem_x509_certificates(_read(certificate))[0]
    except (OSError, ValueError, TypeError, ssl.SSLError) as error:
        yield _unreadable(where, error)
        return
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        yield Finding(
            Level.CRITICAL,
            "certificates",
            "it is not the key of the certificate beside it",
            where,
            f"put the key of {certificate} there",
        )


def _unreadable(where: str, error: Exception) -> Finding:
    reason = getattr(error, "strerror", None) or str(error)
    what = f"it can't be read: {reason}"
    return Finding(Level.CRITICAL, "certificates", what, where, "put a PEM file there")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(KEY_FILE_BYTES_MAX)
