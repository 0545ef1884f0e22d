"""Tables in another format than this release's are refused, and left as they are."""

import msgspec
import pytest
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import HEALED, NodeLife, NodeWorld

from perdure.core.errors import DataDirectoryTooNew, DataDirectoryTooOld, PerdureError
from perdure.storage.partition_store import STORE_FORMAT_VERSION, Meta


@pytest.mark.parametrize(
    ("format", "refusal"),
    [
        (STORE_FORMAT_VERSION - 1, DataDirectoryTooOld),
        (STORE_FORMAT_VERSION + 1, DataDirectoryTooNew),
    ],
)
def test_tables_in_another_format_are_refused(format: int, refusal: type[PerdureError]) -> None:
    world = NodeWorld(1)
    tables = world.tables[1]
    tables.committed = {b"\0meta": msgspec.msgpack.encode(Meta(format, b"F" * 16, 1, 0, 0, 0))}
    found = dict(tables.committed)

    async def main(loop: SimLoop) -> None:
        with pytest.raises(refusal, match=f"the tables of partition 1 have format {format}"):
            await NodeLife(world, HEALED, loop).boot()

    run(1, main)
    assert tables.committed == found
