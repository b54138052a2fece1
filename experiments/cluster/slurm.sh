#!/usr/bin/env bash
# A Ray on all nodes of a Slurm job, for one command; it ends with the job.
#
#     sbatch experiments/cluster/slurm.sh train experiments/imagenet/resnet34-kd.yaml output=/shared/runs ...
#
# Everything from the command on goes to raydistill, with --address behind it. The folder that sbatch was called in and
# the virtual environment (VENV) have to be on storage that all nodes see.
#
# CHANGE: partition, account, time, and what a node of yours has.
#SBATCH --job-name=raydistill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
umask 077 # the token and all else that is written here is for nobody but the user

VENV=${VENV:-$PWD/.venv}
# shellcheck source=/dev/null
source "$VENV/bin/activate"

here=${HERE:-$PWD/experiments/cluster} # sbatch runs a copy of this file, from elsewhere

# Two jobs on one machine must not meet, and nobody else's process may join.
folder=$(mktemp -d "$PWD/.raydistill-$SLURM_JOB_ID.XXXXXX")
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
export MALLOC_ARENA_MAX=2 GRPC_ENABLE_FORK_SUPPORT=0
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"

steps=()
finish() {
    trap - EXIT TERM INT
    kill "${steps[@]}" 2>/dev/null || true # srun hands it on to the ray of its node
    wait || true
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
ip=${HEAD_IP:-$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')}
address=$ip:$port
has=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)

await() { # so many nodes
    if ! RAY_ADDRESS=$address timeout 300 python "$here/await_nodes.py" "$1"; then
        echo "slurm.sh: $1 of Ray's nodes did not come up within 300 s" >&2
        tail -n 20 "$folder"/*.log >&2
        exit 1
    fi
}

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --node-ip-address="$ip" --port="$port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" \
    --include-dashboard=false "${has[@]}" >"$folder/head.log" 2>&1 &
steps+=($!)
await 1
if ((${#nodes[@]} > 1)); then
    others=$((${#nodes[@]} - 1))
    srun --nodes="$others" --ntasks="$others" --nodelist="$(IFS=,; echo "${nodes[*]:1}")" --overlap \
        ray start --address="$address" "${has[@]}" >"$folder/workers.log" 2>&1 &
    steps+=($!)
    await "${#nodes[@]}" # a run shares out what it finds
fi

# In the background, so that a signal is dealt with at once; --resume goes on from the last checkpoint.
raydistill "$@" --address "$address" &
run=$!
trap 'kill "$run" 2>/dev/null; wait "$run" || true; exit 143' TERM
wait "$run"
