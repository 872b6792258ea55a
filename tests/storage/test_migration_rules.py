"""Rules of what migrations of PostgreSQL may do while control processes and gateways work: squawk reads the statements that were executed.

Migrations up to BASE were released before there was this check, and are never edited."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from tests.storage.databases import PostgresTemplate
from tollway.storage import revisions

BASE = "0082"

IRRELEVANT = {
    "prefer-text-field": "columns are bounded",
    "prefer-bigint-over-int": "counts that stay small are integers",
    "prefer-bigint-over-smallint": "as before",
    "require-lock-timeout": "`Database.migrate` sets it",
    "require-statement-timeout": "`Database.migrate` sets it",
    "require-enum-value-ordering": "there are no such types",
}
"""Rules of squawk that are not ours, with the reason."""

BREAKING = {
    *("ban-drop-column", "ban-drop-default", "ban-drop-table", "renaming-column", "renaming-table"),
    *("adding-required-field", "changing-column-type"),
}
"""Rules whose statements break the version before: the migration must say `breaks_earlier`."""

EXCEPTIONS = {
    ("0141", "require-concurrent-index-creation"): "the table has a row for each organization that is billed",
    ("0150", "require-concurrent-index-creation"): "the table has a row or two for each invoice that was paid",
    ("0150", "require-concurrent-index-deletion"): "as before",
    ("0147", "ban-drop-function"): "only the triggers that it drops too run them",
}
"""By (revision, rule), why a statement that holds a lock for long may do so, such as: the table has a row for each model."""


def find_statements(template: PostgresTemplate) -> dict[str, list[str]]:
    """The statements of each migration after BASE, by revision."""
    scripts = ScriptDirectory.from_config(revisions.make_config())
    newer = [script.revision for script in scripts.walk_revisions() if script.revision != BASE]
    newer = newer[: next(index for index, script in enumerate(scripts.walk_revisions()) if script.revision == BASE)]
    return {revision: template.statements[revision] for revision in newer}


def check(place: Path, revision: str, statements: list[str]) -> list[tuple[str, str]]:
    """Findings of squawk in a migration: (rule, message), without the rules that are irrelevant."""
    file = place / f"{revision}.sql"
    file.write_text("".join(f"{statement};\n" for statement in statements))
    program = Path(sys.executable).with_name("squawk")
    command = [str(program), "--assume-in-transaction", "--pg-version", "15", "--reporter", "json", "--exclude", ",".join(IRRELEVANT)]
    said = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)
    return [(each["rule_name"], f"{revision}: {each['message']}") for each in json.loads(said.stdout)]


@pytest.mark.postgres
def test_a_migration_holds_no_lock_for_long_and_says_whether_it_breaks_the_version_before(
    postgres_template: PostgresTemplate, tmp_path: Path
) -> None:
    scripts = ScriptDirectory.from_config(revisions.make_config())
    wrong = []
    for revision, statements in find_statements(postgres_template).items():
        breaks = getattr(scripts.get_revision(revision).module, "breaks_earlier", False)
        for rule, message in check(tmp_path, revision, statements):
            if (rule in BREAKING and breaks) or (revision, rule) in EXCEPTIONS:
                continue
            wrong.append(f"{rule}: {message}")
    assert not wrong, wrong


def test_the_check_notices_statements_that_lock_or_break(tmp_path: Path) -> None:
    statements = ["ALTER TABLE keys DROP COLUMN name", "ALTER TABLE keys ADD COLUMN kind text NOT NULL", "CREATE INDEX ix ON keys (kind)"]
    rules = {rule for rule, _ in check(tmp_path, "9999", statements)}
    assert {"ban-drop-column", "adding-required-field", "require-concurrent-index-creation"} <= rules
    assert rules & BREAKING == {"ban-drop-column", "adding-required-field"}
