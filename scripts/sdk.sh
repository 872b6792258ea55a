#!/usr/bin/env bash
# sdk.sh NAME UV PYTHON: install one line of the official SDKs or one framework for `make test-sdks`: into .venv-NAME, locked in
# requirements/NAME.txt; js into tests/sdks/node_modules, locked beside its package.json.
set -euo pipefail
name=$1 uv=$2 python=$3

if [[ $name == js ]]; then
  command -v npm >/dev/null || { echo "==> no npm: the JavaScript SDKs cannot be installed" >&2; exit 1; }
  [[ tests/sdks/node_modules/.package-lock.json -nt tests/sdks/package-lock.json ]] && exit 0
  npm ci --prefix tests/sdks --ignore-scripts --no-audit --no-fund --loglevel error
  exit 0
fi
directory=.venv-$name
[[ $directory/.installed -nt requirements/$name.txt ]] && exit 0
"$uv" venv --quiet --clear --python "$python" "$directory"
"$uv" pip install --quiet --python "$directory/bin/python" --require-hashes -r "requirements/$name.txt"
touch "$directory/.installed"
