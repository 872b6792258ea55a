"""Pipelines and GitOps examples are valid, safe, run words of the Makefile that exist, and leave no directory of tests out."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = [*sorted((ROOT / ".github" / "workflows").glob("*.yaml")), ROOT / "deploy" / "gitops" / "github-workflow.yaml"]
GITLAB = [ROOT / ".gitlab-ci.yml", ROOT / "deploy" / "gitops" / "gitlab-ci.yml"]
PROGRAMS = Path(sys.executable).parent
needs_checkers = pytest.mark.skipif(importlib.util.find_spec("check_jsonschema") is None, reason="not installed (requirements/deploy.txt)")


def run(*command: object) -> str:
    """Run a program of the environment; return what it says. A status other than 0 fails the test."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def list_words(text: str) -> set[str]:
    """Words of the Makefile that `text` runs."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "- apt-get", "apt-get"))]
    return {word for line in lines for each in re.findall(r"\bmake ([a-z][a-z -]*)", line) for word in each.split()}


@needs_checkers
def test_pipelines_are_what_github_and_gitlab_accept() -> None:
    run(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    run(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci", *GITLAB)


@needs_checkers
def test_no_workflow_runs_text_of_a_pull_request_or_an_action_that_can_change() -> None:
    run(PROGRAMS / "zizmor", "--offline", "--pedantic", "--no-progress", *WORKFLOWS)


@pytest.mark.parametrize("path", [*WORKFLOWS[:-1], GITLAB[0]], ids=lambda path: path.name)
def test_pipeline_runs_words_of_the_makefile_that_exist(path: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    words = list_words(path.read_text())
    assert words and words <= known


def test_parts_of_both_pipelines_are_all_tests() -> None:
    rows = read(WORKFLOWS[0])["jobs"]["test"]["strategy"]["matrix"]["include"]
    (gitlab,) = read(GITLAB[0])["tests"]["parallel"]["matrix"]
    of_github = [path for row in rows for path in row["paths"].split()]
    assert of_github == [path for paths in gitlab["PATHS"] for path in paths.split()]
    directories = {f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("test_*.py"))}
    assert sorted(of_github) == sorted({*directories, "tests/test_*.py"})


@needs_checkers
@pytest.mark.parametrize("name", ["argocd-application.yaml", "flux.yaml"])
def test_values_of_a_gitops_example_are_values_of_the_chart(name: str) -> None:
    import jsonschema  # of requirements/deploy.txt

    release = list(yaml.safe_load_all((ROOT / "deploy" / "gitops" / name).read_text()))[-1]
    values = release["spec"].get("values") or release["spec"]["source"]["helm"]["valuesObject"]
    jsonschema.validate(values, json.loads((ROOT / "deploy" / "chart" / "values.schema.json").read_text()))
