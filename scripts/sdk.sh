#!/usr/bin/env bash
# sdk.sh NAME UV PYTHON: install one line of the official SDKs or one framework for `make test-sdks`: into .venv-NAME, locked in
# requirements/NAME.txt; js into tests/sdks/node_modules, js-7, claude-code and codex into tests/sdks/NAME/node_modules, each locked beside its
# package.json.
set -euo pipefail
name=$1 uv=$2 python=$3

if [[ $name == js || $name == js-7 || $name == claude-code || $name == codex ]]; then
  command -v npm >/dev/null || { echo "==> no npm: $name cannot be installed" >&2; exit 1; }
  packages=tests/sdks
  [[ $name == js ]] || packages+=/$name
  [[ $packages/node_modules/.package-lock.json -nt $packages/package-lock.json ]] && exit 0
  npm ci --prefix "$packages" --ignore-scripts --no-audit --no-fund --loglevel error
  exit 0
fi
directory=.venv-$name
[[ $directory/.installed -nt requirements/$name.txt ]] && exit 0
"$uv" venv --quiet --clear --python "$python" "$directory"
"$uv" pip install --quiet --python "$directory/bin/python" --require-hashes -r "requirements/$name.txt"
touch "$directory/.installed"
