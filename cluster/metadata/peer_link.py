"""Members' frames over the fabric: the adapter between the port of nodes and a member's links."""

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.metadata.messages import RaftFrame
from perdure.cluster.metadata.provision import note_peers, read_peers
from perdure.cluster.metadata.service import MemberService
from perdure.cluster.transport import Answer, Transport
from perdure.core.telemetry import logger
from perdure.storage.disk import Disk

log = logger("metadata")


class FabricLink:
    """Sends a member's frames; what has no session is lost, which the connections notice."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def send(self, peer: int, frame: bytes) -> None:
        self._transport.send(NodeId(peer), RaftFrame(frame))


class PeerLives:
    """The last life of each other member, kept on this member's disk.

    Starts are counted on a member's own disk. Who comes back as an earlier life than one that was
    met, or as another one of the same number, has an older state of its disk: it has forgotten
    votes and entries that it answered for. Nothing may be counted on it.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lives = read_peers(disk)
        self._told: set[Peer] = set()

    def may_count(self, peer: Peer) -> bool:
        """Whether it is the life that was met last, or a later one, which is noted first."""
        life = (peer.generation, peer.incarnation)
        known = self._lives.get(peer.node, (0, 0))
        if life == known:
            return True
        if life[0] > known[0]:
            note_peers(self._disk, {**self._lives, peer.node: life})
            self._lives[peer.node] = life
            return True
        if peer not in self._told:
            self._told.add(peer)
            log.error("metadata.peer.forgetful", peer=peer.node, start=life[0], known=known[0])
        return False


def serve_peers(transport: Transport, service: MemberService, lives: PeerLives) -> None:
    """Give what other members send to the service."""

    def on_frame(peer: Peer, frame: RaftFrame, answer: Answer) -> None:
        service.receive(peer.node, frame.content, lambda: lives.may_count(peer))

    def on_session(peer: Peer, is_up: bool) -> None:
        if not is_up:
            service.disconnect(peer.node)

    transport.serve(RaftFrame, on_frame)
    transport.on_session(on_session)
