"""Talks to a node's admin API: one request at a time over a kept connection, JSON both ways."""

import http.client
import json
import re
import socket
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlencode, urlsplit

import perdure
from perdure.core.errors import NodeUnreachable, UnexpectedAnswer
from perdure.node.cli.refused import Refused

Document = dict[str, object]

DEFAULT_ADMIN_URL = "http://localhost:9070"
# Long enough for a discovery that is retried, and for the node to say that a statement took too
# long; short enough to notice a wrong address.
_TIMEOUT_SECONDS = 75.0
_CONNECT_SECONDS = 5.0
_ANSWER_BYTES_MAX = 256 * 1024 * 1024
# How the other port of a node signs its errors.
_INGRESS = "ingress"
_CODE_PREFIX = re.compile(r"\[([A-Z]{2,5}[0-9]{4})\]\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer. ``document`` is empty when there was no body."""

    status: int
    document: Document


class AdminClient:
    """The admin API at one address."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str, query: dict[str, str] | None = None) -> Document:
        """The document at ``path``.

        Raises:
            Refused: the node answered with an error.
            NodeUnreachable, UnexpectedAnswer: there is no node, or it isn't one.
        """
        return self.request("GET", path, query=query).document

    def request(
        self,
        method: str,
        path: str,
        body: Document | None = None,
        query: dict[str, str] | None = None,
    ) -> Answer:
        """Ask, and decode the answer.

        Raises:
            Refused: the node answered with an error.
            NodeUnreachable, UnexpectedAnswer: there is no node, or it isn't one.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        request = f"{method} {self.url}{target}"
        status, content = self._exchange(method, target, body)
        document = _decode(content)
        if status >= 400 and document is not None and document.get("source") == _INGRESS:
            raise UnexpectedAnswer(f"{self.url} is a node's ingress, where services are called")
        if status >= 400:
            raise _refused(request, status, document, content)
        if document is None and content:
            raise UnexpectedAnswer(f"{request} was answered {status} with something else than JSON")
        return Answer(status, document or {})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(self, method: str, target: str, body: Document | None) -> tuple[int, bytes]:
        headers = {"accept": "application/json", "user-agent": f"perdure/{perdure.__version__}"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = json.dumps(body).encode()
        try:
            connection, prefix = self._connect()
            connection.request(method, prefix + target, content, headers)
            response = connection.getresponse()
            data = response.read(_ANSWER_BYTES_MAX)
        except TimeoutError as error:
            self.close()
            raise NodeUnreachable(f"{self.url} doesn't answer in time") from error
        except http.client.IncompleteRead as error:
            self.close()
            raise NodeUnreachable(f"{self.url} cut its answer short: see its log") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise NodeUnreachable(f"nothing answers at {self.url} ({_reason(error)})") from error
        return response.status, data

    def _connect(self) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(self.url)
        if self._connection is None:
            host, port = parts.hostname or "", parts.port
            if parts.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    host, port, timeout=_CONNECT_SECONDS, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
            self._connection.connect()
            cast(socket.socket, self._connection.sock).settimeout(_TIMEOUT_SECONDS)
        return self._connection, parts.path


def _decode(content: bytes) -> Document | None:
    try:
        document: object = json.loads(content) if content else None
    except ValueError:
        return None
    return cast(Document, document) if isinstance(document, dict) else None


def _refused(request: str, status: int, document: Document | None, content: bytes) -> Refused:
    found = document or {}
    message = found.get("message")
    if not isinstance(message, str):
        message = content[:200].decode(errors="replace") or http.client.responses.get(status, "")
    prefix = _CODE_PREFIX.match(message)
    code = found.get("restate_code") or found.get("code") or (prefix[1] if prefix else None)
    if prefix is not None:
        message = message[prefix.end() :]
    return Refused(request, status, code if isinstance(code, str) else None, message)


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
