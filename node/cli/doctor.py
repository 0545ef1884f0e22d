"""``perdure doctor``: looks for what is wrong with a node and its surroundings, running or not."""

import asyncio
from collections.abc import Iterator

import click

from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.core.errors import NodeUnreachable, PerdureError, UnexpectedAnswer
from perdure.node.cli.client import AdminClient
from perdure.node.cli.output import emit_json, plain
from perdure.node.cli.refused import Refused
from perdure.node.cli.session import ADMIN_VARIABLES, check_url, read_token
from perdure.node.cli.settings import settings_options
from perdure.node.config.model import Config, advertised
from perdure.node.config.resolve import Loaded
from perdure.node.doctor.findings import Finding, Level, finding_row, ok, worst_first

_COLOURS = {Level.CRITICAL: "red", Level.WARNING: "yellow", Level.OK: "green"}


@click.command()
@click.option(
    "--admin-url",
    envvar=ADMIN_VARIABLES,
    callback=check_url,
    help="Where the node's admin API is; what the settings say unless given.",
)
@click.option("--all", "shows_all", is_flag=True, help="Show what is well, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
@settings_options
def doctor(loaded: Loaded, admin_url: str | None, shows_all: bool, as_json: bool) -> int:
    """Look for what is wrong with a node and its surroundings.

    Settings, data directory, disk, ports, certificates, clocks, the other members, etcd, the object
    store, and what a running node says of its cluster are looked at. Give it the settings that the
    node runs with, on the node's machine. Each finding says what is wrong, where, and the next
    step. Ends with code 1 if something is critical or a warning.
    """
    config = loaded.config
    found = worst_first(_examine(config, admin_url))
    if as_json:
        emit_json({"findings": [finding_row(each) for each in found]})
    else:
        _show(found, shows_all)
    return 1 if found[0].level <= Level.WARNING else 0


def _examine(config: Config, admin_url: str | None) -> Iterator[Finding]:
    from perdure.node.doctor import certificates, local, others, running

    clock, entropy = SystemClock(), SystemEntropy()
    settings = list(local.check_settings(config))
    yield from settings
    is_running, found = local.check_folder(config)
    yield from found
    yield from local.check_disk(config, clock)
    yield from local.check_ports(config, is_running=is_running)
    yield from local.check_open_files()
    yield from certificates.check_certificates(config, clock)
    if all(each.level is not Level.CRITICAL for each in settings):
        yield from asyncio.run(others.check_members(config, clock, entropy))
        yield from asyncio.run(others.check_etcd(config, clock))
    yield from others.check_store(config, entropy)
    url = admin_url or advertised(
        config.admin.advertised_address, config.admin.bind_address, config.admin.bind_address.port
    )
    client = AdminClient(url, read_token())
    try:
        document = client.get("/perdure/cluster")
    except (NodeUnreachable, UnexpectedAnswer) as error:
        yield _unanswered(error, url, is_running=is_running or admin_url is not None)
        return
    except Refused as error:
        what = f"it refuses to say how the cluster is: {error.message}"
        yield Finding(Level.CRITICAL, "node", what, url, "see its log")
        return
    finally:
        client.close()
    yield ok("node", "it answers", url)
    yield from running.check_cluster(document)
    yield from running.check_clocks(document, clock)


def _unanswered(error: PerdureError, url: str, *, is_running: bool) -> Finding:
    if is_running:
        advice = "is admin.bind-address another one? Say --admin-url; otherwise see the node's log"
        return Finding(Level.CRITICAL, "node", error.message, url, advice)
    advice = "start it, and ask again: a node that runs knows more"
    return Finding(Level.NOTE, "node", "no node runs here", url, advice)


def _show(found: list[Finding], shows_all: bool) -> None:
    shown = [each for each in found if shows_all or each.level is not Level.OK]
    width = max((len(each.level.name) for each in shown), default=0)
    for each in shown:
        label = click.style(
            f"{each.level.name.lower():<{width}}", fg=_COLOURS.get(each.level), bold=True
        )
        click.echo(f"{label}  {each.check}: {plain(each.what)}")
        if each.where:
            click.echo(f"{'where:':>{max(width, 6)}}  {plain(each.where)}")
        if each.advice:
            click.echo(f"{'next:':>{max(width, 6)}}  {plain(each.advice)}")
    well = sum(each.level is Level.OK for each in found)
    click.echo(f"{len(found)} things were looked at, {well} are well.")
