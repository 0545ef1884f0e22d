"""Which wires a node talks over: with certificates gRPC, otherwise plain TCP."""

from perdure.cluster.security import TlsFiles
from perdure.cluster.tcp_transport import TcpWires
from perdure.cluster.wires import Wires


def make_wires(bind: str, tls: TlsFiles | None, *, is_trusted: bool) -> Wires:
    """Wires that listen at ``bind``; see ``check_exposure`` for where that is allowed."""
    if tls is None:
        return TcpWires(bind, is_trusted=is_trusted)
    # Imported only where it is needed: it costs 10 MB and 40 ms.
    from perdure.cluster.grpc_transport import GrpcWires

    return GrpcWires(bind, tls, is_trusted=is_trusted)
