"""A server whose disk fills up: run as ``unshare --map-root-user --mount python -m … FOLDER``.

The data directory lies on a small file system of memory, mounted here and gone with this process.
What must hold: while the disk is full, new requests are answered 503 with the code LOG0003, what
is there can be read, and a crash changes nothing of that; when there is room, everything goes on;
what was acknowledged before, meanwhile and after is there.
"""

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.process.calls import Answer, post_json
from tests.process.driver import CrashRun, RunOptions, Submission
from tests.process.processes import EXIT_START, ProcessFailed, ServerProcess
from tests.process.programs import RUNNER, Program, Step, encode

_DISK_BYTES = 320 * 1024 * 1024
_PADDING_BYTES = 1024 * 1024
_SENDS_MAX = 200
_ROOM_SECONDS = 20.0
_SCENARIO_SECONDS = 120.0


@dataclass(slots=True)
class Filler:
    """A file that takes whatever is left."""

    path: Path

    def fill(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            for size in (1024 * 1024, 4096):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def remove(self) -> None:
        self.path.unlink()


class Sender:
    """Sends padded programs, each once; knows which ones were accepted."""

    def __init__(self, run: CrashRun) -> None:
        self._run = run
        self._count = 0

    async def send(self) -> Answer:
        """One more program, without insisting."""
        name = f"p{self._count}"
        self._count += 1
        program = Program(
            name=name,
            service=RUNNER,
            key="",
            ops=(Step(is_flaky=False),),
            padding_bytes=_PADDING_BYTES,
        )
        answer = await post_json(
            self._run.server.ingress_port,
            f"/{RUNNER}/run/send",
            encode(program),
            {"idempotency-key": name},
        )
        if answer.status == 202:
            submission = Submission(program, answer.json()["invocationId"])
            self._run.submissions.append(submission)
        return answer

    async def send_until_refused(self) -> None:
        for _ in range(_SENDS_MAX):
            answer = await self.send()
            if answer.status != 202:
                assert answer.status == 503, answer
                assert b"LOG0003" in answer.body, answer
                return
        raise AssertionError("a full disk refuses nothing")

    async def send_until_accepted(self) -> None:
        async with asyncio.timeout(_ROOM_SECONDS):
            while (await self.send()).status != 202:
                await self._run.breathe()


async def scenario(folder: Path) -> None:
    disk = folder / "disk"
    run = CrashRun(folder, RunOptions(seed=0, kills=0), ServerProcess(disk))
    run.server.log_path = folder / "server.log"
    filler = Filler(disk / "filler")
    try:
        async with asyncio.timeout(_SCENARIO_SECONDS):
            await _fill_and_free(run, filler)
    except BaseException:
        print(run.server.log_tail(), flush=True)
        raise
    finally:
        run.close()


async def _fill_and_free(run: CrashRun, filler: Filler) -> None:
    await run.start()
    sender = Sender(run)
    await sender.send_until_accepted()
    filler.fill()
    await sender.send_until_refused()
    told = run.server.log_path.read_text()
    assert "wal.disk.full" in told or "partition.flush.failed" in told, "the log tells of it"
    await run.attach(run.submissions[0])
    await run.server.wait_healthy(admin_statuses=(503,))
    filler.remove()
    await sender.send_until_accepted()
    await run.server.wait_healthy()
    await run.attach_all()

    filler.fill()
    await sender.send_until_refused()
    await restart_without_room(run, filler)
    await sender.send_until_accepted()
    await run.attach_all()

    filler.fill()
    await restart_without_room(run, filler)
    await run.attach_all()
    assert run.server.terminate() == 0
    run.server.start()
    await run.server.wait_healthy()
    await run.attach_all()
    run.check({})
    assert not run.violations, run.violations


async def restart_without_room(run: CrashRun, filler: Filler) -> None:
    """Kill, and start on the full disk: the server serves what is there or says why it can't."""
    run.server.kill()
    run.server.start()
    try:
        await run.server.wait_healthy(admin_statuses=(200, 503))
    except ProcessFailed as failure:
        assert "[LOG0003]" in str(failure), failure
        assert run.server.exit_code() == EXIT_START
        filler.remove()
        run.server.start()
        await run.server.wait_healthy()
    else:
        await run.attach(run.submissions[0])
        filler.remove()


def main() -> None:
    folder = Path(sys.argv[1])
    disk = folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    options = f"size={_DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
    asyncio.run(scenario(folder))


if __name__ == "__main__":
    main()
