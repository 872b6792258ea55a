#!/usr/bin/env bash
# venv.sh PYTHON DIRECTORY: make a virtual environment, unless a whole one is there already.
# Debian splits `venv` from the interpreter; as root we install the missing half, otherwise we say what to do.
set -euo pipefail
python=${1:-} directory=$2

if [[ -x $directory/bin/pip ]]; then
  exit 0
fi
if [[ -z $python ]] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Tollway needs Python 3.11 or later; found ${python:-none}. Name another: make PYTHON=/path/to/python" >&2
  exit 1
fi
echo "==> creating $directory with $("$python" --version)"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "This Python cannot create virtual environments. On Debian or Ubuntu: apt-get install $package" >&2
    exit 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package"
fi
"$python" -m venv --clear "$directory"
