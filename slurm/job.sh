#!/usr/bin/env bash
# The one job of all verbs. No text is put together here or before: sbatch is given the settings as its options, and
# this script the command as its arguments, word for word.
#   job.sh [--module NAME]... [--environment NAME=VALUE]... [--parts N] [--task K WORD]... [--continue-killed] -- WORD...
set -u

parts='' killed='' own=()
me=$SLURM_JOB_ID
# The first task has its array's number: without its own place it would speak for all of them.
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
while [ "$1" != -- ]; do
  case $1 in
    --continue-killed) killed=137; shift; continue ;;
    --module) module load "$2" || exit 1 ;;
    --environment) export "${2?}" ;;
    --parts) parts=$2 ;;
    --task) if [ "$2" = "${SLURM_ARRAY_TASK_ID:-}" ]; then own+=("$3"); fi; shift ;;
    *) echo "job.sh: unknown option $1" >&2; exit 64 ;;
  esac
  shift 2
done
shift
# The join has a part of its own among its words; a task of an array learns here which it is.
if [ -n "$parts" ]; then set -- "$@" "part=$SLURM_ARRAY_TASK_ID/$parts"; fi
if [ "${#own[@]}" -gt 0 ]; then set -- "$@" "${own[@]}"; fi

# What is sent to all of the job reaches the ranks by itself: this shell only has to outlive them.
trap : USR1 TERM
echo "Job $me, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"
# A rank that ends with an error takes the others along: nobody holds a node and waits for it.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@"
code=$?

# 75: saved, and to be continued. 137: a rank was killed, by srun when it hung and the others gave it up, or where
# memory ran out; a training goes on from its last checkpoint. It counts starts without progress itself
# (pipeline/training/attempts.py). A job that is being cancelled or requeued by SLURM is not running any more.
case $code in
  75 | "$killed")
    if [ "$(squeue --noheader --jobs="$me" --format=%T)" = RUNNING ]; then
      echo "Job $me goes back into the queue"
      scontrol requeue "$me"
    fi ;;
esac
exit "$code"
