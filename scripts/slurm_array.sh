#!/usr/bin/env bash
# Submits the commands in a file, one a line, as a Slurm job array: each line becomes one task with its own log. Prints
# the number of the job.
#
#     scripts/slurm_array.sh sweep.txt [--concurrent N] [sbatch option]...
#     scripts/slurm_array.sh sweep.txt --concurrent 8 --time=4:00:00 --gres=gpu:1
#
#     --concurrent   how many tasks may run at once; default: as many as Slurm has room for
#
# A task logs to slurm/<job>_<task>.log. One minute before the time limit, the run saves a checkpoint and ends with exit
# code 75. The task is then queued again, until the run is done. A run that is preempted or requeued also continues from
# its checkpoint. The same file can be submitted again: runs that are finished return at once.
#
# A file with more lines than the cluster allows in one array (its MaxArraySize) becomes several arrays, a number a line.
# With --concurrent, each of them waits for the one before.
set -euo pipefail

fail() {
  echo "Error: $*" >&2
  exit 2
}

[ "${1:-}" != --help ] || { grep -E '^#( |$)' "$0" | cut -c3-; exit; }
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
mapfile -t lines < <(sed 's/\r$//' "$sweep" | grep -vE '^[[:space:]]*(#|$)') # \r: the file was written on Windows.
[ ${#lines[@]} -gt 0 ] || fail "$sweep holds no command"
command -v sbatch > /dev/null || fail 'sbatch is not installed: this is no machine of a Slurm cluster'
most=$(scontrol show config 2> /dev/null | awk '$1 == "MaxArraySize" { print $3 - 1 }') || true # Tasks count from 0.
[[ $most =~ ^[1-9] ]] || most=${#lines[@]}
mkdir -p slurm
job=''
for ((first = 0; first < ${#lines[@]}; first += most)); do
  chunk=("${lines[@]:first:most}") after=''
  [ -z "$concurrent" ] || after=${job:+--dependency=afterany:${job%;*}} # On some clusters: <job>;<cluster>
  job=$(sbatch --parsable --job-name="$(basename "$sweep" .txt)" --array="1-${#chunk[@]}${concurrent:+%$concurrent}" \
    --requeue --signal=B:USR1@60 --output=slurm/%A_%a.log --open-mode=append ${after:+"$after"} \
    ${options[@]+"${options[@]}"} "$(dirname "$0")/slurm_task.sh" "${chunk[@]}")
  echo "$job"
done
