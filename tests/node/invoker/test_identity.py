"""Request identity: tokens, key files, and the official SDKs as judges."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as elliptic_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.conformance.processes import free_port, is_listening
from tests.conformance.services import install_packages, node
from tests.node.admin.world import World, serve, wait_for

from perdure.core.errors import InvalidConfiguration
from perdure.core.limits import IDENTITY_LEEWAY_S, IDENTITY_TOKEN_REUSED_S, IDENTITY_TOKENS_MAX
from perdure.core.tasks import Supervisor
from perdure.node.config.model import Config
from perdure.node.http.ports import Headers
from perdure.node.invoker.identity import (
    RequestIdentity,
    SigningKey,
    create_signing_key,
    read_signing_key,
)
from perdure.node.server import Node

TYPESCRIPT = Path(__file__).resolve().parents[2] / "conformance" / "typescript"
NOW_S = 1_700_000_000

# RFC 8032, test 1: the secret key and the public one that belongs to it.
_RFC_SECRET = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
_RFC_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


class HandClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = NOW_S

    def now_ms(self) -> int:
        return self.seconds * 1000 + 999

    def monotonic(self) -> float:
        return float(self.seconds)


@pytest.fixture
def key() -> SigningKey:
    return create_signing_key()[0]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def identity(key: SigningKey, clock: HandClock) -> RequestIdentity:
    return RequestIdentity(key, clock)


def token_of(headers: Headers) -> str:
    (token,) = [value for name, value in headers if name == b"x-restate-jwt-v1"]
    return token.decode()


def invoke(identity: RequestIdentity, subject: str | None = None) -> str:
    headers: Headers = []
    if subject is not None:
        headers.append((b"x-restate-service-key", quote(subject, safe="").encode()))
    return token_of(identity.signed("/invoke/Obj/echo", headers))


def claims_of(token: str) -> dict[str, object]:
    """What a token says, unverified."""
    claims: dict[str, object] = jwt.decode(token, options={"verify_signature": False})
    return claims


def pem_of(private: Ed25519PrivateKey) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


# --- Tokens --------------------------------------------------------------------------------------


def test_token_says_who_what_and_how_long(identity: RequestIdentity, key: SigningKey) -> None:
    token = invoke(identity, "k é")
    assert jwt.get_unverified_header(token) == {
        "typ": "JWT",
        "alg": "EdDSA",
        "kid": key.public_form,
    }
    claims = jwt.decode(
        token,
        key.private.public_key(),
        algorithms=["EdDSA"],
        audience="/invoke/Obj/echo",
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert claims == {
        "aud": "/invoke/Obj/echo",
        "exp": NOW_S + IDENTITY_LEEWAY_S,
        "iat": NOW_S,
        "nbf": NOW_S - IDENTITY_LEEWAY_S,
        "sub": "k é",
    }


def test_subject_is_for_keyed_calls_only(identity: RequestIdentity) -> None:
    assert "sub" not in claims_of(invoke(identity))
    assert claims_of(invoke(identity, ""))["sub"] == ""


def test_token_is_used_again_for_a_while(identity: RequestIdentity, clock: HandClock) -> None:
    first = invoke(identity, "a")
    clock.seconds += IDENTITY_TOKEN_REUSED_S - 1
    assert invoke(identity, "a") == first
    assert invoke(identity, "b") != first
    clock.seconds += 1
    assert invoke(identity, "a") != first


def test_clock_that_was_set_back_gets_a_new_token(
    identity: RequestIdentity, clock: HandClock
) -> None:
    first = invoke(identity)
    clock.seconds -= 1
    assert invoke(identity) != first


def test_tokens_kept_are_bounded(identity: RequestIdentity, clock: HandClock) -> None:
    for number in range(IDENTITY_TOKENS_MAX + 10):
        invoke(identity, str(number))
    assert len(identity) == IDENTITY_TOKENS_MAX


def test_nobody_else_speaks_for_the_node(identity: RequestIdentity) -> None:
    headers = identity.signed(
        "/discover", [(b"x-restate-jwt-v1", b"forged"), (b"accept", b"x"), (b"x-a", b"1")]
    )
    assert [name for name, _ in headers] == [
        b"accept",
        b"x-a",
        b"x-restate-signature-scheme",
        b"x-restate-jwt-v1",
    ]
    assert token_of(headers) != "forged"


# --- Key files -----------------------------------------------------------------------------------


def test_public_form_is_base58_of_the_public_key(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(_RFC_SECRET))
    assert private.public_key().public_bytes_raw().hex() == _RFC_PUBLIC
    file = tmp_path / "key.pem"
    file.write_bytes(pem_of(private))
    form = read_signing_key(file).public_form
    assert form == "publickeyv1_FVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z"


def test_what_is_no_key_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    with pytest.raises(InvalidConfiguration, match=r"can't be read .*identity create"):
        read_signing_key(file)
    file.write_bytes(b"my secret")
    with pytest.raises(InvalidConfiguration, match=r"is no identity key") as refused:
        read_signing_key(file)
    assert "my secret" not in refused.value.message
    file.write_bytes(
        elliptic_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(InvalidConfiguration, match=r"another kind of key.*Ed25519"):
        read_signing_key(file)


@pytest.mark.parametrize("library", ["jwt", "cryptography.exceptions"])
def test_missing_library_is_named(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(create_signing_key()[1])
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InvalidConfiguration, match=r"pip install"):
        RequestIdentity(read_signing_key(file), HandClock())


def test_encrypted_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(InvalidConfiguration, match=r"unencrypted"):
        read_signing_key(file)


async def _start(config: Config) -> None:
    node = Node(config, Supervisor())
    try:
        await node.start()
    finally:
        await node.stop(is_clean=False)


def test_node_with_a_bad_key_does_not_start(tmp_path: Path) -> None:
    config = signing(tmp_path / "missing.pem")(Config(base_dir=tmp_path / "data"))
    with pytest.raises(InvalidConfiguration, match=r"missing\.pem"):
        asyncio.run(_start(config))


# --- The official SDKs ---------------------------------------------------------------------------


def signing(file: Path) -> Callable[[Config], Config]:
    """Changes a configuration so that requests are signed with the key in a file."""

    def configure(config: Config) -> Config:
        invoker = replace(config.invoker, request_identity_private_key_pem_file=file)
        return replace(config, invoker=invoker)

    return configure


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("identity") / "key.pem"
    file.write_bytes(create_signing_key()[1])
    return file


@contextmanager
def typescript(public_form: str) -> Generator[str, None, None]:
    install_packages()
    port = free_port()
    process = subprocess.Popen(
        [str(node()), str(TYPESCRIPT / "signed.ts")],
        env={"PORT": str(port), "KEY": public_form},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    try:
        wait_for(lambda: is_listening(port), bool)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def python(public_form: str) -> Generator[str, None, None]:
    url, process = serve("tests.node.invoker.signed:APP", {"KEY": public_form})
    try:
        yield url
    finally:
        process.kill()
        process.wait()


@contextmanager
def world(folder: Path, key_file: Path | None) -> Generator[World, None, None]:
    started = World(folder, configure=signing(key_file) if key_file else lambda config: config)
    started.start()
    try:
        yield started
    finally:
        started.stop()


Sdk = Callable[[str], AbstractContextManager[str]]
SDKS = [(python, "Signed"), (typescript, "SignedTs")]


@pytest.mark.slow
@pytest.mark.parametrize(("service", "name"), SDKS, ids=["python", "typescript"])
@pytest.mark.parametrize("mount", ["", "/some/base?x=1"], ids=["root", "mounted"])
def test_sdk_takes_signed_requests(
    tmp_path: Path, key_file: Path, service: Sdk, name: str, mount: str
) -> None:
    with service(read_signing_key(key_file).public_form) as url, world(tmp_path, key_file) as node:
        body = {"uri": url + mount}
        assert node.admin("POST", "/deployments", body).status == 201
        assert node.call(f"/{name}/greet").json() == "hello"
        assert node.call(f"/{name}Object/k%20%C3%A9%2F/key").json() == "k é/"


@pytest.mark.slow
@pytest.mark.parametrize(("service", "name"), SDKS, ids=["python", "typescript"])
def test_sdk_refuses_unsigned_requests(
    tmp_path: Path, key_file: Path, service: Sdk, name: str
) -> None:
    with service(read_signing_key(key_file).public_form) as url, world(tmp_path, None) as node:
        answered = node.admin("POST", "/deployments", {"uri": url})
        assert answered.status == 500, answered
        assert answered.json()["restate_code"] == "META0003"
        assert "401" in answered.json()["message"]
        assert "request-identity-private-key-pem-file" in answered.json()["message"]


@pytest.mark.slow
def test_sdk_refuses_requests_signed_with_another_key(tmp_path: Path, key_file: Path) -> None:
    other, _ = create_signing_key()
    with python(other.public_form) as url, world(tmp_path, key_file) as node:
        answered = node.admin("POST", "/deployments", {"uri": url})
        assert (answered.status, answered.json()["restate_code"]) == (500, "META0003")
