"""From the events of ``zttp`` to ours: what both versions of HTTP share."""

import zttp

from perdure.node.http.ports import Broken, Headers, RequestHead

STATUS_MAX = 599
"""zttp writes no status beyond, though three digits allow them."""


def request_head(event: zttp.Request, stream: int) -> RequestHead:
    """The head of a request, on the stream as we number it."""
    headers = lowered(event.headers)
    expects = event.expect_continue or any(  # zttp says so for HTTP/1 only
        name == b"expect" and value.lower() == b"100-continue" for name, value in headers
    )
    return RequestHead(stream, event.method, event.target, headers, expects)


def lowered(headers: list[tuple[bytes, bytes]] | zttp.HeaderBlock) -> Headers:
    """Headers as a list, names in lower case."""
    if isinstance(headers, zttp.HeaderBlock):
        return headers.to_list(lowercase_names=True)
    return headers


def broken(error: zttp.ProtocolError) -> Broken:
    """What a parser's complaint means for the connection."""
    reason = str(error)
    return Broken(reason, 431 if "size limit" in reason else 400)
