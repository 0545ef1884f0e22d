"""What can be told of this machine: data directory, disk, ports, files of the configuration.

Nothing is changed but for a small file that is written to time the disk, and removed again.
"""

import os
import resource
import shutil
import socket
import statistics
from collections.abc import Iterator
from pathlib import Path

from perdure.cluster.security import check_exposure, read_secret
from perdure.core.clock import Clock
from perdure.core.errors import DataDirectoryLocked, PerdureError
from perdure.core.limits_telling import (
    DISK_FREE_AMPLE_BYTES,
    DISK_USED_CRITICAL_PERCENT,
    DISK_USED_MANY_PERCENT,
    OPEN_FILES_MIN,
    SYNC_PROBES,
    SYNC_SLOW_MS,
)
from perdure.node.config.model import Config
from perdure.node.config.values import Address
from perdure.node.doctor.findings import Finding, Level, ok
from perdure.storage.data_directory import check_owner, lock_folder, open_disk, read_marker

_PROBE_BYTES = 4096
_SOCKET = "metadata-member/socket"
_SOCKET_PATH_MAX = 100


def check_settings(config: Config) -> Iterator[Finding]:
    """Settings that are each allowed, but not together; and files that they name."""
    cluster = config.cluster
    found = list(_secret(config))
    tls = (cluster.tls_certificate_file, cluster.tls_key_file, cluster.tls_authority_file)
    has_tls = all(path is not None for path in tls)
    if any(path is not None for path in tls) and not has_tls:
        found.append(
            Finding(
                Level.CRITICAL,
                "settings",
                "certificate, key and authority belong together, and one of them is not set",
                "cluster.tls-certificate-file, cluster.tls-key-file, cluster.tls-authority-file",
                "set all three, or none",
            )
        )
    if config.is_clustered:
        bind = f"{cluster.bind_address.listen_host or '0.0.0.0'}:{cluster.bind_address.port}"
        is_trusted = cluster.secret_file is not None or cluster.insecure or has_tls
        try:
            check_exposure(bind, tls=None, is_trusted=is_trusted)
        except PerdureError as error:
            found.append(_failed("settings", error, "cluster.bind-address"))
    if config.etcd.endpoints:
        from perdure.node.etcd import read_settings

        try:
            read_settings(config)
        except PerdureError as error:
            found.append(_failed("settings", error, "etcd"))
    yield from found or [ok("settings", "they fit together")]


def _secret(config: Config) -> Iterator[Finding]:
    path = config.cluster.secret_file
    if path is None:
        return
    try:
        read_secret(path)
    except PerdureError as error:
        yield _failed("settings", error, "cluster.secret-file")
        return
    if path.stat().st_mode & 0o007:
        yield Finding(
            Level.WARNING,
            "settings",
            "everybody on this machine may read the cluster's secret",
            str(path),
            f"chmod o-rwx {path}",
        )


def check_folder(config: Config) -> tuple[bool, list[Finding]]:
    """Whether a node runs on the data directory; and what is found there."""
    folder = config.base_dir / config.node_name
    where = str(folder)
    if config.cluster.members and len(str(folder.absolute() / _SOCKET)) > _SOCKET_PATH_MAX:
        what = "its path is too long for the socket of the metadata"
        advice = "choose a --base-dir with a shorter path"
        return False, [Finding(Level.CRITICAL, "data directory", what, where, advice)]
    if not folder.exists():
        parent = _existing(folder)
        if not os.access(parent, os.W_OK):
            advice = f"give the user that runs the node the right to write to {parent}"
            what = "the data directory can't be made"
            return False, [Finding(Level.CRITICAL, "data directory", what, where, advice)]
        what = "it is not there yet: the next start is the first one"
        return False, [Finding(Level.NOTE, "data directory", what, where)]
    is_running = False
    try:
        lock_folder(folder).release()
    except DataDirectoryLocked:
        is_running = True
    except OSError as error:
        advice = "run the doctor, and the node, as the user that owns it"
        what = f"it can't be used: {error.strerror}"
        return False, [Finding(Level.CRITICAL, "data directory", what, where, advice)]
    try:
        marker = read_marker(open_disk(folder))
        if marker is not None:
            check_owner(marker, config.cluster_name, config.node_name)
    except PerdureError as error:
        return is_running, [_failed("data directory", error, where)]
    if marker is None:
        return is_running, [Finding(Level.NOTE, "data directory", "it is empty", where)]
    runs = "a node runs on it" if is_running else "no node runs on it"
    what = f"of node {marker.node} of {marker.cluster}, started {marker.generation} times; {runs}"
    return is_running, [ok("data directory", what, where)]


def check_disk(config: Config, clock: Clock) -> Iterator[Finding]:
    """Room below the data directory, and how long a sync takes there."""
    folder = _existing(config.base_dir / config.node_name)
    usage = shutil.disk_usage(folder)
    percent = 100 * (usage.total - usage.free) // max(usage.total, 1)
    what = f"{percent} % used, {usage.free // 1024**2} MiB free"
    if percent >= DISK_USED_MANY_PERCENT and usage.free < DISK_FREE_AMPLE_BYTES:
        is_full = percent >= DISK_USED_CRITICAL_PERCENT
        level = Level.CRITICAL if is_full else Level.WARNING
        advice = "free some space: a node whose disk is full takes nothing new"
        yield Finding(level, "disk space", what, str(folder), advice)
    else:
        yield ok("disk space", what, str(folder))
    try:
        times = _time_syncs(folder, clock)
    except OSError as error:
        what = f"a file can't be written and synced: {error.strerror}"
        advice = "look at the disk and at the rights of the user that runs the node"
        yield Finding(Level.CRITICAL, "disk sync", what, str(folder), advice)
        return
    median, worst = statistics.median(times), max(times)
    what = f"{median:.2f} ms at the median of {len(times)}, {worst:.2f} ms at worst"
    if median > SYNC_SLOW_MS:
        advice = "every durable step waits for one or two of them: use a faster, local disk"
        yield Finding(Level.WARNING, "disk sync", what, str(folder), advice)
    else:
        yield ok("disk sync", what, str(folder))


def check_ports(config: Config, *, is_running: bool) -> Iterator[Finding]:
    """Whether the node's ports can be opened, or answer if it runs."""
    listeners = [
        ("ingress.bind-address", config.ingress.bind_address),
        ("admin.bind-address", config.admin.bind_address),
        ("bind-address", config.bind_address),
    ]
    if config.is_clustered:
        listeners.append(("cluster.bind-address", config.cluster.bind_address))
    if any(name == config.node_name for name, _ in config.cluster.members):
        bind = config.cluster.bind_address
        listeners.append(("cluster.bind-address, next port", Address(bind.host, bind.port + 1)))
    for key, address in listeners:
        if address.port == 0:
            continue
        problem = _connect(address) if is_running else _bind(address)
        where = f"{key} {address}"
        if problem is None:
            yield ok("ports", "it answers" if is_running else "it is free", where)
        elif is_running:
            advice = "was the node started with other settings? Give the doctor the same"
            yield Finding(Level.CRITICAL, "ports", f"nobody answers: {problem}", where, advice)
        else:
            advice = "stop what listens there, or set another address"
            yield Finding(Level.CRITICAL, "ports", f"it can't be opened: {problem}", where, advice)


def check_open_files() -> Iterator[Finding]:
    """How many files and sockets a process started from here may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES_MIN:
        yield Finding(
            Level.WARNING,
            "open files",
            f"{soft} files and sockets per process",
            "ulimit -n",
            f"allow {OPEN_FILES_MIN} or more: each connection and log file is one",
        )
    else:
        yield ok("open files", f"{soft} per process")


def _time_syncs(folder: Path, clock: Clock) -> list[float]:
    """Milliseconds that overwriting a block and syncing it takes, each time."""
    path = folder / f".doctor-{os.getpid()}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        block = b"\0" * _PROBE_BYTES
        os.pwrite(descriptor, block, 0)
        os.fsync(descriptor)
        times: list[float] = []
        for _ in range(SYNC_PROBES):
            began = clock.monotonic()
            os.pwrite(descriptor, block, 0)
            os.fdatasync(descriptor)
            times.append((clock.monotonic() - began) * 1000)
        return times
    finally:
        os.close(descriptor)
        path.unlink()


def _bind(address: Address) -> str | None:
    family = socket.AF_INET6 if ":" in address.host or not address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.listen_host, address.port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _connect(address: Address) -> str | None:
    try:
        socket.create_connection((address.reachable_host, address.port), timeout=2).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _failed(check: str, error: PerdureError, where: str) -> Finding:
    what, _, advice = error.message.rpartition(": ")
    if not what:
        what, advice = error.message, f"see docs/errors/{error.code}.md"
    return Finding(Level.CRITICAL, check, f"[{error.code}] {what}", where, advice)
