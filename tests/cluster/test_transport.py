"""The contract of the transport, over simulated wires and over gRPC on both event loops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest
from tests.cluster.fabric_rig import (
    RUNNERS,
    Blob,
    Check,
    Count,
    Echo,
    Rig,
    Text,
    gather,
    is_up,
    peer,
    until,
)

from perdure.cluster.answers import LateAnswers
from perdure.cluster.core.messages import GUEST, Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Answer
from perdure.cluster.wires import Connection, Wire, Wires
from perdure.core import limits
from perdure.core.errors import (
    AnswerLost,
    NotFound,
    OutcomeUnknown,
    PerdureError,
    Unreachable,
)

ONE, TWO = NodeId(1), NodeId(2)
Run = Callable[[Check], None]


@pytest.fixture(params=RUNNERS)
def on(request: pytest.FixtureRequest) -> Run:
    return RUNNERS[request.param]


def test_a_question_is_answered(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        assert await one.fabric.ask(TWO, Echo("hello"), 5) == Text("hello")
        assert await two.fabric.ask(ONE, Echo("and you"), 5) == Text("and you")
        assert two.heard == [(peer(1), Echo("hello"))]
        assert one.sessions == [(peer(2), True)]

    on(check)


def test_what_is_said_arrives_once_and_in_order(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        texts = [str(number) for number in range(2_000)]
        for text in texts[:1_000]:
            assert one.fabric.send(TWO, Text(text))
        await one.fabric.ask(TWO, Echo("between"), 5)
        for text in texts[1_000:]:
            assert one.fabric.send(TWO, Text(text))
        await until(lambda: len(two.texts) == 2_000)
        assert two.texts == texts
        assert two.heard[1_000] == (peer(1), Echo("between"))
        # The messages of a turn share a frame: that is what makes many of them cheap.
        assert one.fabric.statistics().frames_sent < 50

    on(check)


def test_messages_of_any_size_up_to_the_limit_arrive_whole(on: Run) -> None:
    sizes = [0, 1, limits.FABRIC_PIECE_BYTES_MAX - 20, limits.FABRIC_PIECE_BYTES_MAX]
    sizes += [limits.FABRIC_PIECE_BYTES_MAX + 1, 5_000_001]

    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        for size in sizes:
            assert one.fabric.send(TWO, Blob(bytes([size % 251]) * size))
        assert one.fabric.queued_bytes(TWO) > sum(sizes)
        await until(lambda: len(two.heard) == len(sizes))
        for (_, blob), size in zip(two.heard, sizes, strict=True):
            assert blob == Blob(bytes([size % 251]) * size)
        assert one.fabric.queued_bytes(TWO) == 0

    on(check)


def test_an_answer_that_is_too_long_is_lost_and_nothing_else(
    on: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.start(peer(1)), rig.make(peer(2))
        two.fabric.serve(Count, lambda _, count, answer: answer(Blob(bytes(count.size))))
        two.place = replace(two.place, address=await two.fabric.listen())
        rig.introduce(one, two)
        await until(lambda: is_up(one, two))
        monkeypatch.setattr(limits, "FABRIC_MESSAGE_BYTES_MAX", 1_000)
        with pytest.raises(AnswerLost, match="too long for a message"):
            await one.fabric.ask(TWO, Count(1, 1_000), 5)
        assert await one.fabric.ask(TWO, Count(1, 10), 5) == Blob(bytes(10))

    on(check)


def test_answers_may_come_late_and_in_any_order(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.start(peer(1)), rig.make(peer(2))
        waiting: list[tuple[Count, Answer]] = []
        two.fabric.serve(Count, lambda _, count, answer: waiting.append((count, answer)))
        two.place = replace(two.place, address=await two.fabric.listen())
        rig.introduce(one, two)
        await until(lambda: is_up(one, two))
        asks = [
            asyncio.ensure_future(one.fabric.ask(TWO, Count(number, 0), 10)) for number in range(9)
        ]
        await until(lambda: len(waiting) == 9)
        for count, answer in reversed(waiting):
            answer(Blob(str(count.blobs).encode()))
            answer(Blob(b"again, which nobody hears"))
        for number, ask in enumerate(asks):
            assert await ask == Blob(str(number).encode())
        assert one.fabric.statistics().asks_waiting == 0

    on(check)


def test_a_message_may_be_followed_by_messages_back_on_its_session(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        acks: list[Answer] = []

        def acknowledge(sender: Peer, message: Count, answer: Answer) -> None:
            acks.append(answer)
            answer(Text(f"got {message.blobs}"))

        two.fabric.serve(Count, acknowledge)
        one.fabric.send(TWO, Count(7, 0))
        await until(lambda: one.texts == ["got 7"])
        acks[0](Text("and stored"))
        await until(lambda: one.texts == ["got 7", "and stored"])
        assert one.heard[0][0] == peer(2)

    on(check)


def test_errors_are_answers(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()

        def refuse(sender: Peer, message: Count, answer: Answer) -> None:
            if message.size:
                answer(NotFound("later"))
            else:
                raise NotFound("at once")

        two.fabric.serve(Count, refuse)
        for size, reason in ((0, "at once"), (1, "later")):
            with pytest.raises(NotFound, match=reason):
                await one.fabric.ask(TWO, Count(1, size), 5)
        assert await one.fabric.ask(TWO, Echo("still there"), 5) == Text("still there")

    on(check)


def test_a_bug_in_a_handler_costs_its_request_only(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()

        def stumble(sender: Peer, message: Count, answer: Answer) -> None:
            raise ZeroDivisionError

        two.fabric.serve(Count, stumble)
        with pytest.raises(AnswerLost):
            await one.fabric.ask(TWO, Count(1, 1), 5)
        assert await one.fabric.ask(TWO, Echo("still there"), 5) == Text("still there")

    on(check)


def test_a_bug_in_what_takes_its_time_costs_its_request_only(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        answers = LateAnswers()

        async def stumble() -> Blob:
            raise ZeroDivisionError

        two.fabric.serve(Count, lambda _, count, answer: answers.start(stumble(), answer))
        with pytest.raises(AnswerLost, match="bug"):
            await one.fabric.ask(TWO, Count(1, 1), 5)
        assert await one.fabric.ask(TWO, Echo("still there"), 5) == Text("still there")

    on(check)


def test_nobody_serves_it(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, _ = await rig.pair()
        with pytest.raises(Unreachable, match="not served"):
            await one.fabric.ask(TWO, Count(1, 1), 5)
        with pytest.raises(Unreachable, match="not served"):
            async for _ in one.fabric.stream(TWO, Count(1, 1)):
                pass

    on(check)


def test_without_a_session_nothing_is_sent(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1))
        assert not one.fabric.send(TWO, Text("lost"))
        with pytest.raises(Unreachable):
            await one.fabric.ask(TWO, Echo("lost"), 5)
        with pytest.raises(Unreachable):
            async for _ in one.fabric.stream(TWO, Count(1, 1)):
                pass
        assert one.fabric.session(TWO) is None

    on(check)


def test_no_answer_in_time_is_an_unknown_outcome(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        late: list[Answer] = []
        two.fabric.serve(Count, lambda _, count, answer: late.append(answer))
        with pytest.raises(OutcomeUnknown, match="within"):
            await one.fabric.ask(TWO, Count(1, 1), 0.2)
        late[0](Blob(b"too late"))
        assert await one.fabric.ask(TWO, Echo("next"), 5) == Text("next")
        assert one.fabric.statistics().asks_waiting == 0

    on(check)


def test_cancelling_a_question_leaves_nothing_behind(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        asked: list[Answer] = []
        two.fabric.serve(Count, lambda _, count, answer: asked.append(answer))
        ask = asyncio.ensure_future(one.fabric.ask(TWO, Count(1, 1), 5))
        await until(lambda: asked)
        ask.cancel()
        assert isinstance((await gather(ask))[0], asyncio.CancelledError)
        assert one.fabric.statistics().asks_waiting == 0
        assert await one.fabric.ask(TWO, Echo("next"), 5) == Text("next")

    on(check)


def test_a_node_that_comes_back_is_found_as_the_process_it_is(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        never: list[Answer] = []
        two.fabric.serve(Count, lambda _, count, answer: never.append(answer))
        ask = asyncio.ensure_future(one.fabric.ask(TWO, Count(1, 1), 60))
        await until(lambda: never)
        await two.fabric.aclose()
        assert isinstance((await gather(ask))[0], AnswerLost)
        assert one.sessions == [(peer(2), True), (peer(2), False)]
        assert not one.fabric.send(TWO, Text("into the void"))

        again = await rig.start(peer(2, generation=2))
        rig.introduce(one, again)
        await until(lambda: is_up(one, again) and is_up(again, one))
        assert one.sessions[2:] == [(peer(2, generation=2), True)]
        assert await one.fabric.ask(TWO, Echo("welcome back"), 5) == Text("welcome back")
        assert again.texts == []
        assert one.fabric.statistics().sessions_opened == 2

    on(check)


def test_whoever_is_no_member_any_more_loses_its_sessions(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        one.fabric.set_directory({ONE: one.place})
        await until(lambda: (peer(2), False) in one.sessions and (peer(1), False) in two.sessions)
        await until(lambda: (1, "FAB0005") in two.refusals)
        with pytest.raises(Unreachable):
            await two.fabric.ask(ONE, Echo("let me in"), 5)
        assert one.fabric.statistics().sessions_in == 0
        assert one.fabric.statistics().refused_in > 0

        rig.introduce(one, two)
        await until(lambda: is_up(one, two) and is_up(two, one))

    on(check)


async def _count(sender: Peer, request: Count) -> AsyncIterator[Blob]:
    for number in range(request.blobs):
        yield Blob(number.to_bytes(4) + bytes(request.size))


def test_streams_deliver_everything_in_order(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        two.fabric.serve_stream(Count, _count)
        for blobs, size in ((0, 0), (1, 3_000_000), (5_000, 10), (60, 100_000)):
            found = [blob.data async for blob in one.fabric.stream(TWO, Count(blobs, size))]
            assert [int.from_bytes(data[:4]) for data in found] == list(range(blobs))
            assert all(len(data) == size + 4 for data in found)
        assert one.fabric.statistics().streams == 0
        await until(lambda: two.fabric.statistics().streams == 0)

    on(check)


def test_a_stream_makes_no_more_than_is_taken(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        made, ended = list[int](), list[str]()

        async def endless(sender: Peer, request: Count) -> AsyncIterator[Blob]:
            try:
                while True:
                    made.append(len(made))
                    yield Blob(bytes(request.size))
            finally:
                ended.append("closed")

        two.fabric.serve_stream(Count, endless)
        async with aclosing(one.fabric.stream(TWO, Count(0, 10_000))) as blobs:
            await anext(blobs)
            # Questions are not held up by a stream that nobody takes.
            assert await one.fabric.ask(TWO, Echo("beside it"), 5) == Text("beside it")
            credit = limits.FABRIC_STREAM_CREDIT_BYTES // 10_000
            await until(lambda: len(made) > credit // 2)
            assert len(made) <= credit + 2
            for _ in range(300):
                await anext(blobs)
            assert len(made) <= 300 + credit + 2
        await until(lambda: ended)
        await until(lambda: two.fabric.statistics().streams == 0)

    on(check)


def test_a_stream_that_breaks_off_does_not_look_complete(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()

        async def waits(sender: Peer, request: Count) -> AsyncIterator[Blob]:
            yield Blob(b"first")
            await asyncio.get_running_loop().create_future()

        two.fabric.serve_stream(Count, waits)
        found = list[Blob]()

        async def take() -> None:
            async for blob in one.fabric.stream(TWO, Count(1, 1)):
                found.append(blob)

        taking = asyncio.ensure_future(take())
        await until(lambda: found)
        await two.fabric.aclose()
        assert isinstance((await gather(taking))[0], Unreachable)

    on(check)


def test_a_stream_ends_with_the_error_its_maker_raised(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()

        async def fails(sender: Peer, request: Count) -> AsyncIterator[Blob]:
            yield Blob(b"first")
            if request.size:
                raise ZeroDivisionError
            raise NotFound("the rest")

        two.fabric.serve_stream(Count, fails)
        for size, kind in ((0, NotFound), (1, Unreachable)):
            found = list[Blob]()
            with pytest.raises(kind):
                async for blob in one.fabric.stream(TWO, Count(1, size)):
                    found.append(blob)
            assert found == [Blob(b"first")]

    on(check)


def test_guests_may_ask_what_is_open_to_them(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        guest = rig.make(Peer(GUEST, 0, 77, b""), fingerprint=b"")
        with pytest.raises(Unreachable, match="not served"):
            await guest.fabric.ask_at(one.place.address, Echo("let me in"), 5)

        def count(sender: Peer, message: Count, answer: Answer) -> None:
            assert sender.node == GUEST
            answer(Blob(b"welcome"))

        two.fabric.serve(Count, count, guests=True)
        assert await guest.fabric.ask_at(two.place.address, Count(1, 1), 5) == Blob(b"welcome")
        assert one.heard == []
        await until(lambda: two.fabric.statistics().sessions_in == 1)

    on(check)


def test_nobody_is_there(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1))
        guest = rig.make(Peer(GUEST, 0, 77, b""), fingerprint=b"")
        await one.fabric.aclose()
        with pytest.raises(Unreachable):
            await guest.fabric.ask_at(one.place.address, Echo("anybody"), 2)

    on(check)


def test_a_member_whose_process_has_ended_is_told_of(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        assert one.vacant == []
        await two.fabric.aclose()
        await until(lambda: one.vacant)
        assert set(one.vacant) == {TWO}

    on(check)


class Watched:
    """Wires that count what was dialled and not closed."""

    def __init__(self, wires: Wires) -> None:
        self.open_count = 0
        self._wires = wires

    def connect(self, address: str) -> Connection:
        self.open_count += 1
        return _WatchedConnection(self, self._wires.connect(address))

    async def listen(self, accept: Callable[[Wire], None]) -> str:
        return await self._wires.listen(accept)

    async def aclose(self) -> None:
        await self._wires.aclose()


class _WatchedConnection:
    def __init__(self, watched: Watched, connection: Connection) -> None:
        self._watched = watched
        self._connection = connection

    async def open(self) -> Wire:
        return await self._connection.open()

    async def aclose(self) -> None:
        await self._connection.aclose()
        self._watched.open_count -= 1


def test_a_question_on_the_way_to_a_silent_stranger_can_be_given_up(on: Run) -> None:
    async def check(rig: Rig) -> None:
        dialled: list[Wire] = []
        silent = rig.net.wires(2)
        address = await silent.listen(dialled.append)
        watched = Watched(rig.net.wires(3))
        guest = rig.make(Peer(GUEST, 0, 77, b""), fingerprint=b"", wires=watched)
        ask = asyncio.ensure_future(guest.fabric.ask_at(address, Echo("anybody"), 60))
        await until(lambda: dialled)
        ask.cancel()
        assert isinstance((await gather(ask))[0], asyncio.CancelledError)
        assert watched.open_count == 0
        await silent.aclose()

    on(check)


def test_closing_ends_what_waits(on: Run) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        asked: list[Answer] = []
        two.fabric.serve(Count, lambda _, count, answer: asked.append(answer))
        ask = asyncio.ensure_future(one.fabric.ask(TWO, Count(1, 1), 60))
        await until(lambda: asked)
        await one.fabric.aclose()
        outcome = (await gather(ask))[0]
        assert isinstance(outcome, AnswerLost)
        await one.fabric.aclose()
        with pytest.raises(PerdureError):
            await one.fabric.ask(TWO, Echo("after"), 1)

    on(check)
