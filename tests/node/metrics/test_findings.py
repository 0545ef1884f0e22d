"""Metrics of what had to be asked for: places of the metadata, waits, comparisons; and that every
problem that pages somebody can be seen by Prometheus."""

from dataclasses import replace

from tests.node.cli.standings import TWO, cluster, partition

from perdure.cluster.core.recovery import Wait
from perdure.cluster.core.types import Member
from perdure.cluster.metadata.places import PlaceStanding
from perdure.cluster.verify import LsnRange, SegmentReport
from perdure.node.log_desk import Verification
from perdure.node.metrics.finding_table import METRICS, read_findings
from perdure.node.register_desk import StoreStanding
from perdure.node.standing import ClusterStanding, Findings

REPORT = SegmentReport(
    segment=0,
    lower=1,
    upper=100,
    answered=(),
    absent=(),
    missing=(LsnRange(7, 8),),
    under_replicated=(LsnRange(5, 9),),
    diverging=(LsnRange(1, 3), LsnRange(20, 21)),
)


def values(seen: ClusterStanding) -> dict[tuple[str, ...], object]:
    return {(each.metric.name, *each.labels): each.value for each in read_findings(seen)}


def test_a_cluster_that_is_well() -> None:
    found = values(cluster())
    assert found["perdure_metadata_is_readable",] == 1
    assert found["perdure_cluster_partitions_waiting", "seal_quorum"] == 0
    assert ("perdure_log_diverging_records", "0") not in found  # nothing was compared yet


def test_all_that_can_be_found() -> None:
    places = (PlaceStanding(place="a", term=4), PlaceStanding(place="b", failure="away"))
    verified = Verification(partition=0, began_at_ms=1, ended_at_ms=5_000, reports=(REPORT,))
    seen = replace(
        cluster(part=partition(None, waiting=Wait("repair_copies", (Member(TWO, b""),)))),
        findings=Findings(StoreStanding(places=places, failure="no quorum"), (verified,)),
    )
    found = values(seen)
    assert {name for name, *_ in found} == {metric.name for metric in METRICS}
    assert found["perdure_metadata_is_readable",] == 0
    assert (found["perdure_metadata_places",], found["perdure_metadata_places_reached",]) == (2, 1)
    assert found["perdure_metadata_term",] == 4
    assert found["perdure_cluster_partitions_waiting", "repair_copies"] == 1
    assert found["perdure_log_verified_timestamp_seconds", "0"] == 5
    assert found["perdure_log_diverging_records", "0"] == 3
    assert found["perdure_log_missing_records", "0"] == 1
    assert found["perdure_log_short_records", "0"] == 4
