#!/usr/bin/env bash
# The batch script of slurm_array.sh: runs the argument that has the task's number, a command. Slurm signals this shell,
# and on some clusters nothing else.
set -euo pipefail

bash -c "exec env ${!SLURM_ARRAY_TASK_ID}" & # exec: what is signalled is the command itself, not a shell around it.
run=$! ended='' code=0
trap 'kill -USR1 $run || true' USR1            # The time limit is near.
trap 'ended=yes; kill -TERM $run || true' TERM # Slurm ends the job: it is cancelled, preempted or requeued.
while kill -0 $run 2> /dev/null; do
  wait $run || true # A signal cuts it short.
done
wait $run || code=$?

if [[ $code =~ ^(75|138)$ ]] && [ ! "$ended" ]; then # Saved, to be continued; 138: it had not even begun.
  trap '' TERM
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # One task's SLURM_JOB_ID is the whole array's.
fi
exit $code
