"""Runs deploy/compose.yaml without containers, and hurts it: ``sudo python -m deploy.namespaces``.

Every service runs in network, mount and process namespaces of its own on this machine, with its
own address; what it runs is what the compose file says. Then it reads orders from the terminal,
one a line; ``help`` lists them. All is gone when it ends.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from deploy.namespaces.compose import read_services
from deploy.namespaces.links import both_ways, one_way
from deploy.namespaces.machine import IMAGES, Container, Impossible, Machine, enter_own_mounts
from deploy.namespaces.switch import GATEWAY

HELP = """\
  status                    who runs and is well, and how it is reached
  cut A B                   no frame passes between them any more (gateway: this machine)
  cut-one-way A B           none passes from A to B
  isolate A                 cut it off from all others, not from this machine
  loss 0.2 [A B]            lose that share of the frames between them, or between all
  delay 0.05 [A B]          each way takes so many seconds
  heal                      all links are well again
  freeze A, thaw A          stop all its processes, and let them go on
  kill A, start A, stop A   SIGKILL, start, SIGTERM
  clock A 60                its wall clock is wrong by so many seconds (--clocks)
  fill A, free A            fill its disk, and make room again
  wipe A                    empty its disk (kill it before)
  keep A, put-back A        keep a copy of its disk; put it back later (kill it before)
  log A                     the end of what it has printed
  end"""
_LOG_LINES = 20


class Shell:
    """Carries out orders."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self._folder = folder

    def run(self) -> None:
        """Until the input ends, or says so."""
        while True:
            print("> ", end="", flush=True)
            line = sys.stdin.readline()
            words = line.split()
            if not line or words == ["end"]:
                return
            try:
                if words and not (self.hurt_links(words) or self.hurt_one(words)):
                    print(HELP)
            except (ValueError, AssertionError, OSError, Impossible) as error:
                print(f"  {error}")

    def hurt_links(self, words: list[str]) -> bool:
        """Whether that was an order about links."""
        network = self._machine.network
        match words:
            case ["cut", one, other]:
                network.cut(both_ways([one], [other]))
            case ["cut-one-way", source, target]:
                network.cut(one_way([source], [target]))
            case ["isolate", name]:
                self._machine.isolate(name)
            case ["loss", share, *ends]:
                network.lose(self._links(ends), float(share))
            case ["delay", seconds, *ends]:
                network.delay(self._links(ends), float(seconds))
            case ["heal"]:
                network.heal()
            case _:
                return False
        return True

    def hurt_one(self, words: list[str]) -> bool:
        """Whether that was an order about a container; ``status`` is about all."""
        if words == ["status"]:
            self.status()
            return True
        if len(words) < 2 or (container := self._machine.containers.get(words[1])) is None:
            return False
        match words:
            case ["freeze" | "thaw" | "kill" | "start" as order, _]:
                getattr(container, order)()
            case ["stop", _]:
                print(f"  ended with {container.stop()}")
            case ["fill" | "free" | "wipe" as order, _]:
                getattr(container.disk, order)()
            case ["clock", _, seconds]:
                container.set_clock(float(seconds))
            case ["keep", name]:
                self.keep(container, self._folder / f"{name}.kept")
            case ["put-back", name]:
                container.disk.roll_back(self._folder / f"{name}.kept")
            case ["log", _]:
                lines = container.log_path.read_text(errors="replace").splitlines()
                print("\n".join(lines[-_LOG_LINES:]))
            case _:
                return False
        return True

    def status(self) -> None:
        for name, container in self._machine.containers.items():
            is_well = "well" if container.is_well() else "not well"
            ports = ", ".join(f"127.0.0.1:{at} -> {to}" for to, at in container.ports.items())
            print(f"  {name:8} {container.address:12} {is_well:9} {ports}")

    def keep(self, container: Container, kept: Path) -> None:
        """Taken while nothing moves, as of one instant."""
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        container.keep_disk(kept)

    def _links(self, ends: list[str]) -> list[tuple[str, str]]:
        names = ends or [*self._machine.network.names, GATEWAY]
        return both_ways(names, names)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.namespaces", description=__doc__)
    parser.add_argument("--directory", type=Path, help="keep logs here")
    parser.add_argument("--clocks", action="store_true", help="let clocks be set")
    arguments = parser.parse_args()
    folder = arguments.directory or Path(tempfile.mkdtemp(prefix="perdure-namespaces-"))
    folder.mkdir(parents=True, exist_ok=True)
    services = read_services(stand_ins=IMAGES)
    try:
        enter_own_mounts()
        machine = Machine(folder.resolve(), services)
    except Impossible as impossible:
        print(impossible, file=sys.stderr)
        return 1
    try:
        for container in machine.containers.values():
            if arguments.clocks and container.service.is_built:
                container.give_clock()
        machine.start()
        print(f"\n  Logs are in {folder}. These orders are understood:\n\n{HELP}\n")
        shell = Shell(machine, folder)
        for name in machine.containers:
            machine.wait_well(name)
        shell.status()
        shell.run()
    except (KeyboardInterrupt, Impossible) as end:
        print(f"\n{end}")
    finally:
        machine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
