"""The admin client against servers that aren't nodes, or are in trouble."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.node.cli.terminal import Terminal

from perdure.core.errors import NodeUnreachable, UnexpectedAnswer
from perdure.node.cli import exits
from perdure.node.cli.client import AdminClient
from perdure.node.cli.refused import Refused


@dataclass(slots=True)
class Script:
    """What the server answers, and what it was asked."""

    status: int = 200
    body: bytes = b"{}"
    requests: list[tuple[str, dict[str, str], bytes]] = field(
        default_factory=list[tuple[str, dict[str, str], bytes]]
    )


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.requests.append((f"{self.command} {self.path}", headers, body))
            self.send_response(script.status)
            self.send_header("content-length", str(len(script.body)))
            self.end_headers()
            self.wfile.write(script.body)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_asks_for_json_below_the_address(script: Script, url: str) -> None:
    client = AdminClient(f"{url}/prefix/", token="secret")
    client.request("POST", "/deployments", {"uri": "http://x"}, {"a": "b c"})
    client.get("/services")
    client.close()
    (first, headers, body), (second, _, _) = script.requests
    assert (first, second) == ("POST /prefix/deployments?a=b+c", "GET /prefix/services")
    assert headers["accept"] == headers["content-type"] == "application/json"
    assert headers["authorization"] == "Bearer secret"
    assert headers["user-agent"].startswith("perdure/")
    assert body == b'{"uri": "http://x"}'


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"message": "[META0003] can\'t", "restate_code": "META0003"}', "META0003", "can't"),
        (b'{"message": "[REQ0002] gone", "restate_code": null}', "REQ0002", "gone"),
        (b'{"message": "plainly no", "restate_code": null}', None, "plainly no"),
        (b'{"message": "no", "code": "X1"}', "X1", "no"),
        (b"proxy says no", None, "proxy says no"),
        (b"", None, "Service Unavailable"),
        (b"[1]", None, "[1]"),
    ],
)
def test_errors_of_every_shape_are_told(
    script: Script, url: str, body: bytes, code: str | None, message: str
) -> None:
    script.status, script.body = 503, body
    client = AdminClient(url)
    with pytest.raises(Refused) as caught:
        client.get("/services")
    client.close()
    refused = caught.value
    assert (refused.status, refused.code, refused.message) == (503, code, message)
    assert refused.request == f"GET {url}/services"


def test_what_is_no_json_is_no_node(script: Script, url: str, terminal: Terminal) -> None:
    script.body = b"<html>hello</html>"
    client = AdminClient(url)
    with pytest.raises(UnexpectedAnswer, match="something else than JSON"):
        client.get("/services")
    client.close()
    done = terminal.type("services", "list", "--admin-url", url)
    assert done.code == exits.UNREACHABLE
    assert f"[CLI0002] GET {url}/services" in done.err
    assert "next:  " in done.err


def test_an_ingress_is_no_admin_api(script: Script, url: str, terminal: Terminal) -> None:
    script.status = 400
    script.body = b'{"code": 400, "message": "bad path", "source": "ingress"}'
    done = terminal.type("services", "list", "--admin-url", url)
    assert done.code == exits.UNREACHABLE
    assert "is a node's ingress" in done.err and "port 9070" in done.err


def test_answers_cannot_drive_the_terminal(script: Script, url: str, terminal: Terminal) -> None:
    script.status, script.body = 500, b'{"message": "\\u001b[2J\\u0007evil"}'
    done = terminal.type("services", "list", "--admin-url", url)
    assert "\x1b[2J" not in done.err
    assert "\\x1b[2J\\x07evil" in done.err
    script.status = 200
    script.body = b'{"services": [{"name": "\\u001b[2J[bold]x", "handlers": 5}]}'
    done = terminal.type("services", "list", "--admin-url", url)
    assert done.table[1] == ["\\x1b[2J[bold]x"]


def test_a_token_comes_from_the_environment(
    script: Script, url: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_AUTH_TOKEN", "abc")
    assert terminal.type("services", "list", "--admin-url", url).code == 0
    assert script.requests[0][1]["authorization"] == "Bearer abc"


def test_nobody_there(free_port: int) -> None:
    client = AdminClient(f"http://127.0.0.1:{free_port}")
    with pytest.raises(NodeUnreachable, match="connection refused"):
        client.get("/services")
