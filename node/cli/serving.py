"""Runs nodes for ``server`` and ``up``: logging, notices about the configuration, readiness."""

import json
import os
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import click

from perdure.core import telemetry
from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.core.errors import PerdureError
from perdure.node.cli import exits
from perdure.node.cli.output import complain
from perdure.node.config.choices import LogColours
from perdure.node.config.model import Config
from perdure.node.config.resolve import Loaded
from perdure.node.server import ReadyInfo, run
from perdure.node.workers.layout import check_alone, prepare
from perdure.storage.data_directory import lock_folder


def serve(loaded: Loaded, on_ready: Callable[[ReadyInfo], None]) -> int:
    """Run a node until a signal or a failure; the process's exit code.

    Raises:
        PerdureError: it can't start.
    """
    _begin(loaded)
    check_alone(loaded.config.base_dir)
    return run(loaded.config, on_ready)


def serve_workers(loaded: Loaded, count: int, on_ready: Callable[[list[ReadyInfo]], None]) -> int:
    """Run workers until a signal ends them all; the process's exit code.

    Raises:
        PerdureError: they can't start.
    """
    from perdure.node.workers.processes import SharedPorts, Workers, share_ports

    _begin(loaded)
    base = loaded.config.base_dir
    lock = lock_folder(base)
    with closing(SharedPorts()) as shared:
        try:
            configs = prepare(loaded.config, count, SystemEntropy())
            ports = share_ports(loaded.config, shared)
            configs = [replace(each, ingress=ports.ingress, admin=ports.admin) for each in configs]
            return Workers(configs, _work, SystemClock()).run(on_ready)
        finally:
            lock.release()


def _work(config: Config, on_ready: Callable[[ReadyInfo], None]) -> int:
    """Be a worker, in a process of its own."""
    try:
        return run(config, on_ready, is_sharing=True)
    except PerdureError as error:
        complain(f"{config.node_name}: {error.message}", error.code)
        return exits.exit_code(error)
    except Exception:  # bulkhead: nobody else would tell of it
        traceback.print_exc()
        return exits.BUG


def _begin(loaded: Loaded) -> None:
    config = loaded.config
    colours = {LogColours.ALWAYS: True, LogColours.NEVER: False}.get(config.log_colours)
    telemetry.configure(config.log_level.value, config.log_format.value, colours)
    log = telemetry.logger("config")
    if loaded.file is not None:
        log.info("config.file.read", file=str(loaded.file))
    for notice in loaded.notices:
        log.warning("config.key.ignored", notice=notice)


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
