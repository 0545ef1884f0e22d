"""A leader and its office."""

# pyright: reportPrivateUsage=false

import pytest
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import HEALED, NodeLife, NodeWorld

from perdure.core.errors import PerdureError
from perdure.engine.actions import LeaderAnnounced
from perdure.node.partition.leader import Leader

_leave = Leader._leave


def _keep_announcement(self: Leader, error: PerdureError) -> None:
    announcement = self._announcement
    _leave(self, error)
    self._announcement = announcement


@pytest.mark.parametrize("is_broken", [False, True])
def test_who_resigned_reads_its_old_announcement_and_stays_out_of_office(
    monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """It does so as a follower (I-14). The rule broken, it would lead again without a log."""
    if is_broken:
        monkeypatch.setattr(Leader, "_leave", _keep_announcement)

    async def work(loop: SimLoop) -> bool:
        life = NodeLife(NodeWorld(1), HEALED, loop)
        await life.boot()
        led = life.host.led[0]
        epoch = led.processor.store.applied_epoch
        assert led.leader.is_leading
        led.leader.resign()
        led.leader.act([LeaderAnnounced(epoch, life.host.identity.incarnation)])
        is_leading = led.leader.is_leading
        led.leader.resign()
        await life.host.close()
        return is_leading

    assert run(1, work) is is_broken
