"""DBOS: a library in the application's process, on PostgreSQL or SQLite."""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from bench.processes import READY_SECONDS, BenchFailed, NotHere, Process, free_port
from bench.systems import peers
from bench.systems.base import ALL_WORKLOADS, System


class Dbos(System):
    """The application is the system here: its CPU and memory include the user's code."""

    name = "dbos-postgres"
    workloads = ALL_WORKLOADS - {"object", "replay", "growth"}  # no counterpart, or far too slow
    runs_max = 2
    database: ClassVar[str] = "postgres"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port, self._database_port = free_port(), free_port()

    @classmethod
    def provide(cls) -> None:
        peers.install()
        if cls.database == "postgres":
            _postgres("initdb")

    def launch(self) -> float:
        if self.database == "postgres":
            url = f"postgresql://bench@127.0.0.1:{self._database_port}/postgres"
            started_at = self._launch_postgres()
        else:
            url, started_at = f"sqlite:///{self.folder / 'dbos.sqlite'}", None
        command = [str(peers.PYTHON), "-m", "bench.apps.dbos_app", str(self.port), url]
        application = Process(command, {}, self.folder / f"{self.name}.log")
        self.measured.insert(0, application)
        seconds = application.wait_healthy(
            f"http://127.0.0.1:{self.port}/restate/health", self.port
        )
        return seconds + (application.started_at - started_at if started_at else 0.0)

    def prepare(self) -> None:
        pass

    def _launch_postgres(self) -> float:
        """PostgreSQL with its defaults: fsync and synchronous_commit are on. When it started."""
        data, user = self.folder / "postgres", ""
        if os.geteuid() == 0:  # PostgreSQL refuses root
            user = "postgres"
        if not data.exists():
            data.mkdir(mode=0o700)
            if user:
                account = pwd.getpwnam(user)
                os.chown(data, account.pw_uid, account.pw_gid)
                for parent in (self.folder, *self.folder.parents):
                    if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o777 == 0o700:
                        parent.chmod(0o711)
            made = subprocess.run(
                [_postgres("initdb"), "-D", str(data), "-U", "bench", "-A", "trust"],
                capture_output=True,
                text=True,
                cwd="/",
                user=user or None,
                group=user or None,
                extra_groups=[] if user else None,
            )
            if made.returncode:
                raise BenchFailed(f"initdb: {made.stderr}")
        command = [_postgres("postgres"), "-D", str(data), "-p", str(self._database_port)]
        command += ["-h", "127.0.0.1", "-k", ""]
        server = Process(command, {}, self.folder / "postgres.log", user)
        self.measured.append(server)
        server.wait_listening(self._database_port)
        self._wait_recovered()
        return server.started_at

    def _wait_recovered(self) -> None:
        """After a kill it listens long before it lets anybody in."""
        command = [_postgres("pg_isready"), "-h", "127.0.0.1", "-p", str(self._database_port)]
        deadline = time.perf_counter() + READY_SECONDS
        while subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            if time.perf_counter() > deadline:
                raise BenchFailed("PostgreSQL doesn't recover")
            time.sleep(0.02)


class DbosSqlite(Dbos):
    name = "dbos-sqlite"
    clients_max = 200
    database = "sqlite"


def _postgres(program: str) -> str:
    """A program of PostgreSQL: on the path, or where Debian puts it."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(program) or next(
        (path for place in places if (path := shutil.which(program, path=str(place)))), None
    )
    if found is None:
        raise NotHere("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found
