"""What accepted sockets are told, beneath the transports that own them."""

import asyncio
import socket
import struct

# SO_LINGER: on, for no time.
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def set_up(transport: asyncio.Transport) -> None:
    """Send at once, notice who vanished."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset_at_close(transport: asyncio.Transport) -> None:
    """Have the connection end with a reset, which nobody takes for the end of an answer."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
