"""Who may reach the port between nodes: certificates, a secret, or nobody but this machine."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from perdure.core import limits
from perdure.core.errors import InvalidConfiguration


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files; read again when they change, so certificates are renewed without a restart.

    ``authority`` signs the certificates of all nodes. A node checks that the certificate of the
    node it dials is for the host name it dialled, or for ``server_name`` if that is set.
    """

    certificate: Path
    key: Path
    authority: Path
    server_name: str = ""

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Key, certificate chain, authority.

        Raises:
            InvalidConfiguration: a file can't be read or isn't PEM.
        """
        key = _read_pem(self.key, "PRIVATE KEY")
        return (
            key,
            _read_pem(self.certificate, "CERTIFICATE"),
            _read_pem(self.authority, "CERTIFICATE"),
        )

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Differs when a file was replaced.

        Raises:
            InvalidConfiguration: a file is gone.
        """
        try:
            found = [path.stat() for path in (self.certificate, self.key, self.authority)]
        except OSError as failure:
            raise InvalidConfiguration(f"can't read {failure.filename}: {failure}") from failure
        return tuple((item.st_mtime_ns, item.st_size, item.st_ino) for item in found)


def read_secret(path: Path) -> bytes:
    """The cluster secret in a file, without surrounding blanks.

    Raises:
        InvalidConfiguration: there is none, or it is too short to be one.
    """
    secret = _read(path).strip()
    if len(secret) < limits.FABRIC_SECRET_BYTES_MIN:
        raise InvalidConfiguration(
            f"{path} holds {len(secret)} bytes; a cluster secret has at least "
            f"{limits.FABRIC_SECRET_BYTES_MIN}: make one with `openssl rand -base64 32`"
        )
    return secret


def check_exposure(bind: str, *, tls: TlsFiles | None, is_trusted: bool) -> None:
    """Whether the port may be opened there. ``is_trusted``: a secret keeps others out, or whoever
    runs the node says that nobody else reaches it.

    Raises:
        InvalidConfiguration: anybody who reaches it could take part in the cluster.
    """
    if tls is not None or is_trusted or is_loopback(bind):
        return
    raise InvalidConfiguration(
        f"the port between nodes would be open to everybody at {bind}: set TLS files or a cluster "
        "secret, or say that the network is safe with cluster.insecure = true"
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches ``host:port``."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may be anywhere


def _read_pem(path: Path, mark: str) -> bytes:
    data = _read(path)
    if b"-----BEGIN" not in data or mark.encode() not in data:
        raise InvalidConfiguration(f"{path} holds no {mark.lower()} in PEM form")
    return data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.KEY_FILE_BYTES_MAX)
    except OSError as failure:
        raise InvalidConfiguration(f"can't read {path}: {failure}") from failure
