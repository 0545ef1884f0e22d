"""What can be told of others: the members of the cluster, etcd, the object store.

Members are asked who they are with this node's own secret and certificates, so that who is turned
away here would be turned away as a node.
"""

import asyncio

from perdure.cluster.fabric import Fabric
from perdure.cluster.membership import Probe
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    AnswerLost,
    NotAuthenticated,
    PerdureError,
    Unreachable,
    WrongCluster,
)
from perdure.core.tasks import Supervisor
from perdure.node.config.model import Config
from perdure.node.doctor.findings import Finding, Level, ok
from perdure.node.formation import Formation
from perdure.node.snapshots import open_store
from perdure.storage.disk import OsDisk
from perdure.storage.object_store import self_test

_ASK_S = 3.0
_ADVICE: dict[type[PerdureError], str] = {
    NotAuthenticated: "give all nodes the same cluster.secret-file, and certificates of one "
    "authority",
    WrongCluster: "another cluster runs there: check cluster-name and the addresses",
    Unreachable: "start it; if it runs, look at the address, the network and firewalls between",
}


async def check_members(config: Config, clock: Clock, entropy: Entropy) -> list[Finding]:
    """Every member of the configuration but this node."""
    others = [(name, at) for name, at in config.cluster.members if name != config.node_name]
    if not others:
        return []
    supervisor = Supervisor()
    folder = config.base_dir / config.node_name
    chances = (clock, entropy)
    fabric = Formation(config, OsDisk(folder), folder, chances, supervisor).make_guest()
    try:
        return list(await asyncio.gather(*(_ask(fabric, name, at) for name, at in others)))
    finally:
        await fabric.aclose()
        await supervisor.aclose()


async def _ask(fabric: Fabric, name: str, address: str) -> Finding:
    where = f"{name} {address}"
    try:
        found = await fabric.ask_at(address, Probe(), _ASK_S)
    except AnswerLost:
        # The handshake went well; who is still forming the cluster doesn't say who it is.
        what = "it is there, and not a node yet"
        return Finding(Level.NOTE, "members", what, where, "wait until the cluster has formed")
    except PerdureError as error:
        advice = next(
            (text for kind, text in _ADVICE.items() if isinstance(error, kind)), "see its log"
        )
        what = f"[{error.code}] {error.message}"
        return Finding(Level.CRITICAL, "members", what, where, advice)
    return ok("members", f"node {found.node}, generation {found.generation}", where)


async def check_etcd(config: Config, clock: Clock) -> list[Finding]:
    """Every endpoint, and whether the cluster is there."""
    if not config.etcd.endpoints:
        return []
    from perdure.cluster.membership import read_cluster
    from perdure.node.etcd import open_etcd

    store = open_etcd(config, clock)
    where = ", ".join(config.etcd.endpoints)
    found: list[Finding] = []
    try:
        for place in await store.look_each():
            if place.failure is None:
                found.append(ok("etcd", place.detail, place.place))
            else:
                advice = "start it, or name another one"
                found.append(Finding(Level.WARNING, "etcd", place.failure, place.place, advice))
        cluster = await read_cluster(store)
        if cluster is None:
            what = f"cluster {config.cluster_name!r} was not provisioned there yet"
            advice = "the first node that starts does it, or `perdure cluster provision`"
            found.append(Finding(Level.NOTE, "etcd", what, where, advice))
        return found
    except PerdureError as error:
        advice = "leaders lead on, nobody can take over: bring a majority of etcd back"
        what = f"[{error.code}] {error.message}"
        return [*found, Finding(Level.CRITICAL, "etcd", what, where, advice)]
    finally:
        await store.aclose()


def check_store(config: Config, entropy: Entropy) -> list[Finding]:
    """Where snapshots go: reachable, and keeping what it should."""
    where = config.snapshots.destination or ""
    try:
        store = open_store(config.snapshots)
        if store is None:
            return []
        fault = self_test(store, entropy)
    except PerdureError as error:
        advice = "look at the destination, the credentials and the network"
        what = f"[{error.code}] {error.message}"
        return [Finding(Level.CRITICAL, "snapshots", what, where, advice)]
    if fault is not None:
        advice = "use another store: nothing is trimmed on the strength of snapshots in this one"
        return [Finding(Level.CRITICAL, "snapshots", fault, where, advice)]
    return [ok("snapshots", "the object store keeps what it should", where)]
