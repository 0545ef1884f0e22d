"""The examples do what they say, and so does the demo."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conformance.client import wait_until
from tests.conformance.processes import ChildProcess, free_port, is_listening
from tests.conformance.server import Server
from tests.conformance.services import ROOT, install_packages, node

TYPESCRIPT = ROOT / "examples" / "typescript"
LANGUAGES = pytest.mark.parametrize("language", ["python", "typescript"])


@pytest.mark.slow
@LANGUAGES
def test_the_greeter_greets(server: Server, tmp_path: Path, language: str) -> None:
    command = [sys.executable, "-m", "examples.python.greeter"]
    if language == "typescript":
        install_packages(TYPESCRIPT)
        command = [str(node()), str(TYPESCRIPT / "greeter.ts")]
    port = free_port()
    process = ChildProcess(command, {"PORT": str(port)}, tmp_path / "log", ROOT)
    process.start()
    try:
        wait_until(lambda: is_listening(port), "the greeter listens")
        assert server.admin.register(f"http://127.0.0.1:{port}").status == 201
        assert server.ingress.call("Greeter", "greet", "Ada").json() == "Hello, Ada!"
    finally:
        process.kill()


@pytest.mark.slow
@LANGUAGES
def test_the_demo_keeps_its_promises(tmp_path: Path, language: str) -> None:
    command = [sys.executable, "-m", "examples.demo", "--directory", str(tmp_path)]
    if language == "typescript":
        install_packages(TYPESCRIPT)
        command.append("--typescript")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "As promised." in done.stdout
    steps = (tmp_path / "steps.log").read_text().splitlines()
    assert [line for line in steps if line.startswith("step ")] == [
        "step reserve 2 tea",
        "step charge",
        "step ship",
    ]
