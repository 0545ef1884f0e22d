"""Child processes of the benchmark: sure to own their port, ended for certain."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "bench" / ".cache"
READY_SECONDS = 60.0
_STOP_SECONDS = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchFailed(Exception):
    """The measurement can't be trusted or didn't come about."""


class NotHere(Exception):
    """A system can't be had on this machine; the reason is printed on the page."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A child with its descendants: what they use, whether they listen, how they end."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        user: str = "",
    ) -> None:
        self.log = log
        self.started_at = time.perf_counter()
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT if not user else "/",
                start_new_session=True,
                user=user or None,
                group=user or None,
                extra_groups=[] if user else None,
            )
        self.pid = self._child.pid

    def wait_healthy(self, url: str, port: int) -> float:
        """Poll until the child answers; seconds since it was started."""
        while self._is_starting():
            try:
                with urllib.request.urlopen(url, timeout=1):
                    seconds = time.perf_counter() - self.started_at
            except OSError:  # no listener yet, or an answer that says not yet
                time.sleep(0.005)
                continue
            self.check_owner(port)
            return seconds
        raise BenchFailed(f"{self.log.stem} was not healthy after {READY_SECONDS:.0f} s")

    def wait_listening(self, port: int) -> float:
        """Poll until the child accepts connections; seconds since it was started."""
        while self._is_starting():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    seconds = time.perf_counter() - self.started_at
                    self.check_owner(port)
                    return seconds
            time.sleep(0.005)
        raise BenchFailed(f"{self.log.stem} didn't listen after {READY_SECONDS:.0f} s")

    def _is_starting(self) -> bool:
        if self._child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise BenchFailed(f"{self.log.stem} ended with {self._child.returncode}:\n{tail}")
        return time.perf_counter() - self.started_at < READY_SECONDS

    def cpu_seconds(self) -> float:
        """Of the child and all its descendants, ended ones included."""
        total = 0
        for pid in self._tree():
            try:
                fields = _stat(pid)
            except OSError:
                continue  # ended since: its time is its parent's child time
            total += sum(int(field) for field in fields[11:15])
        return total / _TICKS

    def memory_bytes(self) -> int:
        """Proportional set size: pages shared by several processes count once."""
        total = 0
        for pid in self._tree():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue  # ended since
            total += next(
                (int(row.split()[1]) * 1024 for row in rollup.splitlines() if row[:4] == "Pss:"), 0
            )
        return total

    def kill(self) -> None:
        """SIGKILL to the child and every descendant."""
        for pid in self._tree():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._child.wait()

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        if self._child.poll() is None:
            self._child.send_signal(with_signal)
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def check_owner(self, port: int) -> None:
        """Somebody else's server on our port would be measured in our stead."""
        wanted = f":{port:04X}"
        sockets = {
            f"socket:[{fields[9]}]"
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if (fields := line.split())[3] == "0A" and fields[1].endswith(wanted)
        }
        if not any(sockets & _descriptors(pid) for pid in self._tree()):
            raise BenchFailed(f"port {port} is not held by {self.log.stem} (pid {self.pid})")

    def _tree(self) -> list[int]:
        parents = dict(_parents())
        tree = [self.pid]
        for pid in tree:  # grows as children are found
            tree += [child for child, parent in parents.items() if parent == pid]
        return tree


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), int(_stat(int(entry.name))[1])
            except OSError:
                continue  # ended since


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _descriptors(pid: int) -> set[str]:
    try:
        return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()
