"""Limits of what replicas, followers and callers on other nodes are told, and when.

Beside ``limits``, and of the same kind.
"""

from perdure.core.limits import FABRIC_PIECE_BYTES_MAX, KIB, LAGGARD_BYTES_MAX, ROUTE_ASK_MS

# Who keeps others waiting for so long is not waited for any more, as long as there is another.
PEER_SLOW_MS = 100
# Replicas that commits don't wait for get what has gathered at each tick, or when it is so much.
LATE_BYTES_MAX = 256 * KIB
# How often sequencers look for answers that don't come while nothing is to be sent.
LINK_TICK_IDLE_MS = 250
# Records that a follower here has not read yet are kept in memory, per segment, up to so much.
RECENT_BYTES_MAX = 256 * KIB
# A follower lets so much time's commits come together: nobody waits for it.
READER_GATHER_MS = 20
# A call that ends within this time is answered once, with its result.
ROUTE_RESULT_MS = 50

assert LATE_BYTES_MAX <= LAGGARD_BYTES_MAX
assert LATE_BYTES_MAX <= FABRIC_PIECE_BYTES_MAX
assert ROUTE_RESULT_MS < ROUTE_ASK_MS
