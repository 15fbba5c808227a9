#!/usr/bin/env bash
# What `make test-cluster` needs beside .venv: packages of PyPI, in .venv/cluster, and with SYSTEM=1
# those of apt. Nothing here waits for ever, and nothing fails: what cannot be had is said, and the tests
# that need it are skipped with that reason.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
# shellcheck source=tests/apt.sh
. tests/apt.sh

needed=tests/cluster/requirements.txt
tools_venv=.venv/cluster
tools=(ip mount unshare munged slurmctld slurmd sbatch scontrol squeue sinfo scancel shellcheck)
packages=(iproute2 mount util-linux munge slurm-client slurmctld slurmd shellcheck)

install_from_pypi() {
    cmp -s "$needed" "$tools_venv/installed.txt" && return
    rm -rf "$tools_venv"
    bounded 120 .venv/bin/python -m venv "$tools_venv" &&
        bounded 300 "$tools_venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --retries 2 --timeout 30 -r "$needed" &&
        cp "$needed" "$tools_venv/installed.txt"
}

missing() {
    local tool
    for tool in "${tools[@]}"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || echo "$tool"
    done
}

install_packages() {
    [ -n "$(missing)" ] || return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "test-cluster: apt-get and root are needed to install: $(missing | xargs)"
        return
    fi
    apt 180 update
    apt 420 install -y --no-install-recommends "${packages[@]}" && return
    for package in "${packages[@]}"; do # one that is not to be had keeps no other away
        apt 180 install -y --no-install-recommends "$package"
    done
}

install_from_pypi
[ -n "${SYSTEM:-}" ] && install_packages
[ -z "$(missing)" ] || echo "test-cluster: not installed: $(missing | xargs)"
exit 0
