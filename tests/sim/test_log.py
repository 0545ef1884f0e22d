"""The log under power loss, kills, failing syncs and full disks, one seed after another.

``make sim SEEDS=20000`` runs more of them; ``SEED=17 make sim`` runs one.
"""

from collections import Counter

import msgspec
import pytest
from tests.sim.log_world import World
from tests.sim.seeds import batches, chosen, repeatable

from perdure.cluster.core.checkpoint import Checkpoint
from perdure.cluster.core.replica import ReplicaCore
from perdure.core.errors import PerdureError
from perdure.core.invariant import InvariantViolation
from perdure.storage.wal import Wal
from perdure.storage.wal_format import Frame

SEEDS = chosen()


def _live(seed: int) -> Counter[str]:
    with repeatable(seed):
        return World(seed).run(lives=4).happened


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 20), ids=str)
def test_what_was_acknowledged_stays(seeds: range) -> None:
    for seed in seeds:
        _live(seed)


def test_a_seed_replays_exactly() -> None:
    seed = SEEDS[0]
    assert World(seed).run(lives=3).digest() == World(seed).run(lives=3).digest()
    assert World(seed).run(lives=3).digest() != World(seed + 1).run(lives=3).digest()


@pytest.mark.slow
def test_the_faults_happen() -> None:
    happened = Counter[str]()
    for seed in range(1000, 1040):
        happened += _live(seed)
    for what in (
        "stop",
        "kill",
        "power",
        "torn",
        "replayed",
        "rolled",
        "refused",
        "sync failed",
        "inline groups",
        "offloaded groups",
    ):
        assert happened[what] > 0, f"{what} never happened"


# --- The checks can fail: without one of the rules, some early seed loses or changes records. -----


def _skip_last_group(walk: object) -> None:
    """Recovery trusts what it read."""


def _forget_checkpoint(replicas: ReplicaCore) -> Frame:
    """A checkpoint that doesn't name the records above the known global tail."""
    frame = CHECKPOINT(replicas)
    found = msgspec.msgpack.decode(frame.body[0], type=Checkpoint)
    segments = [msgspec.structs.replace(segment, crcs=[]) for segment in found.segments]
    body = msgspec.msgpack.encode(msgspec.structs.replace(found, segments=segments))
    return frame._replace(body=(body,))


def _trust_any_file(walk: object, seqs: list[int]) -> int:
    """Dead files are skipped although no younger one holds a checkpoint."""
    return seqs[-1]


def _sync_sometimes(wal: Wal) -> None:
    """Every tenth group is acknowledged before its sync."""
    if wal.statistics().groups % 10:
        SYNC(wal)


CHECKPOINT = ReplicaCore.checkpoint
SYNC = Wal.sync


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "mutant"),
    [
        ("perdure.storage.wal_recovery._Walk.rewrite_last_group", _skip_last_group),
        ("perdure.storage.wal_recovery._Walk.find_checkpoint", _trust_any_file),
        ("perdure.cluster.core.replica.ReplicaCore.checkpoint", _forget_checkpoint),
        ("perdure.storage.wal.Wal.sync", _sync_sometimes),
    ],
)
def test_a_broken_rule_is_noticed(
    rule: str, mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, mutant)
    for seed in range(400):
        try:
            World(seed).run(lives=4)
        except (AssertionError, PerdureError, InvariantViolation):
            return
    pytest.fail("no seed noticed")
