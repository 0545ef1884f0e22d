"""Leadership of one partition: who claims when, and what ends it."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, Replicas
from perdure.cluster.core.failure_detector import (
    Beat,
    FailureDetector,
    Gossip,
    Mood,
    ReplicaReport,
    Report,
    Role,
)
from perdure.cluster.core.leadership import (
    Abandon,
    Announce,
    Bootstrap,
    Claim,
    Drain,
    Effect,
    Follow,
    Lead,
    LeadershipCore,
    Offer,
    PauseDispatch,
    ReplicaState,
    ResumeDispatch,
    Retire,
    StepDown,
)
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.core.invariant import InvariantViolation
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

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
P = 4


def _writer(node: int, generation: int = 1) -> Writer:
    return Writer(NodeId(node), generation, 10 * node + generation)


class Rig:
    """Node 1's view of partition 4, whose replicas are the nodes 1, 2 and 3."""

    def __init__(self, replicas: tuple[int, ...] = (1, 2, 3)) -> None:
        self.now = 1_000
        self.counts = {2: 0, 3: 0}
        self.detector = FailureDetector(_writer(1), [ONE, TWO, THREE])
        self.core = LeadershipCore(P, _writer(1), self.detector)
        nodes = tuple(NodeId(node) for node in replicas)
        self.meta = msgspec.structs.replace(chain.empty(), replicas=Replicas(nodes))
        for node in (2, 3):
            self.hear(node)

    def hear(self, node: int, report: ReplicaReport | None = None, mood: Mood = Mood.WELL) -> None:
        self.counts[node] += 1
        told = Report(replicas=(report,)) if report is not None else None
        beats = (Beat(_writer(node), self.counts[node], mood), Beat(_writer(1), 10**9, Mood.WELL))
        self.detector.on_gossip(Gossip(beats, told))

    def bury(self, node: int) -> None:
        self.hear(node, mood=Mood.GONE)

    def claimed_by(self, writer: Writer) -> PartitionMeta:
        self.meta = chain.claim(self.meta, writer, "test")
        return self.meta

    def led_by(self, writer: Writer) -> PartitionMeta:
        self.claimed_by(writer)
        return self.extended()

    def extended(self) -> PartitionMeta:
        assert self.meta.claim is not None
        extended = chain.extend(self.meta, self.meta.claim, 0, (Member(TWO, b"S"),), 1)
        assert extended is not None
        self.meta = extended
        return extended

    def see(self, meta: PartitionMeta) -> list[Effect]:
        return self.core.on_meta(self.now, meta)

    def wait(self, ms: int, draw: float = 0.0) -> list[Effect]:
        self.now += ms
        return self.core.tick(self.now, draw)

    def following(self) -> "Rig":
        assert self.see(self.meta) == [Bootstrap()]
        assert self.core.on_bootstrapped() == [Follow()]
        return self

    def leading(self) -> "Rig":
        self.following()
        assert self.core.on_nominated(self.now, self.meta.epoch) == [
            Claim(self.meta.epoch, "never led")
        ]
        epoch = self.take_over()
        assert self.core.on_announced(epoch) == [Lead(epoch)]
        return self

    def take_over(self) -> int:
        self.see(self.claimed_by(_writer(1)))
        epoch = self.meta.epoch
        assert self.core.on_claimed(epoch) == []
        self.see(self.extended())
        assert self.core.on_opened(epoch) == [Announce(epoch)]
        return epoch


def test_the_way_to_lead() -> None:
    rig = Rig().leading()
    assert rig.core.state is ReplicaState.LEADER
    assert rig.core.report(9, 8) == ReplicaReport(P, Role.LEADER, 1, 9, 8)
    assert rig.wait(60_000) == []


def test_it_leads_only_once_its_own_announcement_is_applied() -> None:
    rig = Rig().following()
    rig.core.on_nominated(rig.now, 0)
    epoch = rig.take_over()
    assert [rig.core.on_announced(other) for other in (epoch - 1, epoch + 1)] == [[], []]
    assert rig.core.report(1, 1).role is Role.CANDIDATE
    assert rig.core.on_announced(epoch) == [Lead(epoch)]
    assert rig.core.on_announced(epoch) == []


def test_who_is_no_replica_idles() -> None:
    rig = Rig(replicas=(2, 3))
    assert rig.see(rig.meta) == []
    assert rig.core.state is ReplicaState.IDLE
    assert rig.core.on_nominated(rig.now, 0) == []
    assert rig.wait(10**6) == []


def test_a_member_of_the_next_set_follows_but_does_not_claim() -> None:
    rig = Rig(replicas=(2, 3))
    sets = Replicas((TWO, THREE), (ONE, TWO))
    rig.meta = msgspec.structs.replace(rig.meta, replicas=sets)
    rig.following()
    assert rig.core.on_nominated(rig.now, 0) == []
    assert rig.wait(10**6) == []
    rig.meta = msgspec.structs.replace(rig.meta, replicas=Replicas((TWO, THREE)))
    assert rig.see(rig.meta) == [Retire()]


def test_a_member_of_the_next_set_claims_when_all_others_are_gone() -> None:
    rig = Rig(replicas=(2,))
    rig.meta = msgspec.structs.replace(rig.meta, replicas=Replicas((TWO,), (ONE, TWO)))
    rig.following().bury(2)
    assert rig.core.on_nominated(rig.now, 0) == [Claim(0, "never led")]


def test_nobody_claims_from_a_leader_that_lives() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    for _ in range(40):
        rig.hear(2, ReplicaReport(P, Role.LEADER, 1, 5, 5))
        assert rig.wait(1_000) == []
        assert rig.core.on_nominated(rig.now, 1) == []


def test_a_nomination_counts_as_soon_as_we_see_the_leader_gone() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    assert rig.core.on_nominated(rig.now, 0) == []  # about an epoch that is over
    assert rig.core.on_nominated(rig.now, 1) == []
    assert rig.wait(100) == []
    rig.bury(2)
    assert rig.wait(100) == [Claim(1, "leader gone")]
    assert rig.wait(100) == []


def test_a_nomination_is_soon_forgotten() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    assert rig.core.on_nominated(rig.now, 1) == []
    rig.now += NOMINATION_VALID_MS
    rig.bury(2)
    assert rig.wait(0) == []


@pytest.mark.parametrize(("replicas", "rank"), [((1, 2, 3), 0), ((3, 1, 2), 1), ((2, 1, 3), 0)])
def test_replicas_name_themselves_by_rank_when_no_controller_does(
    replicas: tuple[int, ...], rank: int
) -> None:
    rig = Rig(replicas).following()
    rig.see(rig.led_by(_writer(2)))
    rig.bury(2)
    assert rig.wait(0, draw=0.5) == []
    wait = NOMINATION_GRACE_MS + int(CLAIM_RANK_WAIT_MS * (rank + 0.5))
    assert rig.wait(wait - 1) == []
    assert rig.wait(1) == [Claim(1, "leader gone")]


def test_a_later_run_of_the_leaders_node_has_not_its_leadership() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    rig.detector.on_gossip(Gossip((Beat(_writer(2, 2), 1, Mood.WELL),)))
    rig.core.on_nominated(rig.now, 1)
    assert rig.core.state is ReplicaState.CLAIMING


def test_a_young_claim_of_a_living_node_is_respected() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    rig.see(rig.claimed_by(_writer(3)))
    rig.bury(2)
    assert rig.wait(CLAIM_TIMEOUT_MS - 1) == []
    assert rig.core.on_nominated(rig.now, 2) == []
    assert rig.wait(1) == [Claim(2, "leader gone")]


def test_a_claim_of_a_dead_node_is_not() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    rig.see(rig.claimed_by(_writer(3)))
    rig.bury(2)
    rig.bury(3)
    rig.core.on_nominated(rig.now, 2)
    assert rig.core.state is ReplicaState.CLAIMING


def test_a_stale_claim_takes_nothing_from_a_leader_that_leads_on() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    rig.see(rig.claimed_by(_writer(3)))
    for _ in range(40):
        rig.hear(2, ReplicaReport(P, Role.LEADER, 1, 5, 5))
        assert rig.wait(1_000) == []


def test_a_leader_that_says_nothing_of_leading_is_silent() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    rig.hear(2, ReplicaReport(P, Role.FOLLOWER, 0, 5, 5))  # from before it led
    assert rig.wait(CLAIM_TIMEOUT_MS - 1) == []
    assert rig.core.on_nominated(rig.now, 1) == []
    assert rig.wait(1) == [Claim(1, "leader silent")]


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.ABSENT])
def test_a_leader_that_gave_up_is_followed_at_once(role: Role) -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    rig.core.on_nominated(rig.now, 1)
    rig.hear(2, ReplicaReport(P, role, 1, 5, 5))
    assert rig.wait(1) == [Claim(1, "given up")]


def test_who_loses_a_claim_waits_longer_each_time() -> None:
    rig = Rig().following()
    wait = CLAIM_BACKOFF_MS_INITIAL
    for _ in range(8):
        rig.core.on_nominated(rig.now, 0)
        assert rig.core.state is ReplicaState.CLAIMING
        assert rig.core.on_takeover_failed(rig.now, 0.5) == []
        rig.now += wait - 1
        assert rig.core.on_nominated(rig.now, 0) == []
        assert rig.wait(0) == []
        assert rig.wait(1) == [Claim(0, "never led")]
        rig.core.on_takeover_failed(rig.now, 0.5)
        wait = min(wait * 4, CLAIM_BACKOFF_MS_MAX)
        rig.now += CLAIM_BACKOFF_MS_MAX


def test_an_overtaken_claimant_lets_go() -> None:
    rig = Rig().following()
    rig.core.on_nominated(rig.now, 0)
    rig.see(rig.claimed_by(_writer(1)))
    rig.core.on_claimed(1)
    assert rig.see(rig.claimed_by(_writer(3))) == [Abandon()]
    assert rig.core.state is ReplicaState.FOLLOWING
    assert rig.core.on_opened(1) == []


def test_a_claim_alone_deposes_nobody_a_later_segment_does() -> None:
    rig = Rig().leading()
    assert rig.see(rig.claimed_by(_writer(2))) == []
    assert rig.core.report(5, 5).role is Role.LEADER
    assert rig.see(rig.extended()) == [StepDown(1, "another segment follows")]
    assert rig.core.report(5, 5) == ReplicaReport(P, Role.FOLLOWER, 1, 5, 5)


def test_a_sealed_segment_ends_it() -> None:
    rig = Rig().leading()
    assert rig.core.on_log_stopped("sealed") == [StepDown(1, "sealed")]
    assert rig.core.on_log_stopped("sealed") == []


def test_a_hand_over_drains_then_offers() -> None:
    rig = Rig().leading()
    assert rig.core.on_hand_over(rig.now, TWO, 7) == []
    assert rig.core.on_hand_over(rig.now, TWO, 1) == [Drain(TWO)]
    assert rig.core.report(5, 5).role is Role.LEADER
    assert rig.core.on_drained(rig.now) == [StepDown(1, "handed over"), Offer(TWO, 1)]
    rig.now += HAND_OVER_MS - 1
    assert rig.core.on_nominated(rig.now, 1) == []
    assert rig.wait(0) == []
    assert rig.wait(1) == [Claim(1, "given up")]


def test_an_offer_is_taken_at_once_unless_it_is_old() -> None:
    rig = Rig().following()
    rig.see(rig.led_by(_writer(2)))
    rig.see(rig.led_by(_writer(2)))
    assert rig.core.on_offer(1) == []
    assert rig.core.on_offer(2) == [Claim(2, "hand-over")]
    assert rig.core.on_offer(2) == []


def test_an_offer_may_be_ahead_of_the_register_we_saw() -> None:
    rig = Rig().following()
    assert rig.core.on_offer(5) == [Claim(5, "hand-over")]


def test_changing_the_nodeset_is_handing_over_to_oneself() -> None:
    rig = Rig().leading()
    assert rig.core.on_hand_over(rig.now, ONE, 1) == [Drain(ONE)]
    assert rig.core.on_drained(rig.now) == [StepDown(1, "handed over"), Claim(1, "new nodeset")]
    epoch = rig.take_over()
    assert rig.core.on_announced(epoch) == [Lead(2)]


def test_a_hand_over_that_hangs_ends_the_leadership() -> None:
    rig = Rig().leading()
    rig.core.on_hand_over(rig.now, TWO, 1)
    assert rig.wait(HAND_OVER_MS - 1) == []
    assert rig.wait(1) == [StepDown(1, "the hand-over took too long")]
    assert rig.core.on_drained(rig.now) == []


def test_a_leader_without_commits_pauses_then_resigns() -> None:
    rig = Rig().leading()
    rig.core.on_progress(CUT_OFF_PAUSE_MS - 1)
    assert rig.wait(1) == []
    rig.core.on_progress(CUT_OFF_PAUSE_MS)
    assert rig.wait(1) == [PauseDispatch()]
    assert rig.wait(1) == []
    rig.core.on_progress(0)
    assert rig.wait(1) == [ResumeDispatch()]
    rig.core.on_progress(CUT_OFF_RESIGN_MS)
    assert rig.wait(1) == [StepDown(1, "cut off")]
    rig.now += CLAIM_BACKOFF_MS_MAX - 1
    assert rig.core.on_nominated(rig.now, 1) == []
    assert rig.wait(0) == []
    assert rig.wait(1) == [Claim(1, "given up")]


def _isolate(rig: Rig) -> None:
    for _ in range(20):
        rig.detector.tick(0)
    assert rig.detector.is_isolated


def test_a_leader_that_nobody_hears_pauses_then_resigns_and_claims_nothing() -> None:
    rig = Rig().leading()
    _isolate(rig)
    assert rig.wait(0) == []
    assert rig.wait(CUT_OFF_PAUSE_MS) == [PauseDispatch()]
    assert rig.wait(CUT_OFF_RESIGN_MS - CUT_OFF_PAUSE_MS) == [StepDown(1, "cut off")]
    assert rig.wait(10**6) == []


def test_a_claimant_that_nobody_hears_gives_up() -> None:
    rig = Rig().following()
    rig.core.on_nominated(rig.now, 0)
    _isolate(rig)
    assert rig.wait(0) == []
    assert rig.wait(CUT_OFF_RESIGN_MS) == [Abandon()]


def test_a_node_that_stops_claims_nothing() -> None:
    rig = Rig().following()
    rig.detector.mood = Mood.STOPPING
    assert rig.core.on_nominated(rig.now, 0) == []
    assert rig.wait(10**6) == []


@pytest.mark.parametrize("state", ["following", "claiming", "leading"])
def test_broken_tables_end_whatever_is_under_way(state: str) -> None:
    rig = Rig().leading() if state == "leading" else Rig().following()
    if state == "claiming":
        rig.core.on_nominated(rig.now, 0)
    expected = {"following": [], "claiming": [Abandon()], "leading": [StepDown(1, "ahead of log")]}
    assert rig.core.on_broken("ahead of log") == expected[state]
    assert rig.core.report(5, 5).role is Role.ABSENT
    assert rig.core.on_nominated(rig.now, rig.meta.epoch) == []
    assert rig.wait(10**6) == []
    assert rig.core.on_repaired() == [Bootstrap()]


@pytest.mark.parametrize("is_claiming", [False, True])
def test_tables_that_the_log_has_left_behind_are_replaced(is_claiming: bool) -> None:
    rig = Rig().following()
    if is_claiming:
        rig.core.on_nominated(rig.now, 0)
    assert rig.core.on_gap() == ([Abandon()] if is_claiming else []) + [Bootstrap()]
    assert rig.core.report(5, 5).role is Role.ABSENT
    assert rig.core.on_nominated(rig.now, rig.meta.epoch) == []
    assert rig.core.on_gap() == []
    assert rig.core.on_bootstrapped() == [Follow()]


def test_a_leader_taken_out_of_the_set_leads_until_it_has_handed_over() -> None:
    rig = Rig().leading()
    rig.meta = msgspec.structs.replace(rig.meta, replicas=Replicas((TWO, THREE)))
    assert rig.see(rig.meta) == []
    rig.core.on_hand_over(rig.now, TWO, 1)
    assert rig.core.on_drained(rig.now) == [StepDown(1, "handed over"), Offer(TWO, 1), Retire()]


def test_epochs_that_shrink_are_metadata_that_was_rolled_back() -> None:
    rig = Rig().following()
    before = rig.meta
    rig.see(rig.led_by(_writer(2)))
    with pytest.raises(InvariantViolation, match="I-19"):
        rig.see(before)


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 80))
def test_whatever_happens_leading_follows_its_announcement(seed: int, steps: int) -> None:
    dice = random.Random(seed)
    rig = Rig()
    announced: set[int] = set()
    led: list[int] = []
    acting: int | None = None
    for _ in range(steps):
        for effect in _anything(rig, dice):
            match effect:
                case Announce(epoch):
                    assert epoch == rig.core.epoch
                    announced.add(epoch)
                case Lead(epoch):
                    assert epoch in announced
                    assert not led or epoch > led[-1]
                    assert acting is None
                    led.append(epoch)
                    acting = epoch
                case StepDown(epoch, _):
                    assert acting in (None, epoch)
                    acting = None
                case _:
                    pass
        is_leader = rig.core.state in (ReplicaState.LEADER, ReplicaState.DRAINING)
        assert is_leader == (acting is not None)


def _anything(rig: Rig, dice: random.Random) -> list[Effect]:
    core, now = rig.core, rig.now
    epoch = max(0, rig.meta.epoch + dice.choice((-1, 0, 0, 0, 1)))
    match dice.randrange(15):
        case 0:
            return rig.see(rig.claimed_by(_writer(dice.randint(1, 3))))
        case 1 if rig.meta.claim and chain.open_segment(rig.meta) is None:
            return rig.see(rig.extended())
        case 2:
            return core.on_bootstrapped()
        case 3:
            return core.on_nominated(now, epoch)
        case 4:
            return core.on_offer(epoch)
        case 5 if core.state is ReplicaState.CLAIMING:
            rig.see(rig.claimed_by(_writer(1)))
            return core.on_claimed(rig.meta.epoch)
        case 6:
            return core.on_opened(core.epoch)
        case 7 | 8:
            return core.on_announced(core.epoch)
        case 9:
            return core.on_takeover_failed(now, dice.random())
        case 10:
            return core.on_hand_over(now, NodeId(dice.randint(1, 3)), core.epoch)
        case 11:
            return core.on_drained(now)
        case 12 if dice.random() < 0.2:
            return core.on_broken("test")
        case 13 if dice.random() < 0.3:
            return [*core.on_log_stopped("sealed"), *core.on_repaired()]
        case _:
            rig.hear(dice.randint(2, 3), mood=dice.choice((Mood.WELL, Mood.FAILING_OVER)))
            core.on_progress(dice.choice((0, 0, CUT_OFF_PAUSE_MS, CUT_OFF_RESIGN_MS)))
            return rig.wait(dice.choice((250, 2_000, 20_000)), dice.random())
