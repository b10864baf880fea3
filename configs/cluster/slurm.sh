#!/usr/bin/env bash
# Trains on several nodes under Slurm: sbatch configs/cluster/slurm.sh, after setting what is marked.
# docs/cluster.md says what happens when a worker, a node or the time ends.

# One worker a node, which uses all GPUs that Slurm gives it. Several a node want
# --gpus-per-task=1 (and --ntasks-per-node) in place of --gpus-per-node.
#SBATCH --job-name=gan-mrcnn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# SIGTERM to the workers so many seconds before the time is up: a step, and saving.
#SBATCH --signal=TERM@300
# Back into the queue when a node fails or the job is preempted; it goes on from the last checkpoint.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

# To be set. All nodes must reach both folders.
export DATA_DIR=${DATA_DIR:-$HOME/glands}
export MODEL_DIR=${MODEL_DIR:-$HOME/runs/glands}
# Converted once by one worker where all nodes share it. A folder of each node, such as $TMPDIR, is
# read faster, but each node converts for itself.
export CACHE_DIR=${CACHE_DIR:-$HOME/.cache/gan_mrcnn}
# srun does not take --cpus-per-task from the lines above since Slurm 22.05.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Exit status of a run that a signal has stopped.
export STOPPED=75

# shellcheck disable=SC2329 # It is srun that calls it.
worker() {
    # Slurm's SIGTERM goes to this shell, too, which has to wait until the program has saved.
    local start status stopping=''
    trap 'stopping=yes' TERM
    for start in 1 2 3 4 5; do
        status=0
        # shellcheck disable=SC2086 # TRAIN_FLAGS are several words.
        gan-mrcnn train --cluster slurm --stopped_status "$STOPPED" --dataset gland \
            --data_dir "$DATA_DIR" --model_dir "$MODEL_DIR" --cache_dir "$CACHE_DIR" \
            ${TRAIN_FLAGS:-} || status=$?
        case $status in
            # Finished, or stopped by a signal.
            0 | "$STOPPED") return "$status" ;;
            # Something for the user to fix.
            2) break ;;
        esac
        # Stopped while it started, with nothing to save yet.
        [ -z "$stopping" ] || return "$STOPPED"
        # Killed, or out of memory. The others restart themselves and wait for this one.
        echo "worker ${SLURM_PROCID:-0} ended with status $status (start $start of 5)" >&2
        sleep 5
    done
    # They would wait for as long as there is time.
    scancel --signal=KILL "$SLURM_JOB_ID.$SLURM_STEP_ID"
    return "$status"
}
export -f worker

status=0
# Not to be ended where one has ended, for another may still be saving.
srun --kill-on-bad-exit=0 --wait=0 bash -c worker || status=$?
if [ "$status" -eq "$STOPPED" ]; then
    # Its time was up. (After a preemption Slurm has put the job back by itself.)
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
