"""From the events of ``zttp`` to ours: what both versions of HTTP share."""

import zttp

from perdure.node.http.ports import Broken, Headers, RequestHead


def request_head(event: zttp.Request, stream: int) -> RequestHead:
    """The head of a request, on the stream as we number it."""
    return RequestHead(
        stream, event.method, event.target, lowered(event.headers), event.expect_continue
    )


def lowered(headers: list[tuple[bytes, bytes]] | zttp.HeaderBlock) -> Headers:
    """Headers as a list, names in lower case."""
    if isinstance(headers, zttp.HeaderBlock):
        return headers.to_list(lowercase_names=True)
    return headers


def broken(error: zttp.ProtocolError) -> Broken:
    """What a parser's complaint means for the connection."""
    reason = str(error)
    return Broken(reason, 431 if "size limit" in reason else 400)
