"""Asks an endpoint what it offers; retries what may pass. What answers mean: registry/discovery.py.

Nothing is kept between calls: a discovery is one operation of the admin API.
"""

import asyncio

from perdure.core.clock import Clock
from perdure.core.limits import (
    DISCOVERY_RETRIES_MAX,
    DISCOVERY_RETRY_INITIAL_MS,
    DISCOVERY_TIMEOUT_MS,
    FUNCTION_DISCOVERY_TIMEOUT_MS,
    MANIFEST_BYTES_MAX,
)
from perdure.core.telemetry import logger
from perdure.node.http.client import HttpClient
from perdure.node.http.ports import Headers
from perdure.node.http.stream import RequestStream, StreamFailure, StreamListener
from perdure.node.invoker.identity import RequestIdentity
from perdure.node.invoker.lambda_caller import FunctionCaller, FunctionStream
from perdure.node.registry.discovery import (
    DISCOVERY_PATH,
    Answer,
    Endpoint,
    Found,
    Heard,
    TooLong,
    is_too_large,
    judge,
    request,
    request_headers,
    schedule,
)

log = logger("discovery")


class Discovery:
    """Discovers endpoints over the node's HTTP client, functions by calling them."""

    def __init__(
        self,
        client: HttpClient,
        clock: Clock,
        cluster_name: str,
        identity: RequestIdentity | None = None,
        functions: FunctionCaller | None = None,
    ) -> None:
        self._client = client
        self._identity = identity
        self._functions = functions
        self._clock = clock
        self.cluster_name = cluster_name

    async def discover(self, endpoint: Endpoint) -> Found:
        """The manifest of an endpoint.

        Raises:
            DiscoveryFailed: it can't be reached, or answers with an error.
            EndpointSpeaksHttp1, BadManifest, ProtocolRangeUnsupported, ReservedServiceName,
            InvalidRegistration: what it says can't be used.
        """
        policy = schedule(DISCOVERY_RETRY_INITIAL_MS, DISCOVERY_RETRIES_MAX)
        started = self._clock.monotonic()
        retry = 0
        while True:
            verdict = judge(endpoint, await self._ask(endpoint))
            if isinstance(verdict, Found):
                took_ms = round((self._clock.monotonic() - started) * 1000)
                log.debug(
                    "discovery.done", address=endpoint.address, took_ms=took_ms, retries=retry
                )
                return verdict
            retry += 1
            delay_ms = policy.delay_ms(retry)
            if delay_ms is None:
                raise verdict.error
            log.debug("discovery.retry", address=endpoint.address, reason=verdict.error.message)
            await asyncio.sleep(delay_ms / 1000)

    async def _ask(self, endpoint: Endpoint) -> Heard:
        listening = _Listening()
        listening.stream = self._open(endpoint, listening)
        listening.stream.end()
        is_function = endpoint.function is not None
        timeout_ms = FUNCTION_DISCOVERY_TIMEOUT_MS if is_function else DISCOVERY_TIMEOUT_MS
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await listening.heard
        except TimeoutError:
            return TooLong(f"no complete answer within {timeout_ms} ms", is_function)
        finally:
            listening.stream.reset()  # of no effect once it has ended

    def _open(self, endpoint: Endpoint, listener: StreamListener) -> RequestStream | FunctionStream:
        function = endpoint.function
        if function is not None:
            assert self._functions is not None
            headers = self._signed(request_headers(endpoint, self.cluster_name))
            return self._functions.open(function, "GET", DISCOVERY_PATH, headers, listener)
        origin, target, headers = request(endpoint, self.cluster_name)
        return self._client.open(origin, "GET", target, self._signed(headers), listener)

    def _signed(self, headers: Headers) -> Headers:
        return headers if self._identity is None else self._identity.signed(DISCOVERY_PATH, headers)


class _Listening:
    """Collects a response."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self.stream: RequestStream | FunctionStream
        self._status = 0
        self._headers: Headers = []
        self._chunks: list[bytes] = []
        self._size = 0

    def on_response(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if is_too_large(self._size):
            self.stream.reset()
            self._chunks.clear()
            self._tell(TooLong(f"the answer exceeds {MANIFEST_BYTES_MAX} bytes", True))
            return
        self._chunks.append(data)
        self.stream.consumed(len(data))

    def on_end(self) -> None:
        self._tell(
            Answer(
                status=self._status,
                headers=self._headers,
                body=b"".join(self._chunks),
                http_version=self.stream.http_version,
            )
        )

    def on_failed(self, failure: StreamFailure) -> None:
        self._tell(failure)

    def on_writable(self) -> None:
        pass  # there is no body to write

    def _tell(self, heard: Heard) -> None:
        if not self.heard.done():
            self.heard.set_result(heard)
