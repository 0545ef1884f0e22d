"""Which message each command of a journal is: for those who show entries to people."""

from google.protobuf.message import Message

from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType as T

COMMAND_MESSAGES: dict[int, type[Message]] = {
    T.INPUT_COMMAND: pb.InputCommandMessage,
    T.OUTPUT_COMMAND: pb.OutputCommandMessage,
    T.GET_LAZY_STATE_COMMAND: pb.GetLazyStateCommandMessage,
    T.SET_STATE_COMMAND: pb.SetStateCommandMessage,
    T.CLEAR_STATE_COMMAND: pb.ClearStateCommandMessage,
    T.CLEAR_ALL_STATE_COMMAND: pb.ClearAllStateCommandMessage,
    T.GET_LAZY_STATE_KEYS_COMMAND: pb.GetLazyStateKeysCommandMessage,
    T.GET_EAGER_STATE_COMMAND: pb.GetEagerStateCommandMessage,
    T.GET_EAGER_STATE_KEYS_COMMAND: pb.GetEagerStateKeysCommandMessage,
    T.GET_PROMISE_COMMAND: pb.GetPromiseCommandMessage,
    T.PEEK_PROMISE_COMMAND: pb.PeekPromiseCommandMessage,
    T.COMPLETE_PROMISE_COMMAND: pb.CompletePromiseCommandMessage,
    T.SLEEP_COMMAND: pb.SleepCommandMessage,
    T.CALL_COMMAND: pb.CallCommandMessage,
    T.ONE_WAY_CALL_COMMAND: pb.OneWayCallCommandMessage,
    T.SEND_SIGNAL_COMMAND: pb.SendSignalCommandMessage,
    T.RUN_COMMAND: pb.RunCommandMessage,
    T.ATTACH_INVOCATION_COMMAND: pb.AttachInvocationCommandMessage,
    T.GET_INVOCATION_OUTPUT_COMMAND: pb.GetInvocationOutputCommandMessage,
    T.COMPLETE_AWAKEABLE_COMMAND: pb.CompleteAwakeableCommandMessage,
}
