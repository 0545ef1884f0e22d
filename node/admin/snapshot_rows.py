"""Sets of snapshots as they are shown. Pure."""

from perdure.node.admin.requests import moment
from perdure.storage.snapshot_format import SnapshotSet


def set_row(document: SnapshotSet) -> dict[str, object]:
    """A set as it is shown."""
    return {
        "name": document.name,
        "created_at": moment(document.created_ms),
        "cluster": document.cluster,
        "software": document.software,
        "size": sum(member.snapshot.size for member in document.members),
        "partitions": [
            {
                "partition": member.partition,
                "lsn": member.snapshot.lsn,
                "snapshot": member.snapshot.id,
                "size": member.snapshot.size,
            }
            for member in document.members
        ],
    }
