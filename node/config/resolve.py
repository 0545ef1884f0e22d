"""Makes a configuration of what its sources say. Pure: ``reader`` brings the sources.

Later sources win: defaults, file, environment, flags; within one, our own keys win over foreign
ones. Every value remembers its source; what is wrong names key, source and what is allowed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, cast

from perdure.core.errors import InvalidConfiguration
from perdure.node.config.foreign import (
    TRANSLATIONS,
    KeyPath,
    consequence,
    is_ignored,
    is_platform_variable,
    is_setting_variable,
)
from perdure.node.config.kinds import Json
from perdure.node.config.model import TABLES, Config, Setting, settings
from perdure.node.config.toml_lines import lines_of_keys
from perdure.node.config.values import Address

OWN_PREFIX = "PERDURE_"
FOREIGN_PREFIX = "RESTATE_"
# Variables of ours that are no settings: which file to read, and what the commands read.
NOT_SETTINGS = frozenset({"CONFIG", "ADMIN_URL", "INGRESS_URL", "AUTH_TOKEN"})

SETTINGS: dict[KeyPath, Setting] = {setting.path: setting for setting in settings()}
_LISTENERS: tuple[KeyPath, ...] = (
    ("bind-address",),
    ("ingress", "bind-address"),
    ("admin", "bind-address"),
    ("cluster", "bind-address"),
)


class SourceKind(Enum):
    """Where a value came from; later members win over earlier ones."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from. ``name``: ``perdure.toml:12``, a variable, or a flag."""

    kind: SourceKind
    name: str = "default"


DEFAULT = Source(SourceKind.DEFAULT)


@dataclass(frozen=True, slots=True)
class File:
    """A configuration file, parsed. ``text`` is only looked at for line numbers."""

    name: str
    text: str
    document: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration, where each value came from, and what to say of it at the start."""

    config: Config
    sources: Mapping[str, Source]
    notices: tuple[str, ...] = ()
    file: Path | None = None

    def rows(self) -> Iterator[tuple[Setting, object, Source]]:
        """Every setting with its value and source, in the table's order."""
        for setting in SETTINGS.values():
            value: object = self.config
            for name in setting.field_path:
                value = getattr(value, name)
            yield setting, value, self.sources.get(setting.key, DEFAULT)

    def document(self) -> dict[str, dict[str, Json]]:
        """Value, its text, source and its kind by key, for machines. Durations are in ms."""
        return {
            setting.key: {
                "value": setting.kind.json(value),
                "text": setting.kind.show(value),
                "source": source.kind.value,
                "where": source.name,
            }
            for setting, value, source in self.rows()
        }


@dataclass(slots=True)
class _Layers:
    """What was found so far; each later ``take`` wins."""

    values: dict[KeyPath, object] = field(default_factory=dict[KeyPath, object])
    sources: dict[str, Source] = field(default_factory=dict[str, Source])
    notices: list[str] = field(default_factory=list[str])

    def take(self, setting: Setting, raw: object, key: str, source: Source) -> None:
        try:
            value = setting.kind.parse(raw)
        except ValueError as error:
            shown = "" if setting.kind.name == "headers" else f" = {raw!r}"
            raise InvalidConfiguration(f"{key}{shown} ({source.name}): {error}") from None
        self.values[setting.path] = value
        self.sources[setting.key] = source


def resolve(
    file: File | None, environment: Mapping[str, str], flags: Mapping[KeyPath, tuple[str, str]]
) -> Loaded:
    """The effective configuration. ``flags``: text and the flag's own name by key path.

    Raises:
        InvalidConfiguration: a key is unknown, or a value not allowed.
    """
    layers = _Layers()
    if file is not None:
        _take_file(layers, file)
    _take_environment(layers, environment)
    for path, (raw, name) in flags.items():
        layers.take(SETTINGS[path], raw, SETTINGS[path].key, Source(SourceKind.FLAG, name))
    _spread_bind_ip(layers)
    _check_listeners(layers)
    return Loaded(_build(layers.values), layers.sources, tuple(layers.notices))


# --- File ---------------------------------------------------------------------------------------


def _take_file(layers: _Layers, file: File) -> None:
    lines = lines_of_keys(file.text)
    own: dict[KeyPath, tuple[object, Source]] = {}
    for path, written, raw in _leaves(file.document, (), ()):
        line = lines.get(written)
        source = Source(SourceKind.FILE, f"{file.name}:{line}" if line else file.name)
        if path in SETTINGS:
            if path in own:
                raise InvalidConfiguration(
                    f"{'.'.join(path)} is set twice ({own[path][1].name} and {source.name})"
                )
            own[path] = raw, source
        else:
            _take_foreign(layers, path, raw, ".".join(written), source)
    for path, (raw, source) in own.items():
        layers.take(SETTINGS[path], raw, ".".join(path), source)


def _leaves(
    table: Mapping[str, object], path: KeyPath, written: KeyPath
) -> Iterator[tuple[KeyPath, KeyPath, object]]:
    """Key paths in kebab case and as written, with their values; header tables are values."""
    for name, raw in table.items():
        key = (*path, name.replace("_", "-"))
        shown = (*written, name)
        is_value = key in SETTINGS or key in TRANSLATIONS or is_ignored(key)
        if isinstance(raw, dict) and not is_value:
            yield from _leaves(cast(dict[str, object], raw), key, shown)
        else:
            yield key, shown, raw


# --- Environment --------------------------------------------------------------------------------


def _take_environment(layers: _Layers, environment: Mapping[str, str]) -> None:
    for name in sorted(environment):
        stem = name.removeprefix(FOREIGN_PREFIX)
        if stem == name or not is_setting_variable(stem):
            continue
        path, source = _path_of(stem), Source(SourceKind.ENVIRONMENT, name)
        if path in SETTINGS:
            layers.take(SETTINGS[path], environment[name], SETTINGS[path].key, source)
        elif path in TRANSLATIONS:
            _take_foreign(layers, path, environment[name], ".".join(path), source)
        else:
            # Not an error: other programs have variables with this prefix.
            layers.notices.append(f"{name} {consequence(path)}")
    for name in sorted(environment):
        stem = name.removeprefix(OWN_PREFIX)
        if stem == name or stem in NOT_SETTINGS or is_platform_variable(stem):
            continue
        path = _path_of(stem)
        if path not in SETTINGS:
            raise InvalidConfiguration(f"{name} is no setting{_nearest_variable(name)}")
        source = Source(SourceKind.ENVIRONMENT, name)
        layers.take(SETTINGS[path], environment[name], SETTINGS[path].key, source)


def _path_of(stem: str) -> KeyPath:
    return tuple(part.replace("_", "-").lower() for part in stem.split("__"))


# --- Both ---------------------------------------------------------------------------------------


def _take_foreign(
    layers: _Layers, path: KeyPath, raw: object, written: str, source: Source
) -> None:
    translation = TRANSLATIONS.get(path)
    if translation is not None:
        if translation.convert is not None:
            raw = translation.convert(raw)
        layers.take(SETTINGS[translation.path], raw, written, source)
    elif is_ignored(path):
        layers.notices.append(f"{written} ({source.name}) {consequence(path)}")
    else:
        raise InvalidConfiguration(f"{written} ({source.name}) is no setting{_nearest(path)}")


def _nearest(path: KeyPath) -> str:
    keys = [".".join(known) for known in (*SETTINGS, *TRANSLATIONS)]
    return _suggestion(".".join(path), keys)


def _nearest_variable(name: str) -> str:
    return _suggestion(name, [setting.variable for setting in SETTINGS.values()])


def _suggestion(wrong: str, known: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ": see `perdure config` for those there are"


def _spread_bind_ip(layers: _Layers) -> None:
    host = layers.values.get(("bind-ip",))
    if not isinstance(host, str):
        return
    for path in _LISTENERS:
        if path not in layers.values:
            setting = SETTINGS[path]
            address = cast(Address, setting.default)
            layers.values[path] = replace(address, host=host)
            layers.sources[setting.key] = layers.sources["bind-ip"]


def _check_listeners(layers: _Layers) -> None:
    taken: dict[Address, str] = {}
    for path in _LISTENERS:
        setting = SETTINGS[path]
        address = cast(Address, layers.values.get(path, setting.default))
        if address.port and address in taken:
            raise InvalidConfiguration(
                f"{setting.key} and {taken[address]} are both {address}: give them different ports"
            )
        taken[address] = setting.key


def _build(found: Mapping[KeyPath, object]) -> Config:
    top: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    for path, value in found.items():
        *table, name = SETTINGS[path].field_path
        (tables[table[0]] if table else top)[name] = value
    return Config(**top, **{name: TABLES[name](**values) for name, values in tables.items()})
