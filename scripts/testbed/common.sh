# What the scripts of the test clusters agree on. Sourced by them; makes nothing.

TESTBED=${TESTBED:-/var/lib/tb-slurm}   # state, logs and recorded pids
NETWORK=${NETWORK:-198.18.77}           # first three bytes; 192.0.2 is refused by some kernels
BRIDGE=tbslurm0
MARK='# tb-slurm'                       # on every line and file outside of $TESTBED

fail() { echo "${0##*/}: $*" >&2; exit 1; }

require_root() {
    [ "$(id -u)" = 0 ] || fail "needs root (network namespaces, device files); run: sudo $0"
}

# missing_packages LIST...: the packages of these lists that are not installed.
missing_packages() {
    local package
    cat "$@" | while read -r package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' ||
            echo "$package"
    done
}

record() { echo "$2" >"$TESTBED/run/$1.pid"; }

# daemon NAME COMMAND...: in a session of its own, its pid recorded, its output kept.
daemon() {
    local name=$1
    shift
    (
        cd / # the caller's directory may go; jobs would complain of it
        close_inherited
        exec setsid "$@"
    ) >"$TESTBED/log/$name.out" 2>&1 </dev/null &
    record "$name" $!
}

# What the caller has open is not for a daemon: `flock LOCK slurm-up` would stay locked for good.
close_inherited() {
    local number
    for number in /proc/self/fd/*; do
        number=${number##*/}
        [ "$number" -le 2 ] || eval "exec $number>&-"
    done
}

# A recorded process that still runs; a zombie whose parent does not collect it has ended.
alive() {
    local pid
    pid=$(cat "$TESTBED/run/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$pid/status"
}

# stop NAME [SIGNAL]: end a recorded process, with SIGKILL after 10 s.
stop() {
    local pid
    if alive "$1"; then
        pid=$(cat "$TESTBED/run/$1.pid")
        kill "-${2:-TERM}" "$pid"
        wait_for 10 is_gone "$1" || kill -KILL "$pid"
    fi
    rm -f "$TESTBED/run/$1.pid"
}

is_gone() { ! alive "$1"; }

# wait_for SECONDS COMMAND...: until it succeeds; 1 when it does not in time.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}
