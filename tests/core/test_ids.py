"""Identifiers and hashes: golden vectors that every SDK and every replica depends on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.hashing import (
    hash_parts,
    idempotent_service_partition_key,
    idempotent_uuid,
    key_partition_key,
    random_seed,
    service_bucket_partition_key,
    siphash13,
    workflow_uuid,
)
from perdure.core.ids import (
    IdError,
    InvocationId,
    format_awakeable_id,
    format_deployment_id,
    format_invocation_id,
    make_invocation_id,
    parse_awakeable_id,
    parse_deployment_id,
    parse_invocation_id,
    partition_key_of,
    partition_of,
)

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def dumb_b62(number: int, byte_count: int, width: int) -> str:
    """Base 62 as the definition says: byte-swap, divide, pad."""
    swapped = int.from_bytes(number.to_bytes(byte_count, "big"), "little")
    letters = ""
    while swapped:
        swapped, digit = divmod(swapped, 62)
        letters = ALPHABET[digit] + letters
    return letters.rjust(width, "0")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "00000000000"), (1, "05k1wlNFHb2"), (0x0102030405060708, "0GJfy0GGPIZ")],
)
def test_base62_of_u64(number: int, text: str) -> None:
    assert dumb_b62(number, 8, 11) == text
    assert format_invocation_id(make_invocation_id(number, 0)) == f"inv_1{text}{'0' * 22}"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0000000000000000000000"), (1, "01SZwviYzes2mjOamuMJWw")]
)
def test_base62_of_u128(number: int, text: str) -> None:
    assert dumb_b62(number, 16, 22) == text
    assert format_deployment_id(number) == f"dp_1{text}"


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**128 - 1))
def test_invocation_ids_agree_with_the_dumb_encoder(partition_key: int, uuid: int) -> None:
    raw = make_invocation_id(partition_key, uuid)
    text = format_invocation_id(raw)
    assert text == f"inv_1{dumb_b62(partition_key, 8, 11)}{dumb_b62(uuid, 16, 22)}"
    assert (len(raw), len(text)) == (24, 38)
    assert parse_invocation_id(text) == raw
    assert partition_key_of(raw) == partition_key


@given(st.integers(0, 2**128 - 1))
def test_deployment_ids_come_back(ulid: int) -> None:
    text = format_deployment_id(ulid)
    assert len(text) == 26
    assert parse_deployment_id(text) == ulid


def test_deployment_id_vector() -> None:
    ulid = parse_deployment_id("dp_15mdtU1BEGtqYqnNyeRqqEF")
    assert ulid == 0x01A2029C8AF8F566F571F1F788F30EB0
    assert ulid >> 80 == 1795340143352


@pytest.mark.parametrize(
    ("parts", "digest"),
    [
        (("",), 0xD6BCEC3C6B29D72E),
        (("a",), 0x13ACCE3537D6B799),
        (("kk",), 0xA85AD062A344A994),
        (("a b",), 0x96E7682E46F23101),
        (("k1",), 0x548AE3CBA54055B3),
        (("k é",), 0x2763BAD6D520653B),
        (("myscope",), 0x1CB26D5FAF705DA5),
        (("Svc", "unscoped/service", 0), 0x0EECFE3AD08A0BF3),
        (("Svc", "unscoped/service", 1), 0x619E7561D7CA76A3),
        (("Svc", "unscoped/service", 511), 0x0B88D30D68FB1BA2),
    ],
)
def test_partition_hash(parts: tuple[str | int, ...], digest: int) -> None:
    assert hash_parts(*parts) == digest
    if len(parts) == 1:
        assert key_partition_key(str(parts[0])) == digest


def test_plain_services_have_512_buckets() -> None:
    assert hash_parts("k1") % 512 == 435
    assert idempotent_service_partition_key("Svc", "k1") == service_bucket_partition_key("Svc", 435)
    assert service_bucket_partition_key("Svc", 512 + 3) == service_bucket_partition_key("Svc", 3)


@pytest.mark.parametrize(
    ("raw", "text", "seed"),
    [
        (
            make_invocation_id(key_partition_key("a b"), workflow_uuid("Wf", "a b")),
            "inv_106mpCTpo4Ye1lxgfJsV0QemOgls65nGXH",
            9049329873931332624,
        ),
        (
            make_invocation_id(
                idempotent_service_partition_key("Svc", "k1"),
                idempotent_uuid("Svc", None, "echo", "k1"),
            ),
            "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N",
            661894408986937035,
        ),
        (
            make_invocation_id(key_partition_key("kk"), idempotent_uuid("Obj", "kk", "echo", "k1")),
            "inv_1cLjQsoOSa8w0KpUdDLDdER1CfUfLMWIBj",
            8348359178343542834,
        ),
    ],
)
def test_derived_invocation_ids(raw: InvocationId, text: str, seed: int) -> None:
    assert format_invocation_id(raw) == text
    assert parse_invocation_id(text) == raw
    assert random_seed(raw) == seed


def test_seed_of_a_random_id() -> None:
    raw = bytes.fromhex("68c277d3433fe3c09343a962e1c5aae6fb2f44dbc66bf1eb")
    assert format_invocation_id(InvocationId(raw)) == "inv_1gyJFyisFOmk7bdwE3huhCb5z5mkqdbdSj"
    assert random_seed(raw) == 1647283156897971979


def test_siphash_of_every_length_of_tail() -> None:
    # SipHash-1-3 with the zero key differs for every prefix, the empty one included.
    message = bytes(range(17))
    digests = {siphash13(message[:length]) for length in range(18)}
    assert len(digests) == 18


def test_awakeable_vector() -> None:
    raw = parse_invocation_id("inv_1iOC2JgB0zvK79iiMlWVjCZatXUYI6Nju1")
    assert raw.hex() == "ccb181b40d682adb" + "e98430837a854d324c88c6b9d989ecea"
    text = "sign_1zLGBtA1oKtvphDCDeoVNMkyIxrnZiezqAAAAEg"
    assert format_awakeable_id(raw, 18) == text
    assert parse_awakeable_id(text) == (raw, 18)
    assert parse_awakeable_id(text + "==") == (raw, 18)
    assert random_seed(raw) == 2355718693212631205


def test_awakeables_of_old_journals_name_nobody() -> None:
    assert parse_awakeable_id("prom_1zLGBtA1oKtvphDCDeoVNMkyIxrnZiezqAAAAEg") is None


@given(st.binary(min_size=24, max_size=24), st.integers(0, 2**32 - 1))
def test_awakeables_come_back(raw: bytes, index: int) -> None:
    text = format_awakeable_id(InvocationId(raw), index)
    assert len(text) == 44
    assert parse_awakeable_id(text) == (raw, index)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "bad format"),
        ("inv1abc", "bad format"),
        ("foo_1abc", "unrecognized resource type: foo"),
        ("dp_15mdtU1BEGtqYqnNyeRqqEF", "id doesn't match the expected type"),
        ("inv_", "bad length"),
        ("inv_2" + "0" * 33, "unrecognized codec version"),
        ("inv_1" + "0" * 32, "bad length"),
        ("inv_1" + "0" * 34, "bad length"),
        ("inv_1" + "-" * 33, "base62 decode error"),
        ("inv_1" + "Z" * 33, "base62 decode error"),
        ("inv_1" + "é" * 33, "base62 decode error"),
    ],
)
def test_what_is_wrong_with_an_invocation_id(text: str, reason: str) -> None:
    with pytest.raises(IdError, match=f"^{reason}$"):
        parse_invocation_id(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sign_1AAAA", "bad length"),
        ("sign_1" + "!" * 38, "bad base64"),
        ("sign_1A", "bad base64"),
        ("inv_1" + "0" * 33, "id doesn't match the expected type"),
        ("sign_2" + "A" * 38, "unrecognized codec version"),
    ],
)
def test_what_is_wrong_with_an_awakeable_id(text: str, reason: str) -> None:
    with pytest.raises(IdError, match=f"^{reason}$"):
        parse_awakeable_id(text)


@given(st.text(max_size=60))
def test_parsers_refuse_noise_with_a_reason(text: str) -> None:
    for parse in (parse_invocation_id, parse_awakeable_id, parse_deployment_id):
        try:
            parse(text)
        except IdError as error:
            assert str(error)


@given(st.integers(1, 4096))
def test_partitions_split_the_key_space_evenly(count: int) -> None:
    assert partition_of(0, count) == 0
    assert partition_of(2**64 - 1, count) == count - 1
    lowest = [-(-(number << 64) // count) for number in range(min(count, 8))]
    for number, key in enumerate(lowest):
        assert partition_of(key, count) == number
        if key:
            assert partition_of(key - 1, count) == number - 1


def test_uuid_of_a_workflow_run_ignores_the_handler() -> None:
    assert workflow_uuid("Wf", "a b") == 0x7579ECD779B7992956528F7B5A25452C


def test_absent_key_and_empty_key_differ() -> None:
    assert idempotent_uuid("S", None, "h", "i") != idempotent_uuid("S", "", "h", "i")


@given(st.binary(min_size=24, max_size=24))
def test_the_seed_is_siphash_of_domain_and_id_however_it_is_computed(invocation_id: bytes) -> None:
    assert random_seed(invocation_id) == siphash13((24).to_bytes(8, "little") + invocation_id)
