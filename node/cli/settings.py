"""Flags of the commands that read the configuration, and the configuration they make."""

import functools
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import click

from perdure.node.config.foreign import KeyPath
from perdure.node.config.reader import load
from perdure.node.config.resolve import SETTINGS

# Flags with a name of their own; every other setting goes by ``--set``.
FLAGS: dict[str, KeyPath] = {
    "--base-dir": ("base-dir",),
    "--node-name": ("node-name",),
    "--cluster-name": ("cluster-name",),
    "--bind-ip": ("bind-ip",),
    "--bind-address": ("bind-address",),
    "--ingress-address": ("ingress", "bind-address"),
    "--admin-address": ("admin", "bind-address"),
    "--log-level": ("log-level",),
    "--log-format": ("log-format",),
}


def settings_options(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command the flags, and the ``Loaded`` configuration as its first argument."""

    @functools.wraps(command)
    def wrapped(
        config_file: Path | None, assignments: tuple[str, ...], **arguments: object
    ) -> int | None:
        given = {name: arguments.pop(_parameter(name)) for name in FLAGS}
        flags = {FLAGS[name]: (str(raw), name) for name, raw in given.items() if raw is not None}
        for text in assignments:
            key, equals, raw = text.partition("=")
            if not equals:
                raise click.UsageError(f"--set {text}: write --set key=value")
            flags[_path(key.strip())] = raw.strip(), f"--set {key.strip()}"
        return command(load(config_file, flags), **arguments)

    decorated: Callable[..., int | None] = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any setting, such as invoker.abort-timeout=5m; may be repeated.",
    )(wrapped)
    for name in reversed(FLAGS):
        setting = SETTINGS[FLAGS[name]]
        decorated = click.option(name, metavar=setting.kind.name.upper(), help=setting.meaning)(
            decorated
        )
    return click.option(
        "--config-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="TOML file with settings; also PERDURE_CONFIG.",
    )(decorated)


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _path(key: str) -> KeyPath:
    path = tuple(part.replace("_", "-") for part in key.split("."))
    if path not in SETTINGS:
        close = get_close_matches(key, [setting.key for setting in SETTINGS.values()], n=1)
        raise click.UsageError(
            f"--set {key}: no such setting"
            + (f"; did you mean {close[0]}?" if close else "; `perdure config` shows them all")
        )
    return path
