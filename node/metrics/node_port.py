"""The HTTP application on the node's own port: ``GET /health`` and ``GET /metrics``.

Statistics are taken on the event loop, in one turn; the text is made from them on a thread, so a
scrape of many partitions doesn't hold up anybody.
"""

from collections.abc import Callable

import msgspec

from perdure.core.errors import BodyTooLarge, MethodNotAllowed, NotFound, PerdureError
from perdure.core.limits import ADMIN_BODY_BYTES_MAX
from perdure.core.offload import Offload
from perdure.core.telemetry import logger
from perdure.node.http.server import Exchange
from perdure.node.metrics.health import health_document
from perdure.node.metrics.readings import read
from perdure.node.metrics.statistics import NodeStatistics

log = logger("metrics")

_JSON = (b"content-type", b"application/json")


class NodePort:
    """Answers those who watch the node."""

    def __init__(self, statistics: Callable[[], NodeStatistics], rendering: Offload) -> None:
        self.body_bytes_max = ADMIN_BODY_BYTES_MAX
        self._statistics = statistics
        self._rendering = rendering

    def on_exchange(self, exchange: Exchange) -> None:
        """A whole request has arrived."""
        path = exchange.target.partition("?")[0]
        if path not in ("/health", "/metrics"):
            self._refuse(exchange, NotFound(f"there is no {path} here: /health and /metrics are"))
        elif exchange.method not in ("GET", "HEAD"):
            self._refuse(exchange, MethodNotAllowed(f"this path takes GET, not {exchange.method}"))
        elif path == "/health":
            document = msgspec.json.encode(health_document(self._statistics()))
            _respond(exchange, 200, _JSON, document)
        else:
            self._scrape(exchange)

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        """The body exceeds the limit."""
        self._refuse(exchange, BodyTooLarge("requests here have no body"))

    def _scrape(self, exchange: Exchange) -> None:
        node = self._statistics()

        def failed(error: BaseException) -> None:
            log.error("metrics.scrape.failed", cause=error)
            self._refuse(exchange, PerdureError("the scrape failed here: see the log"))

        def done(answer: tuple[bytes, bytes]) -> None:
            content_type, body = answer
            _respond(exchange, 200, (b"content-type", content_type), body)

        self._rendering.submit(lambda: _render(node), done, failed)

    def _refuse(self, exchange: Exchange, error: PerdureError) -> None:
        document = {"message": str(error), "restate_code": error.code}
        _respond(exchange, error.http_status, _JSON, msgspec.json.encode(document))


def _render(node: NodeStatistics) -> tuple[bytes, bytes]:
    from perdure.node.metrics import exposition  # a node that nobody scrapes never loads it

    text = exposition.render(read(node), node.cluster_name, node.node_name)
    return exposition.CONTENT_TYPE, text


def _respond(exchange: Exchange, status: int, header: tuple[bytes, bytes], body: bytes) -> None:
    exchange.respond(status, [header], b"" if exchange.method == "HEAD" else body)
