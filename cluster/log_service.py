"""The replicas of this node, open to the other nodes of the cluster.

Acks of a turn of the loop go back in one message per session.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from perdure.cluster.core.log_messages import (
    CloseSegment,
    DigestSegment,
    Extent,
    Hello,
    HelloOk,
    Probe,
    Probed,
    ReadSegment,
    Records,
    Releases,
    Repaired,
    RepairSegment,
    Sealed,
    SealSegment,
    StoreReplies,
    Stores,
    TailState,
    TrimSegment,
    WatchTail,
)
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import Refused, SealOk, StoreAck
from perdure.cluster.log_server import LogServer
from perdure.cluster.transport import Answer, Transport


class _Replies:
    """Gathers what goes back over one session until the loop has turned."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._acks: list[StoreAck] = []
        self._refusals: list[Refused] = []

    def add(self, reply: StoreAck | Refused) -> None:
        if not self._acks and not self._refusals:
            asyncio.get_running_loop().call_soon(self._send)
        if isinstance(reply, Refused):
            self._refusals.append(reply)
        else:
            self._acks.append(reply)

    def _send(self) -> None:
        acks, self._acks = self._acks, []
        refusals, self._refusals = self._refusals, []
        self._answer(StoreReplies(tuple(acks), tuple(refusals)))


class LogService:
    """Serves as soon as it is made."""

    def __init__(self, server: LogServer, transport: Transport) -> None:
        self._server = server
        transport.serve(Stores, self._store)
        transport.serve(Releases, self._release)
        transport.serve(Hello, self._hello)
        transport.serve(SealSegment, self._seal)
        transport.serve(RepairSegment, self._repair)
        transport.serve(CloseSegment, self._close)
        transport.serve(TrimSegment, self._trim)
        transport.serve(Probe, self._probe)
        transport.serve_stream(ReadSegment, self._read)
        transport.serve_stream(WatchTail, self._watch)
        transport.serve_stream(DigestSegment, self._digest)

    def _store(self, peer: Peer, message: Stores, answer: Answer) -> None:
        replies = _Replies(answer)
        for item in message.items:
            self._server.store(item, replies.add)

    def _release(self, peer: Peer, message: Releases, answer: Answer) -> None:
        for item in message.items:
            self._server.release(item.ref, item.kgt)

    def _hello(self, peer: Peer, message: Hello, answer: Answer) -> None:
        states = tuple(self._server.state(ref.key) for ref in message.refs)
        answer(HelloOk(self._server.member, self._server.is_authoritative, states))

    def _seal(self, peer: Peer, message: SealSegment, answer: Answer) -> None:
        def sealed(reply: SealOk | Refused) -> None:
            answer(Sealed(reply) if isinstance(reply, SealOk) else Sealed(None, reply))

        self._server.seal(message.ref, message.by_epoch, sealed)

    def _repair(self, peer: Peer, message: RepairSegment, answer: Answer) -> None:
        def repaired(refused: Refused | None) -> None:
            answer(Repaired(self._server.member, refused))

        self._server.repair(
            message.ref, message.by_epoch, message.first_offset, message.records, repaired
        )

    def _close(self, peer: Peer, message: CloseSegment, answer: Answer) -> None:
        key = message.partition, message.segment
        self._server.close_segment(key, message.tail, message.version, message.is_unsafe)

    def _trim(self, peer: Peer, message: TrimSegment, answer: Answer) -> None:
        self._server.trim_for(message.ref, message.up_to)

    def _probe(self, peer: Peer, message: Probe, answer: Answer) -> None:
        answer(Probed(tuple(map(self._server.probe, message.refs))))

    async def _read(self, peer: Peer, request: ReadSegment) -> AsyncIterator[Records]:
        key, lower = (request.partition, request.segment), request.lower
        if request.closed_tail is not None:
            self._server.close_segment(key, request.closed_tail, request.version, request.is_unsafe)
        read = partial(self._server.read, key, for_repair=request.for_repair)
        while lower < request.upper:
            piece = read(lower, request.upper)
            if piece is None:
                return
            yield piece
            lower = piece.first_offset + len(piece.records)

    async def _watch(self, peer: Peer, request: WatchTail) -> AsyncIterator[TailState]:
        key = request.partition, request.segment
        changed = asyncio.Event()
        forget = self._server.watch(key, changed)
        known: TailState | None = None
        try:
            while True:
                changed.clear()
                state = self._server.tail(key)
                if state is not None and state != known:
                    known = state
                    yield state
                await changed.wait()
        finally:
            forget()

    async def _digest(self, peer: Peer, request: DigestSegment) -> AsyncIterator[Extent]:
        key = request.partition, request.segment
        for extent in self._server.digest(key, request.lower, request.upper, request.step):
            if extent is not None:
                yield extent
            await asyncio.sleep(0)
