"""How two nodes become sure of each other at the start of a wire, as bytes in and bytes out.

    dialler   Hello    who I am, whom I expect, my nonce               →
            ← Welcome  who I am, my nonce                      + proof    listener
              Confirm                                          + proof →

or, instead of the second or third, ``Refused`` with the reason. Without a secret the proofs are
empty. With one, a proof is HMAC-SHA256 over the role, the frames before and the frame itself, under
a key made from the secret; so it answers the other's nonce, binds both identities, both cluster
names and fingerprints, and can't be sent back to where it came from. Each direction of the session
then has a key of its own, made from the same bytes, which seals every frame (``framing``).

What the secret gives: who doesn't know it can't open a session, nor change, repeat, reorder or slip
in a message. What it doesn't: privacy. Who watches the network reads everything, and can try
secrets against what was recorded: it must be long and random. For privacy use TLS.
"""

import hmac
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from struct import Struct

from perdure.cluster.core.admission import Admission
from perdure.cluster.core.messages import GUEST, BadMessage, Message, Peer, decode, encode, kind_of
from perdure.cluster.core.types import NodeId
from perdure.core import limits
from perdure.core.errors import (
    IncompatibleNode,
    InvalidConfiguration,
    NotAuthenticated,
    PerdureError,
    UnknownMember,
    WrongCluster,
    catalogue,
)

VERSION = 1
VERSION_MIN = 1

NONCE_BYTES = 32
_HEAD = Struct("<HH")  # kind, length of the body


class Purpose(IntEnum):
    """What a wire is opened for."""

    SESSION = 1
    STREAM = 2
    VISIT = 3  # a session for one question, beside the one that the dialler may have


class Hello(Message, frozen=True, tag=0x0010):
    """First word on a wire."""

    version: int
    version_min: int
    cluster: str
    fingerprint: bytes  # empty: a guest that doesn't know it yet
    peer: Peer
    expected: NodeId  # whom the dialler wants to reach; GUEST: whoever is there
    purpose: int
    has_secret: bool
    nonce: bytes


class Welcome(Message, frozen=True, tag=0x0011):
    """The listener takes the dialler for what it says, and says what it is itself."""

    version: int
    cluster: str
    fingerprint: bytes
    peer: Peer
    nonce: bytes


class Confirm(Message, frozen=True, tag=0x0012):
    """The dialler proves that it made the Hello for this very Welcome."""


class Refused(Message, frozen=True, tag=0x0013):
    """Turned down; nothing follows."""

    code: str
    reason: str


class Failed(Message, frozen=True, tag=0x0014):
    """An error as the answer to a request or the end of a stream."""

    code: str
    text: str

    @staticmethod
    def of(failure: PerdureError) -> "Failed":
        return Failed(failure.code, failure.message)

    def error(self) -> PerdureError:
        """The error of that code; codes of later versions keep their number in the text."""
        kind = catalogue().get(self.code)
        return kind(self.text) if kind else PerdureError(f"{self.text} ({self.code})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterIdentity:
    """What all nodes of a cluster share. ``secret``: None leaves proof to the wires."""

    name: str
    fingerprint: bytes
    secret: bytes | None

    def __post_init__(self) -> None:
        shortest, longest = limits.FABRIC_SECRET_BYTES_MIN, limits.FABRIC_SECRET_BYTES_MAX
        if self.secret is not None and not shortest <= len(self.secret) <= longest:
            raise InvalidConfiguration(f"a cluster secret has {shortest} to {longest} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Established:
    """Both sides agree. Keys are None when frames are not sealed."""

    peer: Peer
    fingerprint: bytes
    purpose: int
    key_out: bytes | None
    key_in: bytes | None


class RefusedByPeer(Exception):
    """The other side said no. ``is_proven``: by somebody who knows the secret, or none is used."""

    def __init__(self, error: PerdureError, is_proven: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_proven = is_proven


class _Side:
    """What both sides do. ``seals``: whether frames need seals (not on private wires)."""

    def __init__(self, cluster: ClusterIdentity, admission: Admission, *, seals: bool) -> None:
        self._cluster = cluster
        self._admission = admission
        self._seals = seals
        self._heard: list[bytes] = []  # bodies so far, in order
        secret = cluster.secret
        self._key = hmac.digest(secret, b"perdure fabric 1", sha256) if secret else None

    def refusal(self, failure: PerdureError) -> bytes:
        """What to send before closing."""
        text = failure.message.encode()[: limits.FABRIC_HELLO_BYTES_MAX // 4]
        return self._pack(Refused(failure.code, text.decode(errors="ignore")), b"refused")

    def _pack(self, message: Message, role: bytes) -> bytes:
        body = encode(message)
        frame = _HEAD.pack(kind_of(type(message)), len(body)) + body
        return frame + self._proof(role, body)

    def _unpack(self, frame: bytes) -> tuple[Message, bytes, bytes]:
        """The message, its body and its proof."""
        if len(frame) > limits.FABRIC_HELLO_BYTES_MAX or len(frame) < _HEAD.size:
            raise IncompatibleNode("what was received is no word of a handshake")
        kind, length = _HEAD.unpack_from(frame)
        body = frame[_HEAD.size : _HEAD.size + length]
        if len(body) != length:
            raise IncompatibleNode("half a word of a handshake")
        try:
            return decode(kind, body), body, frame[_HEAD.size + length :]
        except BadMessage as failure:
            raise IncompatibleNode(f"unreadable handshake: {failure}") from failure

    def _proof(self, role: bytes, body: bytes) -> bytes:
        return self._derive(role, [*self._heard, body]) if self._key else b""

    def _derive(self, role: bytes, bodies: list[bytes]) -> bytes:
        assert self._key is not None
        code = hmac.new(self._key, role, sha256)
        for body in bodies:
            code.update(len(body).to_bytes(4) + body)
        return code.digest()

    def _is_proven(self, role: bytes, body: bytes, proof: bytes) -> bool:
        return hmac.compare_digest(self._proof(role, body), proof)

    def _check_cluster(self, name: str, fingerprint: bytes, peer: Peer) -> None:
        mine = self._cluster
        if name != mine.name:
            raise WrongCluster(f"this node is of cluster {mine.name!r}, the other of {name!r}")
        is_guest = GUEST in (peer.node, self._admission.me.node)
        if fingerprint != mine.fingerprint and not (
            is_guest and b"" in (fingerprint, mine.fingerprint)
        ):
            raise WrongCluster(
                f"clusters of one name {name!r}, but fingerprint {mine.fingerprint.hex() or 'none'}"
                f" here and {fingerprint.hex() or 'none'} there"
            )

    def _check_nonce(self, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise IncompatibleNode(f"a nonce of {len(nonce)} bytes")

    def _keys(self) -> tuple[bytes | None, bytes | None]:
        """Of the dialler's frames, of the listener's."""
        if self._key is None or not self._seals:
            return None, None
        return self._derive(b"to listener", self._heard), self._derive(b"to dialler", self._heard)


class DiallerSide(_Side):
    """Opens a wire. ``expected``: None takes whoever answers."""

    def __init__(
        self,
        cluster: ClusterIdentity,
        admission: Admission,
        *,
        seals: bool,
        nonce: bytes,
        expected: NodeId | None,
        purpose: Purpose,
    ) -> None:
        super().__init__(cluster, admission, seals=seals)
        self._nonce = nonce
        self._expected = expected
        self._purpose = purpose

    def hello(self) -> bytes:
        """What to send first."""
        mine = self._cluster
        hello = Hello(
            version=VERSION,
            version_min=VERSION_MIN,
            cluster=mine.name,
            fingerprint=mine.fingerprint,
            peer=self._admission.me,
            expected=GUEST if self._expected is None else self._expected,
            purpose=self._purpose,
            has_secret=mine.secret is not None,
            nonce=self._nonce,
        )
        body = encode(hello)
        self._heard.append(body)
        return _HEAD.pack(kind_of(Hello), len(body)) + body

    def take(self, frame: bytes) -> tuple[bytes, Established]:
        """The listener's word. Send what is returned; then the wire is a session's.

        Raises:
            RefusedByPeer: close.
            PerdureError: send ``refusal`` and close.
        """
        message, body, proof = self._unpack(frame)
        if isinstance(message, Refused):
            error = Failed(message.code, message.reason).error()
            raise RefusedByPeer(error, self._is_proven(b"refused", body, proof))
        if not isinstance(message, Welcome):
            raise IncompatibleNode(f"a {type(message).__name__} where a Welcome should be")
        is_proven = self._is_proven(b"listener", body, proof)
        self._heard.append(body)
        if not VERSION_MIN <= message.version <= VERSION:
            raise IncompatibleNode(f"version {message.version}; this node speaks {VERSION}")
        if not is_proven:
            raise NotAuthenticated("the node that answers doesn't know this node's cluster secret")
        self._check_nonce(message.nonce)
        self._check_cluster(message.cluster, message.fingerprint, message.peer)
        if self._expected is not None:
            self._admission.check(message.peer, self._expected)
        confirm = self._pack(Confirm(), b"dialler")
        outward, inward = self._keys()
        established = Established(
            peer=message.peer,
            fingerprint=message.fingerprint,
            purpose=self._purpose,
            key_out=outward,
            key_in=inward,
        )
        return confirm, established


class ListenerSide(_Side):
    """Takes a wire that somebody else opened."""

    def __init__(
        self, cluster: ClusterIdentity, admission: Admission, *, seals: bool, nonce: bytes
    ) -> None:
        super().__init__(cluster, admission, seals=seals)
        self._nonce = nonce
        self._hello: Hello | None = None

    def take_hello(self, frame: bytes) -> bytes:
        """The dialler's first word; send what is returned.

        Raises:
            PerdureError: send ``refusal`` and close.
        """
        hello, body, proof = self._unpack(frame)
        if not isinstance(hello, Hello) or proof:
            raise IncompatibleNode("a wire starts with a Hello")
        self._heard.append(body)
        if hello.version < VERSION_MIN or hello.version_min > VERSION:
            raise IncompatibleNode(
                f"versions {hello.version_min} to {hello.version}; "
                f"this node speaks {VERSION_MIN} to {VERSION}"
            )
        self._check_nonce(hello.nonce)
        if hello.has_secret != (self._cluster.secret is not None):
            whose = "only the dialling node has" if hello.has_secret else "only this node has"
            raise NotAuthenticated(f"{whose} a cluster secret")
        self._check_cluster(hello.cluster, hello.fingerprint, hello.peer)
        me = self._admission.me
        if hello.expected not in (GUEST, me.node):
            raise UnknownMember(f"node {me.node} is here, not node {hello.expected}")
        self._admission.check(hello.peer)
        self._hello = hello
        welcome = Welcome(
            version=min(hello.version, VERSION),
            cluster=self._cluster.name,
            fingerprint=self._cluster.fingerprint,
            peer=me,
            nonce=self._nonce,
        )
        frame = self._pack(welcome, b"listener")
        self._heard.append(encode(welcome))
        return frame

    def take_confirm(self, frame: bytes) -> Established:
        """The dialler's second word.

        Raises:
            RefusedByPeer: the dialler doesn't want this node; close.
            PerdureError: send ``refusal`` and close.
        """
        hello = self._hello
        assert hello is not None, "a Hello comes first"
        message, body, proof = self._unpack(frame)
        if isinstance(message, Refused):
            error = Failed(message.code, message.reason).error()
            raise RefusedByPeer(error, self._is_proven(b"refused", body, proof))
        if not isinstance(message, Confirm) or not self._is_proven(b"dialler", body, proof):
            raise NotAuthenticated("the dialling node doesn't know this node's cluster secret")
        self._admission.check(hello.peer)  # again: somebody may have come first
        inward, outward = self._keys()
        return Established(
            peer=hello.peer,
            fingerprint=self._cluster.fingerprint,
            purpose=hello.purpose,
            key_out=outward,
            key_in=inward,
        )
