"""``perdure cluster``, ``nodes``, ``partitions``: what they show of a node's answers, and what they
ask for. The answers are those of the rows that the admin API makes."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.node.cli.answers import Answers
from tests.node.cli.standings import ONE, THREE, TWO, cluster, node, partition
from tests.node.cli.terminal import Terminal

from perdure.cluster.core.chain import SegmentMeta
from perdure.cluster.core.failure_detector import NodeState
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import StorageState, WorkerState
from perdure.cluster.core.recovery import Wait
from perdure.cluster.core.types import Member, Writer
from perdure.cluster.metadata.places import PlaceStanding
from perdure.cluster.transport import Refusal
from perdure.cluster.verify import LsnRange, SegmentReport
from perdure.core.limits_telling import CHAIN_SEGMENTS_MANY
from perdure.node.admin.cluster_rows import cluster_document, node_detail, partition_row
from perdure.node.cli import exits
from perdure.node.log_desk import Verification
from perdure.node.problems import Severity, problems
from perdure.node.register_desk import StoreStanding
from perdure.node.standing import ClusterStanding, Findings


def compared(**found: tuple[LsnRange, ...]) -> Findings:
    """The latest comparison of partition 0 found this."""
    nothing: dict[str, tuple[LsnRange, ...]] = {
        "missing": (),
        "under_replicated": (),
        "diverging": (),
    }
    report = SegmentReport(
        segment=0, lower=1, upper=100, answered=(), absent=(), **{**nothing, **found}
    )
    verified = Verification(partition=0, began_at_ms=1, ended_at_ms=2, reports=(report,))
    return Findings(StoreStanding(), (verified,))


def chained(count: int) -> ClusterStanding:
    """A partition whose log has so many segments."""
    part = partition()
    segment = part.meta.chain[0]
    closed = [
        SegmentMeta(n, n + 1, n + 2, 1, Writer(ONE, 4, 7), segment.nodeset, 2)
        for n in range(count - 1)
    ]
    meta = msgspec.structs.replace(part.meta, chain=(*closed, segment))
    return cluster(part=replace(part, meta=meta))


def promoted() -> ClusterStanding:
    """A partition whose log a single node has begun."""
    part = partition()
    segment = part.meta.chain[0]
    alone = SegmentMeta(0, 1, 2, 1, Writer(ONE, 4, 7), segment.nodeset[:1], 1)
    meta = msgspec.structs.replace(part.meta, chain=(alone, segment))
    return cluster(part=replace(part, meta=meta))


# --- What is wrong ------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_cluster_that_is_well() -> None:
    assert problems(cluster()) == []


@pytest.mark.parametrize(
    ("seen", "severity", "words"),
    [
        (cluster(node(ONE), node(TWO), node(THREE, NodeState.DEAD)), 1, "node-3 is dead"),
        (cluster(node(ONE), node(TWO), node(THREE, NodeState.SUSPECT)), 1, "node-3 is suspect"),
        (
            cluster(node(ONE), node(TWO, NodeState.DEAD), node(THREE, NodeState.DEAD)),
            0,
            "1 of 3 nodes with metadata are there, 2 are needed",
        ),
        (
            cluster(node(ONE), node(TWO, NodeState.DEAD), node(THREE, NodeState.DEAD)),
            0,
            "log servers that can be used: 1",
        ),
        (
            cluster(node(ONE), node(TWO), node(THREE, storage=StorageState.DATA_LOSS)),
            1,
            "node-3 has lost its log",
        ),
        (
            cluster(node(ONE), node(TWO), node(THREE, storage=StorageState.PROVISIONING)),
            2,
            "not offered its storage",
        ),
        (
            cluster(node(ONE), node(TWO), node(THREE, worker=WorkerState.DRAINING)),
            2,
            "node-3 is being drained",
        ),
        (cluster(node(ONE, is_disk_full=True), node(TWO), node(THREE)), 1, "disk of node-1"),
        (cluster(node(ONE, loop_lag_ms=4000), node(TWO), node(THREE)), 1, "for 4000 ms"),
        (cluster(is_isolated=True), 0, "hears no other node"),
        (cluster(pin_conflicts=3), 0, "a second writer of a segment, 3 times"),
        (cluster(conflicts=2), 0, "second process runs as node-1"),
        (
            cluster(refusals=(Refusal("h9:5122", TWO, "FAB0004", "no such secret", 7),)),
            1,
            "node-1 and node-2 turn each other away, 7 times by now: no such secret",
        ),
        (
            cluster(refusals=(Refusal("h9:40000", None, "FAB0003", "another cluster", 1),)),
            1,
            "node-1 and h9:40000 turn each other away",
        ),
        (cluster(part=partition(None)), 0, "no leader is known for partition 0"),
        (
            cluster(
                part=partition(None, waiting=Wait("seal_quorum", (Member(TWO, b""),))),
            ),
            0,
            "partition 0 can't be recovered without node-2: too few answer",
        ),
        (promoted(), 1, "partition 0: log records are on fewer nodes"),
        (chained(CHAIN_SEGMENTS_MANY), 1, "partition 0: the log has 200 segments or more"),
        (
            cluster(findings=Findings(StoreStanding(failure="no etcd endpoint answered"))),
            0,
            "metadata can't be read: no etcd endpoint answered",
        ),
        (
            cluster(
                findings=Findings(
                    StoreStanding(
                        places=(
                            PlaceStanding(place="etcd-1:2379"),
                            PlaceStanding(place="etcd-2:2379", failure="connection refused"),
                        )
                    )
                )
            ),
            1,
            "one place of 2 that hold the metadata is away: etcd-2:2379: connection refused",
        ),
        (
            cluster(findings=compared(diverging=(LsnRange(3, 5), LsnRange(9, 10)))),
            0,
            "replicas differed in 3 records",
        ),
        (
            cluster(
                findings=compared(missing=(LsnRange(3, 5),), under_replicated=(LsnRange(3, 5),))
            ),
            0,
            "2 records were on no replica that answered",
        ),
        (
            cluster(findings=compared(under_replicated=(LsnRange(1, 8),))),
            1,
            "7 records were on too few replicas",
        ),
        (cluster(part=partition(lag=5000)), 1, "node-3 is 5000 records behind"),
        (
            cluster(part=partition(state=ReplicaState.BROKEN, broken_because="its log is torn")),
            0,
            "partition 0 is broken on node-1: its log is torn",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_next_step(
    seen: ClusterStanding, severity: int, words: str
) -> None:
    found = [problem for problem in problems(seen) if words in problem.what]
    assert [problem.severity for problem in found] == [Severity(severity)]
    assert found[0].advice
    assert problems(seen) == sorted(problems(seen), key=lambda problem: problem.severity)


def test_a_node_that_is_cut_off_counts_itself() -> None:
    gone = (node(TWO, NodeState.DEAD), node(THREE, NodeState.DEAD))
    seen = cluster(node(ONE, NodeState.FAILING_OVER), *gone, is_isolated=True)
    found = [problem.what for problem in problems(seen)]
    assert any("1 of 3 nodes with metadata are there" in what for what in found)
    assert not any("node-1 is failing over" in what for what in found)
    assert all("node-1" not in problem.advice for problem in problems(seen))


# --- What is shown ------------------------------------------------------------------------------


def test_status_shows_what_is_wrong_first(terminal: Terminal, answers: Answers) -> None:
    seen = cluster(node(ONE), node(TWO), node(THREE, NodeState.DEAD), part=partition(None))
    document = cluster_document(seen)
    answers.documents["GET", "/perdure/cluster"] = (200, document)
    done = terminal.type("cluster", "status", "--admin-url", answers.url)
    assert done.code == exits.FAILED  # something is critical
    out = done.out
    assert (
        out.index("no leader is known")
        < out.index("node-3 is dead")
        < out.index("STORAGE")
        < out.index("REPLICAS")
    )
    assert "perdure nodes mark-lost node-3" in out
    rows = {row[0]: row for row in done.table}
    assert rows["node-3"][1:4] == ["N3:4", "dead", "read_write"]
    assert rows["0"][1:3] == ["none", "5"]
    as_json = terminal.type("cluster", "status", "--json", "--admin-url", answers.url)
    assert as_json.json == document


def test_status_of_a_cluster_that_is_well(terminal: Terminal, answers: Answers) -> None:
    answers.documents["GET", "/perdure/cluster"] = (200, cluster_document(cluster()))
    done = terminal.type("cluster", "status", "--admin-url", answers.url)
    assert done.code == 0
    assert "All is well." in done.out


def test_nodes_are_listed_and_changed(terminal: Terminal, answers: Answers) -> None:
    seen = cluster()
    detail = node_detail(seen.nodes[2], seen)
    answers.documents["GET", "/perdure/nodes"] = (200, {"nodes": cluster_document(seen)["nodes"]})
    where = ("--admin-url", answers.url)
    assert [row[0] for row in terminal.type("nodes", "list", *where).table[1:]] == [
        "node-1",
        "node-2",
        "node-3",
    ]
    answers.documents["GET", "/perdure/nodes/node-3"] = (200, detail)
    shown = terminal.type("nodes", "describe", "node-3", *where).out
    assert "held by" in shown
    assert "it holds metadata" in shown
    for verb in ("drain", "undrain", "resume"):
        answers.documents["PATCH", f"/perdure/nodes/node-3/{verb}"] = (200, detail)
        done = terminal.type("nodes", verb, "node-3", "--json", *where)
        assert (done.code, done.json) == (0, detail)
    before = len(answers.asked)
    for verb in ("mark-lost", "remove"):
        done = terminal.type("nodes", verb, "node-3", *where, answer="n\n")
        assert (done.code, len(answers.asked)) == (exits.INTERRUPTED, before)
    refused = {"message": "[MEMB0001] it leads partition 0", "restate_code": "MEMB0001"}
    answers.documents["DELETE", "/perdure/nodes/node-3"] = (409, refused)
    done = terminal.type("nodes", "remove", "node-3", "--yes", *where)
    assert done.code == exits.FAILED
    assert "[MEMB0001] it leads partition 0" in done.err


def test_voters_are_shown_and_named(terminal: Terminal, answers: Answers) -> None:
    where = ("--admin-url", answers.url)
    path = "/perdure/metadata/voters"
    answers.documents["GET", path] = (200, {"quorum": 1, "voters": ["node-1"]})
    assert ["voters", "node-1"] in terminal.type("cluster", "voters", *where).table
    moving = {"quorum": 1, "voters": ["node-1"], "following": ["node-1", "node-2", "node-3"]}
    answers.documents["PATCH", f"{path}?names=node-1,node-2,node-3"] = (202, moving)
    named = terminal.type("cluster", "voters", "node-1", "node-2", "node-3", *where)
    assert "node-1, node-2, node-3" in named.out
    assert "moving to" in named.out


def test_a_promotion_needs_a_data_directory(terminal: Terminal, tmp_path: Path) -> None:
    members = "cluster.members=n1=127.0.0.1:1,n2=127.0.0.1:2,n3=127.0.0.1:3"
    typed = ("cluster", "promote", "--base-dir", str(tmp_path), "--node-name", "n1")
    refused = terminal.type(*typed, "--set", members)
    assert (refused.code, "DIR0002" in refused.err) == (exits.START, True)
    refused = terminal.type(*typed)
    assert (refused.code, "comes first" in refused.err) == (exits.CONFIGURATION, True)


def test_partitions_are_listed_and_moved(terminal: Terminal, answers: Answers) -> None:
    seen = cluster()
    row = partition_row(seen.partitions[0], seen)
    answers.documents["GET", "/perdure/partitions"] = (200, {"partitions": [row]})
    answers.documents["GET", "/perdure/partitions/0"] = (200, row)
    where = ("--admin-url", answers.url)
    listed = terminal.type("partitions", "list", *where).table[1]
    assert listed[:4] == ["0", "node-1", "5", "node-1, node-2, node-3"]
    replicas = terminal.type("partitions", "replicas", *where).table
    assert replicas[2] == ["0", "node-2", "follower", "5", "9000", "40", "1", "0"]
    assert terminal.type("partitions", "replicas", "0", "--json", *where).json == {
        "partitions": [row]
    }
    described = terminal.type("partitions", "describe", "0", *where)
    assert ["node-2", "follower", "9000", "40", "0"] in described.table
    answers.documents["PATCH", "/perdure/partitions/0/lead?to=node-2"] = (202, row)
    late = terminal.type("partitions", "lead", "0", "--to", "node-2", *where)
    assert (late.code, "doesn't lead it yet" in late.err) == (0, True)
    pinned = {**row, "pinned": "node-2", "is_frozen": True}
    answers.documents["PATCH", "/perdure/partitions/0/pin?to=node-2"] = (200, pinned)
    shown = terminal.type("partitions", "pin", "0", "--to", "node-2", *where).out
    assert "node-1 (pinned to node-2) (frozen)" in shown
    for verb in ("unpin", "freeze", "unfreeze"):
        answers.documents["PATCH", f"/perdure/partitions/0/{verb}"] = (200, row)
        assert terminal.type("partitions", verb, "0", "--json", *where).json == row
    assert terminal.type("partitions", "lead", "0", *where).code == exits.USAGE
