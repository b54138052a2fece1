#!/usr/bin/env bash
# One Ray on this machine and on others that ssh reaches, for one command; it ends with the command.
#
#     experiments/cluster/machines.sh 192.168.1.10 lab2 lab3 -- train experiments/fashion-mnist/kd.yaml output=/shared/runs
#
# First this machine's address in the network of all of them, then the others by ssh's names, then the command, which
# gets --address. Each needs the same virtual environment at the same path (VENV), and shared folders at the same paths.
# Ray's ports are then open in that network to whoever has the token: not for a network with strangers.
set -euo pipefail
umask 077

usage() {
    echo "usage: machines.sh ADDRESS HOST... -- COMMAND ..." >&2
    exit 2
}

[[ $# -ge 4 ]] || usage
ip=$1
shift
hosts=()
while [[ $# -gt 0 && $1 != -- ]]; do
    hosts+=("$1")
    shift
done
[[ $# -ge 2 && ${#hosts[@]} -gt 0 ]] || usage
shift

VENV=${VENV:-$PWD/.venv}
address=$ip:${PORT:-6379}
folder=$(mktemp -d /tmp/raydistill.XXXXXX)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
export MALLOC_ARENA_MAX=2 GRPC_ENABLE_FORK_SUPPORT=0
"$VENV/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"

# A pipe to each of the others: the token goes through it, and its end is the word to stop, however this script ends.
pipes=()
started=()
finish() {
    trap - EXIT
    for pipe in "${pipes[@]}"; do
        exec {pipe}>&-
    done
    kill "${started[@]}" 2>/dev/null || true
    wait || true
    rm -rf "$folder"
}
trap finish EXIT

await() { # so many nodes
    if ! RAY_ADDRESS=$address timeout 300 "$VENV/bin/python" "$(dirname "$0")/await_nodes.py" "$1"; then
        echo "machines.sh: $1 of Ray's nodes did not come up within 300 s" >&2
        tail -n 20 "$folder"/*.log >&2
        exit 1
    fi
}

"$VENV/bin/ray" start --head --node-ip-address="$ip" --port="${address##*:}" --include-dashboard=false \
    --temp-dir="$folder/ray" --disable-usage-stats --block >"$folder/head.log" 2>&1 &
started+=($!)
await 1

# What runs there: Ray, until the pipe ends. %q makes values safe for the other shell.
there=$(
    printf 'venv=%q address=%q\n' "$VENV" "$address"
    cat <<'THERE'
set -eu
umask 077
folder=$(mktemp -d /tmp/raydistill.XXXXXX)
trap 'rm -rf "$folder"' EXIT
read -r token
printf %s "$token" >"$folder/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token" RAY_USAGE_STATS_ENABLED=0
export MALLOC_ARENA_MAX=2 GRPC_ENABLE_FORK_SUPPORT=0
"$venv/bin/ray" start --address="$address" --disable-usage-stats --block </dev/null &
read -r _ || kill $!
wait || true
THERE
)
for host in "${hosts[@]}"; do
    mkfifo "$folder/$host"
    ssh -o BatchMode=yes "$host" "bash -c $(printf %q "$there")" <"$folder/$host" >"$folder/$host.log" 2>&1 &
    exec {pipe}>"$folder/$host"
    pipes+=("$pipe")
    {
        cat "$RAY_AUTH_TOKEN_PATH"
        echo
    } >&"$pipe"
done

await $((1 + ${#hosts[@]}))

"$VENV/bin/raydistill" "$@" --address "$address"
