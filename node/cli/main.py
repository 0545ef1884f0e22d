"""The ``perdure`` command: finds the verb, runs it, and turns every failure into advice.

Verbs are imported when they are called, so that each pays for its own imports only.
"""

import importlib
import os
import sys
from collections.abc import Sequence

import click

import perdure
from perdure.core.errors import NodeUnreachable, PerdureError, UnexpectedAnswer
from perdure.node.cli import exits
from perdure.node.cli.output import complain
from perdure.node.cli.refused import Refused

# Verb: where its command is, and the line in the list of verbs (importing all would be slow).
VERBS = {
    "up": ("perdure.node.cli.up:up", "Start a node here and now, with nothing to configure."),
    "server": ("perdure.node.cli.server:server", "Run a node in the foreground."),
    "config": (
        "perdure.node.cli.config:config",
        "Show every setting and where its value came from.",
    ),
    "deployments": (
        "perdure.node.cli.deployments:deployments",
        "Register services and look at deployments.",
    ),
    "services": (
        "perdure.node.cli.services:services",
        "Look at services and change their settings.",
    ),
    "invocations": (
        "perdure.node.cli.invocations:invocations",
        "Look at invocations; cancel, kill, pause, resume, purge them.",
    ),
    "sql": ("perdure.node.cli.sql:sql", "Ask the tables of a node: a statement that only reads."),
    "state": ("perdure.node.cli.state:state", "Read and change the state of objects."),
    "snapshots": (
        "perdure.node.cli.snapshots:snapshots",
        "Take, check and restore snapshots of all state.",
    ),
    "cluster": (
        "perdure.node.cli.cluster:cluster",
        "Show how a cluster stands: what is wrong first; make one of a single node.",
    ),
    "nodes": (
        "perdure.node.cli.nodes:nodes",
        "Look at the nodes of a cluster; drain, resume, remove them.",
    ),
    "partitions": (
        "perdure.node.cli.partitions:partitions",
        "Look at partitions; move, pin and freeze their leaders.",
    ),
    "log": (
        "perdure.node.cli.log:log",
        "Look at the logs of partitions; compare their replicas, end segments.",
    ),
    "metadata": (
        "perdure.node.cli.metadata:metadata",
        "Look at the cluster's registers; copy them, and put copies back.",
    ),
    "doctor": (
        "perdure.node.cli.doctor:doctor",
        "Look for what is wrong with a node and its surroundings.",
    ),
    "identity": (
        "perdure.node.cli.identity:identity",
        "Make and look at the key that requests to services are signed with.",
    ),
    "version": (
        "perdure.node.cli.version:version",
        "Show the version, the service protocol versions it speaks, and whether it is compiled.",
    ),
}

_EXITS = "\b\nExit codes:\n" + "\n".join(
    f"  {code:<4} {meaning}" for code, meaning in exits.MEANINGS.items()
)

_ADVICE = {
    "META0003": "is the service running, and does this address work from where the node runs?",
    "META0006": "register with --breaking if the change of type is meant",
    "META0014": "register with --use-http1.1, or serve HTTP/2 (hypercorn does)",
    "META0102": "see `perdure deployments list`",
    "META0103": "see `perdure services list`",
    "SNAP0004": "see `perdure config` for snapshots.destination, and the node's log",
}


class _Verbs(click.Group):
    """Looks verbs up in the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(
    cls=_Verbs,
    epilog=_EXITS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(perdure.__version__, "-V", "--version", message="perdure %(version)s")
def cli() -> None:
    """perdure: a durable execution server, compatible with Restate SDKs.

    Start with `perdure up`; then `perdure deployments register http://localhost:9080`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: never returns, always leaves with one of the exit codes."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """The command's exit code; failures are told on stderr."""
    try:
        outcome: object = cli.main(arguments, prog_name="perdure", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return exits.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Refused as refused:
        _complain_of(refused)
        return exits.FAILED
    except PerdureError as error:
        complain(error.message, error.code, advice=_advice(error))
        return exits.exit_code(error)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be said to them.
        # Nor at exit, when the interpreter flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    except Exception as error:  # bulkhead: whatever else goes wrong is told with its traceback
        import traceback

        traceback.print_exc()
        complain(f"this is a bug in perdure: {error!r}", advice="report it with the lines above")
        return exits.BUG
    return outcome if isinstance(outcome, int) else 0


def _complain_of(refused: Refused) -> None:
    advice = _ADVICE.get(refused.code or "")
    where = f"{refused.request} (answered {refused.status})"
    complain(refused.message, refused.code, where, advice)


def _advice(error: PerdureError) -> str | None:
    if isinstance(error, NodeUnreachable):
        return (
            "start a node with `perdure up`, or name another one with --admin-url "
            "or PERDURE_ADMIN_URL"
        )
    if isinstance(error, UnexpectedAnswer):
        return "name the node's admin address (port 9070 by default) with --admin-url"
    return None


if __name__ == "__main__":
    main()
