#!/usr/bin/env bash
# Submits the commands in a file, one a line, as a Slurm job array of a task a line, and prints the job's number.
#
#     scripts/slurm_array.sh sweep.txt [--concurrent N] [sbatch option]...
#     scripts/slurm_array.sh sweep.txt --concurrent 8 --time=4:00:00 --gres=gpu:1
#
#     --concurrent   how many tasks may run at once; default: as many as Slurm has room for
#
# A task logs to slurm/<job>_<task>.log. A minute ahead of the time limit its run saves a checkpoint, ends with exit code
# 75 and is queued again, until it is done; one that is preempted or requeued goes on from its checkpoint as well. The
# same file can be submitted again: runs that are finished return at once.
set -euo pipefail

fail() {
  echo "Error: $*" >&2
  exit 2
}

[ $# -gt 0 ] || fail 'which file of commands? Such as: scripts/slurm_array.sh sweep.txt --concurrent 8'
sweep=$1 concurrent='' options=()
shift
while [ $# -gt 0 ]; do
  case $1 in
    --concurrent) [ $# -gt 1 ] || fail "$1 needs a value"; set -- "$1=$2" "${@:3}" ;;
    --concurrent=*) concurrent=${1#*=}; shift ;;
    *) options+=("$1"); shift ;;
  esac
done
[[ ${concurrent:-1} =~ ^[1-9][0-9]*$ ]] || fail "--concurrent=$concurrent is not a number above 0"
[ -r "$sweep" ] || fail "$sweep cannot be read"
mapfile -t lines < <(grep -vE '^[[:space:]]*(#|$)' "$sweep")
[ ${#lines[@]} -gt 0 ] || fail "$sweep holds no command"
command -v sbatch > /dev/null || fail 'sbatch is not installed: this is no machine of a Slurm cluster'
mkdir -p slurm
sbatch --parsable --job-name="$(basename "$sweep" .txt)" --array="1-${#lines[@]}${concurrent:+%$concurrent}" --requeue \
  --signal=B:USR1@60 --output=slurm/%A_%a.log --open-mode=append ${options[@]+"${options[@]}"} \
  "$(dirname "$0")/slurm_task.sh" "${lines[@]}"
