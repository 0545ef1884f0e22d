"""The operator's etcd as the configuration names it; imports gRPC, so only who needs it imports it.

Files are read once, at the start: who changes a password or a certificate restarts the nodes.
"""

from pathlib import Path

from perdure.cluster.core.membership import CLUSTER_FORMAT_VERSION, ClusterMeta
from perdure.cluster.membership import provision, read_cluster
from perdure.cluster.metadata.etcd import EtcdMetadata, EtcdSettings
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import InvalidConfiguration
from perdure.node.config.model import Config

_FILE_BYTES_MAX = 1024 * 1024


def open_etcd(config: Config, clock: Clock) -> EtcdMetadata:
    """Registers in it; nothing is asked yet.

    Raises:
        InvalidConfiguration: settings contradict each other, or a file can't be read.
    """
    return EtcdMetadata(read_settings(config), clock)


def read_settings(config: Config) -> EtcdSettings:
    """What the settings and the files that they name say.

    Raises:
        InvalidConfiguration: as ``open_etcd``.
    """
    etcd = config.etcd
    if config.cluster.members:
        raise InvalidConfiguration(
            "etcd.endpoints and cluster.members name two places for the metadata: leave one of "
            "them out, the same one on every node"
        )
    if (etcd.user is None) != (etcd.password_file is None):
        raise InvalidConfiguration("etcd.user and etcd.password-file belong together")
    if (etcd.tls_certificate_file is None) != (etcd.tls_key_file is None):
        raise InvalidConfiguration(
            "etcd.tls-certificate-file and etcd.tls-key-file belong together"
        )
    if etcd.tls_certificate_file is not None and etcd.tls_authority_file is None:
        raise InvalidConfiguration(
            "etcd.tls-certificate-file needs etcd.tls-authority-file: without it connections are "
            "not encrypted"
        )
    password = _read("etcd.password-file", etcd.password_file)
    try:
        text = (password or b"").decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise InvalidConfiguration("etcd.password-file is no UTF-8 text") from None
    return EtcdSettings(
        endpoints=etcd.endpoints,
        prefix=etcd.prefix if etcd.prefix is not None else f"perdure/{config.cluster_name}/",
        authority=_read("etcd.tls-authority-file", etcd.tls_authority_file),
        certificate=_read("etcd.tls-certificate-file", etcd.tls_certificate_file),
        key=_read("etcd.tls-key-file", etcd.tls_key_file),
        user=etcd.user,
        password=text,
    )


async def provision_cluster(config: Config, clock: Clock, entropy: Entropy) -> ClusterMeta:
    """Make the cluster in an etcd that has none, as its first node would; what is there then.

    Raises:
        InvalidConfiguration: as ``open_etcd``.
        MetadataUnavailable: etcd doesn't answer; it may have been made.
        DataDirectoryTooNew: a later release made it.
    """
    cluster = config.cluster
    wanted = ClusterMeta(
        format=CLUSTER_FORMAT_VERSION,
        name=config.cluster_name,
        fingerprint=f"{entropy.bits(128):032x}",
        partition_count=config.worker.partition_count,
        replication=cluster.replication,
        partition_replicas=cluster.partition_replicas,
    )
    store = open_etcd(config, clock)
    try:
        known = await read_cluster(store)
        return known if known is not None else await provision(store, wanted)
    finally:
        await store.aclose()


def _read(key: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise InvalidConfiguration(f"{key}: {path} can't be read: {error.strerror}") from error
