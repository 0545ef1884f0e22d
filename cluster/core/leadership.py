"""What this node is to one partition, and when it tries to lead it.

    idle → bootstrapping → following → claiming → recovering → candidate → leader → draining
                               ↑___________________________________________________________|

A claim takes nothing from a living leader by itself: it leads on until its segment is sealed, or
the chain shows a later one. Whoever claims has seen for itself that nobody leads: the writer of
the open segment is gone, has given up, or was not seen to lead for long, and nobody else's claim is
young. So it is one failure detector's word for a nomination, and this node's own for the claim.

Invariants: it leads only what it has read its own announcement of (I-14), in the epoch of the
segment it opened; epochs it leads only grow.
"""

from dataclasses import dataclass
from enum import Enum

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.failure_detector import (
    FailureDetector,
    NodeState,
    ReplicaReport,
    Role,
)
from perdure.cluster.core.messages import Message
from perdure.cluster.core.types import NodeId, Writer
from perdure.core.invariant import invariant
from perdure.core.limits import (
    CLAIM_BACKOFF_MS_INITIAL,
    CLAIM_BACKOFF_MS_MAX,
    CLAIM_RANK_WAIT_MS,
    CLAIM_TIMEOUT_MS,
    CUT_OFF_PAUSE_MS,
    CUT_OFF_RESIGN_MS,
    HAND_OVER_MS,
    NOMINATION_GRACE_MS,
    NOMINATION_VALID_MS,
)


class ReplicaState(Enum):
    """States of a partition on this node."""

    IDLE = "idle"
    BOOTSTRAPPING = "bootstrapping"
    FOLLOWING = "following"
    CLAIMING = "claiming"
    RECOVERING = "recovering"
    CANDIDATE = "candidate"
    LEADER = "leader"
    DRAINING = "draining"
    BROKEN = "broken"


class Nominated(Message, frozen=True, tag=0x0202):
    """Controller to a replica: lead, unless somebody does. ``epoch``: the latest it has seen."""

    partition: int
    epoch: int


class HandOver(Message, frozen=True, tag=0x0203):
    """Controller to the leader of ``epoch``: hand over to ``to``."""

    partition: int
    to: NodeId
    epoch: int


class Offered(Message, frozen=True, tag=0x0204):
    """The leader of ``epoch`` to its successor: my segment is sealed, claim at once."""

    partition: int
    epoch: int


_TAKING_OVER = (ReplicaState.CLAIMING, ReplicaState.RECOVERING)
_WRITING = (ReplicaState.CANDIDATE, ReplicaState.LEADER, ReplicaState.DRAINING)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Get tables: from a snapshot, a peer, or an empty partition. Then ``on_bootstrapped``."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Read the log and apply it, until ``Retire``."""


@dataclass(frozen=True, slots=True)
class Retire:
    """This node is no replica any more: stop following, forget the tables."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Take over, if the register still shows ``seen_epoch``: claim, seal, repair, extend.

    Then ``on_claimed``, ``on_opened``; or ``on_takeover_failed`` at any point.
    """

    seen_epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop the take-over that is under way; its results are not waited for."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Append the announcement of ``epoch`` as the segment's first record."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Lead:
    """Our announcement is applied: start timers, invocations, outbox, answers."""

    epoch: int


@dataclass(frozen=True, slots=True)
class PauseDispatch:
    """Start no new attempts until ``ResumeDispatch``: nothing commits, or nobody hears us."""


@dataclass(frozen=True, slots=True)
class ResumeDispatch:
    """Go on."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more proposals, let those under way commit, seal our segment; then ``on_drained``."""

    to: NodeId


@dataclass(frozen=True, slots=True)
class Offer:
    """Tell ``to`` that it may claim at once what we led as ``epoch``."""

    to: NodeId
    epoch: int


@dataclass(frozen=True, slots=True)
class StepDown:
    """Stop acting; what waits has an unknown outcome. Follow the log again."""

    epoch: int
    reason: str


Effect = (
    Bootstrap
    | Follow
    | Retire
    | Claim
    | Abandon
    | Announce
    | Lead
    | PauseDispatch
    | ResumeDispatch
    | Drain
    | Offer
    | StepDown
)


class LeadershipCore:
    """One partition on this node. Times are milliseconds of any clock that only grows."""

    def __init__(self, partition: int, me: Writer, detector: FailureDetector) -> None:
        self.partition = partition
        self.state = ReplicaState.IDLE
        self.epoch = 0  # that we lead, or are taking over
        self.meta = chain.empty()
        self.broken_because: str | None = None
        self._me = me
        self._detector = detector
        self._resigned_epoch = 0
        self._claim_seen_at = 0
        self._led_seen_at = 0
        self._vacant_since: int | None = None
        self._wait_ms = 0
        self._backoff_until = 0
        self._losses = 0
        self._nominated_epoch: int | None = None
        self._nominated_until = 0
        self._isolated_since: int | None = None
        self._stalled_ms = 0
        self._is_paused = False
        self._draining_to = me.node
        self._draining_until = 0

    # --- What it says of itself -----------------------------------------------------------------

    def report(self, applied_lsn: int, durable_lsn: int) -> ReplicaReport:
        """This replica, as others are told of it."""
        if self.state in _WRITING:
            role = Role.CANDIDATE if self.state is ReplicaState.CANDIDATE else Role.LEADER
            return ReplicaReport(self.partition, role, self.epoch, applied_lsn, durable_lsn)
        has_tables = self.state in (ReplicaState.FOLLOWING, *_TAKING_OVER)
        role = Role.FOLLOWER if has_tables else Role.ABSENT
        epoch = self._resigned_epoch
        return ReplicaReport(self.partition, role, epoch, applied_lsn, durable_lsn)

    # --- Registers and nodes --------------------------------------------------------------------

    def on_meta(self, now: int, meta: PartitionMeta) -> list[Effect]:
        """The register's newest value that was seen; never an older one than before."""
        invariant(meta.epoch >= self.meta.epoch, "epochs grow (I-19)", partition=self.partition)
        before, self.meta = self.meta, meta
        if meta.claim != before.claim:
            self._claim_seen_at = now
        opened = chain.open_segment(meta)
        if opened != chain.open_segment(before):
            self._led_seen_at = now
        if meta.epoch != before.epoch:
            self._vacant_since = None
        if self.state in _WRITING and opened is not None and opened.epoch > self.epoch:
            return [*self._step_down("another segment follows"), *self._settle()]
        is_mine = meta.claim is not None and meta.claim.writer == self._me
        if self.state is ReplicaState.RECOVERING and not is_mine and meta.epoch > self.epoch:
            self._lose(now)
            return [Abandon(), *self._settle()]
        return self._settle()

    def _settle(self) -> list[Effect]:
        """Be what the replica sets say, unless something is under way."""
        sets = self.meta.replicas
        is_replica = self._me.node in sets.named
        if is_replica and self.state is ReplicaState.IDLE:
            self.state = ReplicaState.BOOTSTRAPPING
            return [Bootstrap()]
        is_settled = self.state not in (ReplicaState.IDLE, *_TAKING_OVER, *_WRITING)
        if not is_replica and is_settled:
            self.state = ReplicaState.IDLE
            return [Retire()]
        return []

    def on_bootstrapped(self) -> list[Effect]:
        """Tables are there."""
        if self.state is not ReplicaState.BOOTSTRAPPING:
            return []
        self.state = ReplicaState.FOLLOWING
        return [Follow()]

    def on_broken(self, reason: str) -> list[Effect]:
        """Tables or log contradict each other: nothing is done with them until repaired."""
        effects: list[Effect] = []
        if self.state in _WRITING:
            effects = self._step_down(reason)
        elif self.state in _TAKING_OVER:
            effects = [Abandon()]
        self.state = ReplicaState.BROKEN
        self.broken_because = reason
        return effects

    def on_gap(self) -> list[Effect]:
        """The log begins later than the tables end: get others."""
        if self.state is not ReplicaState.FOLLOWING and self.state not in _TAKING_OVER:
            return []
        effects: list[Effect] = [Abandon()] if self.state in _TAKING_OVER else []
        self.state = ReplicaState.BOOTSTRAPPING
        return [*effects, Bootstrap()]

    def on_repaired(self) -> list[Effect]:
        """An operator or a snapshot has put it right: begin again with the tables."""
        if self.state is not ReplicaState.BROKEN:
            return []
        self.state = ReplicaState.IDLE
        self.broken_because = None
        return self._settle()

    # --- Trying to lead -------------------------------------------------------------------------

    def on_nominated(self, now: int, epoch: int) -> list[Effect]:
        """A controller that saw ``epoch`` wants us to lead; it says so again while it does."""
        if epoch < self.meta.epoch:
            return []
        self._nominated_epoch = epoch
        self._nominated_until = now + NOMINATION_VALID_MS
        return self._consider(now, 0.0)

    def on_offer(self, epoch: int) -> list[Effect]:
        """The leader of ``epoch`` has sealed its segment for us."""
        opened = chain.open_segment(self.meta)
        is_stale = opened is not None and epoch < opened.epoch
        if self.state is not ReplicaState.FOLLOWING or is_stale:
            return []
        return self._claim(max(epoch, self.meta.epoch), "hand-over")

    def on_claimed(self, epoch: int) -> list[Effect]:
        """The register shows our claim of ``epoch``."""
        if self.state is not ReplicaState.CLAIMING:
            return []
        invariant(epoch > self._resigned_epoch, "epochs grow", epoch=epoch)
        self.state = ReplicaState.RECOVERING
        self.epoch = epoch
        return []

    def on_opened(self, epoch: int) -> list[Effect]:
        """The chain shows our segment of ``epoch``."""
        if self.state is not ReplicaState.RECOVERING or epoch != self.epoch:
            return []
        self.state = ReplicaState.CANDIDATE
        self._stalled_ms = 0
        return [Announce(epoch)]

    def on_announced(self, epoch: int) -> list[Effect]:
        """The apply cursor has read the announcement of ``epoch``."""
        if self.state is not ReplicaState.CANDIDATE or epoch != self.epoch:
            return []
        self.state = ReplicaState.LEADER
        self._losses = 0
        return [Lead(epoch)]

    def on_takeover_failed(self, now: int, draw: float) -> list[Effect]:
        """Somebody else was faster, or it can't be done now. ``draw``: in [0, 1)."""
        if self.state not in _TAKING_OVER:
            return []
        self._lose(now, draw)
        return self._settle()

    def _lose(self, now: int, draw: float = 0.5) -> None:
        self.state = ReplicaState.FOLLOWING
        wait = min(CLAIM_BACKOFF_MS_INITIAL << min(self._losses, 16), CLAIM_BACKOFF_MS_MAX)
        self._losses += 1
        self._backoff_until = now + int(wait * (0.5 + draw))

    def _claim(self, seen_epoch: int, reason: str) -> list[Effect]:
        self.state = ReplicaState.CLAIMING
        self._nominated_epoch = None
        self._vacant_since = None
        return [Claim(seen_epoch, reason)]

    def _consider(self, now: int, draw: float) -> list[Effect]:
        """Claim when nobody leads, and it is our turn."""
        is_able = (
            self.state is ReplicaState.FOLLOWING
            and self._is_eligible()
            and self._detector.state(self._me.node) is NodeState.ALIVE
            and now >= self._backoff_until
        )
        reason = self._vacancy(now)
        if reason is None:
            self._vacant_since = None
            return []
        if self._vacant_since is None:
            self._vacant_since = now
            self._wait_ms = NOMINATION_GRACE_MS + int(CLAIM_RANK_WAIT_MS * (self._rank() + draw))
        is_nominated = self._nominated_epoch == self.meta.epoch and now < self._nominated_until
        if is_able and (is_nominated or now - self._vacant_since >= self._wait_ms):
            return self._claim(self.meta.epoch, reason)
        return []

    def _is_eligible(self) -> bool:
        """Whether this replica may lead: one that is still to be named only after all others."""
        current = self.meta.replicas.current
        if self._me.node in current:
            return True
        is_named = self._me.node in self.meta.replicas.named
        return is_named and all(self._detector.state(node).is_gone for node in current)

    def _rank(self) -> int:
        """How many living replicas come before us."""
        rank = 0
        for node in self.meta.replicas.named:
            if node == self._me.node:
                break
            rank += not self._detector.state(node).is_gone
        return rank

    def _vacancy(self, now: int) -> str | None:
        """Why nobody leads, as far as we can tell; None: somebody may."""
        opened, claim = chain.open_segment(self.meta), self.meta.claim
        if claim is not None and (opened is None or claim.epoch > opened.epoch):
            is_young = now - self._claim_seen_at < CLAIM_TIMEOUT_MS
            if is_young and claim.writer != self._me and not self._detector.is_gone(claim.writer):
                return None
        if opened is None:
            return "never led"
        writer = opened.writer
        if writer == self._me:
            return "given up"
        if self._detector.is_gone(writer):
            return "leader gone"
        report = self._detector.replica_report(writer, self.partition)
        if report is not None and report.epoch >= opened.epoch:
            if report.role not in (Role.LEADER, Role.CANDIDATE):
                return "given up"
            self._led_seen_at = now
        return "leader silent" if now - self._led_seen_at >= CLAIM_TIMEOUT_MS else None

    # --- Leading --------------------------------------------------------------------------------

    def on_progress(self, stalled_ms: int) -> None:
        """How long proposals have waited without any commit; 0 while there is progress."""
        self._stalled_ms = stalled_ms

    def on_log_stopped(self, reason: str) -> list[Effect]:
        """Our segment takes nothing more: it was sealed, or its replicas refuse us."""
        if self.state not in _WRITING:
            return []
        return [*self._step_down(reason), *self._settle()]

    def on_hand_over(self, now: int, to: NodeId, epoch: int) -> list[Effect]:
        """Hand what we lead as ``epoch`` to ``to``; to ourselves: only change the nodeset."""
        if self.state is not ReplicaState.LEADER or epoch != self.epoch:
            return []
        self.state = ReplicaState.DRAINING
        self._draining_to = to
        self._draining_until = now + HAND_OVER_MS
        return [Drain(to)]

    def on_drained(self, now: int) -> list[Effect]:
        """Our segment is sealed, and all that was accepted is committed and applied."""
        if self.state is not ReplicaState.DRAINING:
            return []
        to, epoch = self._draining_to, self.epoch
        effects = self._step_down("handed over")
        if to == self._me.node:
            return [*effects, *self._claim(self.meta.epoch, "new nodeset")]
        self._backoff_until = now + HAND_OVER_MS
        return [*effects, Offer(to, epoch), *self._settle()]

    def tick(self, now: int, draw: float) -> list[Effect]:
        """Time has passed. ``draw``: in [0, 1)."""
        if not self._detector.is_isolated:
            self._isolated_since = None
        elif self._isolated_since is None:
            self._isolated_since = now
        if self.state in _WRITING:
            return self._check_cut_off(now)
        if self.state in _TAKING_OVER:
            if self._isolated_ms(now) < CUT_OFF_RESIGN_MS:
                return []
            self._lose(now)
            return [Abandon(), *self._settle()]
        return self._consider(now, draw)

    def _check_cut_off(self, now: int) -> list[Effect]:
        cut_ms = max(self._stalled_ms, self._isolated_ms(now))
        is_late = self.state is ReplicaState.DRAINING and now >= self._draining_until
        if cut_ms >= CUT_OFF_RESIGN_MS or is_late:
            self._backoff_until = now + CLAIM_BACKOFF_MS_MAX
            reason = "the hand-over took too long" if is_late else "cut off"
            return [*self._step_down(reason), *self._settle()]
        if self.state is not ReplicaState.LEADER or self._is_paused is (cut_ms >= CUT_OFF_PAUSE_MS):
            return []
        self._is_paused = not self._is_paused
        return [PauseDispatch() if self._is_paused else ResumeDispatch()]

    def _isolated_ms(self, now: int) -> int:
        return now - self._isolated_since if self._isolated_since is not None else 0

    def _step_down(self, reason: str) -> list[Effect]:
        self._resigned_epoch = self.epoch
        self._is_paused = False
        self._stalled_ms = 0
        self.state = ReplicaState.FOLLOWING
        return [StepDown(self._resigned_epoch, reason)]
