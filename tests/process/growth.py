"""One node that becomes three, then five, then three again, under load, and loses a disk between.
So does the quorum that holds the metadata: one, three, five, three.

The load is that of the crash test: what clients were told is held against what the service did.
Every change is made with the command, as an operator would.
"""

import asyncio
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.process.calls import Unanswered, request
from tests.process.cluster import ClusterNode, ClusterRun, ClusterServers
from tests.process.driver import RunOptions
from tests.process.dying_server import VARIABLE
from tests.process.processes import (
    ROOT,
    ProcessFailed,
    free_ports,
    surroundings,
    wait_listening,
    watch,
)
from tests.process.programs import cell_key

_MEMBERS = "PERDURE_CLUSTER__MEMBERS"
_PORTS_EACH = 5
_NODES_MAX = 5
_STEP_SECONDS = 90.0
_KILLED = -signal.SIGKILL

# Where the first node dies while it makes a cluster of itself, one start after the other.
DEATHS = ("formation.given:1", "promotion.filled:1")
# Where a node dies on its way to become one that holds metadata, another one in each round.
QUORUM_DEATHS = ("quorum.stored:1", "quorum.noted:1", "quorum.stopped:1")


class GrowingServers(ClusterServers):
    """``nodes`` are those that run; ``all_nodes`` all that ever will."""

    def __init__(self, folder: Path) -> None:
        base = free_ports(_NODES_MAX * _PORTS_EACH)
        bases = {number: base + (number - 1) * _PORTS_EACH for number in range(1, _NODES_MAX + 1)}
        members = ", ".join(f"n{number}=127.0.0.1:{bases[number]}" for number in (1, 2, 3))
        self.all_nodes = [ClusterNode(folder, n, at, members, {}) for n, at in bases.items()]
        self.first = self.all_nodes[0]
        for node in self.all_nodes:
            node.command = [
                "tests.process.dying_server" if word == "perdure" else word for word in node.command
            ]
        self._members = self.first.environment.pop(_MEMBERS)
        self.nodes = [self.first]

    def make_cluster(self) -> None:
        """From its next start on the first node has the settings of a cluster."""
        self.first.environment[_MEMBERS] = self._members

    def close(self) -> None:
        for node in self.all_nodes:
            node.close()


class GrowthRun(ClusterRun):
    """The load, from one node on."""

    def __init__(self, folder: Path, options: RunOptions) -> None:
        self.servers = GrowingServers(folder)
        super().__init__(folder, options, self.servers)

    async def start(self) -> None:
        self.servers.start()
        self.service.start()
        await wait_listening(self.service, self.service.port)
        await self.servers.first.wait_healthy()
        await self.servers.first.register(self.service.port)


class Growth:
    """What is done to them meanwhile. ``rounds``: how often they grow and shrink, with a node that
    dies while it begins to hold metadata; 0: once, and it doesn't."""

    def __init__(self, run: GrowthRun, rounds: int) -> None:
        self._run = run
        self._servers = run.servers
        self._rounds = rounds
        self.took: dict[str, float] = {}

    async def run(self) -> None:
        """Do it all; then leave three nodes running and healthy."""
        async with asyncio.TaskGroup() as pulses:
            for number in range(2):
                pulses.create_task(self._run.pulse(cell_key(number)))
            await self._timed("promote", self._promote)
            for number in range(max(self._rounds, 1)):
                await self._timed("grow", self._grow)
                place = QUORUM_DEATHS[number % len(QUORUM_DEATHS)] if self._rounds else None
                await self._timed("five voters", partial(self._vote_all, place))
                # One of the first nodes, and one that came later.
                victim = self._servers.all_nodes[2 if number % 2 == 0 else 4]
                await self._timed("replace", partial(self._replace, victim))
                await self._timed("shrink", self._shrink)
            self._run.calm.set()

    async def _timed(self, what: str, step: Callable[[], Any]) -> None:
        began = time.monotonic()
        await step()
        self._run.note_pause(what, began)
        self.took[what] = round(time.monotonic() - began, 1)

    async def _promote(self) -> None:
        """The log holds what tables don't when the node is killed; it dies at each step since."""
        servers, first = self._servers, self._servers.first
        first.kill()
        servers.make_cluster()
        await self._command("cluster", "promote", "--base-dir", str(first.base_dir))
        others = servers.all_nodes[1:3]
        for node in others:
            node.start()
        for place in DEATHS:
            first.environment[VARIABLE] = place
            first.start()
            code = await asyncio.to_thread(first.wait_exit, _STEP_SECONDS)
            self._run.expect(code == _KILLED, f"at {place} it ended with {code}{first.log_tail()}")
        del first.environment[VARIABLE]
        first.start()
        servers.nodes = [first, *others]
        for node in servers.nodes:
            await self._await_up(node)
        await self._wait("three nodes have all tables", is_whole)

    async def _grow(self) -> None:
        fresh = self._servers.all_nodes[3:]
        for node in fresh:
            node.start()
        for node in fresh:
            await self._await_up(node)
        names = {node.node_name for node in fresh}
        await self._wait("new nodes hold tables", lambda seen: _holding(seen) >= names)
        await self._wait("all is well", is_whole)
        for node in fresh:
            await self._lead(node)
        self._servers.nodes = list(self._servers.all_nodes)

    async def _vote_all(self, place: str | None) -> None:
        """All five hold the metadata."""
        names = [each.node_name for each in self._servers.all_nodes]
        if place is not None:
            await self._vote_with_death(self._servers.all_nodes[3], place, names)
        await self._vote(self._servers.all_nodes)
        await self._wait("all is well", is_whole)

    async def _vote(self, nodes: list[ClusterNode]) -> None:
        names = [node.node_name for node in nodes]
        await self._on_node("cluster", "voters", *names)
        await self._wait(f"{names} vote", lambda seen: _voting(seen) == set(names))

    async def _vote_with_death(self, node: ClusterNode, place: str, names: list[str]) -> None:
        """One of them dies meanwhile, and goes on when it is back."""
        answer = await request(self._servers.first.admin_port, "GET", "/perdure/cluster")
        before = row_of(answer.json(), node.node_name)["generation"]
        node.kill()
        node.environment[VARIABLE] = place
        node.start()
        await self._await_up(node)
        await self._wait("it is back", lambda seen: _has_joined(seen, node, before))
        voting = asyncio.create_task(self._on_node("cluster", "voters", *names))
        code = await asyncio.to_thread(node.wait_exit, _STEP_SECONDS)
        self._run.expect(code == _KILLED, f"at {place} it ended with {code}{node.log_tail()}")
        del node.environment[VARIABLE]
        node.start()
        await voting
        await self._await_up(node)

    async def _replace(self, node: ClusterNode) -> None:
        """One is killed and its disk is gone; it comes back under its name with an empty one. It
        has held metadata: others do so now."""
        name = node.node_name
        node.kill()
        self._servers.nodes.remove(node)
        shutil.rmtree(node.data)
        await self._wait(f"{name} is dead", lambda seen: row_of(seen, name)["state"] == "dead")
        await self._vote([each for each in self._servers.all_nodes if each is not node][:3])
        await self._on_node("nodes", "mark-lost", name, "--yes")
        node.start()
        await self._await_up(node)
        await self._wait(
            f"{name} stores again",
            lambda seen: row_of(seen, name)["storage"] == "read_write" and is_whole(seen),
        )
        await self._lead(node)
        self._servers.nodes.append(node)

    async def _shrink(self) -> None:
        leaving = self._servers.all_nodes[3:]
        await self._vote(self._servers.all_nodes[:3])
        for node in leaving:
            await self._on_node("nodes", "drain", node.node_name)
        for node in leaving:
            await self._wait_held_by_nothing(node)
        self._servers.nodes = self._servers.all_nodes[:3]
        for node in leaving:
            code = await asyncio.to_thread(node.terminate, _STEP_SECONDS)
            self._run.expect(code == 0, f"{node.node_name} ended with {code}{node.log_tail()}")
            await self._on_node("nodes", "remove", node.node_name, "--yes")
            shutil.rmtree(node.data)
        await self._wait("three are left", lambda seen: len(seen["nodes"]) == 3)
        await self._wait("all is well", is_whole)
        await self._servers.wait_led(self._servers.nodes)

    async def _lead(self, node: ClusterNode) -> None:
        """Have it lead what it has tables of: what they hold is seen by clients then."""
        name, port = node.node_name, self._servers.first.admin_port
        seen = (await request(port, "GET", "/perdure/cluster")).json()
        for row in seen["partitions"]:
            if name in [replica["node"] for replica in row["replicas"]]:
                path = f"/perdure/partitions/{row['partition']}/lead?to={name}"
                answer = await request(port, "PATCH", path)
                # On a busy machine nobody leads it just now, or it takes longer.
                self._run.expect(answer.status in (200, 202, 409), f"{path} gave {answer}")

    async def _await_up(self, node: ClusterNode) -> None:
        """Start it again when it gave up because metadata was too slow, as service managers do."""
        while True:
            try:
                await node.wait_healthy(_STEP_SECONDS)
            except ProcessFailed:
                if node.exit_code() is None or "MD0001" not in node.log_tail(1):
                    raise
                node.start()
            else:
                return

    # --- Asking ---------------------------------------------------------------------------------

    async def _wait(self, what: str, is_there: Callable[[Any], bool]) -> None:
        async def look() -> Any:
            try:
                answer = await request(self._servers.first.admin_port, "GET", "/perdure/cluster")
            except Unanswered:
                return None
            return answer.json() if answer.status == 200 else None

        def tell(seen: Any) -> str:
            tails = "".join(node.log_tail(15) for node in self._servers.nodes)
            return f"never came: {what}: {seen}{tails}"

        await watch(look, lambda seen: seen is not None and is_there(seen), _STEP_SECONDS, tell)

    async def _wait_held_by_nothing(self, node: ClusterNode) -> None:
        async def holders() -> Any:
            path = f"/perdure/nodes/{node.node_name}"
            return (await request(self._servers.first.admin_port, "GET", path)).json()["held_by"]

        await watch(
            holders,
            lambda held: held == [],
            _STEP_SECONDS,
            lambda held: f"{node.node_name} is held by {held}{node.log_tail()}",
        )

    async def _on_node(self, *arguments: str) -> None:
        url = f"http://127.0.0.1:{self._servers.first.admin_port}"
        await self._command(*arguments, "--json", "--admin-url", url)

    async def _command(self, *arguments: str) -> None:
        """The command, with the settings of the first node."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perdure", *arguments),
            cwd=ROOT,
            env={**surroundings(), **self._servers.first.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        self._run.expect(process.returncode == 0, f"{arguments} gave {output.decode()}")


def row_of(seen: Any, name: str) -> Any:
    """A node in the document of the cluster."""
    return next(row for row in seen["nodes"] if row["name"] == name)


def is_whole(seen: Any) -> bool:
    """All nodes are there, all partitions led, with three tables each that are used."""
    usable = [
        [row["role"] in ("leader", "follower") and not row["is_coming"] for row in part["replicas"]]
        for part in seen["partitions"]
    ]
    return bool(
        all(row["state"] == "alive" for row in seen["nodes"])
        and all(part["leader"] for part in seen["partitions"])
        and all(sum(roles) >= 3 for roles in usable)
    )


def _voting(seen: Any) -> set[str]:
    return {row["name"] for row in seen["nodes"] if row["metadata"] == "voter"}


def _has_joined(seen: Any, node: ClusterNode, before: int) -> bool:
    row = row_of(seen, node.node_name)
    return bool(row["state"] == "alive" and row["generation"] > before)


def _holding(seen: Any) -> set[str]:
    return {row["name"] for row in seen["nodes"] if row["holds"]}


def describe(growth: Growth, run: GrowthRun) -> str:
    """What to print."""
    return f"{run.figures} took {json.dumps(growth.took)} pauses {json.dumps(run.pauses)}"
