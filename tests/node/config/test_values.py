"""Addresses and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.node.config.values import (
    Address,
    format_size,
    parse_address,
    parse_destination,
    parse_host,
    parse_size,
    parse_url,
)

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("0.0.0.0:0", "0.0.0.0", 0),
        (":9070", "", 9070),
        ("*:9070", "", 9070),
        ("[::]:5122", "::", 5122),
        ("[::1]:65535", "::1", 65_535),
        ("localhost:1", "localhost", 1),
        ("perdure-0.perdure.svc:8080", "perdure-0.perdure.svc", 8080),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    ["", "8080", "localhost", "localhost:", ":65536", ":-1", "::1:80", "[host]:80", "a b:80",
     "http://x:80", "unix:/tmp/x.sock", "[::1]", "x:٣"],
)  # fmt: skip
def test_refuses_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        parse_address(text)


@given(
    st.one_of(
        st.ip_addresses(v=4).map(str),
        st.ip_addresses(v=6).map(str),
        st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
        st.just(""),
    ),
    st.integers(0, 65_535),
)
def test_addresses_read_back(host: str, port: int) -> None:
    assert parse_address(str(Address(host, port))) == Address(host, port)


def test_every_interface_is_bound_for_both_families() -> None:
    # A socket bound to "::" alone takes no IPv4 from asyncio.
    assert [parse_address(text).listen_host for text in (":1", "[::]:1")] == ["", ""]
    assert parse_address("0.0.0.0:1").listen_host == "0.0.0.0"
    assert [parse_address(text).reachable_host for text in (":1", "[::]:1", "0.0.0.0:1")] == [
        "localhost"
    ] * 3


def test_hosts() -> None:
    assert [parse_host(text) for text in ("*", "[::]", "10.0.0.1")] == ["", "::", "10.0.0.1"]
    with pytest.raises(ValueError, match="IPv6 goes in brackets"):
        parse_host("::1")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://x", "http://x/"),
        ("https://x.example:8443/api", "https://x.example:8443/api/"),
        ("x.example:8080", "http://x.example:8080/"),
        (" http://[::1]:8080/ ", "http://[::1]:8080/"),
    ],
)
def test_urls(text: str, url: str) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "ftp://x", "http://", "http://x:99999", "http://x?a=b", "http://u@x", "http://x/#a",
     "http://x y"],
)  # fmt: skip
def test_refuses_what_is_no_url(text: str) -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        parse_url(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("32 MiB", 32 * MIB),
        ("32MB", 32_000_000),
        ("32.0 MiB", 32 * MIB),
        ("500 kB", 500_000),
        ("1048576", MIB),
        ("1.5 KiB", 1536),
        ("2G", 2 * 1024 * MIB),
        ("7 B", 7),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 XB", "1e6", "0x10", "1 2", "9" * 50])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a number of bytes"):
        parse_size(text)


def test_refuses_a_part_of_a_byte() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("0.3 KiB")


@given(st.integers(0, 2**60))
def test_sizes_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://my-bucket.eu/some/prefix/", "s3://my-bucket.eu/some/prefix"),
        (" file:///srv/snapshots ", "file:///srv/snapshots"),
    ],
)
def test_destinations(text: str, destination: str) -> None:
    assert parse_destination(text) == destination


@pytest.mark.parametrize(
    "text",
    ["", "s3://", "s3://B", "s3://bucket?x=1", "gs://bucket", "file://", "file://host/x", "/srv/x"],
)
def test_refuses_what_is_no_destination(text: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        parse_destination(text)
