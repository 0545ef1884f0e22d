"""One suite over every pair of cores: streams, windows and farewells of HTTP/2."""

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.node.http.wire import NAMES, Wire, wire

from perdure.core.limits import (
    RESETS_PER_CONNECTION_MAX,
    STREAMS_BEFORE_SETTINGS_MAX,
    STREAMS_PER_CONNECTION_MAX,
)
from perdure.node.http.cores import make_client_core, make_server_core
from perdure.node.http.ports import (
    Body,
    Broken,
    End,
    Event,
    GoAway,
    Pong,
    ResponseHead,
    Writable,
)

MIB = 1024 * 1024
PAIRS = [(client, server) for client in NAMES for server in NAMES]
over_pairs = pytest.mark.parametrize(("client", "server"), PAIRS)


def open_all(pair: Wire) -> list[int]:
    streams: list[int] = []
    while pair.client.can_open():
        streams.append(pair.client.open(b"POST", b"/", b"a", []))
    return streams


@over_pairs
def test_streams_of_a_connection_are_bounded(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    streams = open_all(pair)
    assert len(streams) == STREAMS_PER_CONNECTION_MAX
    pair.settle()
    assert len(pair.requests) == len(streams)
    pair.client.end(streams[0])
    pair.settle()
    pair.answer(streams[0], b"done")
    pair.settle()
    assert len(open_all(pair)) == 1


@pytest.mark.parametrize("client", NAMES)
def test_a_peer_that_takes_fewer_streams_is_heeded(client: str) -> None:
    core = make_client_core(client, "HTTP/2.0", False)
    core.start()
    core.receive(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + b"\x00\x03\x00\x00\x00\x02")
    core.open(b"POST", b"/", b"a", [])
    assert core.can_open()
    core.open(b"POST", b"/", b"a", [])
    assert not core.can_open()
    assert core.is_reusable()


@pytest.mark.parametrize("client", NAMES)
def test_a_peer_that_has_said_nothing_is_sent_no_more_than_all_must_take(client: str) -> None:
    core = make_client_core(client, "HTTP/2.0", False)
    core.start()
    for _ in range(STREAMS_BEFORE_SETTINGS_MAX):
        assert core.can_open()
        core.open(b"POST", b"/", b"a", [])
    assert not core.can_open()
    core.receive(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    assert core.can_open(), "it sets no limit"


@pytest.mark.parametrize("client", NAMES)
def test_a_limit_holds_until_another_is_named(client: str) -> None:
    core = make_client_core(client, "HTTP/2.0", False)
    core.start()
    core.receive(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + b"\x00\x03\x00\x00\x00\x01")
    core.receive(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + b"\x00\x04\x00\x00\xff\xff")
    core.open(b"POST", b"/", b"a", [])
    assert not core.can_open()
    core.receive(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + b"\x00\x03\x00\x00\x00\x02")
    assert core.can_open()


@over_pairs
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(20)))
def test_answers_may_come_in_any_order(client: str, server: str, order: list[int]) -> None:
    pair = wire(client, server, "HTTP/2.0")
    streams = [pair.ask(b"question %d" % number) for number in range(20)]
    pair.settle()
    for number in order:
        pair.answer(streams[number], b"answer %d" % number)
    pair.settle()
    for number, stream in enumerate(streams):
        assert bytes(pair.requests[stream].body) == b"question %d" % number
        assert bytes(pair.responses[stream].body) == b"answer %d" % number


@over_pairs
def test_a_large_request_waits_for_the_window(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    body = bytes(range(256)) * (32 * MIB // 256)
    stream = pair.client.open(b"POST", b"/", b"a", [])
    pair.client.send(stream, body)
    pair.client.end(stream)
    assert pair.client.pending(stream) >= 24 * MIB
    left = pair.client.pending(stream)
    while left:
        assert pair.to_server(), "no dead-lock"
        pair.to_client()
        assert pair.client.pending(stream) <= left
        left = pair.client.pending(stream)
    pair.settle()
    assert bytes(pair.requests[stream].body) == body
    assert pair.requests[stream].is_ended
    assert any(isinstance(event, Writable) for event in pair.others)


@over_pairs
def test_a_large_response_waits_for_the_window(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    stream = pair.ask()
    pair.settle()
    pair.answer(stream, b"x" * (32 * MIB))
    assert pair.server.unsent() >= 24 * MIB
    while pair.server.unsent():
        assert pair.to_client(), "no dead-lock"
        pair.to_server()
    pair.settle()
    assert len(pair.responses[stream].body) == 32 * MIB
    assert pair.responses[stream].is_ended


@over_pairs
def test_a_stalled_stream_holds_up_no_other(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    slow, quick = pair.ask(), pair.ask()
    pair.to_server()
    pair.answer(slow, b"x" * (10 * MIB))
    pair.answer(quick, b"")
    pair.to_client()
    assert pair.responses[quick].is_ended
    assert not pair.responses[slow].is_ended


@over_pairs
def test_both_ways_at_once(client: str, server: str) -> None:
    """A replay of 10 MiB goes up while an answer of 10 MiB comes down."""
    pair = wire(client, server, "HTTP/2.0")
    first = pair.ask()
    pair.settle()
    second = pair.client.open(b"POST", b"/", b"a", [])
    pair.client.send(second, b"u" * (10 * MIB))
    pair.client.end(second)
    pair.answer(first, b"d" * (10 * MIB))
    pair.settle()
    assert len(pair.requests[second].body) == 10 * MIB
    assert len(pair.responses[first].body) == 10 * MIB


@over_pairs
def test_a_reset_lets_go_of_what_waits(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    stream = pair.ask()
    pair.to_server()
    pair.answer(stream, b"x" * (10 * MIB))
    pair.to_client()
    pair.client.reset(stream)
    pair.to_server()
    assert pair.server.unsent() == 0
    other = pair.ask(b"next")
    pair.settle()
    pair.answer(other, b"fine")
    pair.settle()
    assert bytes(pair.responses[other].body) == b"fine"


@over_pairs
def test_windows_survive_answers_that_come_early(client: str, server: str) -> None:
    """What arrives for streams already answered must not use up the connection's window."""
    pair = wire(client, server, "HTTP/2.0")
    for _ in range(20):
        stream = pair.client.open(b"POST", b"/", b"a", [])
        pair.to_server()
        pair.client.send(stream, b"x" * 60_000)
        pair.answer(stream, b"enough", 413)
        pair.settle()
        assert pair.responses[stream].is_ended
        pair.client.reset(stream)
        pair.settle()
    last = pair.ask(b"x" * 200_000)
    pair.settle()
    assert len(pair.requests[last].body) == 200_000


@over_pairs
def test_windows_survive_streams_given_up(client: str, server: str) -> None:
    """What arrives for streams already reset must not use up the connection's window."""
    pair = wire(client, server, "HTTP/2.0")
    for _ in range(60):
        stream = pair.ask()
        pair.to_server()
        pair.answer(stream, b"x" * 60_000)
        pair.client.reset(stream)  # while the response is on its way
        pair.settle()
    last = pair.ask()
    pair.settle()
    pair.answer(last, b"x" * 200_000)
    pair.settle()
    assert len(pair.responses[last].body) == 200_000


@over_pairs
def test_streams_that_cross_the_farewell_are_served(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    first = pair.ask(b"before")
    pair.to_server()
    pair.server.shut_down()
    crossing = pair.ask(b"crossing")
    pair.to_client()
    assert not pair.client.can_open(), "the first notice was heard"
    pair.settle()
    assert pair.requests[crossing].is_ended
    farewells = [event for event in pair.others if isinstance(event, GoAway)]
    assert [event.last_stream for event in farewells] == [2**31 - 1, crossing]
    for stream in (first, crossing):
        assert not pair.server.is_closing()
        pair.answer(stream, b"answered")
    pair.settle()
    assert bytes(pair.responses[first].body) == b"answered"
    assert bytes(pair.responses[crossing].body) == b"answered"
    assert pair.server.is_closing()


@over_pairs
def test_a_stream_beyond_the_farewell_is_refused(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    pair.ask(b"seen")
    pair.to_server()
    pair.server.shut_down()
    farewell = pair.server.output()
    ping_answer = b"\x00\x00\x08\x06\x01\x00\x00\x00\x00perdure!"
    pair.take_requests(pair.server.receive(ping_answer))
    late = pair.ask(b"late")
    pair.to_server()
    assert late not in pair.requests
    pair.take_responses(pair.client.receive(farewell))
    pair.settle()
    assert late not in pair.responses or pair.responses[late].reset_code == 7


@over_pairs
def test_a_client_that_says_farewell_is_answered(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    stream = pair.ask()
    pair.settle()
    pair.take_requests(pair.server.receive(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8)))
    assert not pair.server.is_closing()
    pair.answer(stream, b"x" * 100_000)
    pair.settle()
    assert len(pair.responses[stream].body) == 100_000
    assert pair.server.is_closing()


@pytest.mark.parametrize("client", NAMES)
def test_streams_beyond_a_peers_farewell_are_forgotten(client: str) -> None:
    core = make_client_core(client, "HTTP/2.0", False)
    core.start()
    core.receive(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    streams = [core.open(b"POST", b"/", b"a", []) for _ in range(3)]
    goaway = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + streams[0].to_bytes(4) + bytes(4)
    events = core.receive(goaway)
    assert events == [GoAway(streams[0])]
    assert not core.can_open()
    assert not core.is_reusable()
    for stream in streams:
        core.send(stream, b"more")
        core.end(stream)
    assert core.pending(streams[2]) == 0
    # 200, then a body that ends the first stream.
    head = b"\x00\x00\x01\x01\x04" + streams[0].to_bytes(4) + b"\x88"
    events = core.receive(head + b"\x00\x00\x02\x00\x01" + streams[0].to_bytes(4) + b"ok")
    assert [type(event).__name__ for event in events] == ["ResponseHead", "Body", "End"]


@over_pairs
def test_a_client_that_resets_much_is_asked_to_leave(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    resets = 0
    while pair.client.can_open():
        pair.client.reset(pair.client.open(b"POST", b"/", b"a", []))
        pair.settle()
        resets += 1
        assert resets <= RESETS_PER_CONNECTION_MAX
    assert resets == RESETS_PER_CONNECTION_MAX


@over_pairs
def test_a_ping_comes_back(client: str, server: str) -> None:
    pair = wire(client, server, "HTTP/2.0")
    stream = pair.ask(b"x")
    assert pair.client.ping()
    pair.settle()
    assert [event for event in pair.others if isinstance(event, Pong)] == [Pong()]
    pair.answer(stream, b"y")
    pair.settle()
    assert pair.responses[stream].is_ended


@pytest.mark.parametrize("server", NAMES)
def test_an_oversize_head_breaks_the_connection(server: str) -> None:
    pair = Wire(make_client_core("hyper", "HTTP/2.0", False), make_server_core(server, "HTTP/2.0"))
    events: list[Event] = []
    headers = [(b"x-%d" % number, b"y" * 4000) for number in range(40)]
    pair.client.open(b"GET", b"/", b"a", headers)
    for piece in pair.cut(pair.client.output()):
        events += pair.server.receive(piece)
    assert isinstance(events[-1], Broken)


@pytest.mark.parametrize("is_secure", [False, True])
@pytest.mark.parametrize("client", NAMES)
def test_the_scheme_is_the_one_in_use(client: str, is_secure: bool) -> None:
    core = make_client_core(client, "HTTP/2.0", is_secure)
    core.start()
    core.open(b"GET", b"/a\x2fhttps", b"a", [(b"x", b"https")])
    # What goes out is read by the other library, which checks the pseudo headers too.
    reader = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding=None)
    )
    reader.initiate_connection()
    events = reader.receive_data(core.output())
    (request,) = [event for event in events if isinstance(event, h2.events.RequestReceived)]
    assert dict(request.headers)[b":scheme"] == (b"https" if is_secure else b"http")


@pytest.mark.parametrize("client", NAMES)
@given(script=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30))
@settings(max_examples=40, deadline=None)
def test_frames_that_arrive_at_once_keep_their_order_on_each_stream(
    client: str, script: list[tuple[int, int]]
) -> None:
    core = make_client_core(client, "HTTP/2.0", False)
    core.start()
    streams = [core.open(b"POST", b"/", b"a", []) for _ in range(3)]
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    peer.receive_data(core.output())
    sent = dict.fromkeys(streams, b"")
    for stream in streams:
        peer.send_headers(stream, [(":status", "200")])
    for number, size in script:
        data = bytes([len(sent[streams[number]]) % 251]) * size
        peer.send_data(streams[number], data)
        sent[streams[number]] += data
    for stream in streams:
        peer.end_stream(stream)
    heard: dict[int, list[Event]] = {stream: [] for stream in streams}
    for event in core.receive(peer.data_to_send()):
        if isinstance(event, ResponseHead | Body | End):
            heard[event.stream].append(event)
    for stream, events in heard.items():
        head, *bodies, end = events
        assert isinstance(head, ResponseHead)
        assert isinstance(end, End)
        pieces = [event.data for event in bodies if isinstance(event, Body)]
        assert len(pieces) == len(bodies)
        assert b"".join(pieces) == sent[stream]


def test_frames_of_a_stream_that_arrive_at_once_are_one_event() -> None:
    core = make_client_core("auto", "HTTP/2.0", False)
    core.start()
    streams = [core.open(b"POST", b"/", b"a", []) for _ in range(2)]
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    peer.receive_data(core.output())
    for stream in streams:
        peer.send_headers(stream, [(":status", "200")])
    core.receive(peer.data_to_send())
    for data in (b"one", b"two", b"three"):
        for stream in streams:
            peer.send_data(stream, data)
    events = core.receive(peer.data_to_send())
    assert events == [Body(stream, b"onetwothree") for stream in streams]
