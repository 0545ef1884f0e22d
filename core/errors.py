"""Operating errors: one table, a stable code each, and a page each in docs/errors/.

An error says what happened, where, and the next step. Broken invariants are not here: see
``core/invariant.py``. Codes starting with META and RT are those that clients of the service
protocol already know; the rest are perdure's own.
"""

from typing import ClassVar


class PerdureError(Exception):
    """Base of all operating errors.

    ``retriable``: the same request may succeed later. ``http_status``: what a client is answered.
    """

    code: ClassVar[str] = "PER0000"
    title: ClassVar[str] = "unclassified error"
    http_status: ClassVar[int] = 500
    retriable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


# --- Configuration ------------------------------------------------------------------------------


class InvalidConfiguration(PerdureError):
    code = "CONF0001"
    title = "a configuration value is not valid"
    http_status = 400


class UnreadableConfiguration(PerdureError):
    code = "CONF0002"
    title = "the configuration file can't be read"


class AddressInUse(PerdureError):
    code = "CONF0003"
    title = "a listening address is taken or not ours"

    @classmethod
    def at(cls, address: object, failure: Exception, setting: str) -> "AddressInUse":
        """``setting``: what chooses another address."""
        reason = failure.strerror if isinstance(failure, OSError) else None
        return cls(
            f"can't listen on {address} ({reason or failure}): stop what is there, or choose "
            f"another address with {setting}"
        )


# --- Command line ---------------------------------------------------------------------------------


class NodeUnreachable(PerdureError):
    code = "CLI0001"
    title = "no node answers at the admin address"
    http_status = 503
    retriable = True


class UnexpectedAnswer(PerdureError):
    code = "CLI0002"
    title = "what answers at the admin address is no node's admin API"
    http_status = 502


# --- Data directory -----------------------------------------------------------------------------


class DataDirectoryLocked(PerdureError):
    code = "DIR0001"
    title = "another process holds the data directory"


class DataDirectoryForeign(PerdureError):
    code = "DIR0002"
    title = "the data directory belongs to another cluster or node"


class DataDirectoryTooNew(PerdureError):
    code = "DIR0003"
    title = "the data directory was written by a newer format"


class DataDirectoryDamaged(PerdureError):
    code = "DIR0004"
    title = "the data directory's marker is damaged or contradicts its content"


class DataDirectoryTooOld(PerdureError):
    code = "DIR0005"
    title = "the data directory was written by an older format"


# --- Log ----------------------------------------------------------------------------------------


class LogDamaged(PerdureError):
    code = "LOG0001"
    title = "synced bytes of the write-ahead log are damaged"


class LogFailed(PerdureError):
    code = "LOG0002"
    title = "writing or syncing the write-ahead log failed"


class DiskFull(PerdureError):
    code = "LOG0003"
    title = "the disk is full: the log takes no new records"
    http_status = 503
    retriable = True


class RecordTooLarge(PerdureError):
    code = "LOG0004"
    title = "a log record exceeds the limit"
    http_status = 413


class Overloaded(PerdureError):
    code = "LOG0005"
    title = "too many proposals wait for the log"
    http_status = 503
    retriable = True


class OutcomeUnknown(PerdureError):
    code = "LOG0006"
    title = "the log closed before a proposal's outcome was known"
    http_status = 503
    retriable = True


class MetadataRegressed(PerdureError):
    code = "LOG0007"
    title = "metadata is older than what this node has acted on"


class LogTrimmed(PerdureError):
    """``lsn``: where the log begins now."""

    code = "LOG0008"
    title = "records that a partition store needs were trimmed"

    def __init__(self, message: str, lsn: int = 0) -> None:
        super().__init__(message)
        self.lsn = lsn


# --- Metadata -----------------------------------------------------------------------------------


class MetadataUnavailable(PerdureError):
    code = "MD0001"
    title = "no quorum of metadata members answered in time"
    http_status = 503
    retriable = True


class UnauditedLibrary(PerdureError):
    code = "MD0002"
    title = "the installed Raft library is not the one that was audited"


class MetadataTooLarge(PerdureError):
    code = "MD0003"
    title = "a metadata key, value or all of them together exceed the limit"
    http_status = 413


class MemberStalled(PerdureError):
    code = "MD0005"
    title = "a metadata member is connected to a majority, yet nothing commits"


class MetadataNotEmpty(PerdureError):
    code = "MD0004"
    title = "registers exist already where an import was to put its own"
    http_status = 409


# --- Membership -----------------------------------------------------------------------------------


class MembershipRefused(PerdureError):
    code = "MEMB0001"
    title = "the cluster's registers don't allow this change of a node"
    http_status = 409


class NodeReplaced(PerdureError):
    code = "MEMB0002"
    title = "a later process runs as this node"


# --- Between the nodes of a cluster ---------------------------------------------------------------


class Unreachable(PerdureError):
    code = "FAB0001"
    title = "another node of the cluster can't be reached; nothing was sent"
    http_status = 503
    retriable = True


class AnswerLost(OutcomeUnknown):
    code = "FAB0002"
    title = "another node's answer was lost; it may have acted on the request"


class WrongCluster(PerdureError):
    code = "FAB0003"
    title = "the node at the other end belongs to another cluster"


class NotAuthenticated(PerdureError):
    code = "FAB0004"
    title = "a node could not prove that it may talk to this cluster"
    http_status = 403


class UnknownMember(PerdureError):
    code = "FAB0005"
    title = "the node at the other end is not a member of this cluster, or not the one expected"
    http_status = 403


class StaleGeneration(PerdureError):
    code = "FAB0006"
    title = "a later process runs as the same node; the earlier one is no longer heard"
    http_status = 409


class IdentityConflict(PerdureError):
    code = "FAB0007"
    title = "two processes, or two disks, claim to be the same node"
    http_status = 409


class IncompatibleNode(PerdureError):
    code = "FAB0008"
    title = "two nodes speak no common version of the protocol between nodes"


# --- Partition store ----------------------------------------------------------------------------


class StoreAheadOfLog(PerdureError):
    code = "STO0001"
    title = "a partition store has applied more than the log holds"


class StoreUnreadable(PerdureError):
    code = "STO0002"
    title = "a partition store can't be opened"


class PartitionUnavailable(PerdureError):
    code = "PART0001"
    title = "the partition has no leader here yet, or was halted"
    http_status = 503
    retriable = True


# --- Snapshots ------------------------------------------------------------------------------------


class ObjectStoreUnavailable(PerdureError):
    code = "OBJ0001"
    title = "the object store doesn't answer, or its answer was lost"
    http_status = 503
    retriable = True


class ObjectStoreRefused(PerdureError):
    code = "OBJ0002"
    title = "the object store can't be used as it is configured"


class SnapshotDamaged(PerdureError):
    code = "SNAP0001"
    title = "a snapshot is damaged or incomplete"


class SnapshotForeign(PerdureError):
    code = "SNAP0002"
    title = "the snapshots are those of another cluster, partition or release"
    http_status = 409


class SnapshotNotFound(PerdureError):
    code = "SNAP0003"
    title = "there is no such snapshot"
    http_status = 404


class SnapshotsUnavailable(PerdureError):
    code = "SNAP0004"
    title = "no snapshot can be taken now"
    http_status = 503
    retriable = True


# --- Registration (codes known to the clients of the admin API) -----------------------------------


class DiscoveryFailed(PerdureError):
    code = "META0003"
    title = "the endpoint can't be reached or answered discovery with an error"


class ReservedServiceName(PerdureError):
    code = "META0005"
    title = "the service name is reserved"
    http_status = 400


class ServiceTypeChanged(PerdureError):
    code = "META0006"
    title = "a service changed its type"
    http_status = 409


class ProtocolRangeUnsupported(PerdureError):
    code = "META0012"
    title = "no service protocol version in common with the endpoint"


class BadManifest(PerdureError):
    code = "META0013"
    title = "the discovery answer is not a valid manifest"


class EndpointSpeaksHttp1(PerdureError):
    code = "META0014"
    title = "the endpoint seems to speak HTTP/1.1 only"


class StreamModeUnsupported(PerdureError):
    code = "META0015"
    title = "the endpoint's stream mode doesn't fit its transport"


class IncompatibleUpdate(PerdureError):
    code = "META0016"
    title = "the updated deployment is not compatible with the registered one"
    http_status = 400


class InvalidRegistration(PerdureError):
    code = "META0101"
    title = "a service or handler is declared in a way that can't be served"
    http_status = 400


class DeploymentNotFound(PerdureError):
    code = "META0102"
    title = "no such deployment"
    http_status = 404


class ServiceNotFound(PerdureError):
    code = "META0103"
    title = "no such service or handler"
    http_status = 404


class MetadataConflict(PerdureError):
    code = "META0104"
    title = "somebody else changed the registry meanwhile"
    http_status = 409
    retriable = True


# --- SQL ------------------------------------------------------------------------------------------


class QueryRefused(PerdureError):
    code = "SQL0001"
    title = "the statement can't be answered as it is written"
    http_status = 400


class QueryTooLarge(PerdureError):
    code = "SQL0002"
    title = "the statement takes more time, memory or room than one statement may"
    http_status = 422


class QueryUnavailable(PerdureError):
    code = "SQL0003"
    title = "this installation has no SQL"
    http_status = 503


# --- Requests -------------------------------------------------------------------------------------


class BadRequest(PerdureError):
    code = "REQ0001"
    title = "the request is malformed"
    http_status = 400


class NotFound(PerdureError):
    code = "REQ0002"
    title = "there is nothing at this path or under this id"
    http_status = 404


class MethodNotAllowed(PerdureError):
    code = "REQ0003"
    title = "the path doesn't take this method"
    http_status = 405


class Conflict(PerdureError):
    code = "REQ0004"
    title = "the invocation's state doesn't allow this"
    http_status = 409


class BodyTooLarge(PerdureError):
    code = "REQ0005"
    title = "the request body exceeds the limit"
    http_status = 413


class TooManyRequests(PerdureError):
    code = "REQ0006"
    title = "the limit of concurrent requests is reached"
    http_status = 429
    retriable = True


class NotReady(PerdureError):
    code = "REQ0007"
    title = "the invocation has not completed yet"
    http_status = 470
    retriable = True


class NotImplementedHere(PerdureError):
    code = "REQ0008"
    title = "the request asks for something that is only done in another way"
    http_status = 501


class Draining(PerdureError):
    code = "REQ0009"
    title = "the node is stopping and answers nothing new"
    http_status = 503
    retriable = True


class UnsupportedMediaType(PerdureError):
    code = "REQ0010"
    title = "the request body has another content type than the path takes"
    http_status = 415


class Unprocessable(PerdureError):
    code = "REQ0011"
    title = "the request can be read, but not carried out as it stands"
    http_status = 422


class TooEarly(PerdureError):
    code = "REQ0012"
    title = "the invocation has not started yet"
    http_status = 425
    retriable = True


class Gone(PerdureError):
    code = "REQ0013"
    title = "what the request needs is no longer retained"
    http_status = 410


def catalogue() -> dict[str, type[PerdureError]]:
    """Every error class by code, of the modules that are loaded (``core/…_errors.py``)."""
    found: dict[str, type[PerdureError]] = {}
    pending: list[type[PerdureError]] = [PerdureError]
    while pending:
        kind = pending.pop()
        if "code" in vars(kind):
            found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return found
