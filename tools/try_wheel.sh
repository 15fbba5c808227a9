#!/usr/bin/env bash
# Builds the wheel, installs it with the lock's versions into a fresh environment, and runs the two
# commands of the README in an empty folder. Run by CI.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
pip=(-m pip --quiet --disable-pip-version-check)
.venv/bin/python "${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$root/dist" .
.venv/bin/python -m venv "$root/venv"
"$root/venv/bin/python" "${pip[@]}" install -c requirements.lock "$root"/dist/*.whl
mkdir "$root/empty"
cd "$root/empty"
"$root/venv/bin/python" -m orchestrator sweep=lr_grid tracking=off
"$root/venv/bin/sft-sweeps" status outputs/lr_grid
