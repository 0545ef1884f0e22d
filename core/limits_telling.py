"""Limits of what is told to operators: how often a lasting trouble is, from where on it is one.

Beside ``limits``, and of the same kind.
"""

# A take-over that waits says so at once, when what it waits for changes, and so often otherwise.
RECOVERY_TELL_MS = 10_000
# Nodes that turn each other away try again every two seconds; it is logged so often …
FABRIC_REFUSED_TELL_MS = 60_000
# … and counts as going on for so long after the last time.
FABRIC_REFUSED_SHOWN_MS = 30_000
FABRIC_REFUSED_PLACES_MAX = 1_024
# Replicas of a log are compared so many records at a time …
VERIFY_WINDOW_RECORDS = 65_536
# … after they were given a moment to hear of the last commits.
VERIFY_CATCH_UP_MS = 2_000
VERIFY_POLL_MS = 50
# Comparisons that nobody waits for take smaller bites, and rest for nine tenths of the time …
VERIFY_QUIET_WINDOW_RECORDS = 4_096
VERIFY_QUIET_SHARE = 0.1
# … and look so often whether one is due, or can be made now that all replicas are there.
VERIFY_DUE_LOOK_MS = 600_000
# How often a node looks how the places are that hold the metadata.
METADATA_LOOK_MS = 10_000
# Segments of one partition's log from which on it is told that trimming doesn't keep up.
CHAIN_SEGMENTS_MANY = 200
# Used part of the disk below the data directory from which on it is told.
DISK_USED_MANY_PERCENT = 80
DISK_USED_CRITICAL_PERCENT = 95
# … unless so much of it is free.
DISK_FREE_AMPLE_BYTES = 10 * 1024**3
# What a sync of the log may take before it is called slow; and how many are timed.
SYNC_SLOW_MS = 20
SYNC_PROBES = 32
# Files and sockets that a node should be allowed to have.
OPEN_FILES_MIN = 4_096
# A certificate is told of so long before it expires.
CERTIFICATE_EXPIRY_DAYS = 14
# Clocks of two nodes may differ so much before it is told.
CLOCK_SKEW_MS = 2_000

assert FABRIC_REFUSED_SHOWN_MS < FABRIC_REFUSED_TELL_MS
assert DISK_USED_MANY_PERCENT < DISK_USED_CRITICAL_PERCENT
