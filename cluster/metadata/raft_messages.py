"""What metadata members say to each other: the library's messages in a closed, typed form.

The library speaks in dictionaries and would pickle them; here every message is a struct, decoded by
its type and refused otherwise. Membership, version and transfer messages of the library don't exist
on this wire.
"""

from typing import Any

import msgspec

from perdure.cluster.metadata.raft_journal import Entry


class RequestVote(msgspec.Struct, frozen=True, tag=1, array_like=True):
    term: int
    last_index: int
    last_term: int


class Vote(msgspec.Struct, frozen=True, tag=2, array_like=True):
    term: int


class Append(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """Entries after ``previous``; both parts of it are None when the sender has no such entry."""

    term: int
    commit_index: int
    previous_index: int | None
    previous_term: int | None
    entries: list[Entry]


class DumpPiece(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """A piece of a dump that ends with the named entry."""

    term: int
    commit_index: int
    last_index: int
    last_term: int
    content: bytes
    is_first: bool
    is_last: bool


class Heartbeat(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """Of a leader that has nothing to append yet."""

    term: int
    commit_index: int


class Position(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """A follower's answer, and the term in which it was given."""

    term: int
    next_index: int
    reset: bool
    success: bool


class Forward(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """A command for the leader."""

    command: bytes
    request_id: int


class Placed(msgspec.Struct, frozen=True, tag=8, array_like=True):
    """Where the leader put a forwarded command."""

    request_id: int
    index: int
    term: int


class Rejected(msgspec.Struct, frozen=True, tag=9, array_like=True):
    """The receiver of a forwarded command isn't the leader."""

    request_id: int
    error: int


PeerMessage = (
    RequestVote | Vote | Append | DumpPiece | Heartbeat | Position | Forward | Placed | Rejected
)


def to_library(message: PeerMessage) -> dict[str, Any]:
    """The dictionary that the library would have been sent."""
    match message:
        case RequestVote(term, last_index, last_term):
            return {
                "type": "request_vote",
                "term": term,
                "last_log_index": last_index,
                "last_log_term": last_term,
            }
        case Vote(term):
            return {"type": "response_vote", "term": term}
        case Append(term, commit_index, previous_index, previous_term, entries):
            return {
                "type": "append_entries",
                "term": term,
                "commit_index": commit_index,
                "entries": entries,
                "prevLogIdx": previous_index,
                "prevLogTerm": previous_term,
            }
        case DumpPiece():
            return {
                "type": "append_entries",
                "term": message.term,
                "commit_index": message.commit_index,
                "serialized": (message.content, message.is_first, message.is_last),
            }
        case Heartbeat(term, commit_index):
            return {
                "type": "append_entries",
                "term": term,
                "commit_index": commit_index,
                "serialized": None,
            }
        case Position():
            return {
                "type": "next_node_idx",
                "next_node_idx": message.next_index,
                "reset": message.reset,
                "success": message.success,
            }
        case Forward(command, request_id):
            return {"type": "apply_command", "command": command, "request_id": request_id}
        case Placed(request_id, index, term):
            return {
                "type": "apply_command_response",
                "request_id": request_id,
                "log_idx": index,
                "log_term": term,
            }
        case Rejected(request_id, error):
            return {"type": "apply_command_response", "request_id": request_id, "error": error}


def from_library(message: dict[str, Any], term: int, dump_end: tuple[int, int]) -> PeerMessage:
    """The struct of a message that the library sends, tagged with what it leaves out."""
    match message["type"]:
        case "request_vote":
            return RequestVote(message["term"], message["last_log_index"], message["last_log_term"])
        case "response_vote":
            return Vote(message["term"])
        case "append_entries" if "prevLogIdx" in message:
            return Append(
                message["term"],
                message["commit_index"],
                message["prevLogIdx"],
                message["prevLogTerm"],
                message["entries"],
            )
        case "append_entries" if message["serialized"] is not None:
            return DumpPiece(
                message["term"], message["commit_index"], *dump_end, *message["serialized"]
            )
        case "append_entries":
            return Heartbeat(message["term"], message["commit_index"])
        case "next_node_idx":
            return Position(term, message["next_node_idx"], message["reset"], message["success"])
        case "apply_command":
            return Forward(message["command"], message["request_id"])
        case "apply_command_response" if "error" in message:
            return Rejected(message["request_id"], message["error"])
        case "apply_command_response":
            return Placed(message["request_id"], message["log_idx"], message["log_term"])
        case other:
            raise ValueError(f"the library sends {other}")
