"""Every bound in one place, with its reason. Configuration may lower one, never exceed it silently.

Units are in the names: ``_BYTES``, ``_MS``, ``_COUNT``; maxima end in ``_MAX``.
"""

KIB = 1024
MIB = 1024 * KIB

# --- Messages -----------------------------------------------------------------------------------
# Largest request body, state value or journal entry that a user may send (spec: 32 MiB).
MESSAGE_BYTES_MAX = 32 * MIB
# A frame adds headers and small fields to the largest message.
FRAME_BYTES_MAX = MESSAGE_BYTES_MAX + 256 * KIB
# One log record holds one frame's payload and what the engine adds to it.
RECORD_BYTES_MAX = FRAME_BYTES_MAX + 256 * KIB
# Effects of one attempt that share a record: enough to batch, small enough not to stall a turn.
EFFECTS_PER_RECORD_MAX = 256
EFFECT_BYTES_PER_RECORD_MAX = 1 * MIB
# Admin requests are small documents; the reference server's limit.
ADMIN_BODY_BYTES_MAX = 2 * MIB
# A discovery manifest with JSON schemas of hundreds of handlers stays far below.
MANIFEST_BYTES_MAX = 16 * MIB
# Names are path segments and table keys.
NAME_BYTES_MAX = 255
# Request heads are parsed before anyone is authenticated; HTTP libraries bound them near this.
HEADER_LIST_BYTES_MAX = 64 * KIB

# --- Write-ahead log ----------------------------------------------------------------------------
# Zero-filled once, then recycled. What a boot may have to scan; the first file is small so that a
# first start is quick.
WAL_FILE_BYTES = 64 * MIB
WAL_FIRST_FILE_BYTES = 8 * MIB
# Groups start on a sector so that a torn write can't reach back into a synced group.
SECTOR_BYTES = 512
# What one write and sync may cover; beyond it the rest waits for the next group.
WAL_GROUP_BYTES_MAX = 4 * MIB
# After this silence a MARK frame names the last synced group (cluster log design, "Recovery").
WAL_MARK_IDLE_MS = 50
# Above this, syncing inline would stall the loop longer than handing over to the writer thread.
WAL_INLINE_SYNC_MS_MAX = 0.5
# As long as syncs are rare, they may stall it for longer.
WAL_INLINE_RARE_SYNC_MS_MAX = 4.0
# Held by a file that is given up when the disk is full: room for the flushes that free log files.
DISK_RESERVE_BYTES = 16 * MIB
# The log grows by a file only while this much stays free for everything else.
DISK_FREE_BYTES_MIN = 64 * MIB
# How often a full disk is looked at again.
DISK_FULL_RETRY_MS = 1_000

# --- Threads ------------------------------------------------------------------------------------
# How long a thread that computes may keep others from the interpreter: a flush encodes for
# milliseconds, and the event loop wants its turn after every wait.
THREAD_SWITCH_MS = 1.0

# --- Sequencer (one partition) ------------------------------------------------------------------
WINDOW_RECORDS_MAX = 1024
WINDOW_BYTES_MAX = 16 * MIB
# Proposals waiting for the window; beyond it callers are told to come back.
WAITING_PROPOSALS_MAX = 16_384
WAITING_BYTES_MAX = 64 * MIB
# A replica that is further behind than this, in bytes or time, skips what is committed and gets it
# from the others later. Per segment: a node leads dozens.
LAGGARD_BYTES_MAX = 8 * MIB
LAGGARD_MS_MAX = 10_000
# Sent to one replica for one segment and not acknowledged.
PEER_IN_FLIGHT_BYTES_MAX = 32 * MIB
# Streams are in order and tell when they break, so this is for answers that never come.
STORE_RETRY_MS = 2_000
# Without a commit for so long, the leader looks for another nodeset.
COMMIT_STALL_MS = 5_000
# A follower learns of commits at the latest so long after them; often sooner, with the next store.
RELEASE_DELAY_MS = 20
# How often sequencers look for answers that don't come, and send to those who can wait.
LINK_TICK_MS = 50
# A read waits so long for the proof that its leader still leads.
PROBE_TIMEOUT_MS = 2_000
# Recovery: how long one replica may take to answer, and the rest between two rounds.
RECOVERY_REQUEST_MS = 5_000
RECOVERY_RETRY_MS = 500
# How often a follower asks another replica than its own, and rests after it could not read.
READER_POLL_MS = 2_000
READER_RETRY_MS = 200
# Records copied in one message, read in one answer, or named by one extent of a digest.
READ_CHUNK_BYTES_MAX = 1 * MIB
DIGEST_EXTENT_RECORDS = 1_024

# --- Failure detector ---------------------------------------------------------------------------
# A node is dead after two silent seconds: interpreters and virtual machines stall for hundreds of
# milliseconds in ordinary life. All but the tick itself is counted in ticks.
FD_TICK_MS = 250
# At least; one more each time that the cluster doubles.
FD_PEERS_PER_TICK = 2
FD_DEAD_TICKS = 8
# Once its connection is lost: processes that die reset theirs, nodes that are cut off are heard of
# through others.
FD_RESET_TICKS = 6
# Once its machine says that no process listens there any more.
FD_VACANT_TICKS = 2
# What came back from the dead is not given work for five seconds.
FD_SUSPECT_TICKS = 20
# Who hears nobody, or is heard by nobody, gives up what it leads.
FD_LONELY_TICKS = 12
# One message a second to a peer says what its sender runs.
FD_REPORT_TICKS = 4

# --- Between the nodes of a cluster ---------------------------------------------------------------
# Nothing larger is read off the network, whoever sent it; longer messages travel in pieces.
FABRIC_FRAME_BYTES_MAX = 1 * MIB
FABRIC_PIECE_BYTES_MAX = 512 * KIB
# What is gathered into one frame as long as more waits; a few of these keep a connection busy.
FABRIC_FRAME_BYTES_TARGET = 256 * KIB
# What a wire reads ahead of whoever takes its frames; beyond it the network holds the rest.
FABRIC_READ_AHEAD_BYTES_MAX = 256 * KIB
# What was written to a wire may still leave for so long once it is closed.
FABRIC_LINGER_MS = 1_000
# A batch of log records of one segment fits, whatever it is made of.
FABRIC_MESSAGE_BYTES_MAX = RECORD_BYTES_MAX + 1 * MIB
# Hellos, before anybody is known: names, ids, nonces.
FABRIC_HELLO_BYTES_MAX = 4 * KIB
# Strangers at the door at one time; when one more comes, the one waiting longest is turned away.
FABRIC_HANDSHAKES_MAX = 64
FABRIC_HANDSHAKE_MS = 5_000
FABRIC_CONNECT_MS = 5_000
# Asks wait while more than this is queued for a peer …
FABRIC_QUEUE_BYTES_HIGH = 16 * MIB
# … and beyond this, or when it took nothing for so long, the peer is cut off.
FABRIC_QUEUE_BYTES_MAX = 128 * MIB
FABRIC_STALL_TICKS_MAX = 10
# Each side says something once per tick; a side that was silent for so many is gone. Ticks of the
# own loop count, so a loop that stood still doesn't blame the others.
FABRIC_TICK_MS = 1_000
FABRIC_SILENT_TICKS_MAX = 4
# Between attempts to reach a member that was lost.
FABRIC_RETRY_MS_INITIAL = 50
FABRIC_RETRY_MS_MAX = 2_000
# Streams: bytes that may be ahead of whoever takes them, per stream; and streams per peer.
FABRIC_STREAM_CREDIT_BYTES = 1 * MIB
FABRIC_STREAMS_PER_PEER_MAX = 1_024
# A secret that is shorter can be found by trying. 16 characters of base64 are 96 bits.
FABRIC_SECRET_BYTES_MIN = 16
FABRIC_SECRET_BYTES_MAX = 4 * KIB

# --- Registers ----------------------------------------------------------------------------------
# Hints of change may be lost; everything is read again so often.
REGISTER_REFRESH_MS = 10_000
# More hints than so many are followed by reading everything: each read alone is a round of the
# metadata quorum, and after the loss of a member everything is hinted at.
REGISTER_HINTS_MAX = 16
REGISTER_RETRY_MS = 500
# An edit that loses so many times in a row is not alone in its loop.
REGISTER_EDIT_ROUNDS_MAX = 16
# Nodes that join at once want the same number: who loses waits up to so long, doubled five times.
JOIN_PAUSE_MS = 20

# --- Forming a cluster ----------------------------------------------------------------------------
# Between questions to members that are not there yet, and between complaints about it.
FORMATION_RETRY_MS = 300
FORMATION_TELL_MS = 5_000

# --- Leadership ---------------------------------------------------------------------------------
# A controller names a new leader within one of its rounds; replicas wait for three detection
# periods before they name themselves, one after the other.
CONTROLLER_TICK_MS = 2_000
CONTROLLER_REST_MS = 50
NOMINATION_VALID_MS = 5_000
NOMINATION_GRACE_MS = 6_000
CLAIM_RANK_WAIT_MS = 500
# A claim that has not led to a segment by now was made by somebody who can't; also how long a
# leader may keep silent about leading.
CLAIM_TIMEOUT_MS = 10_000
CLAIM_BACKOFF_MS_INITIAL = 500
CLAIM_BACKOFF_MS_MAX = 10_000
HAND_OVER_MS = 10_000
# A node that stops waits so long for those it has offered its leaderships to.
OFFER_WAIT_MS = 2_000
# A leader that can't commit, or that nobody hears, starts nothing new, then gives up.
CUT_OFF_PAUSE_MS = 5_000
CUT_OFF_RESIGN_MS = 15_000
# Services are told something while the node was surely leading so lately, and only so soon after it
# was decided: a process that stood still meanwhile may have a successor.
FENCE_FRESH_MS = 750
FENCE_SAMPLE_MS = 50
FENCE_ASK_MS = 100

# --- Controller ---------------------------------------------------------------------------------
# Tables are made anew elsewhere once a node has been dead for so long: most come back before.
REPLICA_REPAIR_MS = 5 * 60 * 1000
# Replica sets that change at once: each may download a partition.
REPLICA_CHANGES_MAX = 8
# A replica that lacks no more may be handed the leadership.
REPLICA_LAG_RECORDS_MAX = 1_000
# A node gives or takes one leadership in so long, for balance; one that drains gives more at once.
LEADER_MOVE_REST_MS = 10_000
DRAIN_MOVES_MAX = 4
# Nothing is balanced until a controller has looked on for so long, nor soon after a failover.
BALANCE_SETTLE_MS = 10_000
BALANCE_PAUSE_MS = 60_000

# --- Process ------------------------------------------------------------------------------------
# Net allocations before the youngest objects are searched for cycles, then how many such searches
# before those of the next generations. Python's own 700 spent a tenth of the CPU on searches
# that found nothing.
GC_THRESHOLDS = (20_000, 20, 50)

# --- Partition store ----------------------------------------------------------------------------
# Times two and the number of partitions, this is what a busy node holds beyond an idle one.
MEMTABLE_FLUSH_BYTES = 768 * KIB
MEMTABLE_FLUSH_INTERVAL_MS = 1_000
# Past this, apply waits for the flush that is under way. One record may overshoot it.
# LMDB holds on to a page of memory for each page that its largest commit changed: seven times this.
MEMTABLE_BYTES_MAX = 2 * MEMTABLE_FLUSH_BYTES
# LMDB refuses longer keys in its usual build; longer ones end in a hash (storage/keys.py).
LMDB_KEY_BYTES_MAX = 511
LMDB_MAP_BYTES_INITIAL = 256 * MIB
LMDB_READERS_MAX = 64
# After so many commits the pages that they and reads have mapped are let go.
LMDB_COMMITS_PER_RELEASE = 4
PARTITIONS_SINGLE_NODE = 8
PARTITIONS_MAX = 4096
# Due times held in memory; the later ones stay in the table.
TIMER_WINDOW_COUNT = 512
# Timers that one record fires; a million at once must not stall a turn of the loop.
TIMERS_PER_RECORD_MAX = 64
# Retention is in no hurry: the partition rests so long after each record of expiries. Eight
# partitions expire some 10,000 a second, which keeps up with what they can accept.
EXPIRY_REST_MS = 40
OUTBOX_TRIM_INTERVAL_MS = 50
# Outbox messages in flight towards one partition; the rest stay in the table.
OUTBOX_WINDOW_COUNT = 1_024
# After this long without an acknowledgement messages are sent again: far more than a commit takes.
OUTBOX_STALL_MS = 1_000

# --- Routing to the leader --------------------------------------------------------------------
# Within this time a lost leader is replaced, or something is wrong that waiting doesn't mend. One
# that is cut off never answers: its successor is asked. Waiting for a result is renewed.
ROUTE_PATIENCE_MS = 30_000
ROUTE_ASK_MS = 5_000
ROUTE_WATCH_MS = 60_000
# For so long results are kept at least, so that a request repeated at the next leader finds what
# came of it: longer than anybody is patient.
ROUTE_RESULT_KEPT_MS = 2 * ROUTE_PATIENCE_MS
ROUTE_RETRY_MS_INITIAL = 20
ROUTE_RETRY_MS_MAX = 250

# --- Invoker ------------------------------------------------------------------------------------
# Running or backing off, per partition (spec 5.12).
CONCURRENT_INVOCATIONS_MAX = 1_000
# Attempts that one origin is busy with before further ones wait for their start: enough for workers
# on many cores, few enough for one that juggles all of them on one core.
ATTEMPTS_BUSY_MAX = 128
# An attempt that is silent for longer waits for something and is not busy: how long follows from
# how fast the service answers, within these bounds. The former by the upper one is a rate, 1,280
# starts a second, which is let through to services whatever they do.
ATTEMPTS_BUSY_SILENCE_MS_MIN = 10
ATTEMPTS_BUSY_SILENCE_MS_MAX = 100
EAGER_STATE_BYTES_MAX = MESSAGE_BYTES_MAX
# Events are for people to read: the latest ones of an invocation, cut to what fits a screen.
EVENTS_PER_INVOCATION_MAX = 100
EVENT_TEXT_CHARACTERS_MAX = 8 * KIB
EVENT_AWAITED_MAX = 256
# Protobuf parsers stop at a nesting of 100 messages; nobody nests combinators that deep.
FUTURE_DEPTH_MAX = 90
# Entries are sent in pieces of about this size: one frame of HTTP/2.
PIECE_BYTES = 16 * KIB
# Unsent bytes per stream at which replay pauses until the service reads.
STREAM_PENDING_BYTES_HIGH = 256 * KIB
# Bytes received from services and not yet in the log, per connection, at which reading pauses.
RECEIVE_PENDING_BYTES_HIGH = 4 * MIB
# Services may ask for any delay; beyond this a date no longer fits anywhere.
RETRY_DELAY_MS_MAX = 100 * 365 * 24 * 3600 * 1000
# Read-and-discard after a terminal frame.
DRAIN_MS = 5_000
# How long, how many and how big commands of runs wait for what follows, to share its record.
RUN_HOLD_MS = 50
HELD_EFFECTS_MAX = 64
HELD_EFFECTS_BYTES_MAX = 16 * 1024
CONNECT_TIMEOUT_MS = 10_000
KEEP_ALIVE_INTERVAL_MS = 40_000
KEEP_ALIVE_TIMEOUT_MS = 20_000
CONNECTION_IDLE_MS = 300_000
STREAMS_PER_CONNECTION_MAX = 128
# Until the peer has said how many it takes. HTTP asks everybody to take at least 100; a peer that
# is sent more (hypercorn takes just 100) drops the connection with all that is under way.
STREAMS_BEFORE_SETTINGS_MAX = 100
CONNECTIONS_PER_ORIGIN_MAX = 1_024
# Native HTTP/2 cores count streams (4,096) and resets (256) over a connection's life and then drop
# it; retire it well before, with room for what is under way.
REQUESTS_PER_CONNECTION_MAX = 3_000
RESETS_PER_CONNECTION_MAX = 100
# What an HTTP/2 core may hold of a body beyond the peer's window.
FEED_BYTES_MAX = 64 * KIB
DISCOVERY_RETRIES_MAX = 4
DISCOVERY_RETRY_INITIAL_MS = 100
DISCOVERY_TIMEOUT_MS = 10_000
# A signed request is good this long before and after it was signed; clocks may differ by as much,
# less the time for which its token is used again.
IDENTITY_LEEWAY_S = 60
IDENTITY_TOKEN_REUSED_S = 20
# Tokens kept: one per handler, and one per object that is called often.
IDENTITY_TOKENS_MAX = 4_096
# A private key has some hundred bytes.
KEY_FILE_BYTES_MAX = 64 * KIB

# --- Metadata -----------------------------------------------------------------------------------
METADATA_KEY_BYTES_MAX = 512
METADATA_VALUE_BYTES_MAX = 1 * MIB
# All registers together; a dump of them is written by the thread that also sends heartbeats.
METADATA_BYTES_MAX = 64 * MIB
# Outcomes of requests that are remembered, so that a repeated one is not executed twice.
METADATA_OUTCOMES_KEPT = 4_096
# The journal's file when it is made; rewritten, larger if need be, when it is full.
METADATA_JOURNAL_BYTES = 4 * MIB
# Entries beyond the last dump before the next one is made.
METADATA_ENTRIES_KEPT = 10_000
METADATA_ENTRIES_BYTES = 4 * MIB
# A dump travels to a member that fell behind in pieces of this size.
METADATA_DUMP_PIECE_BYTES = 64 * KIB
# What a member proposes at the same time; a message carries all that a peer hasn't confirmed.
METADATA_WRITES_UNDER_WAY_MAX = 8
METADATA_IMPORT_BYTES_MAX = 16 * MIB
METADATA_MEMBERS_MAX = 5
# How long an operator waits for other members to hold the metadata.
QUORUM_MOVE_MS = 20_000
# Keys remembered for those who watch; whoever is further behind hears of all keys.
METADATA_CHANGES_KEPT = 1_024
METADATA_TICK_MS = 20
# One try of a member to commit, and the pause before the next.
METADATA_TRY_MS = 1_000
METADATA_PAUSE_MS = 50
# A call as a whole: an election, its repetition, and some.
METADATA_CALL_MS = 8_000
METADATA_WATCH_MS = 10_000
# A member commits a barrier so often; connected to a majority and without one for so long, its
# process ends and is started again.
METADATA_HEALTH_MS = 2_000
METADATA_STALLED_MS = 30_000
# A member whose loop stands still for so long is killed from outside of the loop.
METADATA_STUCK_MS = 15_000
# One message between a node and its member.
METADATA_MESSAGE_BYTES_MAX = 96 * MIB
# Pause before a member's process is started again.
METADATA_RESTART_FIRST_MS = 100
METADATA_RESTART_MAX_MS = 10_000

# --- AWS Lambda -----------------------------------------------------------------------------------
# A thread each while a function runs; more calls wait.
FUNCTION_CALLS_MAX = 128
# Functions take and give 6 MB; what is larger is refused there. Compressed bodies may be larger
# than that before and after, but not without end.
FUNCTION_BODY_BYTES_MAX = 128 * MIB
# Functions run for 15 minutes at most; a connection that is silent for longer is dead.
FUNCTION_READ_TIMEOUT_MS = 16 * 60 * 1000
# A function that starts from cold needs longer to say what it offers.
FUNCTION_DISCOVERY_TIMEOUT_MS = 30_000
# Request bodies below it are not worth compressing.
FUNCTION_COMPRESSION_BYTES_MIN = 4 * MIB

# --- Ingress ------------------------------------------------------------------------------------
# Bodies being received at once; beyond it requests are answered 503. As much again may wait for
# clients that are slow to read; beyond it the slow are disconnected.
INGRESS_BUFFERED_BYTES_MAX = 256 * MIB
# A socket each; a Linux process commonly may open a million files, but memory ends before.
SERVER_CONNECTIONS_MAX = 16_384
# From the first byte of a connection or request to the end of its head.
REQUEST_HEAD_MS = 30_000
# Between two pieces of a body, and between two bytes of a response that a client takes.
REQUEST_STALL_MS = 60_000
RESPONSE_STALL_MS = 60_000
# What is read and dropped, and for how long, so that an early answer reaches a client that sends.
LINGER_MS = 2_000
# What an answer in pieces may be ahead of its client's window before its producer has to wait.
RESPONSE_PENDING_BYTES_HIGH = 256 * KIB
# Requests sent ahead on an HTTP/1.1 connection; beyond it the connection is not read.
PIPELINED_BYTES_MAX = 64 * KIB
INGRESS_PATH_SLASHES_MIN = 2
INGRESS_PATH_SLASHES_MAX = 7
# Delayed further than this is a mistake; the date must also stay within four digits of a year.
DELAY_MS_MAX = 36_500 * 24 * 3600 * 1000

# --- Admin --------------------------------------------------------------------------------------
# Invocations that one request may act on; each is a record of the log.
BATCH_INVOCATIONS_MAX = 1_000
# Rows in an answer, and rows looked at for it: a filter that matches little gives short pages.
INSPECTION_PAGE_MAX = 1_000
INSPECTION_ROWS_MAX = 20_000
# What is read between two turns of the event loop: invocation rows, bytes of journal entries.
INSPECTION_ROWS_PER_TURN = 256
INSPECTION_BYTES_PER_TURN = 1 * MIB
# An answer with rows ends early once it is so long: failures and names may be as large as records.
INSPECTION_BYTES_MAX = 8 * MIB
# State shown of one object; an object with more is shown without its largest values.
STATE_SHOWN_BYTES_MAX = 8 * MIB

# How long another node may take with a request that it answers for this one.
ADMIN_FORWARD_MS = 10_000
# What it may say.
ADMIN_FORWARD_BYTES_MAX = 32 * MIB

# --- SQL ----------------------------------------------------------------------------------------
# Statements worked on at once, a thread each, and those that may wait for their turn.
QUERIES_MAX = 4
QUERIES_WAITING_MAX = 64
QUERY_STATEMENT_BYTES_MAX = 256 * KIB
# Known clients give up after 13 s, people a little later. As long as a statement reads, the tables
# keep what it sees: an hour is the most that may be configured.
QUERY_TIMEOUT_MS = 60_000
QUERY_TIMEOUT_MS_MAX = 3_600_000
# What a statement may hold for joins, groups and sorts, and what may be configured.
QUERY_MEMORY_BYTES = 128 * MIB
QUERY_MEMORY_BYTES_MIN = 1 * MIB
QUERY_MEMORY_BYTES_MAX = 64 * 1024 * MIB
# An answer goes out in pieces of so many bytes, or of the rows of so long.
QUERY_PIECE_BYTES = 64 * KIB
QUERY_PIECE_MS = 100
# Rows may be as large as records, with a value in two columns: they travel between nodes in parts.
QUERY_PART_BYTES_MAX = 1 * MIB
# Rows of a batch in answers; rows and bytes that a scan reads at a time.
QUERY_BATCH_ROWS = 128
QUERY_SCAN_ROWS = 512
QUERY_SCAN_BYTES = 4 * MIB
# After so long a time of work a scan stands back for as long as the pause: the event loop
# gets its turn at the interpreter.
QUERY_PAUSE_MS = 1
# A bigger journal entry has no JSON: an octet takes up to four characters there.
QUERY_ENTRY_JSON_BYTES_MAX = 1 * MIB
# How long a statement waits for the tables to be flushed before it reads what was flushed.
QUERY_FLUSH_MS = 5_000
# A statement that has not answered anything yet begins again, for so long, when a leader moves.
QUERY_PATIENCE_MS = 10_000
# How long another node may take to open what a statement reads there: it flushes first.
QUERY_OPEN_MS = 2 * QUERY_FLUSH_MS
# Statements that each other node may have read here, and the threads that read for all of them.
QUERY_VISITS_PER_PEER_MAX = 2 * QUERIES_MAX
QUERY_DESK_THREADS = 2
# How often a scan that waits for another node looks whether anybody still wants it.
QUERY_LOOK_MS = 250

# --- Workers ------------------------------------------------------------------------------------
# On one machine, and the ports that each of them may have: its own, its fabric's, its metadata's.
WORKERS_MAX = 64
WORKER_PORTS_EACH = 10
# A worker that died starts again after so long; it has so long to end, besides `shutdown-timeout`.
WORKER_RESTART_MS_INITIAL = 100
WORKER_RESTART_MS_MAX = 10_000
WORKER_STOP_MS = 30_000

# --- Traces -------------------------------------------------------------------------------------
# Finished spans that wait to be sent; beyond it the oldest are dropped.
TRACE_SPANS_WAITING_MAX = 8_192
TRACE_SPANS_PER_BATCH_MAX = 512
# For one batch; also about how long a stopping node waits for a collector that doesn't answer.
TRACE_EXPORT_MS = 2_000
# Commands named in an attempt's span; the usual limit of span events.
TRACE_EVENTS_MAX = 128
# Invocations whose place in a trace is kept in memory; others are read from their journal again.
TRACE_CONTEXTS_MAX = 10_000

# Relations: a limit that grows past another one must say so here.
assert TRACE_SPANS_PER_BATCH_MAX <= TRACE_SPANS_WAITING_MAX
assert MESSAGE_BYTES_MAX < FRAME_BYTES_MAX < RECORD_BYTES_MAX
assert WAL_FIRST_FILE_BYTES <= WAL_FILE_BYTES
assert EFFECT_BYTES_PER_RECORD_MAX < RECORD_BYTES_MAX
assert MEMTABLE_FLUSH_BYTES < MEMTABLE_BYTES_MAX
assert PARTITIONS_SINGLE_NODE <= PARTITIONS_MAX
assert REQUESTS_PER_CONNECTION_MAX + 2 * STREAMS_PER_CONNECTION_MAX < 4_096
assert ATTEMPTS_BUSY_SILENCE_MS_MIN < ATTEMPTS_BUSY_SILENCE_MS_MAX
assert STREAMS_BEFORE_SETTINGS_MAX <= STREAMS_PER_CONNECTION_MAX
assert RESETS_PER_CONNECTION_MAX + STREAMS_PER_CONNECTION_MAX < 256
assert IDENTITY_TOKEN_REUSED_S < IDENTITY_LEEWAY_S
# Two ticks may be lost without harm, and the lonely learn it after others have taken them for dead.
assert 2 <= FD_VACANT_TICKS < FD_RESET_TICKS < FD_DEAD_TICKS < FD_LONELY_TICKS < FD_SUSPECT_TICKS
# The last sign of life may be a tick old, the tick that counts it too, and one is left to chance.
assert FENCE_FRESH_MS <= FD_TICK_MS * (FD_RESET_TICKS - 3)
assert 2 * CONTROLLER_TICK_MS < NOMINATION_VALID_MS < NOMINATION_GRACE_MS
assert FD_TICK_MS * FD_DEAD_TICKS * 3 <= NOMINATION_GRACE_MS < CLAIM_TIMEOUT_MS
assert CUT_OFF_PAUSE_MS < CUT_OFF_RESIGN_MS
assert FUNCTION_BODY_BYTES_MAX > FRAME_BYTES_MAX
assert INGRESS_BUFFERED_BYTES_MAX > 2 * MESSAGE_BYTES_MAX
assert METADATA_BYTES_MAX < METADATA_MESSAGE_BYTES_MAX
assert METADATA_TRY_MS < METADATA_CALL_MS
assert METADATA_WRITES_UNDER_WAY_MAX * METADATA_VALUE_BYTES_MAX <= 2 * METADATA_ENTRIES_BYTES
assert 4 * METADATA_ENTRIES_BYTES + METADATA_IMPORT_BYTES_MAX + MIB < FABRIC_MESSAGE_BYTES_MAX
# A window that is full but for one byte takes one more record, becomes one STORE frame, and its
# group may end with a checkpoint; all of it fits into a log file.
assert WAL_GROUP_BYTES_MAX + WINDOW_BYTES_MAX + RECORD_BYTES_MAX + 4 * MIB < WAL_FILE_BYTES
# A piece with its header, and what was gathered before it, fit into a frame with its seal.
assert FABRIC_FRAME_BYTES_TARGET + FABRIC_PIECE_BYTES_MAX + 64 <= FABRIC_FRAME_BYTES_MAX
assert RECORD_BYTES_MAX < FABRIC_MESSAGE_BYTES_MAX < FABRIC_QUEUE_BYTES_MAX
assert WINDOW_BYTES_MAX <= FABRIC_QUEUE_BYTES_HIGH < FABRIC_QUEUE_BYTES_MAX
# The number of frames in a group is a u16, and the shortest frame has 78 bytes.
assert WAL_GROUP_BYTES_MAX // 78 < 1 << 16
assert QUERY_PIECE_BYTES < RESPONSE_PENDING_BYTES_HIGH < INGRESS_BUFFERED_BYTES_MAX
assert INSPECTION_BYTES_MAX < ADMIN_FORWARD_BYTES_MAX < FABRIC_MESSAGE_BYTES_MAX - MIB
assert STATE_SHOWN_BYTES_MAX < ADMIN_FORWARD_BYTES_MAX
assert QUERY_PIECE_BYTES < QUERY_PART_BYTES_MAX < FABRIC_MESSAGE_BYTES_MAX
assert QUERY_PIECE_MS < QUERY_TIMEOUT_MS <= QUERY_TIMEOUT_MS_MAX
assert QUERY_MEMORY_BYTES_MIN <= QUERY_MEMORY_BYTES <= QUERY_MEMORY_BYTES_MAX
assert QUERY_FLUSH_MS < QUERY_OPEN_MS <= QUERY_PATIENCE_MS < QUERY_TIMEOUT_MS
assert DISK_RESERVE_BYTES <= DISK_FREE_BYTES_MIN
