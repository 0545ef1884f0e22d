"""Time and memory are bounded, and a statement holds nobody up."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from tests.engine.world import World as Engine
from tests.node.query.rig import ask
from tests.node.query.scene import Answer, Scene

from perdure.core.clock import SystemClock
from perdure.core.errors import QueryTooLarge, TooManyRequests
from perdure.core.ids import format_invocation_id, make_invocation_id
from perdure.core.limits import QUERIES_MAX, QUERY_PIECE_BYTES
from perdure.node.query import query as query_module
from perdure.node.query.libraries import arrow
from perdure.node.query.pieces import Piece
from perdure.node.query.query import Query
from perdure.node.query.reading import Reading
from perdure.node.query.statements import Execution, plan
from perdure.node.registry.model import Registry

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 30.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine with enough in it to take a while."""
    engine = Engine()
    for number in range(8000):
        engine.invoke(id=make_invocation_id(number << 40, number))
    for partition in engine.partitions:
        partition.flush()
    return engine


def prepare(engine: Engine, statement: str, *, as_json: bool = True) -> Execution:
    """A statement that is about to run."""
    snapshots = {0: engine.partitions[0].env.snapshot()}
    reading = Reading(snapshots, {}, Registry(), SystemClock())
    return Execution(plan(statement, 1), reading, as_json)


def _drop(piece: Piece) -> None:
    piece.taken()


def test_time_is_bounded(engine: Engine) -> None:
    started = time.monotonic()
    with pytest.raises(QueryTooLarge, match="longer than"):
        prepare(engine, "select * from sys_invocation").run(0.02, _drop)
    assert time.monotonic() - started < DEADLINE_SECONDS / 2


def test_memory_is_bounded(engine: Engine) -> None:
    statement = (
        "select a.id || b.id as pair, count(*) from sys_invocation a, sys_invocation b group by 1"
    )
    with pytest.raises(QueryTooLarge, match="Resources exhausted"):
        prepare(engine, statement).run(DEADLINE_SECONDS, _drop)


@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_is_made_no_faster_than_it_is_taken(engine: Engine, as_json: bool) -> None:
    """The first piece is there when little was read; two pieces wait, not more."""
    execution = prepare(engine, "select * from sys_invocation", as_json=as_json)
    pieces: list[Piece] = []
    sizes: list[int] = []
    worker = threading.Thread(target=execution.run, args=(DEADLINE_SECONDS, pieces.append))
    worker.start()
    wait_for(lambda: len(pieces) == 1)
    assert pieces[0].data and not pieces[0].is_last
    content = b""
    while True:
        wait_for(lambda: bool(pieces))
        assert len(pieces) <= 2
        piece = pieces.pop(0)
        content += piece.data
        sizes.append(len(piece.data))
        if piece.is_last:
            break
        piece.taken()
    worker.join()
    assert len(sizes) > 20 and max(sizes) < 8 * QUERY_PIECE_BYTES
    if as_json:
        assert len(json.loads(content)["rows"]) == 8000
    else:
        assert arrow.ipc.open_stream(content).read_all().num_rows == 8000


def test_time_is_bounded_for_who_takes_nothing(engine: Engine) -> None:
    pieces: list[Piece] = []
    with pytest.raises(QueryTooLarge, match="way to the client"):
        prepare(engine, "select * from sys_invocation").run(0.5, pieces.append)
    assert pieces and not pieces[-1].is_last


def test_a_statement_can_be_given_up(engine: Engine) -> None:
    execution = prepare(engine, "select a.id from sys_invocation a, sys_invocation b")
    ended = threading.Event()

    def work() -> None:
        with pytest.raises(QueryTooLarge, match="given up"):
            execution.run(DEADLINE_SECONDS, _drop)
        ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    execution.give_up()
    assert ended.wait(DEADLINE_SECONDS / 2)
    worker.join()


def test_one_among_many_is_read_alone() -> None:
    engine = Engine()
    ids = [engine.invoke(body=b"x") for _ in range(3000)]
    text = f"inv_1{'0' * 33}"
    wanted = format_invocation_id(ids[1234])
    for statement, rows, read in (
        (f"select * from sys_invocation where id = '{wanted}'", 1, 1),
        (f"select * from sys_journal where id = '{wanted}'", 1, 1),
        (f"select * from sys_journal where id = '{wanted}' and index = 0", 1, 1),
        (f"select * from sys_journal where id = '{wanted}' and index in (1, 2)", 0, 0),
        (f"select * from sys_invocation where id in ('{wanted}', '{text}', 'x')", 1, 1),
        (f"select * from sys_invocation where id = '{wanted}' or '{text}' = id", 1, 1),
        (f"select * from sys_invocation where id = '{wanted}' and status = 'ready'", 1, 1),
        (
            "select i.target, j.index from sys_invocation i join sys_journal j on j.id = i.id "
            f"where i.id = '{wanted}'",
            1,
            2,
        ),
        (
            f"select id from sys_invocation where id = '{wanted}' union all "
            f"select id from sys_invocation where id = '{format_invocation_id(ids[7])}'",
            2,
            4,
        ),
        ("select id from sys_invocation limit 5", 5, 512),
    ):
        asked = ask(engine, statement)
        assert (len(asked.rows), asked.rows_read) == (rows, read), statement
    assert ask(engine, "select count(*) as n from sys_invocation").rows == [{"n": 3000}]


def test_reading_does_not_hold_up_the_loop(engine: Engine) -> None:
    """While a thread reads everything, a callback is not late by more than a little."""
    late: list[float] = []

    async def measure() -> None:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(
            None, ask, engine, "select *, last_failure is null as f from sys_invocation"
        )
        while not work.done():
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            late.append(loop.time() - due)
        await work

    asyncio.run(measure())
    late.sort()
    assert len(late) > 50
    assert late[len(late) // 2] < 0.01


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One of its own: these tests add to it."""
    scene = Scene(tmp_path_factory.mktemp("busy"))
    scene.start()
    yield scene
    scene.stop()


@pytest.fixture
def load(scene: Scene) -> Iterator[list[int]]:
    """Calls one after the other, from two clients, as long as a test runs; how many ended."""
    stopped = threading.Event()
    done = [0, 0]

    def call(number: int) -> None:
        while not stopped.is_set():
            scene.world.call(f"/Keyed/load-{number}/peek")
            done[number] += 1

    clients = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for client in clients:
        client.start()
    yield done
    stopped.set()
    for client in clients:
        client.join()


def test_many_statements_under_load(scene: Scene, load: list[int]) -> None:
    wait_for(lambda: min(load) > 5)
    before = sum(load)
    failures: list[object] = []

    def ask_often(statement: str, check: Callable[[Answer], bool]) -> None:
        for _ in range(10):
            answer = scene.ask(statement)
            if not check(answer):
                failures.append(answer)

    step = scene.ids["step"]
    work: list[tuple[str, Callable[[Answer], bool]]] = [
        (f"select id from sys_invocation where id = '{step}'", lambda a: a.rows == [{"id": step}]),
        ("select count(*) as n from sys_invocation", lambda a: a.rows[0]["n"] >= 11),
        ("select * from sys_journal limit 10", lambda a: len(a.rows) == 10),
        ("select nope", lambda a: a.status == 400),
    ]
    threads = [threading.Thread(target=ask_often, args=job) for job in work * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
    assert failures == []
    assert sum(load) > before


def test_what_was_answered_before_is_seen(scene: Scene) -> None:
    """A statement sees everything that was acknowledged before it was sent."""
    for number in range(20):
        sent = scene.world.send(f"/Probe/echo/send?delay={3600 + number}s", "fresh")
        asked = scene.rows(f"select status from sys_invocation where id = '{sent}'")
        assert asked == [{"status": "scheduled"}]
        cancelled = scene.world.admin("PATCH", f"/invocations/{sent}/kill")
        assert cancelled.status == 200
        assert scene.rows(f"select status from sys_invocation where id = '{sent}'") == []


def test_who_leaves_while_it_waits_takes_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_module, "QUERIES_MAX", 0)
    monkeypatch.setattr(query_module, "QUERIES_WAITING_MAX", 1)

    async def check() -> None:
        query = Query([], Registry, SystemClock())
        for _ in range(2):
            asking = asyncio.ensure_future(query.answer("select 1", as_json=True))
            await asyncio.sleep(0)
            assert query.statistics().waiting == 1
            with pytest.raises(TooManyRequests):
                await query.answer("select 1", as_json=True)
            asking.cancel()
            await asyncio.wait((asking,))
            assert query.statistics().waiting == 0

    asyncio.run(check())


def test_a_client_that_leaves_takes_its_statement_along(scene: Scene) -> None:
    """Otherwise these would hold all threads for longer than this test waits."""
    address = urlsplit(scene.world.admin_url)
    endless = "select count(a.id || b.id) from {0} a, {0} b, {0} c, {0} d, {0} e, {0} f, {0} g"
    body = json.dumps({"query": endless.format("sys_journal")}).encode()
    head = b"POST /query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for _ in range(QUERIES_MAX):
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert scene.value("select 1 as one") == 1
