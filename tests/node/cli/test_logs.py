"""``perdure log`` and ``perdure metadata``: what they show, ask for, and refuse."""

import base64
import getpass
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from tests.node.cli.answers import Answers
from tests.node.cli.standings import ONE, THREE, TWO, cluster
from tests.node.cli.terminal import Terminal

from perdure.cluster.core import chain
from perdure.cluster.core.chain import UnsafeClose
from perdure.cluster.core.types import Member, SegmentState
from perdure.cluster.core.unsafe_close import examine
from perdure.cluster.metadata.places import PlaceStanding
from perdure.cluster.metadata.provision import encode_backup
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.verify import LsnRange, SegmentReport
from perdure.node.admin.log_rows import (
    log_detail,
    log_row,
    register_row,
    seal_row,
    store_row,
    unsafe_row,
    verification_row,
)
from perdure.node.cli import exits
from perdure.node.log_desk import SealResult, Verification
from perdure.node.problems import problems
from perdure.node.register_desk import Register, StoreStanding
from perdure.node.standing import PartitionStanding

SEEN = cluster()
PART = SEEN.partitions[0]
MEMBERS = tuple(Member(node, b"S" * 16) for node in (ONE, TWO, THREE))


def verification(*diverging: LsnRange, ended_at_ms: int | None = 2_000) -> Any:
    report = SegmentReport(
        segment=4,
        lower=1,
        upper=101,
        answered=MEMBERS[:2],
        absent=MEMBERS[2:],
        missing=(),
        under_replicated=(),
        diverging=diverging,
    )
    found = Verification(partition=0, began_at_ms=1_000, ended_at_ms=ended_at_ms, reports=(report,))
    return verification_row(found, SEEN)


def test_logs_are_listed_and_described(terminal: Terminal, answers: Answers) -> None:
    row, detail = log_row(PART, SEEN), log_detail(PART, SEEN)
    answers.documents["GET", "/perdure/logs"] = (200, {"logs": [row]})
    answers.documents["GET", "/perdure/logs/0"] = (200, detail)
    where = ("--admin-url", answers.url)
    listed = terminal.type("log", "list", *where).table[1]
    assert listed == ["0", "node-1", "5", "1", "9000", "1", "node-1, node-2, node-3", "2"]
    described = terminal.type("log", "describe", "0", *where)
    assert ["0", "1", "open", "5", "node-1", "node-1, node-2, node-3", "2"] in described.table
    assert terminal.type("log", "describe", "0", "--json", *where).json == detail


def test_replicas_are_compared_until_it_is_done(terminal: Terminal, answers: Answers) -> None:
    path = "/perdure/logs/0/verify"
    answers.documents["GET", "/perdure/logs"] = (200, {"logs": [log_row(PART, SEEN)]})
    answers.documents["POST", path] = (202, verification(ended_at_ms=None))
    answers.documents["GET", path] = (200, verification())
    where = ("--admin-url", answers.url)
    done = terminal.type("log", "verify", *where)  # all there are
    assert done.code == 0
    assert ["0", "4", "1", "101", "node-1, node-2", "node-3", "sound"] in done.table
    assert answers.asked == [("GET", "/perdure/logs"), ("POST", path), ("GET", path)]
    answers.documents["GET", path] = (200, verification(LsnRange(5, 8), LsnRange(20, 21)))
    done = terminal.type("log", "verify", "0", *where)
    assert (done.code, "diverging 5-7, 20-20" in done.out) == (exits.FAILED, True)
    failed = {**verification(), "is_sound": False, "failure": "[LOG0001] synced bytes"}
    answers.documents["GET", path] = (200, failed)
    done = terminal.type("log", "verify", "0", *where)
    assert (done.code, "synced bytes" in done.err) == (exits.FAILED, True)


def test_a_segment_is_ended_only_when_it_is_meant(terminal: Terminal, answers: Answers) -> None:
    path = "/perdure/logs/0/seal"
    sealed = SealResult(4, MEMBERS[:2], MEMBERS[2:], 2)
    answers.documents["PATCH", path] = (200, seal_row(PART, sealed, SEEN))
    where = ("--admin-url", answers.url)
    done = terminal.type("log", "seal", "0", *where, answer="n\n")
    assert (done.code, answers.asked) == (exits.INTERRUPTED, [])
    done = terminal.type("log", "seal", "0", "--yes", *where)
    assert (done.code, "node-1, node-2" in done.out) == (0, True)
    too_few = SealResult(4, MEMBERS[:1], MEMBERS[1:], 2)
    answers.documents["PATCH", path] = (200, seal_row(PART, too_few, SEEN))
    done = terminal.type("log", "seal", "0", "--yes", *where)
    assert (done.code, "may still commit" in done.err) == (exits.FAILED, True)


def test_a_log_is_reconfigured(terminal: Terminal, answers: Answers) -> None:
    path = "/perdure/logs/0/reconfigure"
    answers.documents["PATCH", path] = (200, log_detail(PART, SEEN))
    where = ("--admin-url", answers.url)
    done = terminal.type("log", "reconfigure", "0", *where)
    assert (done.code, done.err) == (0, "")
    answers.documents["PATCH", path] = (202, log_detail(PART, SEEN))
    assert "no new segment yet" in terminal.type("log", "reconfigure", "0", *where).err


def _remains(part: PartitionStanding = PART, refused: bool = False) -> Any:
    """Two of three disks were given up, the third has some records; unless one may come back."""
    (segment,) = PART.meta.chain
    one, two, three = segment.nodeset
    state = SegmentState(segment.params(0).ref, 9, 9, 7, 0, None, None)
    gone = {two} if refused else {two, three}
    return unsafe_row(part, examine(segment, {one: state}, gone, {ONE: 6}, ()), SEEN)


def test_a_log_is_closed_unsafely_only_by_the_name_of_its_segment(
    terminal: Terminal, answers: Answers
) -> None:
    path = "/perdure/logs/0/unsafe-close"
    answers.documents["GET", path] = (200, _remains())
    where = ("--admin-url", answers.url)
    looked = terminal.type("log", "unsafe-close", "0", *where)
    assert looked.code == 0
    assert ["node-1", "7", "9"] in looked.table
    assert "after record 9 and is only on node-2, node-3" in looked.err
    assert "perdure log unsafe-close 0 --segment 0 --yes" in looked.err
    answers.documents["GET", path] = (200, _remains(refused=True))
    looked = terminal.type("log", "unsafe-close", "0", *where)
    assert (looked.code, "may come back" in looked.err) == (exits.FAILED, True)
    assert terminal.type("log", "unsafe-close", "0", "--yes", *where).code == exits.USAGE
    assert {method for method, _ in answers.asked} == {"GET"}

    (segment,) = PART.meta.chain
    allowed = UnsafeClose(0, segment.epoch, 8, 0, segment.nodeset[:1], "root@h", 1_000)
    claimed = chain.claim(PART.meta, segment.writer, "test")
    assert claimed.claim is not None
    extended = chain.extend(claimed, claimed.claim, 9, segment.nodeset[:2], 2, True)
    assert extended is not None
    part = replace(PART, meta=chain.note_unsafe(extended, allowed, 0))
    by = f"{getpass.getuser()}@{socket.gethostname()}"
    asked = f"{path}?{urlencode({'segment': 0, 'by': by})}"
    answers.documents["PATCH", asked] = (200, _remains(part))
    done = terminal.type("log", "unsafe-close", "0", "--segment", "0", "--yes", *where)
    assert (done.code, "It ends with record 9 now" in done.err) == (0, True)
    waiting = replace(PART, meta=msgspec.structs.replace(PART.meta, allowed=allowed))
    answers.documents["PATCH", asked] = (202, _remains(waiting))
    done = terminal.type("log", "unsafe-close", "0", "--segment", "0", "--yes", *where)
    assert (done.code, "not done yet" in done.err) == (0, True)
    told = [problem.what for problem in problems(cluster(part=waiting))]
    assert any("is to be closed unsafely, as root@h has allowed" in what for what in told)
    told = [problem.what for problem in problems(cluster(part=part))]
    assert any("root@h closed segment 0 unsafely before record 10" in what for what in told)


# --- Metadata -----------------------------------------------------------------------------------


def test_the_places_of_the_metadata_are_shown(terminal: Terminal, answers: Answers) -> None:
    places = (
        PlaceStanding(place="member 1", is_leader=True, has_leader=True, term=7, detail="fine"),
        PlaceStanding(place="a member", failure="nobody answers"),
    )
    found = StoreStanding(places=places, register_count=12)
    answers.documents["GET", "/perdure/metadata"] = (200, store_row(found, "members"))
    where = ("--admin-url", answers.url)
    done = terminal.type("metadata", "status", *where)
    assert done.code == 0
    assert ["member 1", "leader", "7", "fine"] in done.table
    assert ["a member", "unreachable", "0", "nobody answers"] in done.table
    lost = StoreStanding(places=places, failure="no quorum")
    answers.documents["GET", "/perdure/metadata"] = (200, store_row(lost, "members"))
    done = terminal.type("metadata", "status", *where)
    assert (done.code, "no quorum" in done.out) == (exits.FAILED, True)


def test_registers_are_listed_and_shown(terminal: Terminal, answers: Answers) -> None:
    row = register_row(Register("p/0", 9, {"epoch": 5}))
    listed = {"registers": [row]}
    answers.documents["GET", "/perdure/metadata/registers?prefix=p%2F"] = (200, listed)
    answers.documents["GET", "/perdure/metadata/registers/p%2F0"] = (200, row)
    where = ("--admin-url", answers.url)
    assert terminal.type("metadata", "list", "p/", *where).table[1] == ["p/0", "9"]
    shown = terminal.type("metadata", "get", "p/0", *where).out
    assert '"epoch": 5' in shown
    assert terminal.type("metadata", "get", "p/0", "--json", *where).json == row


def test_a_copy_is_private_and_never_overwrites(
    terminal: Terminal, answers: Answers, tmp_path: Path
) -> None:
    content = encode_backup("ab" * 16, {"cluster": Versioned(1, b"x")})
    answers.documents["GET", "/perdure/metadata/backup"] = (
        200,
        {
            "cluster": "shop",
            "fingerprint": "ab" * 16,
            "content": base64.b64encode(content).decode(),
        },
    )
    file = tmp_path / "copy"
    where = ("--admin-url", answers.url)
    done = terminal.type("metadata", "backup", str(file), *where)
    assert done.code == 0
    assert file.read_bytes() == content
    assert file.stat().st_mode & 0o777 == 0o600
    assert terminal.type("metadata", "backup", str(file), *where).code == exits.FAILED
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "arguments", "code", "words"),
    [
        (b"nonsense", (), exits.START, "no metadata backup"),
        (None, (), exits.CONFIGURATION, "can't be read"),
        (b"", ("--yes",), exits.START, "no metadata backup"),
    ],
)
def test_only_a_whole_copy_is_put_back(
    terminal: Terminal,
    tmp_path: Path,
    content: bytes | None,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    file = tmp_path / "copy"
    if content is not None:
        file.write_bytes(content)
    done = terminal.type("metadata", "restore", str(file), *arguments)
    assert (done.code, words in done.err) == (code, True)


def test_a_copy_is_put_into_an_etcd_only(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    file.write_bytes(encode_backup("ab" * 16, {"cluster": Versioned(1, b"x")}))
    done = terminal.type("metadata", "restore", str(file), "--yes")
    assert (done.code, "etcd.endpoints" in done.err) == (exits.CONFIGURATION, True)
    done = terminal.type("metadata", "restore", str(file), answer="n\n")
    assert done.code == exits.INTERRUPTED
    done = terminal.type("cluster", "provision")
    assert (done.code, "nothing to provision" in done.err) == (exits.CONFIGURATION, True)
