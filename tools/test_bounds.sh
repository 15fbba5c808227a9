#!/usr/bin/env bash
# `make test-bounds`: the quick tests and one short sweep of each engine, in an environment of its own
# (.venv/bounds) that has each direct dependency at the lowest version that pyproject.toml allows.
set -euo pipefail
cd "$(dirname "$0")/.."
bounds=.venv/bounds
wanted=$(.venv/bin/python -m tools.bounds)
if [ "$wanted" != "$(cat "$bounds/installed.txt" 2>/dev/null)" ]; then
    rm -rf "$bounds"
    .venv/bin/python -m venv "$bounds"
    pip=("$bounds/bin/python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" -r <(echo "$wanted")
    echo "$wanted" >"$bounds/installed.txt"
fi
"$bounds/bin/python" -m pytest -n 2 --dist loadfile \
    -m "not slow and not faults and not cluster and not gpu and not long and not fuzz" "$@"
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
for engine in solo packed; do
    "$bounds/bin/python" -m orchestrator sweep=lr_grid sweep.budget.examples=128 data.limit=300 \
        trainer.warmup_steps=0 data.eval_limit=20 tracking=off engine="$engine" run_dir="$runs/$engine"
done
