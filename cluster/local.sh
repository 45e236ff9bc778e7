#!/usr/bin/env bash
# A Ray cluster of one machine: a head on loopback with token authentication, started again when it dies.
#
#   cluster/local.sh start [--port 6379] [--dashboard-port 8265] [--num-cpus N] [--state DIR]
#   cluster/local.sh status [--state DIR]
#   cluster/local.sh stop [--state DIR]
#
# State (token, pid, log) is kept in ~/.raybm/cluster, or in DIR: one head each. Two heads need different ports.
set -euo pipefail

START_TIMEOUT_S=180
END_TIMEOUT_S=6

say() { printf '%s\n' "$*" >&2; }
die() { say "local.sh: $*"; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -x "$here/../.venv/bin/ray" ]; then
    bin=$(cd "$here/../.venv/bin" && pwd)
else
    ray=$(command -v ray) || die "no Ray found. Run \`make setup\` first."
    bin=$(dirname "$ray")
fi

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit "$1"; }

command=${1:-}
[ $# -gt 0 ] && shift
port=6379 dashboard_port=8265 num_cpus="" state="$HOME/.raybm/cluster"
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage 2
    case $1 in
        --port) port=$2 ;;
        --dashboard-port) dashboard_port=$2 ;;
        --num-cpus) num_cpus=$2 ;;
        --state) state=$2 ;;
        *) usage 2 ;;
    esac
    shift 2
done
[[ $state == /* ]] || state=$PWD/$state # jobs are told it, and work elsewhere
for number in "$port" "$dashboard_port" "${num_cpus:-1}"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || die "$number is no number above 0."
done

# ---- processes

supervisor() { # prints the supervisor's pid if it runs: the pid is ours, not one that was given out again
    local pid
    pid=$(cat "$state/pid" 2>/dev/null) && ps -o args= -p "$pid" 2>/dev/null | grep -qF "local.sh supervise" && printf '%s' "$pid"
}

of_head() { # prints the pids of everything that belongs to the head whose files are in $1 and whose session is $2
    if [ -d /proc/self ]; then
        grep -lzxF "RAYBM_LOCAL_HEAD=$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
        ps -o pid=,comm= -s "$2" 2>/dev/null | awk '$2 ~ /^ray::/ { print $1 }' || true # they write their titles over their environments
    else
        pgrep -f -- "$1/ray" || true
    fi
}

end_head() { # what `ray start` left behind in folder $1 and session $2
    local deadline=$((SECONDS + END_TIMEOUT_S))
    # shellcheck disable=SC2046
    while [ -n "$(of_head "$@")" ] && [ $SECONDS -lt $deadline ]; do
        kill -KILL $(of_head "$@") 2>/dev/null || true
        sleep 0.2
    done
    [ -z "$(of_head "$@")" ]
}

free_port() { "$bin/python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

answers() { # the dashboard answers, and to our token
    "$bin/python" - "http://127.0.0.1:$1/api/version" "$state/token" <<'PYTHON' 2>/dev/null
import pathlib, sys, urllib.request
url, token = sys.argv[1], pathlib.Path(sys.argv[2]).read_text()
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
    urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"}), timeout=5
).read()
PYTHON
}

# ---- the loop that keeps the head alive (Ray does not start its own GCS again)

finish() {
    local deadline=$((SECONDS + END_TIMEOUT_S))
    trap "" TERM INT HUP
    if [ -n "$head" ] && kill -TERM "$head" 2>/dev/null; then # Ray ends its own processes, in the order they need
        while [ -n "$(of_head "$folder" $$)" ] && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
    fi
    end_head "$folder" $$ || true
    rm -rf "$folder" "$state/pid" "$state/folder" "$state/client_port"
    exit 0
}

supervise() {
    local pause=1 started client_port
    head=""
    folder=$(mktemp -d "${RAYBM_HEAD_PARENT:-/tmp}/raybm-head-XXXXXX") # short: Ray's sockets lie below, 107 characters at most
    printf '%s\n' "$folder" >"$state/folder"
    trap finish TERM INT HUP
    while true; do
        started=$SECONDS client_port=$(free_port)
        printf '%s\n' "$client_port" >"$state/client_port"
        env -u RAY_ADDRESS -u RAY_AUTH_TOKEN -u RAY_API_SERVER_ADDRESS \
            PATH="$bin:$PATH" \
            RAYBM_LOCAL_HEAD="$folder" \
            RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" \
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 \
            RAY_USAGE_STATS_ENABLED=0 \
            RAY_worker_niceness=0 \
            "$bin/ray" start --head --block --disable-usage-stats \
            --node-ip-address=127.0.0.1 --port="$port" \
            --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
            --dashboard-agent-listen-port=0 --ray-client-server-port="$client_port" \
            --min-worker-port=0 --max-worker-port=0 \
            --num-cpus="$num_cpus" --temp-dir="$folder/ray" &
        head=$!
        wait "$head" || true
        say "$(date -u +%FT%TZ) the head ended; starting it again in $pause s."
        end_head "$folder" $$ || say "some of its processes do not end."
        [ $((SECONDS - started)) -gt 60 ] && pause=1
        sleep "$pause" &
        wait $! || true
        pause=$((pause < 30 ? pause * 2 : 30))
    done
}

# ---- commands

exports() {
    cat <<EXPORTS
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$(cat "$state/dashboard_port")
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$(printf '%q' "$state/token")
# for programs that join the cluster instead of sending a job: export RAY_ADDRESS=127.0.0.1:$(cat "$state/port")
EXPORTS
}

taken() { "$bin/python" -c 'import socket, sys; sys.exit(socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))) != 0)' "$1"; }

complete() { # Ray's client server, which nobody here asks, gives up on a slow raylet after 30 s, and takes the head with it
    taken "$(cat "$state/client_port")"
}

start() {
    local pid cores number deadline
    umask 077
    mkdir -p "$state"
    if pid=$(supervisor); then
        say "The head runs already (supervisor $pid)."
        exports
        return
    fi
    for number in "$port" "$dashboard_port"; do
        taken "$number" && die "port $number is taken. Choose another with --port or --dashboard-port."
    done
    if [ ! -s "$state/token" ]; then
        "$bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token"
    fi
    if [ -z "$num_cpus" ]; then
        cores=$("$bin/python" -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
        num_cpus=$((cores > 4 ? cores : 4)) # two workers, data loading and a controller fit on any machine
        [ "$num_cpus" -gt "$cores" ] && say "This machine has $cores cores; Ray gets $num_cpus logical CPUs, which share them."
    fi
    printf '%s\n' "$port" >"$state/port"
    printf '%s\n' "$dashboard_port" >"$state/dashboard_port"
    rm -f "$state/folder" "$state/client_port"
    say "Starting Ray's head on loopback; its log is $state/head.log."
    local detach=()
    command -v setsid >/dev/null && detach=(setsid)
    nohup "${detach[@]}" "${BASH_SOURCE[0]}" supervise --port "$port" --dashboard-port "$dashboard_port" \
        --num-cpus "$num_cpus" --state "$state" </dev/null >"$state/head.log" 2>&1 &
    printf '%s\n' $! >"$state/pid"
    deadline=$((SECONDS + START_TIMEOUT_S))
    until answers "$dashboard_port" && complete; do
        supervisor >/dev/null || die "the supervisor ended. See $state/head.log."
        if [ $SECONDS -ge $deadline ]; then
            stop
            die "the head was not complete in $START_TIMEOUT_S s. See $state/head.log."
        fi
        sleep 0.5
    done
    say "Ready. In your shell:"
    exports
}

stop() {
    local pid folder session deadline
    folder=$(cat "$state/folder" 2>/dev/null || true) session=$(cat "$state/pid" 2>/dev/null || true) # its supervisor leads it
    if pid=$(supervisor); then
        kill -TERM "$pid"
        deadline=$((SECONDS + 3 * END_TIMEOUT_S))
        while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
        kill -KILL "$pid" 2>/dev/null || true
    fi
    if [ -n "$folder" ]; then # the supervisor was killed, or did not finish
        end_head "$folder" "$session" || die "some processes do not end: $(of_head "$folder" "$session" | tr '\n' ' ')"
        rm -rf "$folder"
    fi
    rm -f "$state/pid" "$state/folder" "$state/client_port"
    say "The head is stopped."
}

status() {
    local pid
    pid=$(supervisor) || { say "No head runs here ($state)."; return 3; }
    exports
    if answers "$(cat "$state/dashboard_port")"; then
        say "The head answers (supervisor $pid, log $state/head.log)."
    else
        say "The head does not answer: it is starting, or see $state/head.log."
        return 1
    fi
}

case $command in
    start) start ;;
    stop) stop ;;
    status) status ;;
    supervise) supervise ;;
    -h | --help | help) usage 0 ;;
    *) usage 2 ;;
esac
