"""Whether a handler takes a request's body, and what type its output is announced as. Pure.

A handler has an ordered list of input rules; a request passes if any accepts it, and is refused
with the reason of the last one. Bodies are opaque: neither parsed nor held against a JSON schema.
"""

from perdure.core.errors import BadRequest
from perdure.node.registry.model import Handler, InputRules, OutputRules


def check_input(handler: Handler, content_type: str | None, body: bytes) -> None:
    """Accept the request's body and type.

    Raises:
        BadRequest: no rule accepts them; the last rule's reason.
    """
    rules = handler.input
    if content_type is None and not body and not rules.required:
        return
    reason = _refusal(rules, content_type, body)
    if reason is not None:
        raise BadRequest(f"handler {handler.name!r} {reason}")


def output_content_type(rules: OutputRules, output: bytes) -> str | None:
    """The content-type header of a successful answer; None: there is none."""
    if output or rules.sets_content_type_if_empty:
        return rules.content_type
    return None


def matches(content_type: str, pattern: str) -> bool:
    """Whether a header's media type is the declared one, which may be ``*/*`` or ``type/*``.

    Parameters are ignored, case is not.
    """
    if content_type == pattern:
        return True
    actual = content_type.partition(";")[0].strip()
    wanted = pattern.partition(";")[0].strip()
    if actual == wanted or wanted == "*/*":
        return True
    family, slash, subtype = wanted.partition("/")
    return bool(slash) and subtype == "*" and actual.partition("/")[0] == family


def _refusal(rules: InputRules, content_type: str | None, body: bytes) -> str | None:
    pattern = "*/*" if rules.is_open else rules.content_type
    if pattern is None:
        if not rules.required:
            return "takes no input: send neither a body nor a content-type"
        return None if body else "needs a body"
    if content_type is None:
        return f"needs a content-type header: it takes {pattern}"
    if not matches(content_type, pattern):
        return f"takes {pattern}, not {content_type!r}"
    if rules.json_schema is not None and not body:
        return f"takes {pattern}: an empty body is not JSON"
    return None
