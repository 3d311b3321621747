#!/usr/bin/env bash
# One run under Slurm: a Ray cluster over the nodes of the job, which ends with it.
#
#   raysft train my.toml --name first --set run.storage=/shared/runs --dry-run
#   RUN_JSON=/shared/runs/first/run.json sbatch --nodes=2 cluster/slurm.sh
#
# Submit it where `ray` and `raysft` are in the PATH, from an environment that all nodes see.
#SBATCH --job-name=raysft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
# --exclusive: Ray wants the node for itself, and ends all Ray of yours on it when the run ends.
# --signal: 5 minutes before the time is up the run takes a checkpoint, and then goes on with
# `--resume`. `scancel --batch --signal=TERM JOB` does the same at any time.
set -euo pipefail

: "${RUN_JSON:?which run? RUN_JSON=/shared/runs/first/run.json}"
summary=$(dirname "$RUN_JSON")/summary.json

# This script runs on the first node, which becomes the head. Where it has several networks, say
# which of its addresses the other nodes reach: HEAD_IP=...
head=${HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}:6379

# A token for this job alone, in a file that only you can read.
token=$(dirname "$RUN_JSON")/.token-$SLURM_JOB_ID
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token")
trap 'rm -f "$token"' EXIT
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
unset RAY_AUTH_TOKEN  # it would win

# Without it the run would start a Ray of its own: symmetric-run does not set it.
export RAY_ADDRESS=$head
# Nodes may start minutes apart; symmetric-run waits 30 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
# A lost node is noticed within 3 s.
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3

# A task gets one CPU if it does not ask for all. --wait: nodes need a minute to notice that the head
# has ended.
srun --kill-on-bad-exit=1 --wait=30 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
    ray symmetric-run --address "$head" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats \
    -- python -m raysft.job "$RUN_JSON" &
step=$!
# The run itself is told to end: a signal to srun would kill it.
trap 'pkill -INT -f "^python -m raysft.job $RUN_JSON" || true' TERM
while kill -0 "$step" 2>/dev/null; do
    wait "$step" || true  # also ends when a signal comes
done

# Not by the exit code: that of symmetric-run is 0 where Ray did not start, and 1 after a run that is
# done, because the cluster it has joined ends before it.
if [ "$summary" -nt "$token" ] && grep -q '^  "status": "done"' "$summary"; then
    exit 0
fi
echo "slurm.sh: not done; see above, and $summary" >&2
exit 1
