"""A server on an admin port that answers what a test says."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Answers:
    """A server on the admin port: ``documents`` by method and path."""

    documents: dict[tuple[str, str], tuple[int, object]]
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    url: str = ""


@contextmanager
def serving() -> Generator[Answers]:
    known = Answers({})

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            known.asked.append((self.command, self.path))
            status, document = known.documents[self.command, self.path]
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    known.url = f"http://127.0.0.1:{server.server_port}"
    yield known
    server.shutdown()
    thread.join()
    server.server_close()
