"""How a data directory is divided among workers, and what each of them is told.

Below ``<base>``: ``LOCK``, ``workers.json`` (how many it was made for), ``workers.secret`` (what
they know each other by), ``worker-<n>/``. Each worker is a node of a cluster on the loopback
interface in which nothing is kept twice; the first one holds the metadata.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import msgspec

from perdure.core.entropy import Entropy
from perdure.core.errors import DataDirectoryDamaged, InvalidConfiguration
from perdure.core.limits import WORKER_PORTS_EACH
from perdure.node.config.model import Config
from perdure.node.config.values import Address
from perdure.storage.disk import OsDisk, make_durable_folder, sync_path

MARKER = "workers.json"
SECRET = "workers.secret"
_FORMAT = 1
_SECRET_BITS = 256
_LOOPBACK = "127.0.0.1"
# Folders of workers, and what a file system has at its top.
_NO_NODE = re.compile(r"worker-\d+|lost\+found")


class _Marker(msgspec.Struct, frozen=True):
    format: int
    workers: int


def worker_name(number: int) -> str:
    """From 1."""
    return f"worker-{number}"


def worker_count(base_dir: Path) -> int | None:
    """How many workers a data directory was made for; None: for a node that is alone, or it is new.

    Raises:
        DataDirectoryDamaged: that can't be read.
    """
    path = base_dir / MARKER
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Marker).workers
    except msgspec.DecodeError as error:
        raise DataDirectoryDamaged(f"{path} can't be read ({error}): restore it") from error


def check_alone(base_dir: Path) -> None:
    """A node that is alone can't serve what workers have divided.

    Raises:
        InvalidConfiguration: it was made for workers.
    """
    count = worker_count(base_dir)
    if count is not None:
        raise InvalidConfiguration(
            f"{base_dir} was made for {count} workers: start it with `perdure up --workers "
            f"{count}`, or choose another --base-dir"
        )


def prepare(config: Config, count: int, entropy: Entropy) -> list[Config]:
    """Ready the data directory, whose lock the caller has; the configuration of each worker.

    Raises:
        InvalidConfiguration: it was made for another number, or for a node that is alone; or
            something is configured that workers can't have.
    """
    _check(config, count)
    base = config.base_dir
    known = worker_count(base)
    if known is None:
        _check_new(base, count)
        _make_secret(base, entropy)
        OsDisk(base).replace(MARKER, msgspec.json.encode(_Marker(_FORMAT, count)))
    elif known != count:
        raise InvalidConfiguration(
            f"{base} was made for {known} workers: start it with --workers {known}, or choose "
            "another --base-dir. What is stored is divided among them, and can't be divided again"
        )
    return [_of_worker(config, number) for number in range(1, count + 1)]


def _check(config: Config, count: int) -> None:
    if config.is_clustered:
        raise InvalidConfiguration(
            "--workers makes a cluster of its own on this machine: leave `cluster.members` and "
            "`etcd` away, or start `perdure server` on each machine instead"
        )
    if config.worker.partition_count < count:
        raise InvalidConfiguration(
            f"worker.partition-count is {config.worker.partition_count}: {count} workers need as "
            "many partitions at least"
        )


def _check_new(base: Path, count: int) -> None:
    """What is there already must be of a start that got no further than this."""
    others = [
        entry.name
        for entry in base.iterdir()
        if entry.is_dir() and not _NO_NODE.fullmatch(entry.name)
    ]
    if others:
        raise InvalidConfiguration(
            f"{base} holds the data of {', '.join(sorted(others))}, made without workers, which "
            f"can't be divided among {count}: start it without --workers, or choose another "
            "--base-dir"
        )


def _make_secret(base: Path, entropy: Entropy) -> None:
    """Readable for its owner only. One that was left behind by a start that failed is as good."""
    path = base / SECRET
    if path.exists() and path.stat().st_size >= _SECRET_BITS // 4:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, f"{entropy.bits(_SECRET_BITS):0{_SECRET_BITS // 4}x}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_path(base)


def _of_worker(config: Config, number: int) -> Config:
    first = config.cluster.bind_address.port
    ahead = (number - 1) * WORKER_PORTS_EACH
    own = config.bind_address
    make_durable_folder(config.base_dir / worker_name(number))
    return replace(
        config,
        node_name=worker_name(number),
        bind_address=Address(own.host, own.port + ahead),
        cluster=replace(
            config.cluster,
            members=((worker_name(1), str(Address(_LOOPBACK, first))),),
            bind_address=Address(_LOOPBACK, first + ahead),
            advertised_address=None,
            secret_file=(config.base_dir / SECRET).absolute(),
            replication=1,
            partition_replicas=1,
        ),
    )
