"""One heap: threads of a fresh process reserve no address space for heaps of their own."""

import subprocess
import sys

_PROGRAM = """
import sys, threading
from pathlib import Path
from perdure.node.heap import share_one_heap

def reserved():
    found = [line for line in Path("/proc/self/maps").read_text().splitlines() if " ---p " in line]
    bounds = [[int(number, 16) for number in line.split()[0].split("-")] for line in found]
    return sum(32 << 20 < end - start < 64 << 20 for start, end in bounds)

if sys.argv[1] == "shared":
    assert share_one_heap()
done, allocated = threading.Event(), threading.Barrier(5)

def work():
    kept = bytearray(5000)
    allocated.wait()
    done.wait()

before = reserved()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
allocated.wait()
print(reserved() - before)
done.set()
"""


def _heaps(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_threads_share_one_heap() -> None:
    assert _heaps("apart") > 0
    assert _heaps("shared") == 0
