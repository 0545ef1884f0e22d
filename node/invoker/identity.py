"""Request identity: proves to services that a request comes from this node's operator.

Every request carries a short-lived JSON Web Token (EdDSA) over its path; SDKs that were given the
public key refuse what isn't signed with it. The cryptography is imported only when a key is
configured, read or made.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from perdure.core.clock import Clock
from perdure.core.errors import InvalidConfiguration
from perdure.core.limits import (
    IDENTITY_LEEWAY_S,
    IDENTITY_TOKEN_REUSED_S,
    IDENTITY_TOKENS_MAX,
    KEY_FILE_BYTES_MAX,
)
from perdure.node.http.ports import Headers

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SERVICE_KEY_HEADER = b"x-restate-service-key"
_SCHEME_HEADER = b"x-restate-signature-scheme"
_TOKEN_HEADER = b"x-restate-jwt-v1"
_SCHEME = (_SCHEME_HEADER, b"v1")
_OURS = frozenset({_SCHEME_HEADER, _TOKEN_HEADER})
_PUBLIC_PREFIX = "publickeyv1_"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_INSTALL = "signing needs the packages cryptography and pyjwt: pip install 'perdure[server]'"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and its public half as SDKs take it (``publickeyv1_…``)."""

    private: "Ed25519PrivateKey"
    public_form: str


class RequestIdentity:
    """Signs requests with one key.

    A token is good for a path and an object's key for ``IDENTITY_LEEWAY_S``; it is used again for a
    part of that time, so that the hot path seldom signs.
    """

    def __init__(self, key: SigningKey, clock: Clock) -> None:
        self.public_form = key.public_form
        self._clock = clock
        self._encode = _encoder(key)
        self._tokens: OrderedDict[tuple[str, str | None], tuple[int, bytes]] = OrderedDict()

    def signed(self, path: str, headers: Headers) -> Headers:
        """The headers of a request with those that sign it.

        ``path``: of the protocol (``/discover``, ``/invoke/S/h``), whatever stands before it in the
        URL. The subject is the object's key that the headers name.
        """
        subject = next((value for name, value in headers if name == SERVICE_KEY_HEADER), None)
        token = self._token(path, None if subject is None else unquote(subject.decode()))
        kept = [field for field in headers if field[0] not in _OURS]
        return [*kept, _SCHEME, (_TOKEN_HEADER, token)]

    def __len__(self) -> int:
        """How many tokens are kept."""
        return len(self._tokens)

    def _token(self, path: str, subject: str | None) -> bytes:
        now_s = self._clock.now_ms() // 1000
        known = self._tokens.get((path, subject))
        if known is not None and 0 <= now_s - known[0] < IDENTITY_TOKEN_REUSED_S:
            return known[1]
        claims: dict[str, object] = {
            "aud": path,
            "exp": now_s + IDENTITY_LEEWAY_S,
            "iat": now_s,
            "nbf": now_s - IDENTITY_LEEWAY_S,
        }
        if subject is not None:
            claims["sub"] = subject
        token = self._encode(claims)
        self._tokens[path, subject] = (now_s, token)
        self._tokens.move_to_end((path, subject))
        if len(self._tokens) > IDENTITY_TOKENS_MAX:
            self._tokens.popitem(last=False)
        return token


def read_signing_key(path: Path) -> SigningKey:
    """The Ed25519 private key in a PEM file (PKCS#8).

    Raises:
        InvalidConfiguration: the file can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            pem = file.read(KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise InvalidConfiguration(
            f"the identity key {path} can't be read ({error.strerror or error}): make one with "
            "`perdure identity create`"
        ) from error
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise InvalidConfiguration(_INSTALL) from error
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The library's words may quote the file, which may hold a secret.
        raise InvalidConfiguration(
            f"{path} is no identity key: expected an unencrypted private key in PEM form, as "
            "`perdure identity create` writes it"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidConfiguration(
            f"{path} holds another kind of key: identity keys are Ed25519; make one with "
            "`perdure identity create`"
        )
    return _signing_key(key)


def create_signing_key() -> tuple[SigningKey, bytes]:
    """A new key, and its private half as a PEM file holds it.

    Raises:
        InvalidConfiguration: the cryptography isn't installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise InvalidConfiguration(_INSTALL) from error
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return _signing_key(key), pem


def _signing_key(key: "Ed25519PrivateKey") -> SigningKey:
    return SigningKey(key, f"{_PUBLIC_PREFIX}{_base58(key.public_key().public_bytes_raw())}")


def _encoder(key: SigningKey) -> Callable[[dict[str, object]], bytes]:
    try:
        import jwt
    except ImportError as error:
        raise InvalidConfiguration(_INSTALL) from error

    def encode(claims: dict[str, object]) -> bytes:
        fields = {"kid": key.public_form}
        return jwt.encode(claims, key.private, algorithm="EdDSA", headers=fields).encode()

    return encode


def _base58(data: bytes) -> str:
    number = int.from_bytes(data)
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    leading_zeros = len(data) - len(data.lstrip(b"\0"))
    return _BASE58[0] * leading_zeros + digits
