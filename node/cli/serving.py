"""Runs a node for ``server`` and ``up``: logging, notices about the configuration, readiness."""

import json
import os
from collections.abc import Callable

import click

from perdure.core import telemetry
from perdure.node.config.choices import LogColours
from perdure.node.config.resolve import Loaded
from perdure.node.server import ReadyInfo, run


def serve(loaded: Loaded, on_ready: Callable[[ReadyInfo], None]) -> int:
    """Run a node until a signal or a failure; the process's exit code.

    Raises:
        PerdureError: it can't start.
    """
    config = loaded.config
    colours = {LogColours.ALWAYS: True, LogColours.NEVER: False}.get(config.log_colours)
    telemetry.configure(config.log_level.value, config.log_format.value, colours)
    log = telemetry.logger("config")
    if loaded.file is not None:
        log.info("config.file.read", file=str(loaded.file))
    for notice in loaded.notices:
        log.warning("config.key.ignored", notice=notice)
    return run(config, on_ready)


def emit_ready(info: ReadyInfo) -> None:
    """One line for machines: the node serves."""
    document = {
        "event": "ready",
        "pid": os.getpid(),
        "ingress_url": info.ingress_url,
        "admin_url": info.admin_url,
        "node_url": info.node_url,
        "data_directory": str(info.data_directory.absolute()),
        "started_in_ms": info.started_in_ms,
        "records_replayed": info.records_replayed,
    }
    click.echo(json.dumps(document))
