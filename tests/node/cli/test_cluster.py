"""``perdure cluster``, ``nodes``, ``partitions``: what they show of a node's answers, and what they
ask for. The answers are those of the rows that the admin API makes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from tests.node.cli.terminal import Terminal

from perdure.cluster.core.chain import PartitionMeta, Replicas, SegmentMeta
from perdure.cluster.core.failure_detector import NodeState
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import (
    Addresses,
    ClusterMeta,
    MemberState,
    NodeMeta,
    StorageState,
    WorkerState,
)
from perdure.cluster.core.recovery import Wait
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.cluster.transport import Refusal
from perdure.node.admin.cluster_rows import cluster_document, node_detail, partition_row
from perdure.node.cli import exits
from perdure.node.problems import Severity, problems
from perdure.node.standing import (
    ClusterStanding,
    NodeStanding,
    PartitionStanding,
    ReplicaStanding,
)

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def node(
    number: NodeId,
    state: NodeState = NodeState.ALIVE,
    storage: StorageState = StorageState.READ_WRITE,
    worker: WorkerState = WorkerState.ACTIVE,
    **fields: Any,
) -> NodeStanding:
    value = NodeMeta(
        f"node-{number}",
        4,
        7,
        f"{number:032x}",
        addresses=Addresses(f"h{number}:5122"),
        storage=storage,
        worker=worker,
        metadata=MemberState.VOTER,
    )
    known: dict[str, Any] = {"loop_lag_ms": 3, "is_disk_full": False, "led": 1, "held": 1}
    return NodeStanding(node=number, value=value, state=state, **{**known, **fields})


def partition(leader: NodeId | None = ONE, *, lag: int = 0, **fields: Any) -> PartitionStanding:
    nodeset = tuple(Member(number, b"S" * 16) for number in (ONE, TWO, THREE))
    segment = SegmentMeta(0, 1, None, 5, Writer(ONE, 4, 7), nodeset, 2)
    meta = PartitionMeta(5, None, 1, (segment,), Replicas((ONE, TWO, THREE)))
    replicas = tuple(
        ReplicaStanding(
            node=number,
            role="leader" if number == leader else "follower",
            applied_lsn=9000 - lag * (number == THREE),
            durable_lsn=40,
            lag_records=lag * (number == THREE) if leader is not None else None,
        )
        for number in (ONE, TWO, THREE)
    )
    return PartitionStanding(
        partition=0, leader=leader, epoch=5, meta=meta, replicas=replicas, **fields
    )


def cluster(
    *nodes: NodeStanding, part: PartitionStanding | None = None, **fields: Any
) -> ClusterStanding:
    return ClusterStanding(
        cluster=ClusterMeta(1, "shop", "ab" * 16, 1, 2, 3),
        seen_by=ONE,
        controller=ONE,
        nodes=nodes or (node(ONE), node(TWO), node(THREE)),
        partitions=(part or partition(),),
        **fields,
    )


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


@dataclass
class Answers:
    """A server on the admin port: ``documents`` by method and path."""

    documents: dict[tuple[str, str], tuple[int, object]]
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    url: str = ""


@pytest.fixture
def answers() -> Iterator[Answers]:
    known = Answers({})

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            known.asked.append((self.command, self.path))
            status, document = known.documents[self.command, self.path]
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    known.url = f"http://127.0.0.1:{server.server_port}"
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


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
    assert "it votes in the metadata quorum" in shown
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


def test_partitions_are_listed_and_moved(terminal: Terminal, answers: Answers) -> None:
    seen = cluster()
    row = partition_row(seen.partitions[0], seen)
    answers.documents["GET", "/perdure/partitions"] = (200, {"partitions": [row]})
    answers.documents["GET", "/perdure/partitions/0"] = (200, row)
    where = ("--admin-url", answers.url)
    listed = terminal.type("partitions", "list", *where).table[1]
    assert listed[:4] == ["0", "node-1", "5", "node-1, node-2, node-3"]
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
