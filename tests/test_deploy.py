"""What ships for containers: settings that exist, ports that are served, valid manifests."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]
import pytest
import yaml

from perdure.node.config.model import Config
from perdure.node.config.resolve import resolve

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
MANIFESTS = ("services", "nodes", "disruptions")
PORTS = {
    Config().ingress.bind_address.port,
    Config().admin.bind_address.port,
    Config().bind_address.port,
    Config().cluster.bind_address.port,
    Config().cluster.bind_address.port + 1,  # the metadata member
}


def documents(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = list(
        yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    )
    return found


def image_environment() -> dict[str, str]:
    text = (DEPLOY / "Dockerfile").read_text()
    return dict(re.findall(r"(PERDURE_\w+)=(\S+)", text))


def config_of(environment: dict[str, str]) -> Config:
    return resolve(None, {**image_environment(), **environment}, {}).config


def test_the_image_exposes_what_is_served() -> None:
    (exposed,) = re.findall(r"^EXPOSE (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {int(port) for port in exposed.split()} == PORTS


def test_three_composed_nodes_are_one_cluster() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    nodes = {name: item for name, item in services.items() if name.startswith("node-")}
    assert len(nodes) == 3
    configs = [config_of(node["environment"]) for node in nodes.values()]
    assert [config.node_name for config in configs] == list(nodes)
    assert len({config.cluster.members for config in configs}) == 1
    assert [f"{name}:5123" for name in nodes] == [at for _, at in configs[0].cluster.members]
    assert all(config.cluster.secret_file is not None for config in configs)
    assert all(config.cluster.bind_address.host == "0.0.0.0" for config in configs)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name: str) -> None:
    for document in documents(name):
        version = kubernetes_validate.latest_version()
        kubernetes_validate.validate(document, version, strict=True)


def test_every_manifest_is_applied() -> None:
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert listed["resources"] == [f"{name}.yaml" for name in MANIFESTS]


def test_pods_are_the_members_of_one_cluster() -> None:
    (stateful_set,) = documents("nodes")
    spec = stateful_set["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {
        item["name"]: item.get("value", "perdure-0").replace("$(PERDURE_NODE_NAME)", "perdure-0")
        for item in container["env"]
    }
    config = config_of(environment)
    pods = [f"{stateful_set['metadata']['name']}-{number}" for number in range(spec["replicas"])]
    assert [name for name, _ in config.cluster.members] == pods
    assert config.cluster.members[0][1] == config.cluster.advertised_address
    assert {port["containerPort"] for port in container["ports"]} == PORTS
    headless = next(item for item in documents("services") if item["spec"].get("clusterIP"))
    assert spec["serviceName"] == headless["metadata"]["name"]


def test_a_budget_leaves_a_majority() -> None:
    (budget,) = documents("disruptions")
    assert budget["spec"]["maxUnavailable"] == 1


def test_the_dashboard_is_json() -> None:
    assert json.loads((DEPLOY / "grafana" / "perdure.json").read_text())["panels"]
