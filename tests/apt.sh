# Sourced: what installs with limits of time, and says what failed. Nothing in it waits for ever.

bounded() { # bounded SECONDS COMMAND...: the end of its output where it fails
    local log
    log=$(mktemp)
    timeout --kill-after=10 "$@" >"$log" 2>&1 </dev/null && rm -f "$log" && return
    echo "'${*:2}' failed:"
    tail -n 5 "$log"
    rm -f "$log"
    return 1
}

apt() { # apt SECONDS WORDS...
    bounded "$1" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "${@:2}"
}
