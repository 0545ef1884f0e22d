"""Logs, comparisons and registers in the shapes that the admin API answers. Pure."""

from typing import Any

from perdure.cluster.core.chain import SegmentMeta, UnsafeClose, closed_unsafely
from perdure.cluster.core.types import Member
from perdure.cluster.core.unsafe_close import Examination
from perdure.cluster.verify import LsnRange, SegmentReport
from perdure.node.admin.requests import moment
from perdure.node.log_desk import SealResult, Verification
from perdure.node.register_desk import Register, StoreStanding
from perdure.node.standing import ClusterStanding, PartitionStanding

Document = dict[str, Any]


def log_row(part: PartitionStanding, seen: ClusterStanding) -> Document:
    """A partition's log in a list. ``ends_at``: the last LSN that is known of, where one is."""
    chain = part.meta.chain
    row: Document = {
        "partition": part.partition,
        "leader": seen.name_of(part.leader) if part.leader is not None else None,
        "epoch": part.epoch,
        "begins_at": part.meta.trim_lsn,
        "ends_at": _end(part),
        "segments": len(chain),
        "nodeset": [seen.name_of(m.node) for m in chain[-1].nodeset] if chain else [],
        "is_under_replicated": any(segment.is_under_replicated for segment in chain),
    }
    if chain:
        row["replication"] = chain[-1].replication
    return row


def log_detail(part: PartitionStanding, seen: ClusterStanding) -> Document:
    """With each segment."""
    rows = [_segment_row(segment, seen) for segment in part.meta.chain]
    closes = [_close_row(done) for done in part.meta.unsafe]
    return {**log_row(part, seen), "chain": rows, "unsafe_closes": closes}


def verification_row(found: Verification, seen: ClusterStanding) -> Document:
    """A comparison, as far as it has come."""
    row: Document = {
        "partition": found.partition,
        "began_at": moment(found.began_at_ms),
        "is_under_way": found.ended_at_ms is None,
        "is_sound": found.ended_at_ms is not None and found.is_sound,
        "segments": [_report_row(report, seen) for report in found.reports],
    }
    if found.ended_at_ms is not None:
        row["ended_at"] = moment(found.ended_at_ms)
    if found.failure is not None:
        row["failure"] = found.failure
    return row


def seal_row(part: PartitionStanding, done: SealResult, seen: ClusterStanding) -> Document:
    """What a seal came to."""
    return {
        "partition": part.partition,
        "segment": done.segment,
        "sealed": _names(done.sealed, seen),
        "absent": _names(done.absent, seen),
        "is_ended": len(done.sealed) >= done.needed,
    }


def unsafe_row(part: PartitionStanding, found: Examination, seen: ClusterStanding) -> Document:
    """What is left of a segment that the rules can't close; ``done``: how it was closed. LSNs are
    those of the last record, 0 for none."""
    segment = found.segment
    done = closed_unsafely(part.meta, segment.index)
    row: Document = {
        "partition": part.partition,
        "segment": segment.index,
        "base_lsn": segment.base_lsn,
        "replication": segment.replication,
        "needed": found.needed,
        "counted": [
            {
                "name": seen.name_of(replica.member.node),
                "committed_lsn": replica.committed_lsn - 1,
                "last_lsn": replica.tail_lsn - 1,
            }
            for replica in found.counted
        ],
        "silent": _names(found.silent, seen),
        "given_up": _names(found.given_up, seen),
        "tables": [{"name": seen.name_of(node), "applied_lsn": lsn} for node, lsn in found.tables],
        "committed_lsn": found.known_lsn - 1,
        "last_lsn": found.tail_lsn - 1,
        "begins_lsn": max(found.begins_lsn, part.meta.trim_lsn),
        "refusal": found.refusal,
        "is_allowed": part.meta.allowed is not None and done is None,
    }
    if done is not None:
        row["done"] = _close_row(done)
    return row


def _close_row(done: UnsafeClose) -> Document:
    return {
        "segment": done.segment,
        "tail_lsn": done.tail_lsn,
        "begins_lsn": done.begins_lsn,
        "by": done.by,
        "at": moment(done.at_ms),
    }


def register_row(found: Register) -> Document:
    """A register with its value."""
    return {"key": found.key, "version": found.version, "value": found.value}


def store_row(found: StoreStanding, backend: str) -> Document:
    """How the metadata is kept."""
    row: Document = {
        "backend": backend,
        "places": [
            {
                "place": place.place,
                "state": "unreachable" if place.failure else "leader" if place.is_leader else "up",
                "term": place.term,
                "detail": place.failure or place.detail,
            }
            for place in found.places
        ],
    }
    if found.register_count is not None:
        row["registers"] = found.register_count
    if found.failure is not None:
        row["failure"] = found.failure
    return row


def _segment_row(segment: SegmentMeta, seen: ClusterStanding) -> Document:
    row: Document = {
        "segment": segment.index,
        "base_lsn": segment.base_lsn,
        "epoch": segment.epoch,
        "writer": seen.name_of(segment.writer.node),
        "nodeset": _names(segment.nodeset, seen),
        "replication": segment.replication,
        "is_open": segment.tail_lsn is None,
        "is_under_replicated": segment.is_under_replicated,
    }
    if segment.tail_lsn is not None:
        row["tail_lsn"] = segment.tail_lsn
    return row


def _report_row(report: SegmentReport, seen: ClusterStanding) -> Document:
    return {
        "segment": report.segment,
        "lower_lsn": report.lower,
        "upper_lsn": report.upper,
        "answered": _names(report.answered, seen),
        "absent": _names(report.absent, seen),
        "missing": _ranges(report.missing),
        "under_replicated": _ranges(report.under_replicated),
        "diverging": _ranges(report.diverging),
        "is_sound": report.is_sound,
    }


def _end(part: PartitionStanding) -> int | None:
    if part.committed_lsn is not None:
        return part.committed_lsn
    return max((replica.applied_lsn for replica in part.replicas), default=None)


def _names(members: tuple[Member, ...], seen: ClusterStanding) -> list[str]:
    return [seen.name_of(member.node) for member in members]


def _ranges(found: tuple[LsnRange, ...]) -> list[Document]:
    return [{"lower_lsn": each.lower, "upper_lsn": each.upper} for each in found]
