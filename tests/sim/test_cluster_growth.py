"""Clusters whose nodes and replicas change all the time keep their promises too."""

# pyright: reportPrivateUsage=false

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from tests.sim.cluster_growth import GrowthWorld
from tests.sim.loop import SimLoop, run
from tests.sim.seeds import batches, chosen, repeatable

from perdure.cluster.leadership import Replica
from perdure.core.invariant import InvariantViolation
from perdure.core.offload import Offload
from perdure.node.partition import table_copy
from perdure.node.partition.cluster_host import ClusterHost
from perdure.node.partition.replica import PartitionReplica
from perdure.node.partition.table_copy import Row
from perdure.storage.partition_store import PartitionStore


def live(seed: int) -> Counter[str]:
    """What happened; a promise that is broken is raised."""
    happened = Counter[str]()

    async def main(loop: SimLoop) -> None:
        world = GrowthWorld(loop, seed)
        try:
            await world.run()
        finally:
            happened.update(world.happened)
            happened["copy"] += world.monitor.copies

    run(seed, main)
    return happened


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=8), 5), ids=str)
def test_a_cluster_that_changes_keeps_its_promises(seeds: range) -> None:
    for seed in seeds:
        with repeatable(seed):
            live(seed)


@pytest.mark.slow
def test_what_may_happen_while_a_cluster_changes_happens() -> None:
    happened = Counter[str]()
    for seed in range(14, 20):
        happened += live(seed)
    for what in ("joined", "drain", "undrain", "named", "copy", "dropped while bootstrapping"):
        assert happened[what] > 0, f"{what} never happened: {happened}"


async def _say_first_how_far(
    store: PartitionStore,
    storage: Offload,
    pieces: AsyncIterator[list[Row]],
    lsn_min: int,
    check: table_copy.Check,
) -> None:
    is_first = True
    async for rows in pieces:
        if is_first:
            is_first = False
            meta = table_copy._checked(store, rows.pop(0), lsn_min, check)
            store.forget()
            everything = [(table_copy._FIRST, table_copy._BEYOND)]
            await table_copy._commit(store.env, storage, everything, [meta])
            store.reload()
        await table_copy._commit(store.env, storage, [], rows)


def _open_anew(self: ClusterHost, partition: int) -> Replica:
    self._replicas[partition] = PartitionReplica(self.led[partition], self._replica_ports)
    return self._replicas[partition]


@pytest.mark.slow
def test_tables_of_a_copy_that_was_given_up_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_copy, "replace_tables", _say_first_how_far)
    monkeypatch.setattr(ClusterHost, "_open_replica", _open_anew)
    for seed in range(12, 40):
        try:
            live(seed)
        except (Exception, BaseExceptionGroup, InvariantViolation, SystemExit):
            return
    raise AssertionError("nobody noticed")
