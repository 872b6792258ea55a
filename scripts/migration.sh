#!/usr/bin/env bash
# migration.sh MESSAGE: write the next migration, from what storage/schema.py says against what the migrations build.
# They are run on an empty SQLite file first, so nobody's own database takes part.
set -euo pipefail
cd "$(dirname "$0")/.."
message=$1
versions=src/tollway/storage/migrations/versions

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
last=$(find "$versions" -name '[0-9]*.py' -printf '%f\n' | sort | tail -n 1)
number=$(printf '%04d' $((10#${last:0:4} + 1)))

alembic() { .venv/bin/alembic -x "url=sqlite+pysqlite:///$scratch/scratch.db" "$@"; }
alembic upgrade head
alembic revision --autogenerate --rev-id "$number" -m "$message"
echo "==> read it before you trust it: autogenerate sees neither renames nor data. Then: make check test"
