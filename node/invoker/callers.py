"""How attempts' streams are opened: over HTTP or to functions, signed where so configured."""

from perdure.node.http.client import HttpClient
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamListener
from perdure.node.invoker.identity import RequestIdentity
from perdure.node.invoker.lambda_caller import FunctionCaller
from perdure.node.invoker.ports import Caller, Stream
from perdure.node.registry.effective import Route


class ServiceCaller:
    """Opens attempts' streams to where their deployment is."""

    def __init__(self, client: HttpClient, functions: FunctionCaller) -> None:
        self._client = client
        self._functions = functions

    def open(self, route: Route, path: str, headers: Headers, listener: StreamListener) -> Stream:
        if route.function is not None:
            return self._functions.open(route.function, "POST", path, headers, listener)
        return self._client.open(route.origin, "POST", route.target(path), headers, listener)


class SigningCaller:
    """Signs what another caller sends."""

    def __init__(self, caller: Caller, identity: RequestIdentity) -> None:
        self._caller = caller
        self._identity = identity

    def open(self, route: Route, path: str, headers: Headers, listener: StreamListener) -> Stream:
        return self._caller.open(route, path, self._identity.signed(path, headers), listener)
