"""Members' frames over the fabric: the adapter between the port of nodes and a member's links."""

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.metadata.messages import RaftFrame
from perdure.cluster.metadata.service import MemberService
from perdure.cluster.transport import Answer, Transport


class FabricLink:
    """Sends a member's frames; what has no session is lost, which the connections notice."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def send(self, peer: int, frame: bytes) -> None:
        self._transport.send(NodeId(peer), RaftFrame(frame))


def serve_peers(transport: Transport, service: MemberService) -> None:
    """Give what other members send to the service."""

    def on_frame(peer: Peer, frame: RaftFrame, answer: Answer) -> None:
        service.receive(peer.node, frame.content)

    def on_session(peer: Peer, is_up: bool) -> None:
        if not is_up:
            service.disconnect(peer.node)

    transport.serve(RaftFrame, on_frame)
    transport.on_session(on_session)
