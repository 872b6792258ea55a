"""The commands that administer a running installation, against real processes."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reliability.processes import WAIT_SECONDS, Running, Start, tollway

pytestmark = pytest.mark.system

FREE = ("--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--link", "127.0.0.1:0")

PLATFORM = """
models:
  meta/llama:
    endpoints: [completions, chat/completions]
    published: true
    prices:
      EUR: {input: 0.27, output: 1.10}
    deployments:
      http://127.0.0.1:9/: {engine: vllm, upstream_model: llama, credential: "${LLAMA_KEY}"}
plans:
  starter: {limits: {requests_per_minute: 60, requests_per_day: 9000}}
organizations:
  acme:
    currency: EUR
    time_zone: Europe/Berlin
    plan: starter
    limits: {requests_per_minute: 600}
    projects:
      chat: {limits: {concurrent_requests: 20}, model_limits: {meta/llama: {tokens_per_minute: 9000}}}
      batch: {}
"""


@pytest.fixture(scope="module")
def serving(start: Start) -> Running:
    """`tollway serve` on free ports, for all tests of this module."""
    running = start("serve", *FREE)
    running.wait_for_file("addresses.json")
    return running


def do(serving: Running, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a command against `serving`; returns what it printed."""
    ran = tollway(*arguments, "--data-dir", str(serving.directory), env=env)
    assert ran.returncode == code, (ran.stdout, ran.stderr)
    return ran.stdout if code in (0, 3) else ran.stderr


def do_json(serving: Running, *arguments: str) -> Any:
    return json.loads(do(serving, *arguments, "-o", "json"))


def test_apply_plans_then_does_then_has_nothing_left_to_do(serving: Running, tmp_path: Path) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text(PLATFORM)
    env = {"LLAMA_KEY": "upstream-secret"}
    plan = do(serving, "apply", "-f", str(path), "--dry-run", code=3, env=env)
    assert "+ model meta/llama" in plan and "13 changes (nothing was done)" in plan
    assert "upstream-secret" not in plan
    assert do_json(serving, "organizations", "list") == []

    assert "13 changes" in do(serving, "apply", "-f", str(path), env=env)
    assert do(serving, "apply", "-f", str(path), "--dry-run") == "nothing to change\n"
    assert do(serving, "apply", "-f", str(path)) == "nothing to change\n"  # nor is the credential needed again

    exported = tmp_path / "exported.yaml"
    do(serving, "export", "-f", str(exported))
    assert "upstream-secret" not in exported.read_text()
    assert do(serving, "apply", "-f", str(exported)) == "nothing to change\n"

    otherwise = (
        PLATFORM.replace("0.27", "0.25").replace("requests_per_minute: 600", "requests_per_minute: null").replace("Berlin", "Lisbon")
    )
    path.write_text(otherwise)
    assert do(serving, "apply", "-f", str(path)).splitlines() == [
        "~ price meta/llama / EUR",
        "    input: 0.27 -> 0.25",
        "~ organization acme",
        "    time_zone: Europe/Berlin -> Europe/Lisbon",
        "~ limits acme",
        "    requests_per_minute: 600 -> none",
        "3 changes",
    ]
    path.write_text("models: {}\norganizations: {}")
    assert do(serving, "apply", "-f", str(path)) == "nothing to change\n"  # left out is not deleted
    assert [each["name"] for each in do_json(serving, "organizations", "list")] == ["acme"]


def test_limits_are_set_by_name_and_shown_with_every_level_that_binds(serving: Running) -> None:
    do(serving, "organizations", "create", "tyrell", "--currency", "USD")
    of = ("--organization", "tyrell")
    do(serving, "projects", "create", "nexus", *of)
    do(serving, "keys", "create", "--name", "owl", *of)
    (key,) = do_json(serving, "keys", "list", *of)
    said = do(serving, "limits", "set", "tokens_per_minute=9_000", "requests-per-day=50", "--of-organization", *of)
    assert said.splitlines() == ["tokens_per_minute: none -> 9000", "requests_per_day: none -> 50"]
    do(serving, "limits", "set", "concurrent_requests=3", *of)
    do(serving, "limits", "set", "concurrent_requests=2", "--api-key", key["id"], *of)
    assert do(serving, "limits", "set", "tokens_per_minute=none", "--of-organization", *of) == "tokens_per_minute: 9000 -> none\n"
    do(serving, "budgets", "create", "all", "100", "--window", "month", *of)
    do(serving, "budgets", "create", "little", "1.50", "--window", "total", "--project", "nexus", *of)
    shown = do_json(serving, "limits", "show", "--project", "nexus", "--api-key", key["id"], *of)
    assert [(each["level"], each["limit"], each["size"]) for each in shown] == [
        ("api_key", "concurrent_requests", 2),
        ("project", "concurrent_requests", 3),
        ("organization", "requests_per_day", 50),
        ("project", "budget little", "1.5"),
        ("organization", "budget all", "100"),
    ]
    assert [(each["left"], each["binds"], each["reset_seconds"] is None) for each in shown[3:]] == [
        ("1.5", True, True),
        ("100", False, False),
    ]
    said = do(serving, "limits", "set", "requests_per_minute=51", "--of-organization", *of, code=1)
    assert "'requests_per_minute' (51) can never be reached, because 'requests_per_day' (50) is smaller" in said


def test_plan_is_assigned_and_overridden_by_name(serving: Running) -> None:
    do(serving, "organizations", "create", "rosen", "--currency", "USD")
    do(serving, "plans", "create", "silver", "requests_per_day=500", "concurrent_requests=5")
    assert do(serving, "plans", "assign", "rosen", "silver") == "rosen: silver\n"
    assert do(serving, "plans", "set", "silver", "requests_per_day=600") == "requests_per_day: 500 -> 600\n"
    do(serving, "plans", "override", "rosen", "concurrent_requests=9", "--until", "tomorrow")

    def shown() -> list[tuple[Any, ...]]:
        listed = do_json(serving, "limits", "show", "--organization", "rosen")
        return [(each["limit"], each["size"], each["source"], each["until"] is None) for each in listed]

    assert shown() == [("requests_per_day", 600, "plan silver", True), ("concurrent_requests", 9, "override", False)]
    assert "1 organization has the plan" in do(serving, "plans", "delete", "silver", code=1)
    do(serving, "plans", "end-override", "rosen")
    do(serving, "plans", "assign", "rosen", "none")
    do(serving, "plans", "delete", "silver")
    assert shown() == []


def test_a_credential_that_is_missing_stops_before_anything_is_done(serving: Running, tmp_path: Path) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text(PLATFORM.replace("meta/llama", "other").replace("acme", "initech"))
    said = do(serving, "apply", "-f", str(path), code=2)
    assert "LLAMA_KEY is empty or missing" in said
    assert "other" not in do(serving, "models", "list")


BAD_REFERENCES = {
    "terms by a book that is missing": ("terms: {book: partners}", "there is no price book partners"),
    "plan that is missing": ("plan: gold", "there is no plan gold"),
    "limits on a model that is missing": ("model_limits: {nothing: {requests_per_minute: 1}}", "there is no model nothing"),
}


@pytest.mark.parametrize("case", BAD_REFERENCES)
def test_apply_with_a_missing_reference_changes_nothing(serving: Running, tmp_path: Path, case: str) -> None:
    text, message = BAD_REFERENCES[case]
    path = tmp_path / "platform.yaml"
    path.write_text(f"organizations: {{hooli: {{currency: EUR, projects: {{chat: {{}}}}, {text}}}}}")
    for option in ((), ("--dry-run",)):
        assert message in do(serving, "apply", "-f", str(path), *option, code=2)
    assert "hooli" not in do(serving, "organizations", "list")


def test_apply_with_a_plan_that_would_leave_an_organization_without_its_budget_changes_nothing(serving: Running, tmp_path: Path) -> None:
    do(serving, "plans", "create", "bronze", "--monthly-budget", "EUR=5")
    do(serving, "organizations", "create", "wallace", "--currency", "EUR")
    do(serving, "plans", "assign", "wallace", "bronze")
    path = tmp_path / "platform.yaml"
    path.write_text("models: {early: {endpoints: [embeddings]}}\nplans: {bronze: {monthly_budgets: {EUR: null, USD: '5'}}}")
    for option in ((), ("--dry-run",)):
        said = do(serving, "apply", "-f", str(path), *option, code=2)
        assert "organization wallace has the plan and is billed in EUR" in said
    assert "early" not in do(serving, "models", "list")
    path.write_text("plans: {bronze: {monthly_budgets: {EUR: null}}}")
    do(serving, "apply", "-f", str(path))


def test_apply_publishing_a_model_without_a_price_changes_nothing(serving: Running, tmp_path: Path) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text("models: {unpriced: {endpoints: [embeddings], published: true}}")
    assert "a published model needs a price" in do(serving, "apply", "-f", str(path), code=2)
    assert "unpriced" not in do(serving, "models", "list")


def test_example_of_the_platform_file_applies_as_printed(serving: Running, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "platform.example.yaml"
    env = {"TOLLWAY_CREDENTIAL_LLAMA": "upstream-secret", "TOLLWAY_CLIENT_SECRET_COMPANY": "client-secret"}
    do(serving, "apply", "-f", str(example), env=env)
    assert do(serving, "apply", "-f", str(example), env=env) == "nothing to change\n"


def test_organizations_of_one_name_are_exported_and_applied_by_id(start: Start, tmp_path: Path) -> None:
    serving = start("serve", *FREE)
    serving.wait_for_file("addresses.json")
    made = [do_json(serving, "organizations", "create", name)["id"] for name in ("twin", "other", "single")]
    with closing(sqlite3.connect(serving.directory / "control" / "tollway.db", timeout=30)) as database, database:
        # Names are unique since duplicates were possible; those that were made before are still there.
        database.execute("UPDATE organizations SET name = 'twin' WHERE id = ?", (made[1],))
    exported, by_name = tmp_path / "exported.yaml", tmp_path / "by_name.yaml"
    do(serving, "export", "-f", str(exported))
    assert do(serving, "apply", "-f", str(exported)) == "nothing to change\n"
    exported.write_text(
        exported.read_text().replace(
            f"{made[1]}:\n    currency: EUR\n    time_zone: UTC", f"{made[1]}:\n    currency: EUR\n    time_zone: Asia/Tokyo"
        )
    )
    assert "~ organization" in do(serving, "apply", "-f", str(exported))
    zones = {each["id"]: each["time_zone"] for each in do_json(serving, "organizations", "list")}
    assert [zones[id] for id in made] == ["UTC", "Asia/Tokyo", "UTC"]

    by_name.write_text("organizations: {twin: {currency: EUR}}")
    said = do(serving, "apply", "-f", str(by_name), code=2)
    assert "more than one organization is called twin" in said and made[0] in said and made[1] in said
    by_name.write_text("organizations: {single: {currency: EUR}}")
    assert do(serving, "apply", "-f", str(by_name)) == "nothing to change\n"  # the duplicates block nothing else
    by_name.write_text(f"organizations: {{org_{'0' * 32}: {{currency: EUR}}}}")
    assert "there is no organization org_" in do(serving, "apply", "-f", str(by_name), code=2)
    by_name.write_text(f"organizations: {{single: {{currency: EUR}}, {made[2]}: {{currency: EUR}}}}")
    assert "named twice" in do(serving, "apply", "-f", str(by_name), code=2)


def test_from_nothing_to_a_key_that_is_revoked(serving: Running) -> None:
    made = do_json(serving, "organizations", "create", "umbrella", "--currency", "USD")
    admin = made["admin_api_key"]["value"]
    of = ("--organization", "umbrella")
    do(serving, "projects", "create", "hive", *of)
    key = do(serving, "keys", "create", "--name", "laptop", "--requests-per-minute", "60", *of).strip()
    assert key.startswith("tw_live_")
    (listed,) = do_json(serving, "keys", "list", *of)
    assert listed["name"] == "laptop" and listed["limits"]["requests_per_minute"] == 60
    assert key not in json.dumps(listed)

    gateway_url = json.loads((serving.directory / "addresses.json").read_text())["gateway_url"]
    with httpx2.Client(base_url=gateway_url, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=WAIT_SECONDS) as http:
        serving.wait_until(lambda: http.get("/v1/models").status_code == 200)
        env = {"TOLLWAY_KEY": admin}  # the tenant's own admin may do it too, and needs to name nothing
        assert do(serving, "keys", "revoke", listed["id"], env=env) == f"revoked {listed['id']}\n"
        assert http.get("/v1/models").status_code == 401  # the answer came after the gateway had confirmed
    assert do_json(serving, "keys", "list", *of) == []


def test_a_model_by_hand(serving: Running) -> None:
    do(serving, "models", "create", "tiny", "--endpoint", "embeddings")
    said = do(serving, "models", "publish", "tiny", code=1)
    assert "tollway models price" in said
    do(serving, "models", "price", "tiny", "--currency", "USD", "--input-price", "0.02", "--output-price", "0")
    deployment = do(serving, "models", "deploy", "tiny", "--base-url", "http://127.0.0.1:9", "--engine", "vllm").strip()
    do(serving, "models", "publish", "tiny")
    assert "published" in next(line for line in do(serving, "models", "list").splitlines() if line.startswith("tiny"))
    do(serving, "models", "undeploy", deployment)
    do(serving, "models", "archive", "tiny")
    assert "tiny" not in do(serving, "models", "list")


def test_deploy_warns_of_a_shared_prefix_cache_until_its_isolation_is_decided(serving: Running) -> None:
    do(serving, "models", "create", "cached")
    deploy = ["models", "deploy", "cached", "--engine", "llamacpp", "--data-dir", str(serving.directory), "--base-url"]
    assert "share the prefix cache of model cached at http://127.0.0.1:8" in tollway(*deploy, "http://127.0.0.1:8").stderr
    assert tollway(*deploy, "http://127.0.0.1:9", "--cache-isolation", "dedicated").stderr == ""
    do(serving, "models", "archive", "cached")


def complete(serving: Running, words: str, **variables: str) -> list[str]:
    """Return what bash is offered after these words."""
    line = f"tollway {words}"
    asked = {"_TOLLWAY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    ran = tollway(env={**asked, "TOLLWAY__DATA_DIR": str(serving.directory), **variables})
    assert ran.stderr == ""
    return ran.stdout.split()


def test_bash_completes_names_from_the_running_control_plane_and_nothing_without_one(serving: Running) -> None:
    do(serving, "organizations", "create", "completed")
    do(serving, "projects", "create", "research", "--organization", "completed")
    do(serving, "keys", "create", "--name", "notebook", "--organization", "completed")
    do(serving, "models", "create", "completed-model")
    assert complete(serving, "keys list --organization comp") == ["completed"]
    assert complete(serving, "keys list --organization completed --project res") == ["research"]
    assert complete(serving, "keys revoke --organization completed note") == ["notebook"]
    assert complete(serving, "models publish completed-") == ["completed-model"]
    for variable, value in (("TOLLWAY_CONTROL_URL", "http://127.0.0.1:9"), ("TOLLWAY_KEY", "tw_platform_wrong")):
        assert complete(serving, "models publish completed-", **{variable: value}) == []
    do(serving, "models", "archive", "completed-model")
    do(serving, "organizations", "archive", "completed")


def test_names_are_accepted_wherever_an_id_is_asked_for(serving: Running) -> None:
    do(serving, "organizations", "create", "named")
    do(serving, "projects", "create", "p", "--organization", "named")
    of = ["--organization", "named"]
    do(serving, "keys", "create", "--name", "notebook", "--requests-per-minute", "5", *of)
    do(serving, "budgets", "create", "all", "5", "--window", "month", *of)
    do(serving, "service-accounts", "create", "robot", *of)
    do(serving, "admin-keys", "create", "boss", *of)
    do(serving, "operator-keys", "create", "helper")
    do(serving, "nodes", "create", "spare")
    do(serving, "nodes", "token", "next")
    assert "notebook" in do(serving, "limits", "show", "--api-key", "notebook", *of)
    assert do(serving, "budgets", "archive", "all", *of).startswith("archived bud_")
    assert do(serving, "keys", "revoke", "notebook", *of).startswith("revoked key_")
    assert do(serving, "service-accounts", "delete", "robot", *of).startswith("deleted sa_")
    assert do(serving, "admin-keys", "revoke", "boss", *of).startswith("revoked key_")
    assert do(serving, "operator-keys", "revoke", "helper").startswith("revoked key_")
    assert do(serving, "nodes", "revoke-token", "next").startswith("revoked join_")
    assert do(serving, "nodes", "revoke", "spare", "--yes").startswith("revoked node_")
    assert "no key is called notebook" in do(serving, "keys", "revoke", "notebook", *of, code=2)
    do(serving, "organizations", "archive", "named")


def test_an_ambiguous_tenant_is_asked_for_by_name(serving: Running) -> None:
    for name in ("left", "right"):
        do(serving, "organizations", "create", name)
    ran = tollway("projects", "list", "--data-dir", str(serving.directory))
    assert ran.returncode == 2
    assert "left" in ran.stderr and "right" in ran.stderr and "--organization" in ran.stderr


def test_a_wrong_key_says_so_and_never_repeats_it(serving: Running) -> None:
    wrong = "tw_admin_" + "x" * 57
    said = do(serving, "keys", "list", code=1, env={"TOLLWAY_KEY": wrong})
    assert "Incorrect API key" in said and "hint: the key is unknown, revoked or expired" in said
    assert wrong not in said


def test_migrate_is_refused_and_verify_reads_while_the_installation_runs(serving: Running) -> None:
    assert "is using" in do(serving, "migrate", code=1)
    assert "everything agrees" in do(serving, "verify")


def test_verify_and_inspect_read_what_a_stopped_installation_left(start: Start) -> None:
    serving = start("serve", *FREE)
    serving.wait_for_file("addresses.json")
    assert serving.stop() == 0
    assert "everything agrees" in do(serving, "verify")
    assert do_json(serving, "verify")["is_right"] is True
    (epoch,) = do_json(serving, "spool", "inspect")
    assert (epoch["state"], epoch["close"], epoch["open"], epoch["problem"]) == ("closed", 1, 0, None)
    assert epoch["shipped"] == epoch["records"] == epoch["next_seq"] - 1  # a clean stop hands everything in


def test_doctor_beside_a_running_installation_finds_it_well(serving: Running) -> None:
    addresses = json.loads((serving.directory / "addresses.json").read_text())
    env = {
        "TOLLWAY__GATEWAY__LISTEN": addresses["gateway_url"].removeprefix("http://"),
        "TOLLWAY__CONTROL__LISTEN": addresses["control_url"].removeprefix("http://"),
        "TOLLWAY__GATEWAY__EDGE__CONNECTIONS_MAX": "100",
        "TOLLWAY__GATEWAY__INTERNAL": "127.0.0.1:0",
        "TOLLWAY__CONTROL__LINK": "127.0.0.1:0",
    }
    ran = tollway("doctor", "--data-dir", str(serving.directory), "-o", "json", env=env)
    found = {each["check"]: each for each in json.loads(ran.stdout)}
    for name in ("gateway.listen", "control.listen"):
        assert "Tollway answers there" in found[f"port of {name}"]["message"], found
    for name in ("settings", "data directory", "secrets", "clock", "database"):
        assert found[name]["state"] == "ok", found
    assert ran.returncode in (0, 3), (ran.stdout, ran.stderr)  # a disk of the machine may be slow


REQUEST, NOBODY, NOTHING = f"req_{'0' * 32}", f"period_{'0' * 32}", f"adj_{'0' * 32}"
MISTAKES = {
    "a period that is none": (("periods", "close", "../adjustments"), 2, "nothing is booked in a billing period ../adjustments"),
    "a period that is unknown": (("periods", "close", NOBODY), 1, "There is no such billing period."),
    "a period of two kinds": (("periods", "close", NOBODY, "--organization", "acme"), 2, "of one organization already"),
    "another's period": (("periods", "close", "2026-09", "--organization", "nobody"), 2, "no organization is called nobody"),
    "blockers of nothing": (("periods", "blockers", NOBODY), 1, "There is no such billing period."),
    "periods of an unknown organization": (("periods", "list", "--organization", "nobody"), 2, "no organization is called nobody"),
    "periods in no state": (("periods", "list", "--state", "shut"), 2, "'open', 'closing', 'closed'"),
    "a request that is none": (("corrections", "void", "5", "--reason", "r"), 2, "'5' is no id of a request"),
    "a request that is unknown": (("corrections", "void", REQUEST, "--reason", "r"), 1, "no such request, or its usage has not arrived"),
    "no reason": (("corrections", "void", REQUEST, "--reason", ""), 1, "reason: is too short"),
    "an amount with a comma": (("corrections", "credit", REQUEST, "1,5", "--reason", "r"), 1, "not a plain decimal number"),
    "an amount below a pico": (("corrections", "credit", REQUEST, f"0.{'0' * 12}1", "--reason", "r"), 1, "at most 12 digits"),
    "fewer tokens than none": (
        ("corrections", "replace", REQUEST, "--input-tokens", "-1", "--output-tokens", "1", "--reason", "r"), 1, "must be at least 0"
    ),
    "a correction that is none": (("corrections", "approve", "../x"), 2, "'../x' is no id of a correction"),
    "a correction that is unknown": (("corrections", "reject", NOTHING), 1, "There is no such correction."),
    "a gateway that is none": (("nodes", "lost", "gw-1", "--reason", "r", "--yes"), 2, "no gateway is called gw-1"),
    "an archive that is not there": (("verify", "--archive", "/nowhere"), 2, "there is no directory /nowhere"),
    "a proof of nothing": (("periods", "proof", "--period", NOBODY, "x"), 2, "'x' is no id of a request"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_with_money_is_told_in_words(serving: Running, mistake: str) -> None:
    arguments, code, said = MISTAKES[mistake]
    ran = tollway(*arguments, "--data-dir", str(serving.directory))
    assert (ran.returncode, ran.stdout) == (code, "")
    assert said in ran.stderr and "Traceback" not in ran.stderr


def test_an_export_that_is_refused_leaves_no_file(serving: Running, tmp_path: Path) -> None:
    made = do_json(serving, "organizations", "create", "globex", "--currency", "EUR")
    export = ("periods", "export", "--period", NOBODY, "--organization", made["id"], "--file")
    do(serving, *export, str(tmp_path / "x"), code=1)
    assert list(tmp_path.iterdir()) == []
    assert "cannot write" in do(serving, *export, str(tmp_path / "nowhere" / "x"), code=1)


def test_new_secrets_start_a_cluster(start: Start, tmp_path: Path) -> None:
    """Control and gateway with a data directory each, and nothing but variables in common."""
    made = tollway("secrets", "new")
    assert made.returncode == 0, made.stderr
    secrets = dict(line.split("=", 1) for line in made.stdout.splitlines())
    control = start("control", "--listen", "127.0.0.1:0", "--link", "127.0.0.1:0", env=secrets)
    control.wait_until(lambda: '"ready"' in control.stdout.read_text())
    ready = next(json.loads(line) for line in control.stdout.read_text().splitlines() if '"ready"' in line)
    operator = {"TOLLWAY_CONTROL_URL": ready["url"], "TOLLWAY_KEY": secrets["TOLLWAY_PLATFORM_KEY"]}
    token = tollway("nodes", "token", "rack 7", env=operator)
    assert token.returncode == 0, token.stderr
    env = {name: secrets[name] for name in ("TOLLWAY_PEPPER", "TOLLWAY_VAULT_KEY")}
    env |= dict([token.stdout.strip().split("=", 1)]) | {"TOLLWAY_CONTROL_LINK_URL": ready["link_url"]}
    gateway = start("gateway", "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", env=env)
    gateway.wait_until(lambda: '"ready"' in gateway.stdout.read_text())
    listed = tollway("organizations", "list", env=operator)
    assert listed.returncode == 0, listed.stderr
    assert not (gateway.directory / "secrets.json").exists()


def test_keys_accounts_and_archives_by_hand(serving: Running) -> None:
    do(serving, "organizations", "create", "initech")
    of = ("--organization", "initech")
    do(serving, "organizations", "update", "initech", "--time-zone", "Europe/Paris")
    do(serving, "projects", "create", "one", *of)
    do(serving, "projects", "rename", "one", "two", *of)
    account = do_json(serving, "service-accounts", "create", "robot", *of)
    assert account["api_key"]["value"].startswith("tw_live_")
    assert "robot" in do(serving, "service-accounts", "list", *of)
    do(serving, "service-accounts", "delete", account["id"], *of)
    assert "robot" not in do(serving, "service-accounts", "list", *of)
    for kind, options, prefix in (("admin-keys", of, "tw_admin_"), ("operator-keys", (), "tw_platform_")):
        made = do_json(serving, kind, "create", "second", *options)
        assert made["value"].startswith(prefix)
        assert made["id"] in do(serving, kind, "list", *options)
        assert made["value"] not in do(serving, kind, "list", *options)
        do(serving, kind, "revoke", made["id"], *options)
        assert made["id"] not in do(serving, kind, "list", *options)
    assert do_json(serving, "ledger", "transactions") == do_json(serving, "anomalies") == []
    do(serving, "ledger", "balances")
    do(serving, "nodes", "list")
    assert "There is no such resource" in do(serving, "receipt", REQUEST, *of, code=1)
    do(serving, "projects", "archive", "two", *of)
    assert "two" not in do(serving, "projects", "list", *of)
    do(serving, "organizations", "archive", "initech")
    assert "initech" not in do(serving, "organizations", "list")


KEYS = """
organizations:
  cyberdyne:
    currency: EUR
    rotation_schedule: {interval_seconds: 7776000, grace_seconds: 604800}
    projects:
      chat:
        api_keys:
          search:
            endpoints: [embeddings]
            tags: {team: search}
            limits: {tokens_per_day: 9}
            rotation_schedule: {interval_seconds: 864000}
"""


def test_file_bounds_keys_that_exist_and_makes_none(serving: Running, tmp_path: Path) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text("organizations: {cyberdyne: {currency: EUR, projects: {chat: {}}}}")
    do(serving, "apply", "-f", str(path))
    path.write_text(KEYS)
    assert "there is no API key cyberdyne / chat / search" in do(serving, "apply", "-f", str(path), code=2)
    acting = ("--organization", "cyberdyne", "--project", "chat")
    do(serving, "keys", "create", "--name", "search", *acting)
    planned = do(serving, "apply", "-f", str(path)).splitlines()
    assert planned[:4] == [
        "~ organization cyberdyne",
        "    rotation_schedule: none -> interval_seconds 7776000, grace_seconds 604800",
        "~ API key cyberdyne / chat / search",
        "    endpoints: none -> embeddings",
    ]
    assert do(serving, "apply", "-f", str(path)) == "nothing to change\n"
    (key,) = do_json(serving, "keys", "list", *acting)
    (limit,) = do_json(serving, "limits", "show", "--api-key", key["id"], *acting)
    assert (limit["level"], limit["limit"], limit["size"]) == ("api_key", "tokens_per_day", 9)
    assert key["endpoints"] == ["embeddings"] and key["rotation_schedule"] == {"interval_seconds": 864000, "grace_seconds": 86400}
    exported = tmp_path / "exported.yaml"
    do(serving, "export", "-f", str(exported))
    assert "search:" in exported.read_text() and do(serving, "apply", "-f", str(exported)) == "nothing to change\n"
    path.write_text(KEYS.replace("{interval_seconds: 864000}", "null").replace("{team: search}", "null"))
    do(serving, "apply", "-f", str(path))
    (key,) = do_json(serving, "keys", "list", *acting)
    assert key["rotation_schedule"] is None and key["tags"] == {}
    assert "No secret waits to be collected" in do(serving, "keys", "collect", "search", *acting, code=1)
