"""The restore drill of a cluster: all disks are gone, the bucket is there, and nothing else.

Three nodes take a set under load, at one moment across all of them; then all are killed and wiped.
Three others that are given nothing but the bucket must be a new cluster with that state: what was
acknowledged before the set was asked for is there, what was under way goes on to its end, and no
partition has lost or doubled what another one sent it.
"""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from tests.process.calls import post_json, request
from tests.process.cluster import PARTITIONS, ClusterRun, ClusterServers
from tests.process.driver import RunOptions, Submission
from tests.process.test_restore import check_kept, perdure
from tests.storage.bucket import CREDENTIALS, make_bucket, moto_server

pytestmark = pytest.mark.slow

_DEADLINE_SECONDS = 90.0
_CLIENTS = 4
_ACKNOWLEDGED = 30


async def take_set(run: ClusterRun) -> str:
    """Have a set taken by a node that leads some of the partitions; its name."""
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while True:
            answer = await post_json(run.cluster.nodes[1].admin_port, "/perdure/snapshots", {})
            if answer.status == 200:
                break
            assert answer.status in (202, 503), (answer, run.cluster.nodes[1].log_tail())
            await run.breathe()
    document = answer.json()
    assert [row["partition"] for row in document["partitions"]] == list(range(PARTITIONS))
    return str(document["name"])


async def live_and_die(run: ClusterRun) -> tuple[str, list[Submission], dict[str, object]]:
    """Load, a set amid it, more load, and the end of all three."""
    await run.start()
    over = asyncio.Event()
    tasks = [asyncio.ensure_future(run.client(number)) for number in range(_CLIENTS)]
    tasks.append(asyncio.ensure_future(run.wake(over)))
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while sum(bool(item.invocation) for item in run.submissions) < _ACKNOWLEDGED:
            await run.breathe()
    acknowledged = [item for item in run.submissions if item.invocation]
    known = {item.invocation: item.outcome for item in acknowledged if item.outcome is not None}
    name = await take_set(run)
    count = len(run.submissions)
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while len(run.submissions) < count + 10:
            await run.breathe()
    for node in run.cluster.nodes:
        node.kill()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return name, acknowledged, dict(known)


async def rise(
    run: ClusterRun, acknowledged: list[Submission], known: dict[str, object]
) -> dict[str, object]:
    """The new cluster has it all, and goes on; how it stands."""
    run.cluster.start()
    await run.cluster.wait_healthy(_DEADLINE_SECONDS)
    await check_kept(run, acknowledged, known)
    await take_set(run)  # to a destination of its own
    standing: dict[str, object] = (
        await request(run.cluster.nodes[0].admin_port, "GET", "/perdure/cluster")
    ).json()
    for node in run.cluster.nodes:
        # Each for replicas of its own; who came last may be given some a while later.
        await node.wait_logged("source=snapshot", _DEADLINE_SECONDS)
    for node in run.cluster.nodes:
        assert await asyncio.to_thread(node.terminate, _DEADLINE_SECONDS) == 0, node.log_tail()
    return standing


def test_a_cluster_comes_back_from_its_bucket_alone(tmp_path: Path) -> None:
    with moto_server() as url:
        options = make_bucket(url)
        store = {
            "PERDURE_SNAPSHOTS__ENDPOINT_URL": url,
            "PERDURE_SNAPSHOTS__PATH_STYLE": "true",
            **CREDENTIALS,
        }
        old, new = (f"s3://{options.bucket}/perdure/{name}" for name in ("old", "new"))
        cluster = ClusterServers(tmp_path, {**store, "PERDURE_SNAPSHOTS__DESTINATION": old})
        run = ClusterRun(tmp_path, RunOptions(seed=23, kills=0), cluster)
        try:
            with asyncio.Runner() as runner:
                name, acknowledged, known = runner.run(live_and_die(run))
                assert known
                for node in cluster.nodes:
                    shutil.rmtree(node.base_dir)
                    node.environment |= {
                        "PERDURE_SNAPSHOTS__DESTINATION": new,
                        "PERDURE_CLUSTER__RESTORE_FROM": old,
                        "PERDURE_CLUSTER__RESTORE_SET": name,
                    }
                where = ("--destination", old, "--json")
                listed = json.loads(perdure("snapshots", "list", *where, environment=store))
                assert name in [row["name"] for row in listed["sets"]]
                standing = runner.run(rise(run, acknowledged, known))
            assert standing["fingerprint"] != listed["fingerprint"]
            logs = [node.log_path.read_text() for node in cluster.nodes]
            assert sum("cluster.restored" in text for text in logs) == 1
        finally:
            run.close()
