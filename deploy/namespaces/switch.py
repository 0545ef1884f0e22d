"""A switch in user space between network namespaces: ``python -m deploy.namespaces.switch``.

One process holds a namespace for each place, with a TAP device in it that is the place's ``eth0``,
and carries frames between them as ``links.py`` decides. So no kernel module is needed for faults,
both ends believe in an ordinary network, and everything is gone when the process ends. It also
listens on ports of 127.0.0.1 and passes connections on from a namespace of its own, the
``gateway``, as a container engine does for published ports.

It takes one JSON document per line from its standard input and answers each with one line:
``{"up": {"seed": 1, "places": {"node-1": "10.83.0.11"}, "ports": [[8081, "node-1", 8080]]}}``
first, then ``cut``, ``loss``, ``delay`` or ``heal``. Nothing survives the end of its input.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deploy.namespaces.links import Links

GATEWAY = "gateway"
NETWORK = "10.83.0"
_PREFIX_BITS = 24
_CLONE_NEWNET = 0x4000_0000
_TUNSETIFF = 0x4004_54CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_FRAME_BYTES_MAX = 2_048
_FRAMES_AT_ONCE = 64
_MAC_BYTES = 6
_CONNECT_SECONDS = 5.0
_CHUNK_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace_fd: int) -> None:
    """Move this thread into a network namespace."""
    if _libc.setns(namespace_fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def mac(address: str) -> str:
    """The hardware address of a place: its IP address, made one that belongs to nobody."""
    return ":".join(["02", "00", *(f"{int(part):02x}" for part in address.split("."))])


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace with its ``eth0``. Both descriptors stay open for as long as the process."""

    name: str
    address: str
    namespace_fd: int
    tap_fd: int

    @property
    def mac(self) -> bytes:
        return bytes(int(part, 16) for part in mac(self.address).split(":"))


class Switch:
    """Places and what flows between them."""

    def __init__(self, seed: int, places: dict[str, str]) -> None:
        self.links = Links(random.Random(f"{seed}/links"))
        self._home_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._by_mac: dict[bytes, Place] = {}
        self.places = {name: self._make(name, address, places) for name, address in places.items()}

    def namespaces(self) -> dict[str, str]:
        """Where the namespaces can be entered, for whoever may look into this process."""
        pid = os.getpid()
        return {name: f"/proc/{pid}/fd/{item.namespace_fd}" for name, item in self.places.items()}

    def start(self) -> None:
        """Begin to carry frames."""
        loop = asyncio.get_running_loop()
        for place in self.places.values():
            loop.add_reader(place.tap_fd, self._take, place)

    def connection(self) -> socket.socket:
        """A TCP socket of the gateway."""
        enter(self.places[GATEWAY].namespace_fd)
        try:
            return socket.socket()
        finally:
            enter(self._home_fd)

    def _make(self, name: str, address: str, all_places: dict[str, str]) -> Place:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            namespace_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            tap_fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tap_fd, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _TAP_WITHOUT_HEADER))
            # Who is where is known from the start: a cut must not look like a missing machine.
            neighbours = (
                f"neigh add {other} lladdr {mac(other)} dev eth0 nud permanent"
                for other in all_places.values()
                if other != address
            )
            _ip(
                "link set lo up",
                f"link set eth0 address {mac(address)}",
                f"addr add {address}/{_PREFIX_BITS} dev eth0",
                "link set eth0 up",
                *neighbours,
            )
        finally:
            enter(self._home_fd)
        place = Place(name, address, namespace_fd, tap_fd)
        self._by_mac[place.mac] = place
        return place

    def _take(self, source: Place) -> None:
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = os.read(source.tap_fd, _FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            target = self._by_mac.get(frame[:_MAC_BYTES])
            if target is None:
                continue  # Multicast: nobody here needs it.
            seconds = self.links.judge(source.name, target.name)
            if seconds is None:
                continue
            if seconds == 0:
                _put(target, frame)
            else:
                asyncio.get_running_loop().call_later(seconds, _put, target, frame)


def _put(target: Place, frame: bytes) -> None:
    with contextlib.suppress(BlockingIOError):  # A full queue loses frames, as anywhere.
        os.write(target.tap_fd, frame)


def _ip(*lines: str) -> None:
    """Run these commands of ip in the namespace of this thread."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


class Forwarder:
    """A port of this machine that leads to a port of a place."""

    def __init__(self, switch: Switch, address: str, port: int) -> None:
        self._switch = switch
        self._address = (address, port)
        # The loop itself keeps no tasks: whoever waits for both ends alone would be thrown away.
        self._open: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until both ends have closed."""
        task = asyncio.current_task()
        self._open.add(task)
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:
            pass  # The switch ends; a stream's own callback would make noise of it.
        finally:
            self._open.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        onward = self._switch.connection()
        onward.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(onward, self._address)
            there, back = await asyncio.open_connection(sock=onward)
        except OSError:  # Refused, unreachable or too late: for the client the end.
            onward.close()
            writer.close()
            return
        try:
            await asyncio.gather(_pipe(reader, back), _pipe(there, writer))
        except OSError:
            pass
        finally:
            back.close()
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()
        raise


async def bring_up(document: dict[str, Any]) -> Switch:
    """Make the places, listen on the ports, carry frames."""
    switch = Switch(document["seed"], document["places"])
    switch.start()
    for port, name, target in document["ports"]:
        forwarder = Forwarder(switch, switch.places[name].address, target)
        await asyncio.start_server(forwarder.serve, "127.0.0.1", port)
    return switch


def obey(switch: Switch, order: dict[str, Any]) -> None:
    """Change the links as told."""
    links = switch.links
    match order:
        case {"cut": pairs}:
            links.set_cut(_pairs(pairs))
        case {"loss": share, "links": pairs}:
            links.set_loss(_pairs(pairs), share)
        case {"delay": seconds, "links": pairs}:
            links.set_delay(_pairs(pairs), seconds)
        case {"heal": _}:
            links.heal()
        case _:
            raise ValueError(f"no such order: {order}")


def _pairs(pairs: Iterable[list[str]]) -> list[tuple[str, str]]:
    return [(source, target) for source, target in pairs]


async def run() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    switch: Switch | None = None
    while line := await orders.readline():
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if switch is None:
            switch = await bring_up(order["up"])
            answer = {"namespaces": switch.namespaces()}
        else:
            obey(switch, order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(run())
