"""One suite over every pair of cores: what both versions of HTTP promise."""

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.node.http.wire import NAMES, VERSIONS, cut_by, wire

from perdure.node.http.cores import make_client_core, make_server_core
from perdure.node.http.ports import (
    Body,
    Broken,
    End,
    Event,
    RequestHead,
    ResponseHead,
)

PAIRS = [(client, server) for client in NAMES for server in NAMES]
BODIES = st.lists(st.binary(max_size=300), min_size=1, max_size=6)
CUTS = st.lists(st.integers(1, 400), min_size=1, max_size=20)

over_all = pytest.mark.parametrize(
    ("client", "server", "version"),
    [(client, server, version) for client, server in PAIRS for version in VERSIONS],
)
over_servers = pytest.mark.parametrize("server", NAMES)
over_clients = pytest.mark.parametrize("client", NAMES)


@over_all
@settings(max_examples=40, deadline=None)
@given(bodies=BODIES, sizes=CUTS)
def test_exchanges_survive_any_cutting_of_bytes(
    client: str, server: str, version: str, bodies: list[bytes], sizes: list[int]
) -> None:
    pair = wire(client, server, version, cut_by(cycle(sizes)))
    for number, body in enumerate(bodies):
        stream = pair.ask(body, [(b"x-number", str(number).encode())])
        pair.settle()
        request = pair.requests[stream]
        assert isinstance(request.head, RequestHead)
        assert (request.head.method, request.head.target) == (b"POST", b"/path?q=1")
        assert (b"x-number", str(number).encode()) in request.head.headers
        assert (b"host", b"origin.test:80") in request.head.headers
        assert bytes(request.body) == body
        assert request.is_ended
        pair.answer(stream, body[::-1], 400 + number)
        pair.settle()
        response = pair.responses[stream]
        assert isinstance(response.head, ResponseHead)
        assert response.head.status == 400 + number
        assert (b"content-length", str(len(body)).encode()) in response.head.headers
        assert bytes(response.body) == body[::-1]
        assert response.is_ended
        assert pair.client.can_open()
        assert pair.client.is_reusable()


@over_all
def test_a_long_connection_is_kept_alive(client: str, server: str, version: str) -> None:
    pair = wire(client, server, version)
    for _ in range(300):
        stream = pair.ask(b"question")
        pair.settle()
        pair.answer(stream, b"answer")
        pair.settle()
        assert pair.responses[stream].is_ended
    assert not pair.server.is_closing()


@over_all
def test_a_client_that_expects_it_is_told_to_proceed(
    client: str, server: str, version: str
) -> None:
    pair = wire(client, server, version)
    stream = pair.client.open(b"POST", b"/", b"a", [(b"expect", b"100-continue")])
    pair.settle()
    head = pair.requests[stream].head
    assert isinstance(head, RequestHead)
    assert head.expects_continue
    pair.server.proceed(stream)
    pair.settle()
    assert stream not in pair.responses, "an interim head is not an answer"
    pair.client.send(stream, b"body")
    pair.client.end(stream)
    pair.settle()
    pair.answer(stream, b"ok")
    pair.settle()
    assert bytes(pair.requests[stream].body) == b"body"
    assert bytes(pair.responses[stream].body) == b"ok"


@over_all
def test_a_head_is_answered_without_a_body(client: str, server: str, version: str) -> None:
    pair = wire(client, server, version)
    stream = pair.ask(method=b"HEAD")
    pair.settle()
    length = [(b"content-length", b"5")]
    body = b"" if version == "HTTP/2.0" else b"hello"
    pair.take_requests(pair.server.respond(stream, 200, length, body))
    pair.settle()
    assert pair.responses[stream].is_ended
    assert not pair.responses[stream].body
    assert pair.client.can_open()


@over_all
def test_an_early_answer_gives_up_the_rest_of_the_request(
    client: str, server: str, version: str
) -> None:
    pair = wire(client, server, version)
    stream = pair.client.open(b"POST", b"/", b"a", [])
    pair.client.send(stream, b"part")
    pair.settle()
    pair.answer(stream, b"no more", 413)
    pair.to_client()
    response = pair.responses[stream]
    assert response.is_ended
    assert bytes(response.body) == b"no more"
    is_http1 = version == "HTTP/1.1"
    assert pair.server.is_request_cut() == is_http1
    assert pair.server.is_closing() == is_http1
    assert pair.client.is_reusable() == (not is_http1)


@over_all
def test_what_would_be_two_headers_is_refused_by_both_sides(
    client: str, server: str, version: str
) -> None:
    pair = wire(client, server, version)
    with pytest.raises(ValueError, match=r"\w"):
        pair.client.open(b"GET", b"/", b"a", [(b"x", b"y\r\nz: 1")])
    stream = pair.ask(b"")
    pair.settle()
    with pytest.raises(ValueError, match=r"\w"):
        pair.server.respond(stream, 200, [(b"x", b"y\r\nz: 1")], b"")
    pair.answer(stream, b"still works")
    pair.settle()
    assert bytes(pair.responses[stream].body) == b"still works"


@over_all
def test_a_stream_that_was_given_up_ends_on_the_other_side(
    client: str, server: str, version: str
) -> None:
    pair = wire(client, server, version)
    stream = pair.client.open(b"POST", b"/", b"a", [])
    pair.settle()
    pair.client.reset(stream)
    assert pair.client.pending(stream) == 0
    pair.settle()
    if version == "HTTP/2.0":
        assert pair.requests[stream].reset_code == 8
        assert pair.client.can_open()
        assert pair.server.respond(stream, 200, [], b"late") == []
        assert pair.server.unsent() == 0
    else:
        assert not pair.client.is_reusable()


@over_all
def test_shutting_down_answers_what_is_open(client: str, server: str, version: str) -> None:
    pair = wire(client, server, version)
    stream = pair.ask(b"open")
    pair.settle()
    pair.server.shut_down()
    pair.settle()
    assert not pair.server.is_closing()
    pair.answer(stream, b"x" * 100_000)
    pair.settle()
    assert pair.responses[stream].is_ended
    assert pair.server.is_closing()
    assert not pair.server.is_request_cut()
    assert not pair.client.is_reusable()


@over_servers
@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=150, deadline=None)
@given(garbage=st.binary(max_size=400), sizes=CUTS)
def test_garbage_breaks_a_server_core_and_nothing_else(
    server: str, version: str, garbage: bytes, sizes: list[int]
) -> None:
    core = make_server_core(server, version)
    core.start()
    valid = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    data = (valid if version == "HTTP/2.0" else b"POST / HTTP/1.1\r\nhost: a\r\n") + garbage
    events: list[Event] = []
    for piece in [*cut_by(cycle(sizes))(data), b""]:
        events += core.receive(piece)
        if any(isinstance(event, Broken) for event in events):
            break
    core.output()
    for event in events[:-1]:
        assert not isinstance(event, Broken), "nothing follows a break"


@over_clients
@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=150, deadline=None)
@given(garbage=st.binary(max_size=400), sizes=CUTS)
def test_garbage_breaks_a_client_core_and_nothing_else(
    client: str, version: str, garbage: bytes, sizes: list[int]
) -> None:
    core = make_client_core(client, version, False)
    core.start()
    core.open(b"POST", b"/", b"a", [])
    settings_frame = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    data = (settings_frame if version == "HTTP/2.0" else b"HTTP/1.1 200 OK\r\n") + garbage
    events: list[Event] = []
    for piece in [*cut_by(cycle(sizes))(data), b""]:
        events += core.receive(piece)
        if any(isinstance(event, Broken) for event in events):
            break
    core.output()
    for event in events[:-1]:
        assert not isinstance(event, Broken), "nothing follows a break"


# --- HTTP/1 only --------------------------------------------------------------------------------


def _served(server: str, data: bytes) -> tuple[list[Event], bytes]:
    """Answer every request with its own body; what came out."""
    core = make_server_core(server, "HTTP/1.1")
    core.start()
    seen: list[Event] = []
    events = core.receive(data)
    while events:
        seen += events
        stream = next((event.stream for event in events if isinstance(event, End)), None)
        if stream is None:
            break
        body = b"".join(e.data for e in seen if isinstance(e, Body) and e.stream == stream)
        events = core.respond(stream, 200, [(b"content-length", b"%d" % len(body))], body)
    return seen, core.output()


@over_servers
def test_pipelined_requests_are_taken_one_at_a_time(server: str) -> None:
    request = b"POST /%d HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n%d"
    events, output = _served(server, b"".join(request % (n, n) for n in range(5)))
    heads = [event.target for event in events if isinstance(event, RequestHead)]
    assert heads == [b"/0", b"/1", b"/2", b"/3", b"/4"]
    assert output.count(b"HTTP/1.1 200") == 5
    assert [output.index(b"\r\n\r\n%d" % n) for n in range(5)] == sorted(
        output.index(b"\r\n\r\n%d" % n) for n in range(5)
    )


@over_servers
def test_a_request_before_garbage_is_still_served(server: str) -> None:
    data = b"GET /good HTTP/1.1\r\nhost: a\r\n\r\n\x00\x01\x02 garbage\r\n\r\n"
    events, output = _served(server, data)
    assert output.startswith(b"HTTP/1.1 200")
    assert isinstance(events[-1], Broken)


@over_servers
def test_a_chunked_body_arrives_without_its_framing(server: str) -> None:
    data = (
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n5;ext=1\r\ndefgh\r\n0\r\ntrailer: 1\r\n\r\n"
    )
    events, _ = _served(server, data)
    assert b"".join(event.data for event in events if isinstance(event, Body)) == b"abcdefgh"


@over_servers
@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n",
    ],
    ids=["chunk", "two lengths", "no host", "binary", "no colon"],
)
def test_what_is_no_request_is_said_so(server: str, data: bytes) -> None:
    events, _ = _served(server, data)
    assert isinstance(events[-1], Broken)
    assert events[-1].status == 400


@over_servers
def test_a_head_without_end_is_too_large(server: str) -> None:
    core = make_server_core(server, "HTTP/1.1")
    events = core.receive(b"GET / HTTP/1.1\r\nhost: a\r\n")
    for _ in range(100):
        events = core.receive(b"x: " + b"y" * 4000 + b"\r\n")
        if events:
            break
    assert isinstance(events[-1], Broken)
    assert events[-1].status == 431


@over_servers
def test_an_old_client_is_answered_and_left(server: str) -> None:
    core = make_server_core(server, "HTTP/1.1")
    events = core.receive(b"GET / HTTP/1.0\r\n\r\n")
    assert isinstance(events[-1], End)
    core.respond(events[-1].stream, 200, [(b"content-length", b"2")], b"ok")
    assert core.output().endswith(b"\r\n\r\nok")
    assert core.is_closing()


@over_servers
def test_an_offer_of_another_protocol_is_ignored(server: str) -> None:
    data = (
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\n"
        b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    _, output = _served(server, data)
    assert output.startswith(b"HTTP/1.1 200")


@over_clients
def test_an_answer_that_nobody_asked_for_breaks_the_connection(client: str) -> None:
    core = make_client_core(client, "HTTP/1.1", False)
    events = core.receive(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
    assert isinstance(events[-1], Broken)
    assert not core.is_reusable()


@over_clients
def test_a_body_may_end_with_the_connection(client: str) -> None:
    core = make_client_core(client, "HTTP/1.1", False)
    stream = core.open(b"GET", b"/", b"a", [])
    core.end(stream)
    events = core.receive(b"HTTP/1.1 200 OK\r\n\r\nto the ")
    events += core.receive(b"end")
    assert not any(isinstance(event, End) for event in events)
    events += core.receive(b"")
    assert b"".join(event.data for event in events if isinstance(event, Body)) == b"to the end"
    assert isinstance(events[-1], End)
    assert not core.is_reusable()


@over_clients
def test_a_body_that_is_cut_short_never_ends(client: str) -> None:
    core = make_client_core(client, "HTTP/1.1", False)
    stream = core.open(b"GET", b"/", b"a", [])
    core.end(stream)
    events = core.receive(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort")
    events += core.receive(b"")
    assert not any(isinstance(event, End) for event in events)
