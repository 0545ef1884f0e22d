"""What the metrics tell of snapshots."""

import asyncio

from tests.node.metrics.world import DEADLINE_SECONDS, PARTITION_COUNT, Stage, ask


def test_snapshots_are_counted_and_dated(stage: Stage) -> None:
    async def scenario() -> None:
        world = stage.world
        await world.wait_scrape(lambda scrape: scrape.total("perdure_snapshots_is_sound") == 1)
        before = await world.scrape()
        assert before.total("perdure_snapshots_newest_timestamp_seconds") == 0
        async with asyncio.timeout(DEADLINE_SECONDS):
            answer = await ask(world.info.admin_url, "POST", "/perdure/snapshots")
        assert answer.status == 200, answer
        after = await world.scrape()
        taken = "perdure_snapshots_sets_taken_total"
        assert after.total(taken) - before.total(taken) == 1
        assert after.total("perdure_snapshots_failures_total") == 0
        assert after.total("perdure_snapshots_is_taking") == 0
        assert after.total("perdure_snapshots_newest_timestamp_seconds") > 1_700_000_000
        assert after.total("perdure_snapshots_stored_bytes") > 0
        archived = list(after.samples("perdure_partition_archived_lsn"))
        assert len(archived) == PARTITION_COUNT
        assert all(lsn > 0 for _, lsn in archived)

    stage.run(scenario())
