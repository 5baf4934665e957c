#!/usr/bin/env bash
# The batch script of slurm_array.sh: runs the argument that has the task's number, a line of shell. Slurm signals this
# shell, and on some clusters nothing else, so this shell passes the signals on.
set -euo pipefail

# The line gets a shell and a process group of its own. The signals reach everything that the line started. Its shell
# outlives them: it waits for the command that is running, starts no further one, and ends with that command's code.
stay="trap 'code=\$?; exit \$((code ? code : 75))' USR1 TERM"
setsid bash -c "$stay"$'\n'"${!SLURM_ARRAY_TASK_ID}" &
run=$! ended='' code=0
pass_on() { kill -"$1" -- -$run 2> /dev/null || kill -"$1" $run || true; } # Its group may not be made yet.
trap 'pass_on USR1' USR1           # The time limit is near.
trap 'ended=yes; pass_on TERM' TERM # Slurm ends the job: it is cancelled, preempted or requeued.
while kill -0 $run 2> /dev/null; do
  wait $run || true # A signal cuts it short.
done
wait $run || code=$?

if [[ $code =~ ^(75|138)$ ]] && [ ! "$ended" ]; then # Saved, to be continued; 138: it had not even begun.
  trap '' TERM
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # One task's SLURM_JOB_ID is the whole array's.
fi
exit $code
