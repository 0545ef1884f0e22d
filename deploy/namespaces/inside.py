"""The first process of a container: makes its file system and becomes its command.

Run by ``machine.py`` in fresh mount, process and host-name namespaces, with the path of a JSON
document as its argument. The root is a small file system of memory in which the machine's folders
lie, but for those that a container has for itself; what the container is given is mounted over
them. Only the standard library: this runs as the user of the image in the end.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# Folders that a container does not share with the machine.
_OWN = frozenset({"proc", "run", "var"})
_NOBODY_BUT_ROOT = 0


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def make_root(root: Path, document: dict[str, Any]) -> None:
    """The file system of the container, at ``root``."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root))
    targets = [Path(item["target"]) for item in document["mounts"]]
    own = _OWN | {target.parts[1] for target in targets if len(target.parts) > 1} - {"etc"}
    for path in Path("/").iterdir():
        place = root / path.name
        if path.is_symlink():
            place.symlink_to(path.readlink())
        elif path.is_dir():
            place.mkdir()
            if path.name not in own:
                mount("--rbind", str(path), str(place))
    for path in document["needed"]:
        if Path(path).parts[1] in own:
            _bind(path, root, path)
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "dev/shm"))
    for item in document["mounts"]:
        _bind(item["source"], root, item["target"])
        if item["is_read_only"]:
            mount("-o", "remount,bind,ro", str(root / item["target"].lstrip("/")))


def _bind(source: str, root: Path, target: str) -> None:
    place = root / target.lstrip("/")
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    mount("--bind", source, str(place))


def become(document: dict[str, Any]) -> None:
    """Run the command as the image's user; it may read what the machine keeps for root, as the
    interpreter may lie there, but write only what is its own."""
    environment = document["environment"]
    words: list[str] = document["command"]
    program = shutil.which(words[0], path=environment["PATH"])
    if program is None:
        raise SystemExit(f"{words[0]} is not installed")
    # What is loaded before everything else is for the command alone: it belongs to its user.
    preload = environment.pop("LD_PRELOAD", None)
    command = [*(["env", f"LD_PRELOAD={preload}"] if preload else []), program, *words[1:]]
    if document["user"] != _NOBODY_BUT_ROOT:
        user = str(document["user"])
        reader = ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search"]
        identity = ["--reuid", user, "--regid", user, "--clear-groups", "--bounding-set"]
        command = ["setpriv", *reader, *identity, "-all,+dac_read_search", "--", *command]
    os.execvpe(command[0], command, environment)


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(document["name"])
    root = Path(document["root"])
    root.mkdir(exist_ok=True)
    make_root(root, document)
    os.chroot(root)
    os.chdir(document["folder"])
    become(document)


if __name__ == "__main__":
    main()
