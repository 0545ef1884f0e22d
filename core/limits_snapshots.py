"""Limits of snapshots, of the object store, of trimming and of tables that are handed over.

Beside ``limits``, and of the same kind.
"""

from perdure.core.limits import MIB, ROUTE_ASK_MS

# A chunk is one object, held in memory while it is sent. Snapshots larger than so many of the
# smallest have larger ones.
SNAPSHOT_CHUNK_BYTES_MIN = 8 * MIB
SNAPSHOT_CHUNK_BYTES_MAX = 64 * MIB
SNAPSHOT_CHUNKS_WANTED = 1_024
# Chunks under way at once: each holds one chunk and what compressing makes of it.
SNAPSHOT_TRANSFERS_MAX = 2
SNAPSHOTS_RETAINED_MAX = 1_000
# How long all partitions may take to come to one moment: a flush each.
SNAPSHOT_CUT_MS = 30_000
# For so long partitions that others lead stand still for a moment in common, at most, and for so
# long what was frozen is kept for who wants it stored.
SNAPSHOT_PAUSE_MS = 1_000
SNAPSHOT_KEEP_MS = 60_000
# How long a node may take to copy and upload what it leads.
SNAPSHOT_STORE_MS = 6 * 3_600_000
# Leaders take snapshots alone once no set has come about for so many times the usual. How often a
# node looks which sets others have taken.
SNAPSHOT_ALONE_FACTOR = 2
SNAPSHOT_SETS_READ_MS = 60_000
# Rounds of publishing that lose against others or end in the dark, before a snapshot is given up.
PUBLISH_ROUNDS_MAX = 20
PUBLISH_RETRY_INITIAL_MS = 100
PUBLISH_RETRY_MS_MAX = 10_000
# What latest.json no longer names is deleted after this: somebody may still be reading it.
SNAPSHOT_GRACE_MS = 3_600_000
# What it never named is somebody's upload under way for so long, then waste.
SNAPSHOT_ORPHAN_MS = 24 * 3_600_000
# How long an operator's request for a snapshot is kept open; it is taken to its end in any case.
SNAPSHOT_ANSWER_MS = 20_000
# How often it is looked whether a snapshot is due, and whether the object store keeps its promises.
SNAPSHOT_LOOK_MS = 1_000
OBJECT_STORE_TEST_MS = 24 * 3_600_000
OBJECT_STORE_RETRY_MS = 30_000
OBJECT_CONNECT_TIMEOUT_MS = 5_000
OBJECT_READ_TIMEOUT_MS = 60_000
# Larger objects go in parts. S3 takes parts from 5 MiB on, and 10,000 of them.
OBJECT_WHOLE_BYTES_MAX = 16 * MIB
OBJECT_PART_BYTES = 8 * MIB
# A dead replica keeps the log from being trimmed for so long, or so many bytes.
DEAD_REPLICA_LAG_MS_MAX = 24 * 3_600_000
DEAD_REPLICA_LAG_BYTES_MAX = 16 * 1024 * MIB
TRIM_DELAY_MS = 600_000
# Without snapshots: long enough for every leader to hear of a replica that was just named.
TRIM_NAMED_MS = 10_000
# Tables that are handed to another node: what a piece holds, and the rest after one who couldn't.
TABLES_PIECE_ROWS = 4_096
TABLES_PIECE_BYTES = 256 * 1024
TABLES_RETRY_MS = 1_000
# How often a leader looks what its log may let go of.
TRIM_LOOK_MS = 2_000

assert OBJECT_PART_BYTES <= OBJECT_WHOLE_BYTES_MAX <= SNAPSHOT_CHUNK_BYTES_MAX
assert SNAPSHOT_CHUNK_BYTES_MIN <= SNAPSHOT_CHUNK_BYTES_MAX <= 10_000 * OBJECT_PART_BYTES
assert SNAPSHOT_GRACE_MS <= SNAPSHOT_ORPHAN_MS
assert SNAPSHOT_PAUSE_MS < ROUTE_ASK_MS < SNAPSHOT_CUT_MS <= SNAPSHOT_KEEP_MS
