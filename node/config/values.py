"""Addresses and sizes as people write them. Pure; durations have a module of their own."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from perdure.core.limits import KIB, MIB


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen at. An empty host, like ``::``, stands for every interface."""

    host: str
    port: int

    @property
    def listen_host(self) -> str:
        """The host to bind; empty for every interface of both families."""
        return "" if self.host == "::" else self.host

    @property
    def reachable_host(self) -> str:
        """A host by which this machine reaches the listener."""
        return "localhost" if self.host in ("", "0.0.0.0", "::") else self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# --- Addresses ----------------------------------------------------------------------------------

ADDRESS_SYNTAX = "host:port, such as '127.0.0.1:8080', ':9070' (every interface) or '[::1]:5122'"
URL_SYNTAX = "a URL such as 'http://perdure.example:8080'"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}", re.ASCII)


def parse_address(text: str) -> Address:
    """A listening address.

    Raises:
        ValueError: it isn't one.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65_535:
        raise ValueError(f"expected {ADDRESS_SYNTAX}, with a port from 0 to 65535")
    return Address(parse_host(host), int(port))


def parse_host(text: str) -> str:
    """A host to listen on, without brackets; ``*`` and nothing at all stand for every interface.

    Raises:
        ValueError: it isn't one.
    """
    host = text.strip()
    if host in ("", "*"):
        return ""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"expected {ADDRESS_SYNTAX}")
    elif ":" in host:
        raise ValueError(f"expected {ADDRESS_SYNTAX}; IPv6 goes in brackets")
    if not (_IPV6 if ":" in host else _HOST).fullmatch(host):
        raise ValueError(f"expected {ADDRESS_SYNTAX}")
    return host


def parse_url(text: str) -> str:
    """An advertised http(s) address, with a slash at its end; a bare host:port means http.

    Raises:
        ValueError: it isn't one.
    """
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError(f"expected {URL_SYNTAX}") from None
    has_tail = bool(parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not is_usable or has_tail or _has_blank(url):
        raise ValueError(f"expected {URL_SYNTAX}")
    return url if url.endswith("/") else f"{url}/"


DESTINATION_SYNTAX = "'s3://bucket/prefix', or 'file:///directory' with its whole path"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)


def parse_destination(text: str) -> str:
    """Where snapshots go, without a slash at its end.

    Raises:
        ValueError: it is nowhere.
    """
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"expected {DESTINATION_SYNTAX}") from None
    is_bucket = parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc) is not None
    is_folder = parts.scheme == "file" and not parts.netloc and len(parts.path) > 1
    if not (is_bucket or is_folder) or parts.query or parts.fragment or _has_control(url):
        raise ValueError(f"expected {DESTINATION_SYNTAX}")
    return url


def _has_control(text: str) -> bool:
    return any(not character.isprintable() for character in text)


def _has_blank(text: str) -> bool:
    return any(character.isspace() or not character.isprintable() for character in text)


# --- Sizes --------------------------------------------------------------------------------------

SIZE_SYNTAX = "a number of bytes with or without a unit, such as '32 MiB', '500 kB' or 1048576"
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_UNITS = {
    "": 1, "b": 1, "byte": 1, "bytes": 1,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
    "k": KIB, "m": MIB, "g": KIB * MIB, "kib": KIB, "mib": MIB, "gib": KIB * MIB, "tib": MIB * MIB,
}  # fmt: skip
_SIZES_WRITTEN = (("TiB", MIB * MIB), ("GiB", KIB * MIB), ("MiB", MIB), ("KiB", KIB))
_SIZE_TEXT_LENGTH_MAX = 40


def parse_size(text: str) -> int:
    """Bytes of a size in words.

    Raises:
        ValueError: it isn't one, or isn't a whole number of bytes.
    """
    found = _SIZE.fullmatch(text.strip()) if len(text) <= _SIZE_TEXT_LENGTH_MAX else None
    unit = _SIZE_UNITS.get(found[2].lower()) if found is not None else None
    if found is None or unit is None:
        raise ValueError(f"expected {SIZE_SYNTAX}")
    whole, _, fraction = found[1].partition(".")
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * unit, scale)
    if rest:
        raise ValueError("expected a whole number of bytes")
    return size


def format_size(size: int) -> str:
    """The shortest exact form, such as ``32 MiB``; ``parse_size`` reads it back."""
    for unit, scale in _SIZES_WRITTEN:
        if size and size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size} B"
