"""Reads what deploy/compose.yaml and deploy/Dockerfile say, so that what runs is what ships.

Understands the part of both that they use, and refuses the rest: a key that were skipped in silence
would be a difference between what is tested and what is shipped.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).resolve().parents[1] / "compose.yaml"
SECRETS = "/run/secrets"
# What of a service is used here. How long to wait for the end and when to start again after an end
# is for whoever runs it.
_SERVICE_KEYS = frozenset(
    {
        *("build", "command", "depends_on", "environment", "healthcheck", "image"),
        *("ports", "restart", "secrets", "stop_grace_period", "volumes", "working_dir"),
    }
)
_IMAGE_WORDS = frozenset(
    {
        *("CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM"),
        *("HEALTHCHECK", "RUN", "USER", "VOLUME", "WORKDIR"),
    }
)


class Unsupported(Exception):
    """The file says something that isn't understood here."""


@dataclass(frozen=True, slots=True)
class Mount:
    """``source`` is the name of a volume, or the whole path of a file or folder."""

    source: str
    target: str
    is_read_only: bool = False

    @property
    def is_volume(self) -> bool:
        return not self.source.startswith("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What an image brings along, as far as its Dockerfile tells."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    user: int = 0
    folder: str = "/"
    health: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One container: everything that is needed to start it."""

    name: str
    image: str
    is_built: bool
    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: int = 0
    folder: str = "/"
    mounts: tuple[Mount, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    """Pairs of a port of this machine and one of the container."""
    health: tuple[str, ...] = ()
    """A command that succeeds while the service is well; empty if nobody says."""
    after: tuple[str, ...] = ()


def read_services(
    path: Path = COMPOSE, stand_ins: Mapping[str, Image] | None = None
) -> dict[str, Service]:
    """The services of a compose file, in its order. ``stand_ins`` say what images bring along that
    aren't built from a Dockerfile, by their names without the tag.

    Raises:
        Unsupported: one of the files says something that isn't understood.
    """
    document = yaml.safe_load(path.read_text())
    secrets = {name: item["file"] for name, item in document.get("secrets", {}).items()}
    volumes = frozenset(document.get("volumes", {}))
    reader = _Reader(path.parent, secrets, volumes, stand_ins or {})
    return {name: reader.service(name, item) for name, item in document["services"].items()}


def read_image(path: Path) -> Image:
    """What the last stage of a Dockerfile leaves in the image.

    Raises:
        Unsupported: it has an instruction that isn't understood.
    """
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    image: dict[str, Any] = {}
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word not in _IMAGE_WORDS:
            raise Unsupported(f"{path.name}: {word}")
        match word:
            case "FROM":
                image = {"environment": {}}
            case "ENV":
                image["environment"] |= dict(re.findall(r"(\w+)=(\S+)", rest))
            case "USER":
                image["user"] = int(rest)
            case "WORKDIR":
                image["folder"] = rest
            case "ENTRYPOINT":
                image["entrypoint"] = tuple(json.loads(rest))
            case "CMD":
                image["command"] = tuple(json.loads(rest))
            case "HEALTHCHECK":
                image["health"] = tuple(json.loads(rest.partition("CMD ")[2]))
            case _:
                pass
    return Image(**image)


class _Reader:
    """Turns the items of one file into services."""

    def __init__(
        self,
        folder: Path,
        secrets: Mapping[str, str],
        volumes: frozenset[str],
        stand_ins: Mapping[str, Image],
    ) -> None:
        self._folder = folder
        self._secrets = secrets
        self._volumes = volumes
        self._stand_ins = stand_ins

    def service(self, name: str, item: Mapping[str, Any]) -> Service:
        if unknown := item.keys() - _SERVICE_KEYS:
            raise Unsupported(f"{name}: {sorted(unknown)}")
        image = self._image(name, item)
        arguments = _words(item["command"]) if "command" in item else image.command
        environment = {key: _text(value) for key, value in item.get("environment", {}).items()}
        mounts = [self._mount(name, text) for text in item.get("volumes", ())]
        mounts += [self._secret(secret) for secret in item.get("secrets", ())]
        check = item.get("healthcheck")
        return Service(
            name=name,
            image=item["image"],
            is_built="build" in item,
            command=image.entrypoint + arguments,
            environment={**image.environment, **environment},
            user=image.user,
            folder=item.get("working_dir", image.folder),
            mounts=tuple(mounts),
            ports=tuple(_port(name, text) for text in item.get("ports", ())),
            health=_health(name, check["test"]) if check else image.health,
            after=tuple(item.get("depends_on", ())),
        )

    def _image(self, name: str, item: Mapping[str, Any]) -> Image:
        if "build" in item:
            build = item["build"]
            return read_image(self._folder / build["context"] / build["dockerfile"])
        known = item["image"].partition(":")[0]
        if known not in self._stand_ins:
            raise Unsupported(f"{name}: nothing here stands in for {item['image']}")
        return self._stand_ins[known]

    def _mount(self, name: str, text: str) -> Mount:
        source, target, *options = text.split(":")
        if options not in ([], ["ro"]):
            raise Unsupported(f"{name}: {text}")
        if source.startswith("."):
            source = str((self._folder / source).resolve())
        elif source not in self._volumes:
            raise Unsupported(f"{name}: there is no volume {source}")
        return Mount(source, target, bool(options))

    def _secret(self, name: str) -> Mount:
        source = (self._folder / self._secrets[name]).resolve()
        return Mount(str(source), f"{SECRETS}/{name}", is_read_only=True)


def _words(command: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(shlex.split(command) if isinstance(command, str) else command)


def _text(value: object) -> str:
    """As in a container: a string, whatever YAML made of it."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _port(name: str, text: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", str(text))
    if found is None:
        raise Unsupported(f"{name}: port {text}")
    return int(found[1]), int(found[2])


def _health(name: str, test: list[str]) -> tuple[str, ...]:
    match test:
        case ["CMD", *words]:
            return tuple(words)
        case ["CMD-SHELL", line]:
            return ("sh", "-c", line)
        case _:
            raise Unsupported(f"{name}: healthcheck {test}")
