"""What the routes for operators of logs and metadata are for; part of ``operations``. Pure."""

from perdure.node.admin.operation import Operation, Success

_LOGS, _METADATA = "logs", "metadata"

OPERATOR_OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/perdure/logs"): Operation(
        id="list_logs",
        group=_LOGS,
        summary="The logs of all partitions: where they begin and end, and who stores them.",
        successes={200: Success("They.", "Logs")},
    ),
    ("GET", "/perdure/logs/{partition}"): Operation(
        id="get_log",
        group=_LOGS,
        summary="A partition's log, segment by segment.",
        successes={200: Success("It.", "LogDetail")},
        refusals=(404,),
    ),
    ("POST", "/perdure/logs/{partition}/verify"): Operation(
        id="verify_log",
        group=_LOGS,
        summary="Compare the replicas of a log by digest. It only reads, and takes a while.",
        successes={202: Success("It is under way.", "LogVerification")},
        refusals=(404, 503),
    ),
    ("GET", "/perdure/logs/{partition}/verify"): Operation(
        id="get_log_verification",
        group=_LOGS,
        summary="How the latest comparison that this node made went, or goes.",
        successes={200: Success("It.", "LogVerification")},
        refusals=(404, 503),
    ),
    ("PATCH", "/perdure/logs/{partition}/seal"): Operation(
        id="seal_log",
        group=_LOGS,
        summary="End the open segment, whatever its leader does: whoever is to lead opens the "
        "next. For a leader that hangs.",
        successes={200: Success("Which replicas take nothing more.", "LogSeal")},
        refusals=(404, 409, 503),
    ),
    ("PATCH", "/perdure/logs/{partition}/reconfigure"): Operation(
        id="reconfigure_log",
        group=_LOGS,
        summary="Have the leader go on in a new segment, on the log servers that are best now.",
        successes={
            200: Success("It does.", "LogDetail"),
            202: Success("It was asked to, and takes longer.", "LogDetail"),
        },
        refusals=(404, 409, 503),
    ),
    ("GET", "/perdure/logs/{partition}/unsafe-close"): Operation(
        id="examine_unsafe_close",
        group=_LOGS,
        summary="What is left of the open segment once too many of its disks are lost, and whether "
        "it may be closed with that. Changes nothing.",
        successes={200: Success("It; `refusal` says why not.", "LogUnsafeClose")},
        refusals=(404, 409, 503),
    ),
    ("PATCH", "/perdure/logs/{partition}/unsafe-close"): Operation(
        id="close_log_unsafely",
        group=_LOGS,
        summary="Close the open segment with what is left. Acknowledged records may be lost.",
        successes={
            200: Success("It was closed, and the next one is open.", "LogUnsafeClose"),
            202: Success("Whoever takes over will, and it takes longer.", "LogUnsafeClose"),
        },
        refusals=(400, 404, 409, 503),
        query={"segment": {"type": "integer"}, "by": {"type": "string"}},
    ),
    ("GET", "/perdure/metadata"): Operation(
        id="get_metadata",
        group=_METADATA,
        summary="How the metadata is kept, and how its places are.",
        successes={200: Success("That; `failure` says why it can't be read.", "Metadata")},
        refusals=(503,),
    ),
    ("GET", "/perdure/metadata/registers"): Operation(
        id="list_registers",
        group=_METADATA,
        summary="Registers by key.",
        successes={200: Success("They.", "Registers")},
        refusals=(503,),
        query={"prefix": {"type": "string"}},
    ),
    ("GET", "/perdure/metadata/registers/{register}"): Operation(
        id="get_register",
        group=_METADATA,
        summary="One register; slashes of its key are percent-encoded.",
        successes={200: Success("It.", "Register")},
        refusals=(404, 503),
    ),
    ("GET", "/perdure/metadata/backup"): Operation(
        id="back_up_metadata",
        group=_METADATA,
        summary="A copy of all registers as of one moment.",
        successes={200: Success("A file, in base64.", "MetadataBackup")},
        refusals=(503,),
    ),
    ("GET", "/perdure/metadata/voters"): Operation(
        id="get_voters",
        group=_METADATA,
        summary="The nodes that hold the metadata, and those that are to.",
        successes={200: Success("They.", "Voters")},
        refusals=(409, 503),
    ),
    ("PATCH", "/perdure/metadata/voters"): Operation(
        id="set_voters",
        group=_METADATA,
        summary="Have one, three or five nodes hold the metadata, all of which are there.",
        successes={
            200: Success("They do.", "Voters"),
            202: Success("They will, and it takes longer.", "Voters"),
        },
        refusals=(400, 404, 409, 503),
        query={"names": {"type": "string"}},
    ),
}
