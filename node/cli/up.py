"""``perdure up``: a node here and now, with nothing to configure, and told in plain words."""

from collections.abc import Sequence
from dataclasses import replace

import click

import perdure
from perdure.core.limits import WORKERS_MAX
from perdure.node.cli.client import DEFAULT_ADMIN_URL
from perdure.node.cli.output import say
from perdure.node.cli.serving import emit_ready, serve, serve_workers
from perdure.node.cli.settings import settings_options
from perdure.node.config.choices import LogLevel
from perdure.node.config.resolve import DEFAULT, Loaded
from perdure.node.server import ReadyInfo


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON once the node serves.")
@click.option(
    "--workers",
    type=click.IntRange(1, WORKERS_MAX),
    default=1,
    show_default=True,
    help="Processes that share the work and the ports; fixed once data is there.",
)
@settings_options
def up(loaded: Loaded, as_json: bool, workers: int) -> int:
    """Start a node here and now, with nothing to configure.

    Data is kept in ./perdure-data. Takes the same settings as `perdure server`; unless told
    otherwise only warnings are logged. One process keeps one core busy: with several, each has
    some of the partitions.
    """

    def on_ready(infos: list[ReadyInfo]) -> None:
        if as_json:
            for info in infos:
                emit_ready(info)
        else:
            say(welcome(infos[0], infos[1:]))

    if workers == 1:
        code = serve(_quiet(loaded), lambda info: on_ready([info]))
    else:
        code = serve_workers(_quiet(loaded), workers, on_ready)
    if code == 0:
        how = f" --workers {workers}" if workers > 1 else ""
        say(f"Stopped. `perdure up{how}` goes on where this left off.")
    return code


def welcome(info: ReadyInfo, others: Sequence[ReadyInfo] = ()) -> str:
    """Where everything is, and what to do next."""
    recovered = f", {info.records_replayed} records replayed" if info.records_replayed > 0 else ""
    admin = info.admin_url.rstrip("/")
    elsewhere = "" if _is_default(admin) else f" --admin-url {admin}"
    title = click.style(f"perdure {perdure.__version__} is up", fg="green", bold=True)
    folder = info.data_directory.parent if others else info.data_directory
    ports = [each.node_url.rpartition(":")[2].rstrip("/") for each in (info, *others)]
    workers = (f"  Workers  {len(ports):<32} metrics of each at port {', '.join(ports)}",)
    return "\n".join(
        [
            "",
            f"  {title} ({info.started_in_ms} ms{recovered})",
            "",
            f"  Ingress  {info.ingress_url:<32} call services here",
            f"  Admin    {info.admin_url:<32} register services, look at invocations",
            *(workers if others else ()),
            f"  Data     {f'{folder}/':<32} kept when the node stops",
            "",
            f"  Next     perdure deployments register http://localhost:9080{elsewhere}",
            "  Stop     Ctrl-C",
            "",
        ]
    )


def _quiet(loaded: Loaded) -> Loaded:
    if loaded.sources.get("log-level", DEFAULT) != DEFAULT:
        return loaded
    return replace(loaded, config=replace(loaded.config, log_level=LogLevel.WARNING))


def _is_default(admin_url: str) -> bool:
    return admin_url.replace("127.0.0.1", "localhost") == DEFAULT_ADMIN_URL
