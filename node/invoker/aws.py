"""AWS Lambda's invoke API, over botocore: the only module that knows it. Calls block.

Credentials and region endpoints come from where AWS tools look for them (environment, profile,
instance or container role); ``AWS_ENDPOINT_URL_LAMBDA`` names another endpoint. Nothing is retried
here: attempts are.
"""

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from perdure.core.limits import CONNECT_TIMEOUT_MS, FUNCTION_CALLS_MAX, FUNCTION_READ_TIMEOUT_MS
from perdure.node.registry.model import Function

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_NO_LIBRARY = (
    "AWS Lambda functions are called with the package botocore: pip install 'perdure[lambda]'"
)
_THROTTLED = frozenset({"TooManyRequestsException", "ThrottlingException", "EC2ThrottledException"})
_FUNCTION_ERROR_LENGTH_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsOptions:
    """How functions are called. ``profile`` None: as the environment says."""

    profile: str | None = None
    external_id: str | None = None
    connect_timeout_ms: int = CONNECT_TIMEOUT_MS
    calls_max: int = FUNCTION_CALLS_MAX


@dataclass(frozen=True, slots=True)
class Refused:
    """The API took the call as HTTP would: 429 too many, 413 too large."""

    status: int
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """There is no answer of the function's. ``is_reached``: the function may have run."""

    message: str
    is_reached: bool


Invoked = bytes | Refused | Unanswered
"""The payload that a function returned, or why there is none."""


class AwsLambda:
    """Calls functions; may be used from many threads."""

    def __init__(self, options: AwsOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str | None], Any] = {}

    def invoke(self, function: Function, payload: bytes) -> Invoked:
        """Call a function and wait for what it returns."""
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            return Unanswered(_NO_LIBRARY, is_reached=False)
        try:
            client = self._client(function)
            answer: dict[str, Any] = client.invoke(
                FunctionName=function.arn, InvocationType="RequestResponse", Payload=payload
            )
            found: bytes = answer["Payload"].read()
        except ClientError as error:
            return _refused(error)
        except BotoCoreError as error:
            return _unanswered(error)
        if "FunctionError" in answer:
            words = found.decode("utf-8", "replace")[:_FUNCTION_ERROR_LENGTH_MAX]
            return Unanswered(f"the function failed: {words}", is_reached=True)
        return found

    def close(self) -> None:
        """Close idle connections; calls that run are not disturbed."""
        with self._lock:
            for client in self._clients.values():
                client.close()

    def _client(self, function: Function) -> Any:
        key = (function.region, function.assume_role_arn)
        with self._lock:  # sessions, unlike clients, are not safe to share
            client = self._clients.get(key)
            if client is None:
                client = self._clients[key] = self._make_client(*key)
        return client

    def _make_client(self, region: str, role: str | None) -> Any:
        from botocore.config import Config
        from botocore.session import Session

        options = self._options
        config = Config(
            connect_timeout=options.connect_timeout_ms / 1000,
            read_timeout=FUNCTION_READ_TIMEOUT_MS / 1000,
            retries={"total_max_attempts": 1},
            max_pool_connections=options.calls_max,
            tcp_keepalive=True,
        )
        session: Any = Session(profile=options.profile)
        if role is not None:
            session = self._assume(session, region, role)
        return session.create_client("lambda", region_name=region, config=config)

    def _assume(self, source: Any, region: str, role: str) -> Any:
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
        from botocore.session import Session

        extra: dict[str, str] = {}
        if self._options.external_id is not None:
            extra["ExternalId"] = self._options.external_id
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=partial(source.create_client, region_name=region),
            source_credentials=source.get_credentials(),
            role_arn=role,
            extra_args=extra,
        )
        session: Any = Session(profile=self._options.profile)
        # botocore has no public way to give a session credentials that renew themselves.
        session._credentials = DeferredRefreshableCredentials(
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )
        return session


def _refused(error: "ClientError") -> Invoked:
    response: Any = error.response
    code = str(response.get("Error", {}).get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    if status == 429 or code in _THROTTLED:
        return Refused(429, metadata.get("HTTPHeaders", {}).get("retry-after"))
    if status == 413:
        return Refused(413)
    return Unanswered(str(error), is_reached=status >= 500)


def _unanswered(error: "BotoCoreError") -> Unanswered:
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

    reached = (HTTPClientError, IncompleteReadError, ResponseStreamingError)
    return Unanswered(str(error), is_reached=isinstance(error, reached))
