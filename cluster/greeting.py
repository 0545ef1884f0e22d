"""The handshake at the start of every wire, from both ends, and what is told when it fails."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from perdure.cluster.transport import Refusal
from perdure.cluster.wires import Connection, Wire, WireBroken
from perdure.core import limits
from perdure.core.entropy import Entropy
from perdure.core.errors import NotAuthenticated, PerdureError
from perdure.core.limits_telling import (
    FABRIC_REFUSED_PLACES_MAX,
    FABRIC_REFUSED_SHOWN_MS,
    FABRIC_REFUSED_TELL_MS,
)
from perdure.core.telemetry import logger

log = logger("fabric")

# How the library says that certificates don't fit, as far as it does.
_TLS_WORDS = ("ssl", "certificate")


@dataclass(slots=True)
class _Trouble:
    """What was refused at one place. Moments are of the loop's clock."""

    refusal: Refusal
    last_at: float
    told_at: float


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
        self._troubles: dict[tuple[str, str], _Trouble] = {}
        self._loop = asyncio.get_running_loop()

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
        opened: tuple[Wire, Established] | None = None
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
                opened = wire, agreed
        except TimeoutError as failure:
            raise WireBroken("it took too long") from failure
        finally:
            if wire is not None and opened is None:
                wire.close()
        assert opened is not None, "left by an exception otherwise"
        return opened

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
        if isinstance(failure, WireBroken) and any(w in reason.lower() for w in _TLS_WORDS):
            # Who breaks off a TLS handshake says no without a word of ours.
            failure = RefusedByPeer(NotAuthenticated(reason), False)
        if isinstance(failure, RefusedByPeer):
            self._counters.refused_out += 1
            refusal = self._remember(Refusal(address, node, failure.error.code, reason, 1))
            if refusal is not None:
                log.warning(
                    "fabric.peer.refused",
                    address=address,
                    node=node,
                    reason=reason,
                    times=refusal.times,
                )
        elif isinstance(failure, PerdureError):
            self._counters.refused_in += 1
            refusal = self._remember(Refusal(address, node, failure.code, reason, 1))
            if refusal is not None:
                log.warning(
                    "fabric.hello.refused", address=address, reason=reason, times=refusal.times
                )
        else:
            log.debug("fabric.dial.failed", address=address, node=node, reason=reason)

    def refusals(self) -> tuple[Refusal, ...]:
        """Who is turned away, or turns this node away, these moments."""
        since = self._loop.time() - FABRIC_REFUSED_SHOWN_MS / 1000
        return tuple(each.refusal for each in self._troubles.values() if each.last_at >= since)

    def _check_names(self, wire: Wire) -> None:
        if self._allowed_names and not names_match(wire.names or (), self._allowed_names):
            named = ", ".join(wire.names or ()) or "nothing"
            raise NotAuthenticated(f"the certificate names {named}, which is not allowed here")

    def _remember(self, refusal: Refusal) -> Refusal | None:
        """The refusal, counted, if it is to be told: it is a new one, or an old one that lasts."""
        now = self._loop.time()
        if len(self._troubles) >= FABRIC_REFUSED_PLACES_MAX:
            self._troubles.clear()
        # Whoever dials has another port each time.
        place = refusal.address if refusal.node else refusal.address.rpartition(":")[0]
        known = self._troubles.get((place, refusal.reason))
        if known is None:
            self._troubles[place, refusal.reason] = _Trouble(refusal, now, now)
            return refusal
        known.refusal = replace(refusal, times=known.refusal.times + 1)
        known.last_at = now
        if now - known.told_at < FABRIC_REFUSED_TELL_MS / 1000:
            return None
        known.told_at = now
        return known.refusal

    def _nonce(self) -> bytes:
        return self._entropy.bits(NONCE_BYTES * 8).to_bytes(NONCE_BYTES)
