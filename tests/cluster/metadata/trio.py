"""Members in one process under a hand-held clock and links, for tests that tell a story."""

import random
from collections import defaultdict, deque

from tests.sim.disk import SimDisk
from tests.sim.ports import SimEntropy

from perdure.cluster.metadata.provision import provision
from perdure.cluster.metadata.raft import MemberPorts, RaftMember, Sizes, Timing
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.raft_state import Applied, Cas, Command, Outcome

SMALL = Sizes(journal_bytes=8192, entries_kept=20)


class HandClock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def now_ms(self) -> int:
        return int(self.now * 1000)

    def monotonic(self) -> float:
        return self.now


class _Link:
    def __init__(self, trio: "Trio", node: int) -> None:
        self._trio = trio
        self._node = node

    def send(self, peer: int, frame: bytes) -> None:
        if (self._node, peer) not in self._trio.cuts:
            self._trio.queues[self._node, peer].append(frame)


class Trio:
    """Three members (or another count), all up."""

    def __init__(self, count: int = 3, sizes: Sizes = SMALL, seed: int = 1) -> None:
        self.clock = HandClock()
        self.entropy = SimEntropy(random.Random(seed))
        self.storages = {node: f"{node:032x}" for node in range(1, count + 1)}
        self.disks = {node: SimDisk(random.Random(node)) for node in self.storages}
        self.queues: dict[tuple[int, int], deque[bytes]] = defaultdict(deque)
        self.cuts: set[tuple[int, int]] = set()
        self.members: dict[int, RaftMember] = {}
        self._sizes = sizes
        self._number = 0
        for node in self.storages:
            provision(self.disks[node], self.identity(node), self.entropy, sizes.journal_bytes)
            self.boot(node)

    def identity(self, node: int) -> MemberIdentity:
        return MemberIdentity("cluster", node, self.storages)

    def boot(self, node: int) -> RaftMember:
        ports = MemberPorts(
            disk=self.disks[node],
            link=_Link(self, node),
            clock=self.clock,
            entropy=self.entropy,
        )
        member = RaftMember(self.identity(node), ports, Timing(), self._sizes)
        self.members[node] = member
        return member

    def kill(self, node: int, *, power: bool = False) -> None:
        self.members.pop(node).close()
        if power:
            self.disks[node].lose_power()
        else:
            self.disks[node].kill()
        for pair in list(self.queues):
            if node in pair:
                self.queues[pair].clear()

    def isolate(self, node: int) -> None:
        self.cuts |= {(node, peer) for peer in self.storages}
        self.cuts |= {(peer, node) for peer in self.storages}

    def deliver(self) -> None:
        """All that is under way now; what it causes waits."""
        for (sender, node), queue in list(self.queues.items()):
            for _ in range(len(queue)):
                frame = queue.popleft()
                if node in self.members:
                    self.members[node].receive(sender, frame)

    def turn(self, seconds: float = 0.01) -> None:
        self.clock.now += seconds
        for member in list(self.members.values()):
            member.tick()
        self.deliver()

    def run(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.turn()

    def leader(self) -> RaftMember:
        """The one leader that a majority follows; waits for it."""
        for _ in range(2_000):
            self.turn()
            leading = [member for member in self.members.values() if member.status().is_leader]
            if len(leading) == 1 and leading[0].status().commit_index > 1:
                return leading[0]
        raise AssertionError("nobody leads")

    def submit(self, member: RaftMember, command: Command) -> list[Applied | None]:
        told: list[Applied | None] = []
        member.submit(command, told.append)
        return told

    def cas(
        self, member: RaftMember, key: str, expected: int | None, value: bytes
    ) -> Outcome | None:
        """Write through a member and wait; None: unknown."""
        self._number += 1
        command = Cas(1, self._number, member.state.applied_count, key, expected, value)
        told = self.submit(member, command)
        for _ in range(300):
            self.turn()
            if told:
                return told[0].outcome if told[0] is not None else None
        return None
