"""``make cluster-demo``: three nodes sell on while two of them are killed with SIGKILL.

Starts three perdure processes that are one cluster, and a service written with an unmodified SDK.
Clients call all three nodes; a client whose node is gone asks the next one, under the same
idempotency key. The node that leads most partitions is killed, and, once it is back, the next one.
Then what clients were told, what the service did and what the tills counted are held against each
other. Exits with 1 if anything is not as promised.
"""

import argparse
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from examples.demo import (
    BOLD,
    CYAN,
    GREEN,
    RED,
    YELLOW,
    Broken,
    Timeline,
    ask,
    free_port,
    post,
    spawn,
    stop,
    wait_until,
)

NAMES = ("node-1", "node-2", "node-3")
CLIENTS = 6
CALM_S = 3.0
# Below those that outgoing connections take: a node must find its ports free again.
PORTS = range(20_000, 32_000)
# A client that gets no answer at all for so long gives up, which is an error.
PATIENCE_S = 60.0
BETWEEN_TRIES_S = 0.05


class Node:
    """One perdure process. It is killed as a crash would, and keeps ports and directory."""

    def __init__(self, name: str, base: int, directory: Path) -> None:
        """Ports from ``base`` on: for the other nodes, its metadata, ingress, admin, its own."""
        self.name = name
        self.address = f"127.0.0.1:{base}"
        self.ingress_port = base + 2
        self.ingress, self.admin, self._own = (f"127.0.0.1:{base + n}" for n in (2, 3, 4))
        self._directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, members: str) -> None:
        command = [sys.executable, "-m", "perdure", "server"]
        command += ["--base-dir", str(self._directory / "data"), "--node-name", self.name]
        command += ["--ingress-address", self.ingress, "--admin-address", self.admin]
        command += ["--bind-address", self._own]
        settings = {
            "PERDURE_CLUSTER__MEMBERS": members,
            "PERDURE_CLUSTER__BIND_ADDRESS": self.address,
        }
        self.process = spawn(command, self._directory / f"{self.name}.log", settings)

    def is_serving(self) -> bool:
        try:
            urls = (f"http://{self.ingress}/restate/health", f"http://{self.admin}/health")
            return all(ask(url)[0] == 200 for url in urls)
        except OSError:
            return False

    def led(self) -> list[bool]:
        """For each partition whether it is led here."""
        _, metrics = ask(f"http://{self._own}/metrics")
        lines = metrics.decode().splitlines()
        led = [line for line in lines if line.startswith("perdure_partition_is_leading{")]
        return [line.endswith(" 1.0") for line in led]

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Cluster:
    """The three of them."""

    def __init__(self, directory: Path) -> None:
        base = free_ports(5 * len(NAMES))
        self.nodes = [Node(name, base + 5 * n, directory) for n, name in enumerate(NAMES)]
        self._members = ", ".join(f"{node.name}={node.address}" for node in self.nodes)

    def start(self, *nodes: Node) -> float:
        """Start these; the seconds until all of them serve."""
        began = time.monotonic()
        for node in nodes:
            node.start(self._members)
        for node in nodes:
            wait_until(node.is_serving, f"{node.name} serves", node.process)
        return time.monotonic() - began

    def wait_led(self) -> list[int]:
        """Wait until each partition has a leader; how many each node leads."""

        def find_settled() -> list[int]:
            led = [node.led() for node in self.nodes]
            is_settled = all(sum(leaders) == 1 for leaders in zip(*led, strict=True))
            return [sum(one) for one in led] if is_settled else []

        return wait_until(find_settled, "each partition has a leader")

    def stop(self) -> None:
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGINT)
        for node in self.nodes:
            stop(node.process)


@dataclass
class Call:
    """One sale, from its first try to its answer."""

    began: float
    ended: float
    tries: int


@dataclass
class Load:
    """Clients in threads; each asks one node until that is gone, then the next one."""

    cluster: Cluster
    calls: dict[str, Call] = field(default_factory=dict[str, Call])
    errors: list[str] = field(default_factory=list[str])
    _answered: list[float] = field(default_factory=lambda: [0.0] * CLIENTS)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def start(self) -> None:
        for number in range(CLIENTS):
            thread = threading.Thread(target=self._sell, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Let every client have its last answer."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_answered(self, since: float) -> float:
        """Wait until each client has the answer to a call that it began after ``since``; the
        longest that one of them waited for an answer meanwhile."""
        wait_until(
            lambda: self.errors or all(began > since for began in self._answered),
            "each client is answered again",
        )
        calls = [call for call in self.calls.copy().values() if call.ended > since]
        return max((call.ended - call.began for call in calls), default=0.0)

    def _sell(self, number: int) -> None:
        nodes = self.cluster.nodes
        node, count = number % len(nodes), 0
        while not self._over.is_set():
            sale, began, tries = f"{number}-{count}", time.monotonic(), 1
            count += 1
            while (failure := try_sale(nodes[node], sale)) is not None:
                if time.monotonic() - began > PATIENCE_S or not failure.is_passing:
                    self.errors.append(f"sale {sale}: {failure.text}")
                    return
                node, tries = (node + 1) % len(nodes), tries + 1
                time.sleep(BETWEEN_TRIES_S)
            self.calls[sale] = Call(began, time.monotonic(), tries)
            self._answered[number] = began


@dataclass(frozen=True)
class Failure:
    """Why there is no result. ``is_passing``: the node is gone or asks to try again."""

    text: str
    is_passing: bool


def try_sale(node: Node, sale: str) -> Failure | None:
    """One request under the sale's idempotency key; None once it is answered as it should be."""
    connection = http.client.HTTPConnection("127.0.0.1", node.ingress_port, timeout=PATIENCE_S)
    headers = {"content-type": "application/json", "idempotency-key": sale}
    try:
        connection.request("POST", "/Sales/sell", json.dumps(sale), headers)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return Failure(f"{node.name}: {error!r}", is_passing=True)
    finally:
        connection.close()
    if answer.status == 200 and json.loads(body) == f"sold {sale}":
        return None
    text = f"{node.name} answers {answer.status}: {body.decode(errors='replace')}"
    return Failure(text, is_passing=answer.status == 503)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.cluster_demo", description=__doc__)
    parser.add_argument("--directory", type=Path, help="keep data and logs here")
    given: Path | None = parser.parse_args().directory
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        return run(given.resolve())
    with tempfile.TemporaryDirectory(prefix="perdure-cluster-") as directory:
        return run(Path(directory))


def run(directory: Path) -> int:
    """The show. Children are ended whatever happens."""
    timeline = Timeline()
    cluster = Cluster(directory)
    steps = directory / "steps.log"
    steps.unlink(missing_ok=True)
    port = free_port(9080)
    service: subprocess.Popen[bytes] | None = None
    print(f"\n  {timeline.paint('Three nodes, and kill -9 of the one that leads most', BOLD)}\n")
    try:
        command = [sys.executable, "-m", "examples.python.sales"]
        environment = {"PORT": str(port), "STEPS_FILE": str(steps)}
        service = spawn(command, directory / "service.log", environment)
        load = play(timeline, cluster, f"http://127.0.0.1:{port}")
        check(timeline, cluster, load, steps.read_text().splitlines())
    except Broken as broken:
        timeline.tell(f"BROKEN: {broken}", RED)
        return 1
    finally:
        cluster.stop()
        stop(service)
    print(f"\n  {timeline.paint('As promised.', BOLD)} Read it in examples/python/sales.py.\n")
    return 0


def play(timeline: Timeline, cluster: Cluster, service: str) -> Load:
    """Form, sell, kill, recover, kill, recover."""
    timeline.tell("three nodes start", detail=", ".join(node.ingress for node in cluster.nodes))
    formed = cluster.start(*cluster.nodes)
    timeline.tell("they are one cluster", GREEN, f"{formed:.1f} s after their start")
    wait_until(lambda: try_register(cluster.nodes[0], service), "the service is registered")
    for node in cluster.nodes:
        wait_until(partial(is_known, node), f"{node.name} knows the service")
    tell_led(timeline, cluster)
    load = Load(cluster)
    load.start()
    timeline.tell(f"{CLIENTS} clients sell over all of them", CYAN)
    killed: list[Node] = []
    for _ in range(2):
        time.sleep(CALM_S)
        killed.append(kill_leader(timeline, cluster, load, killed))
    time.sleep(CALM_S)
    load.stop()
    timeline.tell("the clients have their last answers", CYAN)
    return load


def kill_leader(timeline: Timeline, cluster: Cluster, load: Load, spared: list[Node]) -> Node:
    """Kill the node that leads most, of those not killed before; start it again."""
    led = tell_led(timeline, cluster)
    ranked = sorted(zip(led, cluster.nodes, strict=True), key=lambda pair: -pair[0])
    node = next(node for _, node in ranked if node not in spared)
    sold = len(load.calls)
    killed = time.monotonic()
    node.kill()
    timeline.tell(f"{node.name} is killed with SIGKILL", RED, f"after {sold:,} sales")
    pause = load.wait_answered(killed)
    time.sleep(CALM_S)
    away = len(load.calls) - sold
    timeline.tell(
        f"the others sell on; no client waited longer than {pause:.2f} s",
        YELLOW,
        f"{away:,} sales without {node.name}",
    )
    took = cluster.start(node)
    timeline.tell(f"{node.name} is back", GREEN, f"serves {took:.1f} s after its start")
    return node


def tell_led(timeline: Timeline, cluster: Cluster) -> list[int]:
    led = cluster.wait_led()
    text = ", ".join(f"{node.name} {count}" for node, count in zip(cluster.nodes, led, strict=True))
    timeline.tell("each partition has a leader", detail=f"led: {text}")
    return led


def check(timeline: Timeline, cluster: Cluster, load: Load, lines: list[str]) -> None:
    """What clients were told, against what the service did and the tills counted.

    Raises:
        Broken: with what is different.
    """
    timings = sorted(call.ended - call.began for call in load.calls.values())
    if not timings:
        raise Broken(f"nothing was sold: {load.errors}")
    repeated, ran_again = count_repeated(lines)
    lost = [sale for sale in load.calls if f"seen {sale} ship" not in set(lines)]
    sold = Counter(sale.partition("-")[0] for sale in load.calls)
    counted = {key: post(f"http://{cluster.nodes[0].ingress}/Till/{key}/add", 0) for key in sold}
    findings = [
        (len(load.errors), "errors for a client"),
        (len(lost), "acknowledged sales lost"),
        (repeated, "recorded steps that ran again"),
        (sum(abs(counted[key] - sold[key]) for key in sold), "sales miscounted by a till"),
    ]
    tries = sum(call.tries - 1 for call in load.calls.values())
    print(
        f"\n  {len(load.calls):,} sales were acknowledged, {tries} after another try; the median "
        f"took {timings[len(timings) // 2] * 1000:.0f} ms, the slowest {timings[-1]:.2f} s.\n"
        f"  {ran_again} steps were cut off before they were recorded, and ran again.\n"
    )
    for count, text in findings:
        mark, colour = ("✗", RED) if count else ("✓", GREEN)
        print(f"    {timeline.paint(f'{mark} {count}', colour)} {text}")
    if any(count for count, _ in findings):
        raise Broken(
            ", ".join(f"{count} {text}" for count, text in findings if count)
            + (f": {load.errors[0]}" if load.errors else "")
        )


def count_repeated(lines: list[str]) -> tuple[int, int]:
    """Steps that ran after their result was recorded; steps that ran twice before that."""
    ran: set[str] = set()
    seen: set[str] = set()
    repeated = ran_again = 0
    for line in lines:
        kind, _, place = line.partition(" ")
        if kind == "seen":
            seen.add(place)
        elif place in seen:
            repeated += 1
        else:
            ran_again += place in ran
            ran.add(place)
    return repeated, ran_again


def try_register(node: Node, service: str) -> bool:
    """Whether the service is registered now; it may not listen yet."""
    status, _ = ask(f"http://{node.admin}/deployments", json.dumps({"uri": service}).encode())
    return status in (200, 201)


def is_known(node: Node) -> bool:
    """Whether a service registered at another node can be called here."""
    return ask(f"http://{node.admin}/services/Sales")[0] == 200


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for _ in range(1_000):
        base = random.choice(range(PORTS.start, PORTS.stop - count))
        if all(is_free(base + n) for n in range(count)):
            return base
    raise Broken("no ports are free")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
