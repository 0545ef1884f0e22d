"""The server under test, as a process with its own ports and base directory.

``PERDURE_UNDER_TEST=reference`` with ``PERDURE_REFERENCE_SERVER=<binary>`` runs the suite against
another server that speaks the same protocols: what both pass is compatible, what only perdure
passes is a claim.
"""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.conformance.client import Admin, Ingress, wait_until
from tests.conformance.processes import ChildProcess, free_port

from perdure.core.ids import format_invocation_id, make_invocation_id

START_TIMEOUT_S = 30.0
_IS_REFERENCE = os.environ.get("PERDURE_UNDER_TEST", "perdure") == "reference"


class Server:
    """One server. ``kill`` and ``start`` keep base directory and ports: that is a crash."""

    def __init__(self, base: Path) -> None:
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        ports = [free_port() for _ in range(3)]
        self.ingress = Ingress(f"http://127.0.0.1:{ports[0]}")
        self.admin = Admin(f"http://127.0.0.1:{ports[1]}")
        addresses = [f"127.0.0.1:{port}" for port in ports]
        make = _reference_command if _IS_REFERENCE else _perdure_command
        command, environment = make(base, addresses)
        self.process = ChildProcess(command, environment, base / "server.log", base)

    def start(self) -> None:
        """Start and wait until both ports answer."""
        self.process.start()
        wait_until(self._is_healthy, "server healthy", START_TIMEOUT_S)

    def stop(self) -> int:
        return self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def _is_healthy(self) -> bool:
        if not self.process.is_running:
            raise AssertionError(f"the server ended:\n{self.process.log_tail()}")
        urls = (f"{self.admin.url}/health", f"{self.ingress.url}/restate/health")
        return all(_answers(url) for url in urls) and all(map(self._has_leader, range(0, 256, 16)))

    def _has_leader(self, first_byte: int) -> bool:
        """Whether somebody answers for the partition of the keys that begin so."""
        nobody = format_invocation_id(make_invocation_id(first_byte << 56, 0))
        return self.ingress.output(nobody).status == 404


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _perdure_command(base: Path, addresses: list[str]) -> tuple[list[str], dict[str, str]]:
    environment = {
        "PERDURE_INGRESS__BIND_ADDRESS": addresses[0],
        "PERDURE_ADMIN__BIND_ADDRESS": addresses[1],
        "PERDURE_BIND_ADDRESS": addresses[2],
        "PERDURE_BASE_DIR": str(base / "data"),
    }
    return [sys.executable, "-m", "perdure", "server"], environment


def _reference_command(base: Path, addresses: list[str]) -> tuple[list[str], dict[str, str]]:
    environment = {
        "RESTATE_INGRESS__BIND_ADDRESS": addresses[0],
        "RESTATE_ADMIN__BIND_ADDRESS": addresses[1],
        "RESTATE_BIND_ADDRESS": addresses[2],
        "RESTATE_BASE_DIR": str(base / "data"),
        "RESTATE_DEFAULT_NUM_PARTITIONS": "4",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true",
    }
    return [os.environ["PERDURE_REFERENCE_SERVER"], "--no-logo"], environment
