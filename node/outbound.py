"""How a node reaches services: over HTTP and as functions, signed if it has a key to sign with."""

from dataclasses import dataclass
from functools import partial

from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.limits import FENCE_FRESH_MS
from perdure.core.offload import PoolOffload
from perdure.core.telemetry import logger
from perdure.node.config.model import Config
from perdure.node.http.client import ClientLimits, HttpClient
from perdure.node.http.cores import make_client_core
from perdure.node.invoker.aws import AwsLambda, AwsOptions
from perdure.node.invoker.callers import ServiceCaller, SigningCaller
from perdure.node.invoker.identity import RequestIdentity, read_signing_key
from perdure.node.invoker.lambda_caller import FunctionCaller
from perdure.node.invoker.ports import Caller

log = logger("node")


@dataclass(frozen=True, slots=True)
class Outbound:
    """The ways out; ``caller`` is what attempts are made with."""

    client: HttpClient
    functions: FunctionCaller
    signer: RequestIdentity | None
    caller: Caller

    def close(self) -> None:
        """End all connections."""
        self.client.close()
        self.functions.close()


def open_outbound(config: Config, clock: Clock, entropy: Entropy) -> Outbound:
    """As configured.

    Raises:
        PerdureError: the key to sign with can't be used.
    """
    path = config.invoker.request_identity_private_key_pem_file
    signer = None
    if path is not None:
        signer = RequestIdentity(read_signing_key(path), clock)
        log.info("node.identity", public_key=signer.public_form)
    client = HttpClient(
        partial(make_client_core, config.http_core.value),
        entropy,
        config.invoker.connect_timeout_ms,
        # Alone, nobody takes over: what is late is still right.
        ClientLimits(stand_still_ms_max=FENCE_FRESH_MS if config.is_clustered else None),
        clock=clock,
    )
    functions = _open_functions(config)
    caller: Caller = ServiceCaller(client, functions)
    if signer is not None:
        caller = SigningCaller(caller, signer)
    return Outbound(client, functions, signer, caller)


def _open_functions(config: Config) -> FunctionCaller:
    invoker = config.invoker
    options = AwsOptions(
        profile=invoker.aws_profile,
        external_id=invoker.aws_assume_role_external_id,
        connect_timeout_ms=invoker.connect_timeout_ms,
        calls_max=invoker.lambda_calls_max,
    )
    threads = PoolOffload("lambda", invoker.lambda_calls_max)
    return FunctionCaller(AwsLambda(options), threads, invoker.request_compression_threshold)
