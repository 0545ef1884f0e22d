"""Servers that call services of the Restate SDKs: perdure and the reference server."""

import compileall
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from abc import abstractmethod
from pathlib import Path

from bench.compiled import build_compiled, environment
from bench.processes import CACHE, READY_SECONDS, ROOT, BenchFailed, NotHere, Process, free_port
from bench.systems.base import System

SDK_VERSION = "1.17.2"
_OF_THE_SDK = frozenset({"start", "latency", "throughput", "object", "fan"})
_COMPILED = CACHE / "compiled"


class SdkServer(System):
    """A server and, beside it, a service that it calls over HTTP/2."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port, self.admin_port, self.node_port = free_port(), free_port(), free_port()
        self.service_port = 0

    @classmethod
    def provide(cls) -> None:
        if cls.language == "typescript":
            install_node_package("@restatedev/restate-sdk", SDK_VERSION)
            # Node looks packages up beside the file, so the service must lie beside them.
            shutil.copy(ROOT / "bench" / "apps" / "service.mjs", CACHE / "service.mjs")

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, str]]:
        """How the server is started, and with which environment."""

    def launch(self) -> float:
        if not self.services:
            service, self.service_port = start_service(self.language, self.folder)
            self.services.append(service)
        command, env = self.command()
        server = Process(command, env, self.folder / f"{self.name}.log")
        self.measured.append(server)
        return server.wait_healthy(f"http://127.0.0.1:{self.port}/restate/health", self.port)

    def prepare(self) -> None:
        """Register the service; retried, because health may precede readiness."""
        body = json.dumps({"uri": f"http://127.0.0.1:{self.service_port}"}).encode()
        url = f"http://127.0.0.1:{self.admin_port}/deployments"
        deadline = time.perf_counter() + READY_SECONDS
        while True:
            request = urllib.request.Request(url, body, {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=10):
                    return
            except OSError as error:
                if time.perf_counter() > deadline:
                    raise BenchFailed(f"{self.name} refuses the service: {error}") from error
                time.sleep(0.02)


class Perdure(SdkServer):
    name = "perdure"

    @classmethod
    def provide(cls) -> None:
        super().provide()
        write_bytecode(ROOT)

    def command(self) -> tuple[list[str], dict[str, str]]:
        arguments = [sys.executable, "-m", "perdure", "server", "--log-level", "error"]
        arguments += ["--base-dir", str(self.folder / "data")]
        arguments += ["--ingress-address", f"127.0.0.1:{self.port}"]
        arguments += ["--admin-address", f"127.0.0.1:{self.admin_port}"]
        return [*arguments, "--bind-address", f"127.0.0.1:{self.node_port}"], {}


class PerdureCompiled(Perdure):
    name = "perdure-compiled"
    workloads = frozenset({"start", "latency", "throughput"})

    @classmethod
    def provide(cls) -> None:
        super().provide()
        build_compiled(_COMPILED)
        write_bytecode(_COMPILED)

    def command(self) -> tuple[list[str], dict[str, str]]:
        return super().command()[0], environment(_COMPILED)


class Reference(SdkServer):
    name = "reference"

    @classmethod
    def provide(cls) -> None:
        super().provide()
        reference_binary()

    def command(self) -> tuple[list[str], dict[str, str]]:
        env = {
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self.port}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self.admin_port}",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{self.node_port}",
            "RUST_LOG": "error",
        }
        return [str(reference_binary()), "--base-dir", str(self.folder / "data")], env


class PerdureTs(Perdure):
    name = "perdure-ts"
    workloads = _OF_THE_SDK
    language = "typescript"


class ReferenceTs(Reference):
    name = "reference-ts"
    workloads = _OF_THE_SDK
    language = "typescript"


def write_bytecode(checkout: Path) -> None:
    """As pip leaves a package; a checkout has no bytecode where Python is told to write none."""
    for room in (checkout / "src" / "perdure").iterdir():
        if room.is_dir() and not compileall.compile_dir(str(room.resolve()), quiet=1):
            raise BenchFailed(f"{room.name} has no bytecode")


def start_service(language: str, folder: Path) -> tuple[Process, int]:
    """The service of that SDK, listening on the port returned."""
    port = free_port()
    if language == "typescript":
        command = [_find("node"), str(CACHE / "service.mjs"), str(port)]
    else:
        command = [sys.executable, "-m", "bench.service", str(port)]
    process = Process(command, {}, folder / f"service-{language}.log")
    try:
        process.wait_listening(port)
    except BaseException:
        process.stop()
        raise
    return process, port


def install_node_package(package: str, version: str = "") -> None:
    """With npm, into a cache that git ignores."""
    if (CACHE / "node_modules" / package / "package.json").exists():
        return
    CACHE.mkdir(exist_ok=True)
    wanted = f"{package}@{version}" if version else package
    command = [_find("npm"), "install", "--silent", "--no-audit", "--prefix", str(CACHE), wanted]
    if subprocess.run(command).returncode:
        raise NotHere(f"npm can't install {wanted}")


def reference_binary() -> Path:
    """Given by BENCH_REFERENCE_SERVER, or installed with npm."""
    given = os.environ.get("BENCH_REFERENCE_SERVER")
    if given:
        return Path(given)
    machines = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}
    package = f"@restatedev/restate-server-{sys.platform}-{machines.get(platform.machine(), '?')}"
    install_node_package(package)
    return CACHE / "node_modules" / package / "bin" / "restate-server"


def _find(program: str) -> str:
    # The environment's own first: the TypeScript SDK needs a newer Node than many systems have.
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    if found is None:
        raise NotHere(f"{program} is not installed")
    return found
