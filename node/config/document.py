"""Writes docs/configuration.md from the table of settings.

``python -m perdure.node.config.document > docs/configuration.md``; a test holds the two together.
"""

from perdure.node.config import durations, values
from perdure.node.config.foreign import CONSEQUENCES, TRANSLATIONS
from perdure.node.config.model import TABLES, Setting, settings

_HEAD = f"""# Configuration

<!-- Generated: python -m perdure.node.config.document > docs/configuration.md -->

Nothing has to be configured. What is, comes from four places; later ones win:

1. the defaults below;
2. a TOML file: `--config-file`, or else what `PERDURE_CONFIG` names;
3. environment variables: `PERDURE_` and the key, `__` between table and name, `_` for `-`;
4. flags of `perdure server` and `perdure up`.

`perdure config` prints every value in effect and where it came from. A key that doesn't exist, or a
value that isn't allowed, stops the start with an error that names key, file, line and what is
allowed. The file is read at the start only. Names may be written with `-` or `_`.

```toml
# perdure.toml
base-dir = "/var/lib/perdure"
bind-ip = "0.0.0.0"

[ingress]
advertised-address = "https://calls.example.com"

[invoker]
inactivity-timeout = "5m"
additional-request-headers = {{ x-tenant = "blue" }}

[retry]
attempts-max = "unlimited"
```

The same as variables: `PERDURE_BASE_DIR=/var/lib/perdure`,
`PERDURE_INGRESS__ADVERTISED_ADDRESS=https://calls.example.com`,
`PERDURE_INVOKER__ADDITIONAL_REQUEST_HEADERS='x-tenant=blue'`.

How values are written:

- **duration**: {durations.SYNTAX}. A bare number is refused: it has no unit.
- **size**: {values.SIZE_SYNTAX}. kB and MB are powers of ten, KiB and MiB of two.
- **address**: {values.ADDRESS_SYNTAX}. Port 0 takes a free one.
- **boolean**: `true` or `false`, nothing else.

Names and headers: values of `additional-request-headers` may be credentials, so every output shows
`***` in their place.
"""

_FOREIGN_HEAD = """
## Keys of other servers

Configuration written for a Restate server is understood, in the file and as `RESTATE_…` variables;
within file and environment our own keys win. Keys with the same name and meaning (`base-dir`,
`bind-ip`, `ingress.bind-address`, …) are not listed.

| theirs | ours |
| --- | --- |
"""

_IGNORED_HEAD = """
Everything else that such a server knows is ignored, with a line in the log at the start. Mind
these:

| theirs | means here |
| --- | --- |
"""


def text() -> str:
    """The page."""
    rows = list(settings())
    parts = [_HEAD, _section("Node", "Top level of the file.", [r for r in rows if not r.path[1:]])]
    for name, table in TABLES.items():
        meaning = (table.__doc__ or "").strip()
        parts.append(_section(f"[{name}]", meaning, [r for r in rows if r.path[0] == name]))
    parts.append(_FOREIGN_HEAD)
    for theirs, translation in TRANSLATIONS.items():
        parts.append(f"| `{'.'.join(theirs)}` | `{'.'.join(translation.path)}` |\n")
    parts.append(_IGNORED_HEAD)
    for theirs, meaning in CONSEQUENCES.items():
        parts.append(f"| `{'.'.join(theirs)}` | {meaning} |\n")
    return "".join(parts)


def _section(title: str, meaning: str, rows: list[Setting]) -> str:
    lines = [f"\n## {title}\n\n{meaning}\n"]
    for row in rows:
        default = row.kind.show(row.default)
        lines.append(
            f"\n### `{row.key}`\n\n{row.meaning}\n\n"
            f"Default `{default}` · {_values(row)} · `{row.variable}`\n"
        )
    return "".join(lines)


def _values(row: Setting) -> str:
    """What is allowed, in few words: the long ones are explained at the head of the page."""
    kind = row.kind
    if kind.name not in ("duration", "size", "address", "boolean"):
        return kind.syntax
    word = kind.syntax.rpartition("; or ")[2] if "; or " in kind.syntax else ""
    allowed = f"{kind.name} {kind.range}" if kind.range else kind.name
    return f"{allowed}, or {word}" if word else allowed


if __name__ == "__main__":
    print(text(), end="")
