#!/usr/bin/env bash
# Chromium from apt, for the tests that look at report.html. Nothing here fails: without it those tests
# are skipped with that reason.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
# shellcheck source=tests/apt.sh
. tests/apt.sh

if ! command -v chromium >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "apt-get and root are needed to install: chromium"
    else
        apt 180 update
        apt 420 install -y --no-install-recommends chromium fonts-dejavu-core
    fi
fi
exit 0
