"""Members as real processes on loopback: kill -9, restarts, who may ask, what is refused."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from msgspec import structs
from tests.cluster.metadata.backends import free_ports

from perdure.cluster.metadata.client import DoorClosed, RaftMetadata
from perdure.cluster.metadata.local_door import SOCKET, TOKEN, LocalDoor
from perdure.cluster.metadata.messages import Look, Standing
from perdure.cluster.metadata.provision import draw_storages, provision
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.server import MemberSettings, encode_settings
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.metadata.supervisor import MEMBER_COMMAND, MemberProcess
from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.storage.disk import OsDisk

pytestmark = pytest.mark.slow


class Processes:
    """Three members under their supervisors, a client beside each."""

    nodes = (1, 2, 3)

    def __init__(self, root: Path) -> None:
        entropy, clock = SystemEntropy(), SystemClock()
        storages = draw_storages(self.nodes, entropy)
        ports = free_ports(len(self.nodes))
        members = {node: f"127.0.0.1:{port}" for node, port in zip(self.nodes, ports, strict=True)}
        self.folders = {node: root / str(node) for node in self.nodes}
        self.settings: dict[int, bytes] = {}
        self.processes: dict[int, MemberProcess] = {}
        self.clients: dict[int, RaftMetadata] = {}
        self._tasks: list[asyncio.Task[None]] = []
        for node, folder in self.folders.items():
            folder.mkdir()
            provision(OsDisk(folder), MemberIdentity("ab" * 8, node, storages), entropy)
            self.settings[node] = encode_settings(
                MemberSettings(
                    folder=str(folder), listen=members[node], members=members, cluster_name="test"
                )
            )
            self.processes[node] = MemberProcess(self.settings[node], clock, entropy)
            self.clients[node] = RaftMetadata([LocalDoor(folder)], clock, entropy)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(at.run()) for at in self.processes.values()]

    def kill(self, node: int) -> None:
        process = self.processes[node].process_id
        assert process is not None
        os.kill(process, signal.SIGKILL)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def aclose(self) -> None:
        await self.stop()
        for client in self.clients.values():
            await client.aclose()

    async def leader(self) -> int:
        async with asyncio.timeout(30):
            while True:
                leader = (await self.clients[1].look()).leader
                if leader is not None:
                    return leader
                await asyncio.sleep(0.05)


Story = Callable[[Processes], Coroutine[Any, Any, None]]


def tell(root: Path, story: Story) -> None:
    async def main() -> None:
        processes = Processes(root)
        processes.start()
        try:
            await story(processes)
        finally:
            await processes.aclose()

    asyncio.run(main())


def test_kill_9_of_members_loses_nothing_and_is_repaired(tmp_path: Path) -> None:
    async def story(processes: Processes) -> None:
        for node in processes.nodes:
            assert await processes.clients[node].get("a") is None
        version: int | None = None
        for turn in range(6):
            victim = await processes.leader() if turn % 2 else turn % 3 + 1
            processes.kill(victim)
            witness = next(node for node in processes.nodes if node != victim)
            written = await processes.clients[witness].cas("a", version, b"%d" % turn)
            version = (version or 0) + 1
            assert written == Versioned(version, b"%d" % turn)
            assert await processes.clients[victim].get("a") == written  # it is back
        assert sum(process.starts for process in processes.processes.values()) >= 3 + 6
        await processes.stop()
        processes.start()
        for node in processes.nodes:
            assert await processes.clients[node].get("a") == Versioned(6, b"5")

    tell(tmp_path, story)


def test_a_leader_that_stood_still_tells_nothing_old(tmp_path: Path) -> None:
    async def story(processes: Processes) -> None:
        for node in processes.nodes:
            assert await processes.clients[node].get("a") is None
        leader = await processes.leader()
        process = processes.processes[leader].process_id
        assert process is not None
        witness = next(node for node in processes.nodes if node != leader)
        os.kill(process, signal.SIGSTOP)
        try:
            assert await processes.clients[witness].cas("a", None, b"1") == Versioned(1, b"1")
        finally:
            os.kill(process, signal.SIGCONT)
        assert await processes.clients[leader].get("a") == Versioned(1, b"1")
        assert processes.processes[leader].starts == 1

    tell(tmp_path, story)


def test_a_member_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    child = subprocess.Popen(MEMBER_COMMAND, stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(processes.settings[1] + b"\n")
    child.stdin.flush()
    assert isinstance(asyncio.run(_look(processes.folders[1])), Standing)
    child.stdin.close()
    assert child.wait(timeout=20) == 0
    asyncio.run(processes.aclose())


async def _look(folder: Path) -> object:
    door = LocalDoor(folder)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    return await door.ask(Look(), 5)
                except DoorClosed:
                    await asyncio.sleep(0.05)
    finally:
        await door.aclose()


def test_only_who_has_the_token_may_ask(tmp_path: Path) -> None:
    async def story(processes: Processes) -> None:
        await processes.clients[1].get("a")
        folder = processes.folders[1]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / TOKEN).stat().st_mode) == 0o600
        token = (folder / TOKEN).read_bytes()
        reader, writer = await asyncio.open_unix_connection(folder / SOCKET)
        writer.write(bytes([token[0] ^ 1]) + token[1:] + b"\0" * 100)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        reader, writer = await asyncio.open_unix_connection(folder / SOCKET)
        writer.write(token + b"\xff" * 12)  # a frame beyond the limit
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert await processes.clients[1].get("a") is None

    tell(tmp_path, story)


def _run_once(settings: MemberSettings) -> tuple[int, str]:
    """A member that can't start: its exit code and what it said."""
    done = subprocess.run(
        MEMBER_COMMAND,
        input=encode_settings(settings) + b"\n",
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def _settings(folder: Path) -> MemberSettings:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    return MemberSettings(
        folder=str(folder), listen=address, members={1: address}, cluster_name="test"
    )


def test_a_folder_without_storage_is_refused(tmp_path: Path) -> None:
    code, said = _run_once(_settings(tmp_path))
    assert code == 2
    assert "DIR0004" in said
    assert "provision" in said


def test_members_are_not_open_to_everybody(tmp_path: Path) -> None:
    entropy = SystemEntropy()
    provision(OsDisk(tmp_path), MemberIdentity("ab" * 8, 1, draw_storages([1], entropy)), entropy)
    code, said = _run_once(structs.replace(_settings(tmp_path), listen="0.0.0.0:0"))
    assert code == 2
    assert "CONF0001" in said
    assert "secret" in said


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    async def story(processes: Processes) -> None:
        await processes.clients[1].get("a")
        code, said = await asyncio.to_thread(_run_once, _settings(processes.folders[1]))
        assert code == 2
        assert "DIR0001" in said

    tell(tmp_path, story)


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    entropy = SystemEntropy()
    provision(OsDisk(folder), MemberIdentity("ab" * 8, 1, draw_storages([1], entropy)), entropy)
    code, said = _run_once(_settings(folder))
    assert code == 2
    assert "CONF0001" in said


@pytest.mark.parametrize(
    "command", [(sys.executable, "-c", "raise SystemExit(3)"), ("/there/is/no/such/program",)]
)
def test_a_process_that_ends_at_once_is_started_with_growing_pauses(
    command: tuple[str, ...],
) -> None:
    async def main() -> None:
        process = MemberProcess(b"{}", SystemClock(), SystemEntropy(), command)
        task = asyncio.create_task(process.run())
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(3_000):
            if process.starts >= 4:
                break
            await asyncio.sleep(0.01)
        assert process.starts >= 4
        assert loop.time() - began > 0.1 + 0.2 + 0.4
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_a_child_that_dies_before_it_is_told_anything_is_started_again() -> None:
    async def play() -> None:
        children = [
            MemberProcess(b"{}", SystemClock(), SystemEntropy(), ("true",)) for _ in range(20)
        ]
        tasks = [asyncio.create_task(child.run()) for child in children]
        try:
            async with asyncio.timeout(30):
                while any(child.starts < 3 for child in children):
                    assert not any(task.done() for task in tasks), "the others go on"
                    await asyncio.sleep(0.01)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())
