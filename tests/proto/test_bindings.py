"""The generated bindings are those of service.proto: every message, field, number and type."""

import re
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from perdure.proto import service_pb2 as pb

PROTO = Path(__file__).resolve().parents[2] / "proto" / "service.proto"
_FIELD = re.compile(
    r"(?P<label>repeated |optional )?(?P<type>[\w.]+) (?P<name>\w+) = (?P<number>\d+);"
)
_SCALARS = {
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def declared() -> dict[str, set[tuple[str, str, int, str]]]:
    """Message name to (label, type, number, name) of its fields, from the source text."""
    messages: dict[str, set[tuple[str, str, int, str]]] = {}
    stack: list[str] = []
    for raw in PROTO.read_text().splitlines():
        line = raw.partition("//")[0].strip()
        if opened := re.match(r"(message|oneof|enum) (\w+) \{", line):
            stack.append(opened[2] if opened[1] == "message" else "")
            if opened[1] == "message":
                messages[_name(stack)] = set()
            if line.endswith("}"):
                stack.pop()
        elif line == "}":
            stack.pop()
        elif (found := _FIELD.fullmatch(line)) and found["type"] != "reserved":
            label = (found["label"] or "").strip()
            field = (label, found["type"], int(found["number"]), found["name"])
            messages[_name(stack)].add(field)
    return messages


def _name(stack: list[str]) -> str:
    return ".".join(filter(None, stack))


def _field(field: FieldDescriptor) -> tuple[str, str, int, str]:
    if field.is_repeated:
        label = "repeated"
    elif field.containing_oneof is not None and field.containing_oneof.name.startswith("_"):
        label = "optional"
    else:
        label = ""
    kind = _SCALARS.get(field.type)
    if kind is None:
        referenced = field.message_type if field.message_type is not None else field.enum_type
        assert referenced is not None
        kind = referenced.name
    return label, kind, field.number, field.name


def _bound(descriptor: Descriptor, prefix: str = "") -> dict[str, set[tuple[str, str, int, str]]]:
    name = prefix + descriptor.name
    found = {name: {_field(field) for field in descriptor.fields}}
    for nested in descriptor.nested_types:
        found |= _bound(nested, f"{name}.")
    return found


def test_bindings_are_of_this_source() -> None:
    bound: dict[str, set[tuple[str, str, int, str]]] = {}
    for descriptor in pb.DESCRIPTOR.message_types_by_name.values():
        bound |= _bound(descriptor)
    assert bound == declared()
    assert len(bound) > 35


def test_enums_have_the_numbers_of_the_protocol() -> None:
    assert dict(pb.CombinatorType.items()) == {
        "COMBINATOR_TYPE_UNKNOWN": 0,
        "FIRST_COMPLETED": 1,
        "ALL_COMPLETED": 2,
        "FIRST_SUCCEEDED_OR_ALL_FAILED": 3,
        "ALL_SUCCEEDED_OR_FIRST_FAILED": 4,
    }
    assert dict(pb.ErrorBehavior.items()) == {"RETRY": 0, "PAUSE": 1, "FAIL": 2}


def test_names_of_signals_and_labels_are_apart() -> None:
    # In a SendSignal field 3 is the signal's name and 12 the label; elsewhere 12 is ``name``.
    fields = {f.number: f.name for f in pb.SendSignalCommandMessage.DESCRIPTOR.fields}
    assert (fields[3], fields[12]) == ("name", "entry_name")


def test_run_proposal_carries_bytes_and_its_notification_a_value() -> None:
    proposal = pb.ProposeRunCompletionMessage(result_completion_id=1, value=b"x")
    assert proposal.SerializeToString().hex() == "0801720178"
    notification = pb.NotificationMessage(completion_id=1, value=pb.Value(content=b"x"))
    assert notification.SerializeToString().hex() == "08012a030a0178"
