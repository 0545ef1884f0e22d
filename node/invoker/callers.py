"""How attempts' streams are opened: over HTTP, and signed where an identity is configured."""

from perdure.node.http.client import HttpClient
from perdure.node.http.ports import Headers
from perdure.node.http.stream import RequestStream, StreamListener
from perdure.node.invoker.identity import RequestIdentity
from perdure.node.invoker.ports import Caller, Stream
from perdure.node.registry.effective import Route


class HttpCaller:
    """Opens attempts' streams over the HTTP client."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def open(
        self, route: Route, path: str, headers: Headers, listener: StreamListener
    ) -> RequestStream:
        return self._client.open(route.origin, "POST", route.target(path), headers, listener)


class SigningCaller:
    """Signs what another caller sends."""

    def __init__(self, caller: Caller, identity: RequestIdentity) -> None:
        self._caller = caller
        self._identity = identity

    def open(self, route: Route, path: str, headers: Headers, listener: StreamListener) -> Stream:
        return self._caller.open(route, path, self._identity.signed(path, headers), listener)
