"""Three nodes on this machine, under load, while they are killed, frozen, stopped or robbed.

What clients were told is held against what the service did: see ``driver.py``. The pauses that a
reader of cells saw are printed.
"""

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.process.cluster import ClusterNode, ClusterRun, ClusterServers
from tests.process.crash import load
from tests.process.driver import RunOptions, pause
from tests.process.processes import EXIT_CONFIGURATION, EXIT_START
from tests.process.programs import cell_key

_WHILE_SECONDS = 1.0
_SLEEP_SECONDS = 10.0
_STEP_SECONDS = 40.0


class ClusterChaos:
    """Every way to lose a node for a while, one after the other."""

    def __init__(self, run: ClusterRun) -> None:
        self._run = run
        self._cluster = run.cluster
        self._never = asyncio.Event()

    async def run(self) -> None:
        """Do it all; then leave everything running and healthy."""
        async with asyncio.TaskGroup() as pulses:
            for number in range(4):
                pulses.create_task(self._run.pulse(cell_key(number)))
            await self._cluster.wait_wide()
            await self._kill_busiest()
            await self._kill_metadata()
            await self._freeze_busiest()
            await self._terminate_busiest()
            await self._cluster.wait_healthy()
            self._run.calm.set()

    async def _wait(self, seconds: float = _WHILE_SECONDS) -> None:
        await pause(self._never, seconds)

    async def _kill_busiest(self) -> None:
        node = await self._cluster.find_busiest()
        began = time.monotonic()
        node.kill()
        await self._settle("kill", node, began)
        await self._start(node)

    async def _kill_metadata(self) -> None:
        node = await self._cluster.find_busiest()
        began = time.monotonic()
        victim = node.metadata_process()
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(_STEP_SECONDS):
            while node.metadata_process() in (None, victim):
                await self._wait(0.05)
        await self._wait()
        self._run.note_pause("metadata", began)

    async def _freeze_busiest(self) -> None:
        """The others lead meanwhile; who wakes must not believe that it still leads."""
        node = await self._cluster.find_busiest()
        began = time.monotonic()
        node.signal(signal.SIGSTOP)
        await self._wait(_SLEEP_SECONDS)
        await self._cluster.wait_led(self._others(node))
        node.signal(signal.SIGCONT)
        await self._cluster.find_busiest()
        self._run.note_pause("freeze", began)

    async def _terminate_busiest(self) -> None:
        node = await self._cluster.find_busiest()
        began = time.monotonic()
        code = await asyncio.to_thread(node.terminate, _STEP_SECONDS)
        self._run.expect(code == 0, f"{node.node_name} ended with {code}{node.log_tail()}")
        await self._settle("hand-over", node, began)
        await self._start(node)

    async def _settle(self, what: str, gone: ClusterNode, began: float) -> None:
        await self._cluster.wait_led(self._others(gone))
        await self._wait()
        self._run.note_pause(what, began)

    async def _start(self, node: ClusterNode) -> None:
        node.start()
        await node.wait_healthy(_STEP_SECONDS)

    def _others(self, gone: ClusterNode) -> list[ClusterNode]:
        return [node for node in self._cluster.nodes if node is not gone]


@pytest.mark.slow
def test_a_cluster_loses_nothing_whichever_node_is_lost_for_a_while(tmp_path: Path) -> None:
    async def play() -> ClusterRun:
        cluster = ClusterServers(tmp_path)
        run = ClusterRun(tmp_path, RunOptions(seed=20_262, kills=0, clients=3), cluster)
        try:
            await run.start()
            await load(run, ClusterChaos(run))
            cells = await run.read_cells()
            run.check(cells)
            await run.repeat_all()
            run.expect(await run.read_cells() == cells, "requests that came again had an effect")
        finally:
            run.close()
        return run

    run = asyncio.run(play())
    print(run.figures, run.pauses)
    assert not run.violations, "\n".join(run.violations[:30])
    assert run.figures.programs > 0


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_lost_its_disk_does_not_pretend(tmp_path: Path) -> None:
    async def play() -> None:
        cluster = ClusterServers(tmp_path)
        try:
            cluster.start()
            await cluster.wait_healthy()
            await cluster.wait_wide()
            # Everything: it would vote again on what it has voted on. The first one of all would
            # form another cluster.
            for node in (cluster.nodes[2], cluster.nodes[0]):
                node.kill()
                kept = tmp_path / f"kept-{node.node_name}"
                shutil.move(node.data, kept)
                node.start()
                assert await asyncio.to_thread(node.wait_exit, _STEP_SECONDS) == EXIT_START
                told = node.log_tail()
                assert "DIR0004" in told
                assert "--node-name" in told
                await cluster.wait_led([other for other in cluster.nodes if other is not node])
                shutil.rmtree(node.data)
                shutil.move(kept, node.data)
                node.start()
                await node.wait_healthy(_STEP_SECONDS)
            node = cluster.nodes[2]
            node.kill()
            # All but its part of the metadata: it goes on, its log counts no more.
            for path in ("MARKER", "wal", "partitions"):
                remove(node.data / path)
            await cluster.wait_led(cluster.nodes[:2])
            node.start()
            await node.wait_healthy(_STEP_SECONDS)
            assert "membership.storage.lost" in node.log_path.read_text()
            await cluster.wait_led(cluster.nodes)
        finally:
            cluster.close()

    asyncio.run(play())


@pytest.mark.slow
def test_a_node_with_another_secret_is_kept_out(tmp_path: Path) -> None:
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("the secret of this cluster")
    other.write_text("some other, made up, secret")

    async def play() -> None:
        cluster = ClusterServers(tmp_path, {"PERDURE_CLUSTER__SECRET_FILE": str(secret)})
        try:
            cluster.start()
            await cluster.wait_healthy()
            node = cluster.nodes[2]
            node.kill()
            node.environment["PERDURE_CLUSTER__SECRET_FILE"] = str(other)
            node.start()
            for one in (node, cluster.nodes[0]):
                await one.wait_logged("FAB0004")
            await cluster.wait_led(cluster.nodes[:2])
            assert not await node.led()
        finally:
            cluster.close()

    asyncio.run(play())


@pytest.mark.slow
def test_a_node_that_waits_for_the_others_can_be_stopped(tmp_path: Path) -> None:
    async def play() -> None:
        cluster = ClusterServers(tmp_path)
        first, second, _ = cluster.nodes
        try:
            for node in (first, second):
                node.start()
            for node in (first, second):
                await node.wait_logged("cluster.members.awaited")
                assert await asyncio.to_thread(node.terminate, _STEP_SECONDS) == 0
        finally:
            cluster.close()

    asyncio.run(play())


@pytest.mark.slow
def test_nodes_meet_beyond_this_machine_only_with_a_secret(tmp_path: Path) -> None:
    node = ClusterServers(tmp_path, {"PERDURE_CLUSTER__BIND_ADDRESS": "0.0.0.0:5123"}).nodes[0]
    try:
        node.start()
        assert node.wait_exit(_STEP_SECONDS) == EXIT_CONFIGURATION
        told = node.log_tail()
        assert "CONF0001" in told
        assert "cluster.insecure" in told
    finally:
        node.close()


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
