"""What runs deploy/compose.yaml in namespaces: what it reads there, what it refuses, which links it
hurts. Whether all of it runs is for ``make chaos``, which needs root."""

import random
from pathlib import Path

import pytest
from deploy.namespaces.compose import (
    COMPOSE,
    Image,
    Mount,
    Service,
    Unsupported,
    read_image,
    read_services,
)
from deploy.namespaces.links import Links, both_ways, one_way
from deploy.namespaces.machine import IMAGES

from perdure.node.config.resolve import resolve

NODES = ("node-1", "node-2", "node-3")


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    return read_services(stand_ins=IMAGES)


def test_nodes_are_read_as_they_ship(services: dict[str, Service]) -> None:
    for number, name in enumerate(NODES, 1):
        node = services[name]
        assert node.is_built
        assert node.command == ("perdure", "server")
        assert node.user == 10_001
        assert node.environment["PERDURE_NODE_NAME"] == name
        assert node.environment["PERDURE_BASE_DIR"] == "/var/lib/perdure"
        assert node.ports == ((8080 + number, 8080), (9070 + number, 9070))
        assert node.health[0] == "python"
        assert node.after == ("store",)
        secret = str(COMPOSE.parent / "cluster.secret")
        assert node.mounts == (
            Mount(name, "/var/lib/perdure"),
            Mount(secret, "/run/secrets/cluster", is_read_only=True),
        )


def test_snapshots_go_to_the_store_that_ships(services: dict[str, Service]) -> None:
    store = services["store"]
    for name in NODES:
        environment = dict(services[name].environment)
        snapshots = resolve(None, environment, {}).config.snapshots
        assert snapshots.endpoint_url == "http://store:8333/"
        assert snapshots.destination is not None
        bucket = snapshots.destination.partition("://")[2].partition("/")[0]
        assert f"-bucket={bucket}" in store.command
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert environment[key] == store.environment[key]
    assert store.command[0] == "weed"
    assert store.health[:2] == ("sh", "-c")


def test_a_sample_service_is_read_as_it_ships(services: dict[str, Service]) -> None:
    greeter = services["greeter"]
    assert greeter.command[:2] == ("sh", "-c")
    assert greeter.environment == {"PORT": "9080", "HOST": "0.0.0.0"}
    (examples,) = greeter.mounts
    assert Path(examples.source, "python/greeter.py").exists()
    assert (examples.target, examples.is_read_only) == ("/service/examples", True)


REFUSED = {
    "a key that isn't known": "image: python, privileged: true",
    "an image that nothing stands in for": "image: postgres:17",
    "a volume that isn't there": 'image: python, volumes: ["data:/data"]',
    "a mount with options": 'image: python, volumes: ["./a:/a:z"]',
    "a range of ports": 'image: python, ports: ["8000-8010:8000"]',
    "a health check that isn't a command": 'image: python, healthcheck: { test: ["NONE"] }',
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_skipped_in_silence(tmp_path: Path, name: str) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(f"services:\n  one: {{ {REFUSED[name]} }}\n")
    with pytest.raises(Unsupported):
        read_services(path, {"python": Image()})


def test_the_last_stage_of_a_dockerfile_counts(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text('FROM a AS b\nENV X=1\nFROM c\nENV Y=2 \\\n    Z=3\nUSER 7\nCMD ["go"]\n')
    assert read_image(path) == Image(command=("go",), environment={"Y": "2", "Z": "3"}, user=7)
    path.write_text("FROM a\nONBUILD RUN true\n")
    with pytest.raises(Unsupported):
        read_image(path)


# --- Links ----------------------------------------------------------------------------------------


@pytest.fixture
def links() -> Links:
    return Links(random.Random(1))


def test_frames_arrive_at_once_unless_told_otherwise(links: Links) -> None:
    assert links.judge("a", "b") == 0.0


def test_a_cut_has_a_direction(links: Links) -> None:
    links.set_cut(one_way(["a"], ["b", "c"]))
    assert [links.judge("a", to) for to in "bc"] == [None, None]
    assert [links.judge(source, "a") for source in "bc"] == [0.0, 0.0]
    links.set_cut(both_ways(["a"], ["b"]))
    assert links.judge("b", "a") is None
    links.heal()
    assert links.judge("a", "b") == 0.0


def test_a_share_is_lost(links: Links) -> None:
    links.set_loss(both_ways(["a"], ["b"]), 0.2)
    lost = sum(links.judge("b", "a") is None for _ in range(10_000))
    assert 1_800 < lost < 2_200
    assert links.judge("b", "c") == 0.0


def test_a_delay_holds_for_what_is_not_lost(links: Links) -> None:
    links.set_delay(one_way(["a"], ["b"]), 0.05)
    assert links.judge("a", "b") == 0.05
    assert links.judge("b", "a") == 0.0
    links.set_cut(one_way(["a"], ["b"]))
    assert links.judge("a", "b") is None


def test_nobody_has_a_link_to_itself() -> None:
    assert one_way(["a", "b"], ["a", "b"]) == [("a", "b"), ("b", "a")]
    assert both_ways(["a"], ["a", "b"]) == [("a", "b"), ("b", "a")]
