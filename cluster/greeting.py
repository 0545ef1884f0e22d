"""The handshake at the start of every wire, from both ends, and what is told when it fails."""

import asyncio
from collections.abc import Sequence

from perdure.cluster.core.admission import Admission, names_match
from perdure.cluster.core.handshake import (
    NONCE_BYTES,
    ClusterIdentity,
    DiallerSide,
    Established,
    ListenerSide,
    Purpose,
    RefusedByPeer,
)
from perdure.cluster.core.types import NodeId
from perdure.cluster.session import Counters
from perdure.cluster.wires import Connection, Wire, WireBroken
from perdure.core import limits
from perdure.core.entropy import Entropy
from perdure.core.errors import NotAuthenticated, PerdureError
from perdure.core.telemetry import logger

log = logger("fabric")

# What was logged last per place, so that the same refusal is logged once.
_PLACES_REMEMBERED_MAX = 1_024


class Greeter:
    """Makes sure who is at the other end of a wire."""

    def __init__(
        self,
        cluster: ClusterIdentity,
        admission: Admission,
        entropy: Entropy,
        allowed_names: Sequence[str],
        counters: Counters,
    ) -> None:
        self._cluster = cluster
        self._admission = admission
        self._entropy = entropy
        self._allowed_names = tuple(allowed_names)
        self._counters = counters
        self._noted: dict[str, str] = {}

    async def dial(
        self, connection: Connection, node: NodeId | None, purpose: Purpose
    ) -> tuple[Wire, Established]:
        """Open a wire and become sure of who is there.

        Raises:
            WireBroken: nobody is there, or not in time.
            RefusedByPeer: the other side doesn't want this node.
            PerdureError: this node doesn't want the other.
        """
        wire: Wire | None = None
        established: Established | None = None
        try:
            async with asyncio.timeout(limits.FABRIC_CONNECT_MS / 1000):
                wire = await connection.open()
                side = DiallerSide(
                    self._cluster,
                    self._admission,
                    seals=not wire.is_private,
                    nonce=self._nonce(),
                    expected=node,
                    purpose=purpose,
                )
                await wire.write(side.hello())
                frame = await wire.read()
                if frame is None:
                    raise WireBroken("it hung up during the handshake")
                try:
                    confirm, agreed = side.take(frame)
                except PerdureError as failure:
                    await wire.write(side.refusal(failure))
                    await wire.read()  # let it arrive: the other side hangs up
                    raise
                await wire.write(confirm)
                if node is not None:
                    self._admission.check(agreed.peer, node)  # somebody may have come first
                established = agreed
        except TimeoutError as failure:
            raise WireBroken("it took too long") from failure
        finally:
            if wire is not None and established is None:
                wire.close()
        assert established is not None, "left by an exception otherwise"
        return wire, established

    async def greet(self, wire: Wire) -> Established | None:
        """Answer somebody who opened a wire; None: they hung up, or were turned down.

        Raises:
            WireBroken: the network ended it.
            RefusedByPeer: the other side doesn't want this node.
        """
        side = ListenerSide(
            self._cluster, self._admission, seals=not wire.is_private, nonce=self._nonce()
        )
        try:
            if (frame := await wire.read()) is None:
                return None
            self._check_names(wire)
            await wire.write(side.take_hello(frame))
            if (frame := await wire.read()) is None:
                return None
            return side.take_confirm(frame)
        except PerdureError as failure:
            self.note(failure, wire.remote, None)
            await wire.write(side.refusal(failure))
            await wire.read()  # let it arrive: the other side hangs up
            return None

    def note(self, failure: Exception, address: str, node: NodeId | None) -> None:
        """Count and log why a handshake failed."""
        reason = str(failure)
        if isinstance(failure, RefusedByPeer):
            self._counters.refused_out += 1
            if self._is_news(address, reason):
                log.warning("fabric.peer.refused", address=address, node=node, reason=reason)
        elif isinstance(failure, PerdureError):
            self._counters.refused_in += 1
            host, _, _ = address.rpartition(":")  # whoever dials has another port each time
            if self._is_news(host, reason):
                log.warning("fabric.hello.refused", address=address, reason=reason)
        else:
            log.debug("fabric.dial.failed", address=address, node=node, reason=reason)

    def _check_names(self, wire: Wire) -> None:
        if self._allowed_names and not names_match(wire.names or (), self._allowed_names):
            named = ", ".join(wire.names or ()) or "nothing"
            raise NotAuthenticated(f"the certificate names {named}, which is not allowed here")

    def _is_news(self, where: str, what: str) -> bool:
        if len(self._noted) >= _PLACES_REMEMBERED_MAX:
            self._noted.clear()
        is_news = self._noted.get(where) != what
        self._noted[where] = what
        return is_news

    def _nonce(self) -> bytes:
        return self._entropy.bits(NONCE_BYTES * 8).to_bytes(NONCE_BYTES)
