"""What is wrong with an attempt: errors with the codes that clients of the service protocol know.

The rest of the table is in ``core/errors.py``. These stay on their node: an attempt that fails is
recorded and tried again, and nobody is answered with them.
"""

from perdure.core.errors import PerdureError


class AttemptError(PerdureError):
    """An attempt failed; subclasses say why. ``message`` becomes the failure's text."""

    code = "RT0012"
    title = "the service broke the protocol"


class AbortTimeout(AttemptError):
    code = "RT0001"
    title = "the attempt made no progress and was aborted"


class MessageTooLarge(AttemptError):
    code = "RT0003"
    title = "the service sent a message over the size limit"


class HandlerFailed(AttemptError):
    code = "RT0007"
    title = "the handler failed with a retryable error"


class ServiceUnreachable(AttemptError):
    code = "RT0010"
    title = "the service can't be reached"


class NoDeployment(AttemptError):
    code = "RT0011"
    title = "no deployment serves the invocation"


class IncompatibleEndpoint(AttemptError):
    code = "RT0013"
    title = "the deployment no longer speaks a supported protocol version"


class CannotResume(AttemptError):
    code = "RT0014"
    title = "the invocation can't go on with the protocol version it is pinned to"


class VersionRefused(AttemptError):
    code = "RT0015"
    title = "the SDK refused the negotiated protocol version"
    http_status = 415


class JournalMismatch(AttemptError):
    code = "RT0016"
    title = "the code no longer matches the journal"


class CommandPrecondition(AttemptError):
    code = "RT0017"
    title = "a command is not allowed here"


class HandlerNotFound(AttemptError):
    code = "RT0018"
    title = "a called handler doesn't exist"


class PayloadRefused(AttemptError):
    code = "RT0019"
    title = "the service refused the payload as too large"


class DeprecatedDeployment(AttemptError):
    code = "RT0020"
    title = "a called service is on a deployment whose protocol is no longer supported"


class RateLimited(AttemptError):
    code = "RT0023"
    title = "the service asked to slow down"


class ScopeUnsupported(AttemptError):
    code = "RT0024"
    title = "scopes and limit keys are not available"


class FutureTooDeep(AttemptError):
    code = "RT0025"
    title = "the awaited future is nested too deeply"
