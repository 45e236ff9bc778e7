#!/usr/bin/env bash
# Keeps one Ray node of a launcher's cluster alive (aws.yaml calls it, in the container of every node).
#
#   raybm-node ray start --head --port=6379 ...      (--block is added)
#
# `ray start` alone leaves when a daemon dies, and Ray does not bring it back. This ends what an earlier call started, starts
# the node in the background, starts it again whenever it ends, and returns at once.
set -euo pipefail

log=/tmp/raybm-node.log
pidfile=/tmp/raybm-node.pid

if [ "${1:-}" = --keep ]; then
    shift
    pause=1
    while true; do
        started=$SECONDS
        "$@" --block --disable-usage-stats || true
        printf '%s the node ended; starting it again in %s s.\n' "$(date -u +%FT%TZ)" "$pause"
        ray stop --force >/dev/null 2>&1 || true # what it left; the container holds no other Ray
        sleep "$pause"
        if [ $((SECONDS - started)) -gt 60 ]; then pause=1; else pause=$((pause < 30 ? pause * 2 : 30)); fi
    done
fi

earlier=$(cat "$pidfile" 2>/dev/null || true)
if [ -n "$earlier" ] && ps -ww -o args= -p "$earlier" 2>/dev/null | grep -qF -- "--keep"; then
    kill -KILL -- "-$earlier" # its whole group
fi
ray stop --force >/dev/null 2>&1 || true
ulimit -n 65536 2>/dev/null || true
setsid nohup "$0" --keep "$@" </dev/null >>"$log" 2>&1 &
echo $! >"$pidfile"
